"""Media of a training batch become input embeddings.

Every row has its own frames, chunks and feature table, so that rows can lie on different devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Array
from latentomni_jax.layout import MediaSpec, RowMedia, TrainBatch


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
      frames_per_call: of a row, rounded to a divisor of G; bounds the encoder's activations.
      frozen: towers ("vision", "audio") that get no gradient. What comes of segments never does.
    """
    fixed = jax.lax.stop_gradient(params)
    tables = [
        *_encode(thinker, media, params, batch.prompt, frames_per_call, frozen),
        *_encode(thinker, media, fixed, batch.segments, frames_per_call, frozen),
    ]
    if not tables:
        return jnp.zeros((len(batch.lengths), 1, thinker.config.text.hidden_size), thinker.dtype)
    return jnp.concatenate(tables, axis=1)


def _encode(thinker, media, params, rows: RowMedia, frames_per_call, frozen) -> list[Array]:
    """Feature tables of the frames and of the sound, where there are any."""
    b, g = rows.patch_lengths.shape
    chunks = rows.mel_lengths.shape[1]
    width = thinker.config.text.hidden_size
    tables = []
    if g:
        size = max(n for n in range(1, min(g, frames_per_call) + 1) if g % n == 0)

        def group(x):
            return jnp.moveaxis(x.reshape(b, g // size, size, *x.shape[2:]), 1, 0)

        @jax.checkpoint
        def encode(xs):
            pixels, *layout = (x.reshape(b * size, *x.shape[2:]) for x in xs)
            patches = normalise(media, pixels, thinker.dtype)
            out = thinker.apply({"params": params}, patches, *layout, method="encode_vision")
            return out.reshape(b, size, *out.shape[1:])

        frames = jax.lax.map(
            encode,
            tuple(
                group(x)
                for x in (
                    rows.patches,
                    rows.rows_columns,
                    rows.windows,
                    rows.restore,
                    rows.patch_lengths,
                )
            ),
        )
        table = jnp.moveaxis(frames, 0, 1).reshape(b, -1, width)
        tables.append(jax.lax.stop_gradient(table) if "vision" in frozen else table)
    if chunks:
        mel = rows.mel.reshape(b * chunks, *rows.mel.shape[2:])
        sound = thinker.apply(
            {"params": params}, mel, rows.mel_lengths.reshape(-1), method="encode_audio"
        )
        table = sound.reshape(b, -1, width)
        tables.append(jax.lax.stop_gradient(table) if "audio" in frozen else table)
    return tables


def input_embeddings(
    thinker: Thinker, params: Any, batch: TrainBatch, features: Float[Array, "B R D"]
) -> Float[Array, "B S D"]:
    """Token embeddings with media features in their places; latent slots are zero."""
    index = batch.feature_index[..., None]
    tokens = thinker.apply({"params": params}, batch.token_ids, method="embed")
    taken = jnp.take_along_axis(features, jnp.maximum(index, 0), axis=1)
    return jnp.where(index >= 0, taken.astype(tokens.dtype), tokens)
