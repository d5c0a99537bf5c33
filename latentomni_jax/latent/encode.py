"""Media of a training batch become input embeddings.

Every row has its own frames, chunks and feature table, so that rows can lie on different devices.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Array
from latentomni_jax.layout import MediaSpec, TrainBatch


def normalise(media: MediaSpec, pixels: Integer[Array, "*B patch"], dtype: Any) -> Array:
    """Pixels u8 -> the vision encoder's input, as the checkpoint's image processor makes it."""
    scale, shift = media.normalisation()
    return (pixels.astype(jnp.float32) * scale + shift).astype(dtype)


def encode_media(
    thinker: Thinker,
    media: MediaSpec,
    params: Any,
    batch: TrainBatch,
    frames_per_call: int,
    frozen: tuple[str, ...] = (),
) -> Float[Array, "B R D"]:
    """Every row's feature table, see `layout.TrainBatch` (at least one row).

    Args:
      frames_per_call: of a row, at most; bounds the encoder's activations.
      frozen: towers ("vision", "audio") that get no gradient. What comes of segments never does.
    """
    fixed = jax.lax.stop_gradient(params)
    parts = (batch.prompt, batch.segments)

    def encode(tower, function, *names):
        """Features [B, frames or chunks, tokens, D] of the prompt, and of the segments."""
        inputs = [[getattr(part, name) for name in names] for part in parts]
        if tower in frozen:  # what learns nothing goes through in one call
            both = (jnp.concatenate(pair, axis=1) for pair in zip(*inputs, strict=True))
            return jnp.split(function(fixed, *both), [inputs[0][-1].shape[1]], axis=1)
        return [function(p, *one) for p, one in zip((params, fixed), inputs, strict=True)]

    seen = encode("vision", functools.partial(_see, thinker, media, frames_per_call),
                  "patches", "rows_columns", "windows", "restore", "patch_lengths")  # fmt: skip
    heard = encode("audio", functools.partial(_hear, thinker), "mel", "mel_lengths")
    b, width = len(batch.lengths), thinker.config.text.hidden_size
    tables = (seen[0], heard[0], seen[1], heard[1])
    table = jnp.concatenate([x.reshape(b, -1, width) for x in tables], axis=1)
    return table if table.shape[1] else jnp.zeros((b, 1, width), thinker.dtype)


def _see(thinker, media, frames_per_call, params, patches, *layout) -> Float[Array, "B G T D"]:
    b, g, f = patches.shape[:3]
    if not g:
        return jnp.zeros((b, 0, f // 4, thinker.config.text.hidden_size), thinker.dtype)
    calls = -(-g // frames_per_call)
    size = -(-g // calls)

    def group(x):  # frames that are added have no patches
        x = jnp.pad(x, [(0, 0), (0, calls * size - g), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(b, calls, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def encode(xs):
        pixels, *layout = (x.reshape(b * size, *x.shape[2:]) for x in xs)
        pixels = normalise(media, pixels, thinker.dtype)
        out = thinker.apply({"params": params}, pixels, *layout, method="encode_vision")
        return out.reshape(b, size, *out.shape[1:])

    frames = jnp.moveaxis(jax.lax.map(encode, tuple(map(group, (patches, *layout)))), 0, 1)
    return frames.reshape(b, calls * size, *frames.shape[3:])[:, :g]


def _hear(thinker, params, mel, mel_lengths) -> Float[Array, "B C T D"]:
    b, chunks = mel_lengths.shape
    if not chunks:
        width = thinker.config.text.hidden_size
        return jnp.zeros((b, 0, mel.shape[2] // 4, width), thinker.dtype)
    out = thinker.apply(
        {"params": params},
        mel.reshape(b * chunks, *mel.shape[2:]),
        mel_lengths.reshape(-1),
        method="encode_audio",
    )
    return out.reshape(b, chunks, *out.shape[1:])


def input_embeddings(
    thinker: Thinker, params: Any, batch: TrainBatch, features: Float[Array, "B R D"]
) -> Float[Array, "B S D"]:
    """Token embeddings with media features in their places; latent slots are zero."""
    index = batch.feature_index[..., None]
    tokens = thinker.apply({"params": params}, batch.token_ids, method="embed")
    taken = jnp.take_along_axis(features, jnp.maximum(index, 0), axis=1)
    return jnp.where(index >= 0, taken.astype(tokens.dtype), tokens)
