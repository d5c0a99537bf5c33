"""Where a model looks: attention weights of chosen positions, and what they add up to.

Weights are not kept by the decoder. Its queries and keys are taken from one pass over what was
generated (`replay`) through its own layers, and reduced where they are formed: some queries of one
layer at a time, over the keys of a kind, or over layers and heads. So memory grows with the row's
length and not with its square, and no array has layers, heads, queries and keys.

Keys are told apart by the role of their place in the row, whichever cache slot decoding held them
in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from latentomni_jax.backbone.layers import rotate
from latentomni_jax.backbone.text import tmrope
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Array
from latentomni_jax.evaluate.replay import Replay
from latentomni_jax.latent.masks import flow_mask
from latentomni_jax.layout import AudioPart, InputError, LatentSpec, Role, bucket
from latentomni_jax.model import LatentOmni

KINDS = ("video", "audio", "latent", "text")
_SEEN, _HEARD = (Role.PROMPT_VIDEO,), (Role.PROMPT_AUDIO,)
SLOTS = (Role.LATENT_VISUAL, Role.LATENT_AUDIO)
_QUERIES = (64, 128, 256, 512)  # static counts of queries and of slots
_CHUNK = 16  # queries whose weights exist at once


class Shares(NamedTuple):
    """Where the weight of some queries goes, means over layers, heads and queries.

    Attributes:
      video, audio: tokens of the clip. latent: slots of latent blocks. text: all else. The four
        sum to 1.
      through_latents: on the clip by way of the slots: the weight on each slot times that slot's
        own weight on the clip (its mean over layers and heads). Not part of the sum.
    """

    video: float
    audio: float
    latent: float
    text: float
    through_latents: float


class Looks(NamedTuple):
    """Where some positions of a row look, a query each.

    Attributes:
      direct: f32[L,N,Q,4] shares of a query's weight by kind of key, in the order of `KINDS`.
      through: f32[L,N,Q] on the clip by way of latent slots, see `Shares`.
      keys: f32[Q,S] weight on every position of the row, mean over layers and heads.
    """

    direct: Float[np.ndarray, "L N Q kinds"]
    through: Float[np.ndarray, "L N Q"]
    keys: Float[np.ndarray, "Q S"]

    def shares(self, which: Any = slice(None)) -> Shares:
        """Of some of the queries (indices, at least one)."""
        direct = self.direct[:, :, which].mean(axis=(0, 1, 2), dtype=np.float64)
        through = self.through[:, :, which].mean(dtype=np.float64)
        return Shares(*map(float, direct), float(through))

    def by_layer(self, which: Any = slice(None)) -> list[Shares]:
        """The same of every layer."""
        layers = range(len(self.direct))
        return [
            self._replace(direct=self.direct[i : i + 1], through=self.through[i : i + 1]).shares(
                which
            )
            for i in layers
        ]


def look(model: LatentOmni, row: Replay, queries: Sequence[int]) -> Looks:
    """Where the queries (positions of the row) look, in every layer and head.

    One program for all rows of a bucket's length with so many queries and slots, rounded up.

    Raises:
      InputError: a model that lies on a mesh.
    """
    if model.mesh is not None:
        raise InputError("attention is read on one device: load the model without a mesh")
    length = len(row.roles)
    slots = np.flatnonzero(np.isin(row.roles, SLOTS))
    direct, keys = _look(
        model.thinker,
        model.latent,
        model.text_params,
        row.embeds,
        row.position_ids,
        row.roles,
        _filled(queries, 0),
        _filled(slots, length),
    )
    direct, keys = np.asarray(direct)[:, :, : len(queries)], np.asarray(keys)[: len(queries)]
    return Looks(direct[..., : len(KINDS)], direct[..., len(KINDS)], keys)


def shares(model: LatentOmni, row: Replay, queries: Sequence[int]) -> Shares:
    """What the queries look at, directly and through the latent slots before them."""
    return look(model, row, queries).shares()


# ------------------------------------------------------------------------- maps


def over_clip(
    model: LatentOmni, row: Replay, seconds: float, cells: int = 40
) -> list[tuple[Float[np.ndarray, "K T h w"], Float[np.ndarray, "K cells"]]]:
    """Of every block, where the states look in the clip: means over layers and heads.

    Args:
      seconds: length of the prompt's clip. cells: stretches of its sound.

    Returns:
      For each state of a block, the weight that the position which made it has on every token of
      the pictures and on every stretch of the sound.

    Raises:
      InputError: the prompt has several media.
    """
    slots = np.flatnonzero(np.isin(row.roles, SLOTS))
    if not len(slots):
        return []
    keys = look(model, row, slots - 1).keys
    seen, heard = clip_maps(model, row, keys, seconds, cells)
    k = model.latent.num_latents
    return [(seen[i : i + k], heard[i : i + k]) for i in range(0, len(slots), k)]


def clip_maps(
    model: LatentOmni, row: Replay, keys: Float[np.ndarray, "Q S"], seconds: float, cells: int
) -> tuple[Float[np.ndarray, "Q T h w"], Float[np.ndarray, "Q cells"]]:
    """Weights on the row's positions, laid out over the pictures and over the sound.

    Args:
      keys: see `Looks`. seconds, cells: see `over_clip`.

    Returns:
      [Q,T,h,w] in the grid of the pictures' tokens, [Q,0,0,0] without pictures; [Q,cells].

    Raises:
      InputError: the prompt has several media.
    """
    seen, heard = (np.flatnonzero(np.isin(row.roles, roles)) for roles in (_SEEN, _HEARD))
    over_frames = keys[:, seen].reshape(len(keys), *picture_grid(model, row))
    places = np.arange(len(heard)) / model.config.positions_per_second  # a token each
    places = np.minimum((places / seconds * cells).astype(int), cells - 1)
    return over_frames, keys[:, heard] @ (places[:, None] == np.arange(cells)).astype(keys.dtype)


def picture_grid(model: LatentOmni, row: Replay) -> tuple[int, int, int]:
    """(T, h, w) of the prompt's picture tokens, zeros without pictures.

    Raises:
      InputError: the prompt has several media.
    """
    if len(row.media) > 1:
        raise InputError(
            f"attention over a clip needs a prompt with one clip, this one has {len(row.media)}"
        )
    if not row.media or isinstance(row.media[0], AudioPart):
        return 0, 0, 0
    time, height, width = row.media[0].grid
    merge = model.config.vision.merge_size
    return time, height // merge, width // merge


# ------------------------------------------------------------------------- program


def _filled(places: Any, filler: int) -> np.ndarray:
    """Positions i32, as many as a program is compiled for."""
    found = np.full(bucket(len(places), _QUERIES), filler, np.int32)
    found[: len(places)] = places
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(
    thinker: Thinker,
    spec: LatentSpec,
    params: Any,
    embeds: Array,
    position_ids: Array,
    roles: Array,
    queries: Array,
    slots: Array,
) -> tuple[Array, Array]:
    """Shares [L,N,Q,5], by kind and through latents, and means over layers and heads [Q,S].

    Args:
      queries: i32[Q] positions. slots: i32[Z] positions of latent slots, S where there is none.
    """
    length = len(roles)
    hidden = flow_mask(spec, roles[None])
    picked = jnp.concatenate([queries, slots])
    q_lqnh, k_lskh = _queries_and_keys(thinker, params, embeds, position_ids, hidden, picked)

    def visible(queries: Array) -> Array:
        sees = jnp.arange(length) <= queries[:, None]
        if hidden is not None:
            blocked, media = hidden[0][0], hidden[1][0]
            sees &= ~(blocked[queries][:, None] & media)
        return sees

    kinds = [jnp.isin(roles, jnp.array(of, jnp.int8)) for of in (_SEEN, _HEARD, SLOTS)]
    kinds.append(~(kinds[0] | kinds[1] | kinds[2]))
    kinds_sg = jnp.stack(kinds, axis=1).astype(jnp.float32)
    clip_s1 = kinds_sg[:, :1] + kinds_sg[:, 1:2]
    # First the slots, whose own weight on the clip is then one more column of the queries' sums.
    of_slots, _ = _reduced(q_lqnh[:, len(queries) :], k_lskh, slots, visible, clip_s1)
    through = jnp.zeros(length).at[slots].set(of_slots[..., 0].mean(axis=(0, 1)), mode="drop")
    columns_sg = jnp.concatenate([kinds_sg, through[:, None]], axis=1)
    return _reduced(q_lqnh[:, : len(queries)], k_lskh, queries, visible, columns_sg)


def _queries_and_keys(thinker, params, embeds, position_ids, hidden, picked):
    """Rotated queries [L,Q,N,H] of the picked positions and keys [L,S,K,H], of one pass."""

    def keep(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.module.name in ("q_proj", "k_proj"):
            kept = y[0, picked] if context.module.name == "q_proj" else y[0]
            context.module.sow("intermediates", "kept", kept)
        return y

    with nn.intercept_methods(keep):
        _, sown = thinker.apply(
            {"params": params},
            embeds,
            position_ids,
            hidden=hidden,
            method="decode",
            mutable=["intermediates"],
        )
    config, sown = thinker.config.text, sown["intermediates"]["text"]
    cos, sin = tmrope(config, position_ids)

    def heads(name, count, places):
        if thinker.scan_layers:
            (y,) = sown["layers"][name]["kept"]
        else:
            layers = (sown[f"layers_{i}"] for i in range(config.num_layers))
            y = jnp.stack([layer[name]["kept"][0] for layer in layers])
        y = y.reshape(*y.shape[:2], count, config.head_dim)
        return rotate(y, *(jnp.repeat(x[:, places], len(y), axis=0) for x in (cos, sin)))

    q_lqnh = heads("q_proj", config.num_heads, picked)
    return q_lqnh, heads("k_proj", config.num_kv_heads, slice(None))


def _reduced(
    q_lqnh: Array,
    k_lskh: Array,
    queries: Array,
    visible: Callable[[Array], Array],
    columns_sg: Array,
) -> tuple[Array, Array]:
    """Attention weights times columns [L,N,Q,G], and their means over layers and heads [Q,S]."""
    layers, count, heads, width = q_lqnh.shape

    def of_chunk(xs):
        q_lcnh, queries = xs
        sees_cs = visible(queries)

        def of_layer(total_cs, xs):
            q_cnh, k_skh = xs
            q_ckgh = q_cnh.reshape(_CHUNK, k_skh.shape[1], -1, width)
            scores = jnp.einsum("ckgh,skh->kgcs", q_ckgh, k_skh, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(jnp.where(sees_cs, scores * width**-0.5, -jnp.inf))
            # Sums of shares: to the last bit, also where products are rounded by default.
            sums = jnp.einsum("kgcs,sf->kgcf", weights, columns_sg, precision="highest")
            return total_cs + weights.sum(axis=(0, 1)), sums.reshape(heads, _CHUNK, -1)

        total_cs, sums = jax.lax.scan(
            of_layer, jnp.zeros(sees_cs.shape, jnp.float32), (q_lcnh, k_lskh)
        )
        return sums, total_cs / (layers * heads)

    chunks = count // _CHUNK
    q_by_chunk = q_lqnh.reshape(layers, chunks, _CHUNK, heads, width).swapaxes(0, 1)
    sums, means = jax.lax.map(of_chunk, (q_by_chunk, queries.reshape(chunks, _CHUNK)))
    sums = jnp.moveaxis(sums, 0, 2)  # [L,N,chunks,chunk,G]
    return sums.reshape(*sums.shape[:2], count, -1), means.reshape(count, -1)
