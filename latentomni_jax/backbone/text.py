"""The text decoder: pre-norm GQA transformer with TMRoPE, caches explicit.

Embeddings in, hidden states out. Parameters are stacked `[L, ...]` and the layers scanned; the
cache `{"k", "v"}: [L,B,K,S,H]` is an argument and a result that goes through the scan as xs -> ys,
which XLA updates in place (as a carry it is copied). `scan_layers=False` is the same decoder for
CPU and GPU decoding, where slicing a layer out of a stack costs a copy of its weights each step:
parameters and caches are then one tree per layer (`unstack`).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone import attention
from latentomni_jax.backbone.axes import constrain
from latentomni_jax.backbone.config import TextConfig
from latentomni_jax.backbone.layers import RMSNorm, SwiGLU, dense, remat, rotate
from latentomni_jax.backbone.types import Array, Weights

Cache = dict[str, Array] | tuple[dict[str, Array], ...]


def make_cache(
    config: TextConfig,
    batch: int,
    length: int,
    dtype: Any = jnp.bfloat16,
    *,
    scan_layers: bool = True,
) -> Cache:
    """An empty cache of `length` positions (S).

    `{"k", "v"}: [L,B,K,S,H]` for scanned layers, otherwise a tuple of L `{"k", "v"}: [B,K,S,H]`.
    """
    shape = (batch, config.num_kv_heads, length, config.head_dim)

    def one(shape):
        return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}

    if scan_layers:
        return one((config.num_layers, *shape))
    return tuple(one(shape) for _ in range(config.num_layers))


def unstack(params: dict[str, Any]) -> dict[str, Any]:
    """Decoder parameters for `scan_layers=False`, in memory only: L trees `layers_0`, ...

    Stacked leaves are dropped one by one, so the peak is the weights plus one leaf.
    """
    params = dict(params)
    stacked = jax.tree_util.tree_flatten_with_path(params.pop("layers"))[0]
    while stacked:
        path, leaf = stacked.pop()
        for layer in range(leaf.shape[0]):
            tree = params.setdefault(f"layers_{layer}", {})
            for key in path[:-1]:
                tree = tree.setdefault(key.key, {})
            tree[path[-1].key] = leaf[layer]
        del leaf
    return params


def tmrope(
    config: TextConfig, position_ids: Int[Array, "3 B T"]
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosines and sines f32 of TMRoPE (Qwen2.5-Omni): three axes share the head dimension.

    Frequency i belongs to the axis whose `mrope_section` holds i: the first 16 to time, the next
    24 to height, the last 24 to width. Text has equal ids on all axes.
    """
    half = config.head_dim // 2
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponent)
    axis = jnp.repeat(
        jnp.arange(len(config.mrope_section)) % 3,
        jnp.array(config.mrope_section),
        total_repeat_length=half,
    )
    angles_bth = jnp.moveaxis(position_ids, 0, -1)[..., axis].astype(jnp.float32) * frequencies
    return jnp.cos(angles_bth), jnp.sin(angles_bth)


class DecoderLayer(nn.Module):
    """One decoder layer; see `Decoder` for the three ways it is called."""

    config: TextConfig
    dtype: Any
    param_dtype: Any
    implementation: attention.Implementation
    platform: str | None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    weights: Weights = None

    @nn.compact
    def __call__(self, x_btd, cache, rope, write_index, visible_bts, hidden=None):
        config = self.config
        batch, length, _ = x_btd.shape
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear = types | {
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "weights": self.weights,
        }

        def heads(name, count, y):
            y = dense(count * config.head_dim, ("embed", "heads"), name, bias=True, **linear)(y)
            return y.reshape(batch, length, count, config.head_dim)

        y = RMSNorm(config.rms_norm_eps, name="input_norm", **types)(x_btd)
        with jax.named_scope("qkv"):
            q_btnh = rotate(heads("q_proj", config.num_heads, y), *rope)
            k_btkh = rotate(heads("k_proj", config.num_kv_heads, y), *rope)
            v_btkh = heads("v_proj", config.num_kv_heads, y)
        if cache is not None:
            cache = {
                name: _write(cache[name], new.swapaxes(1, 2).astype(cache[name].dtype), write_index)
                for name, new in (("k", k_btkh), ("v", v_btkh))
            }
        if visible_bts is not None:
            out = attention.attend_cached(q_btnh, cache["k"], cache["v"], visible_bts)
        else:
            out = attention.attend(
                q_btnh,
                k_btkh,
                v_btkh,
                causal=True,
                hidden=hidden,
                implementation=self.implementation,
                platform=self.platform,
            )
        out = out.astype(x_btd.dtype).reshape(batch, length, -1)
        x_btd = x_btd + dense(
            config.hidden_size, ("heads", "embed"), "o_proj", bias=False, **linear
        )(out)
        y = RMSNorm(config.rms_norm_eps, name="post_norm", **types)(x_btd)
        x_btd = x_btd + SwiGLU(config.intermediate_size, bias=False, name="mlp", **linear)(y)
        self.sow("intermediates", "out", x_btd)  # kept only where the caller asks for it
        return x_btd, cache


def _write(cache_bksh, new_bkth, index):
    """The cache with `new` from slot `index` on: the same slot in all rows, or i32[B] one each."""
    update = jax.lax.dynamic_update_slice_in_dim
    if jnp.ndim(index) == 0:
        return update(cache_bksh, new_bkth, index, axis=2)
    return jax.vmap(functools.partial(update, axis=1))(cache_bksh, new_bkth, index)


class Decoder(nn.Module):
    """Embedding table, decoder layers, final norm and language head.

    `decode` runs the layers in one of three ways:
      * no cache: causal over `x`;
      * cache, no `visible`: causal over `x` (a prompt), keys and values written at `write_index`;
      * cache and `visible`: every query sees the cache slots marked True (decode steps).
    With `lora_rank` > 0 every linear map of the layers has an adapter, see `layers.LoraDense`; with
    `weights="int8"` their kernels and the head's are int8, see `layers.Int8Dense`. The embedding
    table keeps its width, and a tied head with it.
    """

    config: TextConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    implementation: attention.Implementation = "auto"
    platform: str | None = None
    remat_policy: str = "none"
    scan_layers: bool = True
    lora_rank: int = 0
    lora_alpha: float = 16.0
    weights: Weights = None

    def setup(self):
        config = self.config
        self.embed_tokens = self.param(
            "embed_tokens",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed")),
            (config.vocab_size, config.hidden_size),
            self.param_dtype,
        )
        layer = remat(DecoderLayer, self.remat_policy)
        args = (config, self.dtype, self.param_dtype, self.implementation, self.platform)
        args += (self.lora_rank, self.lora_alpha, self.weights)
        if self.scan_layers:
            self.layers = nn.scan(
                layer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=(0, *(nn.broadcast,) * 4),
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(*args)
        else:
            self.layers = [layer(*args) for _ in range(config.num_layers)]
        self.norm = RMSNorm(config.rms_norm_eps, dtype=self.dtype, param_dtype=self.param_dtype)
        if not config.tie_embeddings:
            self.lm_head = dense(
                config.vocab_size,
                ("embed", "vocab"),
                None,
                bias=False,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                weights=self.weights,
            )

    def embed(self, token_ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        rows = jnp.take(self.embed_tokens, token_ids, axis=0).astype(self.dtype)
        return constrain("embedding", rows)

    def decode(
        self,
        x_btd: Float[Array, "B T D"],
        position_ids: Int[Array, "3 B T"],
        cache: Cache | None = None,
        write_index: Int[Array, ""] | Int[Array, B] | int = 0,
        visible_bts: Bool[Array, "B T S"] | None = None,
        hidden: attention.Hidden | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Hidden states after the final norm (what the head reads), and the updated cache.

        Args:
          x_btd: input embeddings.
          position_ids: TMRoPE ids.
          cache: see `make_cache`.
          write_index: first cache slot of the new keys and values, for all rows or for each.
          visible_bts: cache slots that each query sees.
          hidden: (bool[B,T], bool[B,T]) queries and the keys they do not see, where attention is
            causal over `x`; with `visible_bts`, that says it all.
        """
        rope = tmrope(self.config, position_ids)
        x_btd = x_btd.astype(self.dtype)
        if self.scan_layers:
            x_btd, cache = self.layers(x_btd, cache, rope, write_index, visible_bts, hidden)
            return self.norm(x_btd), cache
        caches = cache if cache is not None else [None] * self.config.num_layers
        updated = []
        for layer, one in zip(self.layers, caches, strict=True):
            x_btd, one = layer(x_btd, one, rope, write_index, visible_bts, hidden)
            updated.append(one)
        return self.norm(x_btd), tuple(updated) if cache is not None else None

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Language-head scores, f32."""
        if self.config.tie_embeddings:
            scores = jnp.einsum(
                "...d,vd->...v",
                hidden.astype(self.dtype),
                self.embed_tokens.astype(self.dtype),
                preferred_element_type=jnp.float32,
            )
        else:
            scores = self.lm_head(hidden)
        return scores.astype(jnp.float32)

    def __call__(self, token_ids, position_ids):
        """Token logits of a text-only sequence; touches every parameter (initialisation)."""
        return self.logits(self.decode(self.embed(token_ids), position_ids)[0])
