"""Where a model looks: attention weights of chosen positions, and what they add up to.

Weights are not kept by the decoder. Its queries and keys are taken from one pass over what was
generated (`replay`), and the rows that are asked for are computed from them, so that a row of many
thousand positions costs no square of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from latentomni_jax.backbone.layers import rotate
from latentomni_jax.backbone.text import tmrope, unstack
from latentomni_jax.backbone.types import Array
from latentomni_jax.evaluate.replay import Replay
from latentomni_jax.latent.masks import flow_mask
from latentomni_jax.layout import Role
from latentomni_jax.model import LatentOmni

_SEEN, _HEARD = (Role.PROMPT_VIDEO,), (Role.PROMPT_AUDIO,)
_SLOTS = (Role.LATENT_VISUAL, Role.LATENT_AUDIO)


class Shares(NamedTuple):
    """Where the weight of some queries goes, means over layers, heads and queries; sums to 1.

    Attributes:
      video, audio: tokens of the clip. latent: slots of latent blocks. text: all else.
      through_latents: on the clip by way of the slots: the weight on each slot times that slot's
        own weight on the clip. Not part of the sum.
    """

    video: float
    audio: float
    latent: float
    text: float
    through_latents: float


def attention_weights(
    model: LatentOmni, row: Replay, queries: Sequence[int]
) -> Float[np.ndarray, "L N Q S"]:
    """Attention weights f32 of the queries (positions of the row) in every layer and head."""
    thinker, params = model.thinker, model.text_params
    if thinker.scan_layers:
        thinker = thinker.clone(scan_layers=False)
        params = {**params, "text": unstack(params["text"])}
    return np.asarray(_weights(thinker, params, model.latent, row, np.asarray(queries)))


def _weights(thinker, params, spec, row, queries):
    hidden = flow_mask(spec, jnp.asarray(row.roles)[None])
    positions = jnp.asarray(row.position_ids)
    _, captured = thinker.apply(
        {"params": params},
        row.embeds,
        positions,
        hidden=hidden,
        method="decode",
        capture_intermediates=lambda module, _: module.name in ("q_proj", "k_proj"),
        mutable=["intermediates"],
    )
    config = thinker.config.text
    rope = tmrope(config, positions)
    length = row.embeds.shape[1]
    visible = np.arange(length) <= queries[:, None]
    if hidden is not None:
        blocked, media = (np.asarray(x)[0] for x in hidden)
        visible &= ~(blocked[queries][:, None] & media)
    layers = captured["intermediates"]["text"]
    return jnp.stack(
        [
            _layer_weights(config, layers[f"layers_{i}"], rope, queries, jnp.asarray(visible))
            for i in range(config.num_layers)
        ]
    )


def _layer_weights(config, captured, rope, queries, visible: Array) -> Array:
    """[N,Q,S] of one layer."""

    def heads(name, count):
        (y,) = captured[name]["__call__"]
        return rotate(y.reshape(1, y.shape[1], count, config.head_dim), *rope)[0]

    q = heads("q_proj", config.num_heads)[queries].astype(jnp.float32)
    k = heads("k_proj", config.num_kv_heads).astype(jnp.float32)
    q = q.reshape(len(queries), config.num_kv_heads, -1, config.head_dim)
    scores = jnp.einsum("qkgh,skh->kgqs", q, k) * config.head_dim**-0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return weights.reshape(config.num_heads, *weights.shape[2:])


def shares(model: LatentOmni, row: Replay, queries: Sequence[int]) -> Shares:
    """What the queries look at, directly and through the latent slots before them."""
    slots = np.flatnonzero(np.isin(row.roles, _SLOTS))
    both = attention_weights(model, row, [*queries, *slots]).mean(axis=(0, 1))  # [Q + slots, S]
    of_queries, of_slots = both[: len(queries)].mean(axis=0), both[len(queries) :]
    clip = np.isin(row.roles, (*_SEEN, *_HEARD))
    video, audio, latent = (
        float(of_queries[np.isin(row.roles, roles)].sum()) for roles in (_SEEN, _HEARD, _SLOTS)
    )
    through = float(of_queries[slots] @ of_slots[:, clip].sum(axis=1)) if len(slots) else 0.0
    return Shares(video, audio, latent, 1.0 - video - audio - latent, through)


def over_clip(
    model: LatentOmni, row: Replay, seconds: float, cells: int = 40
) -> list[tuple[Float[np.ndarray, "K frames"], Float[np.ndarray, "K cells"]]]:
    """Of every block, where the states look in the clip: means over layers and heads.

    Args:
      seconds: length of the prompt's clip. cells: stretches of its sound.

    Returns:
      For each state of a block, the weight that the position which made it has on every frame and
      on every stretch of the sound.
    """
    slots = np.flatnonzero(np.isin(row.roles, _SLOTS))
    if not len(slots):
        return []
    weights = attention_weights(model, row, slots - 1).mean(axis=(0, 1))
    ids = np.asarray(row.position_ids[0, 0])  # 25 a second, on the clock that both share
    seen, heard = (np.flatnonzero(np.isin(row.roles, roles)) for roles in (_SEEN, _HEARD))
    frames = np.unique(ids[seen])
    by_frame = weights[:, seen] @ (ids[seen][:, None] == frames)
    places = ids[heard] - ids[[*seen[:1], *heard[:1]]].min(initial=ids.max())
    places = (places / model.config.positions_per_second / seconds * cells).astype(int)
    by_cell = weights[:, heard] @ (np.minimum(places, cells - 1)[:, None] == np.arange(cells))
    k = model.latent.num_latents
    return [(by_frame[i : i + k], by_cell[i : i + k]) for i in range(0, len(slots), k)]
