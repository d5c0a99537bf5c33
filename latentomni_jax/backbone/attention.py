"""Attention, and the one place that chooses its backend.

`attend` serves whole sequences (training, prefill, encoders), `attend_cached` the few queries of a
decode step against a cache. Shapes: B batch, T query, S key, N query heads, K kv heads, H head
dim; N is a multiple of K (grouped-query attention) and kv heads are never repeated in memory.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone import plain, splash
from latentomni_jax.backbone.types import Array

Implementation = Literal["auto", "xla", "splash", "cudnn"]
# Queries marked in the first do not see keys marked in the second (both also obey the rest).
Hidden = tuple[Bool[Array, "B T"], Bool[Array, "B S"]]


def choose(
    implementation: Implementation,
    *,
    platform: str,
    dtype: jnp.dtype,
    query_length: int,
    hidden: bool = False,
) -> Literal["xla", "splash", "cudnn"]:
    """The backend that `attend` will use.

    Args:
      implementation: a name forces that backend; "auto" picks by platform.
      platform: "cpu", "gpu" or "tpu".
      dtype: of the queries; cuDNN takes only 16-bit ones.
      query_length: splash wants multiples of 128.
      hidden: some queries do not see some keys, which cuDNN has no linear-memory mask for.

    Raises:
      ValueError: the forced backend cannot serve these inputs (never a silent fallback).
    """
    splash_fits = query_length % 128 == 0
    cudnn_fits = dtype in (jnp.bfloat16, jnp.float16) and not hidden
    if implementation == "auto":
        if platform == "tpu" and splash_fits:
            return "splash"
        if platform == "gpu" and cudnn_fits:
            return "cudnn"
        return "xla"
    if implementation == "splash" and not splash_fits:
        raise ValueError(f"splash attention needs a multiple of 128 queries, got {query_length}")
    if implementation == "cudnn" and hidden:
        raise ValueError(
            "cuDNN attention cannot hide media from later text (flow 'bottleneck'): take "
            "implementation='auto' or 'xla', or flow 'open'"
        )
    if implementation == "cudnn" and not cudnn_fits:
        raise ValueError(f"cuDNN attention needs bfloat16 or float16, got {dtype}")
    if implementation not in ("xla", "splash", "cudnn"):
        raise ValueError(f"unknown attention implementation {implementation!r}")
    return implementation


def attend(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B T K H"],
    v_bskh: Float[Array, "B T K H"],
    *,
    causal: bool,
    lengths: Int[Array, B] | None = None,
    hidden: Hidden | None = None,
    implementation: Implementation = "auto",
    platform: str | None = None,
) -> Float[Array, "B T N H"]:
    """Self-attention over a whole sequence, softmax in f32.

    Args:
      q_btnh, k_bskh, v_bskh: queries, keys, values; already rotated, not scaled.
      causal: query t sees keys 0..t, otherwise all.
      lengths: keys at or beyond it are invisible. Outputs of queries beyond it are unspecified.
      hidden: (bool[B,T], bool[B,T]): queries marked in the first do not see keys marked in the
        second. The output of a query that then sees no key is unspecified.
      implementation: see `choose`.
      platform: where the program will run; default is JAX's backend (ahead-of-time compilation
        for a TPU on a CPU host passes "tpu").

    Returns:
      Attention output in the dtype of the queries.
    """
    backend = choose(
        implementation,
        platform=platform or _platform(),
        dtype=q_btnh.dtype,
        query_length=q_btnh.shape[1],
        hidden=hidden is not None,
    )
    with jax.named_scope(f"attention_{backend}"):
        if backend == "splash":
            return splash.attend(
                q_btnh, k_bskh, v_bskh, causal=causal, lengths=lengths, hidden=hidden
            )
        if backend == "cudnn":
            return jax.nn.dot_product_attention(
                q_btnh,
                k_bskh,
                v_bskh,
                is_causal=causal,
                key_value_seq_lengths=lengths,
                query_seq_lengths=lengths,
                implementation="cudnn",
            )
        blocked, media = hidden or (None, None)
        mask = plain.Mask(lengths=lengths, blocked=blocked, media=media)
        return plain.attend(
            q_btnh, k_bskh, v_bskh, causal=causal, mask=mask, platform=platform or _platform()
        )


def attend_cached(
    q_btnh: Float[Array, "B T N H"],
    k_bksh: Float[Array, "B K S H"],
    v_bksh: Float[Array, "B K S H"],
    visible_bts: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Attention of a few queries to a cache, near the bandwidth bound: two einsums.

    Args:
      k_bksh, v_bksh: the cache, heads outside positions: the keys of a head are one contiguous
        matrix, which on CPU takes a third off this function and on TPU changes nothing.
      visible_bts: True where query t may look at cache slot s.
    """
    b, t, n, h = q_btnh.shape
    k = k_bksh.shape[1]
    groups = (n // k) * t
    heads_outside = ((0, 1), (0, 1))
    with jax.named_scope("attention_cached"):
        # Written as dot_general with the few queries on the left: an einsum lets the cache be the
        # left operand, which on CPU costs twice the time in transposes.
        q_bkth = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
        q_bkth = q_bkth.reshape(b, k, groups, h) * h**-0.5
        scores = jax.lax.dot_general(
            q_bkth, k_bksh, (((3,), (3,)), heads_outside), preferred_element_type=jnp.float32
        ).reshape(b, k, n // k, t, -1)
        scores = jnp.where(visible_bts[:, None, None], scores, plain.NEGATIVE)
        weights = jax.nn.softmax(scores, axis=-1).astype(v_bksh.dtype).reshape(b, k, groups, -1)
        out = jax.lax.dot_general(weights, v_bksh, (((3,), (2,)), heads_outside))
        out = out.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4)
        return out.reshape(b, t, n, h)


def local_attend(
    q_btnh: Float[Array, "B T N H"],
    k_btnh: Float[Array, "B T N H"],
    v_btnh: Float[Array, "B T N H"],
    segments_bt: Int[Array, "B T"],
    *,
    block: int,
    platform: str | None = None,
) -> Float[Array, "B T N H"]:
    """Attention inside contiguous segments of at most `block` positions.

    A segment touches at most two neighbouring blocks, so a query block looks at its own block and
    the ones beside it, masked by equality of segment ids: static shapes whatever the windows are,
    and no gather into padded windows.

    ```
    segments  0 0 0 1 1 1 | 1 1 2 2 2 3 | 3 3 . . . .      block = 6
    block 1 reads keys of blocks 0, 1, 2 and keeps those with its own id
    ```

    Args:
      segments_bt: segment id of each position; T is a multiple of `block`.
    """
    b, t, n, h = q_btnh.shape
    blocks = t // block
    attend_plain = functools.partial(plain.attend, causal=False, platform=platform or _platform())
    if blocks == 1:
        mask = plain.Mask(query_ids=segments_bt, key_ids=segments_bt)
        return attend_plain(q_btnh, k_btnh, v_btnh, mask=mask)

    def neighbours(x, fill):
        """[B, blocks, block, ...] -> [B, blocks, 3 * block, ...]: previous, own, next block."""
        pad = [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad, constant_values=fill)
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    def blocked(x):
        return x.reshape(b, blocks, block, *x.shape[2:])

    ids = blocked(segments_bt)
    mask = plain.Mask(
        query_ids=ids.reshape(b * blocks, block),
        key_ids=neighbours(ids, -2).reshape(b * blocks, 3 * block),
    )
    out = attend_plain(
        blocked(q_btnh).reshape(b * blocks, block, n, h),
        neighbours(blocked(k_btnh), 0).reshape(b * blocks, 3 * block, n, h),
        neighbours(blocked(v_btnh), 0).reshape(b * blocks, 3 * block, n, h),
        mask=mask,
    )
    return out.reshape(b, t, n, h)


def _platform() -> str:
    backend = jax.default_backend()
    return "gpu" if backend in ("cuda", "rocm") else backend
