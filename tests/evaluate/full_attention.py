"""Attention weights of every position in float64, from the definition: the oracle of the tests."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from latentomni_jax.evaluate.replay import Replay
from latentomni_jax.latent.masks import flow_mask
from latentomni_jax.layout import Role
from latentomni_jax.model import LatentOmni

SLOTS = (Role.LATENT_VISUAL, Role.LATENT_AUDIO)
OF_KIND = {
    "video": (Role.PROMPT_VIDEO,),
    "audio": (Role.PROMPT_AUDIO,),
    "latent": SLOTS,
    "text": (Role.PROMPT_TEXT, Role.ASSISTANT_TEXT, Role.TRIGGER, Role.STOP),
}


_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pass(thinker, spec, params, embeds, positions, roles):
    return thinker.apply(
        {"params": params},
        embeds,
        positions,
        hidden=flow_mask(spec, roles[None]),
        method="decode",
        capture_intermediates=lambda module, _: module.name in _MAPS,
        mutable=["intermediates"],
    )[1]["intermediates"]["text"]


def projections(model: LatentOmni, row: Replay, name: str) -> np.ndarray:
    """What a linear map of the layers made of the row, f64[L,length,features].

    Of the unpadded row, and of a model whose layers are unrolled.
    """
    length = row.length
    captured = _pass(
        model.thinker,
        model.latent,
        model.text_params,
        row.embeds[:, :length],
        row.position_ids[:, :, :length],
        jnp.asarray(row.roles[:length]),
    )
    layers = range(model.config.text.num_layers)
    made = [captured[f"layers_{i}"][name]["__call__"][0][0] for i in layers]
    return np.stack(made).astype(np.float64)


def full_weights(model: LatentOmni, row: Replay) -> np.ndarray:
    """f64[L,N,length,length]: softmax over all keys of all queries at once, nothing in chunks."""
    config, roles = model.config.text, row.roles[: row.length]
    q = _rotated(config, projections(model, row, "q_proj"), row, config.num_heads)
    k = _rotated(config, projections(model, row, "k_proj"), row, config.num_kv_heads)
    k = np.repeat(k, config.num_heads // config.num_kv_heads, axis=2)
    scores = np.einsum("lqnh,lsnh->lnqs", q, k) / np.sqrt(config.head_dim)
    hidden = np.triu(np.ones((row.length, row.length), bool), 1)
    if model.latent.flow == "bottleneck" and Role.TRIGGER in roles:
        first = np.flatnonzero(roles == Role.TRIGGER)[0]
        media = np.isin(roles, (Role.PROMPT_VIDEO, Role.PROMPT_AUDIO))
        for query in range(first, row.length):
            if roles[query] not in (Role.TRIGGER, *SLOTS):
                hidden[query] |= media
    scores[:, :, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _rotated(config, x, row, heads):
    """TMRoPE: pair (i, i + H/2) turns by position / theta^(2i/H), of the axis that i belongs to."""
    half = config.head_dim // 2
    x = x.reshape(*x.shape[:2], heads, config.head_dim)
    axes = np.repeat([0, 1, 2], config.mrope_section)
    ids = row.position_ids[:, 0, : row.length].astype(np.float64)
    angles = ids[axes].T * config.rope_theta ** (-np.arange(half) / half)  # [length, half]
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def shares_of(row: Replay, weights: np.ndarray) -> np.ndarray:
    """f64[L,N,length,4] of `full_weights`, by the kinds of `OF_KIND`."""
    roles = row.roles[: row.length]
    return np.stack(
        [weights[..., np.isin(roles, of)].sum(axis=-1) for of in OF_KIND.values()], axis=-1
    )


def through_of(row: Replay, weights: np.ndarray) -> np.ndarray:
    """f64[L,N,length]: over slots, a weight on the slot times the slot's mean weight on media."""
    slots = np.flatnonzero(np.isin(row.roles, SLOTS))
    clip = shares_of(row, weights)[..., :2].sum(axis=-1).mean(axis=(0, 1))
    return weights[..., slots] @ clip[slots]
