"""Anchors: what the latents of a block are pulled to (docs/method.md 4).

The encoder features of the cited segment, pooled in order of time to one row per slot. Nothing
here is trained and no gradient flows into the features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone.types import Array
from latentomni_jax.layout import LatentSpec


def anchors(
    spec: LatentSpec,
    features: Float[Array, "B R D"],
    visual_rows: Int[Array, "B N visual"],
    audio_rows: Int[Array, "B N audio"],
    power: int = 1,
) -> tuple[Float[Array, "B N num_latents D"], Bool[Array, "B N num_latents"]]:
    """Anchors f32 of every slot, visual then audio, and where there is one.

    Args:
      features: every row's feature table.
      visual_rows, audio_rows: rows of each block's segment in order of time, -1 beyond them.
      power: of the norm that weights a feature: 1 (paper) or 2 (released code).

    Returns:
      Anchors (zeros where there is none) and the mask of slots that have one: a segment without
      sound has no audio anchors.
    """
    features = jax.lax.stop_gradient(features)
    pooled, present = [], []
    for rows, num_slots in ((visual_rows, spec.num_visual), (audio_rows, spec.num_audio)):
        taken, count = gather(features, rows)
        pooled.append(pool(taken, count, num_slots, power))
        present.append(jnp.broadcast_to((count > 0)[..., None], (*count.shape, num_slots)))
    return jnp.concatenate(pooled, axis=2), jnp.concatenate(present, axis=2)


def gather(
    features: Float[Array, "B R D"], rows: Int[Array, "B N M"]
) -> tuple[Float[Array, "B N M D"], Int[Array, "B N"]]:
    """The listed rows of each row's table (-1 is padding), and how many of them are real."""
    b, n, length = rows.shape
    flat = jnp.maximum(rows, 0).reshape(b, n * length, 1)
    taken = jnp.take_along_axis(features, flat, axis=1)
    return taken.reshape(b, n, length, features.shape[-1]), jnp.sum(rows >= 0, axis=-1)


def pool(
    x: Float[Array, "*B N D"], count: Int[Array, "*B"], num_rows: int, power: int = 1
) -> Float[Array, "*B num_rows D"]:
    """Pools the first `count` of N rows to `num_rows` (T) rows in f32.

    More features than rows: row i is the mean over the window [⌊i·count/T⌋, ⌈(i+1)·count/T⌉),
    weighted by ‖x‖^power + 1e-6. Otherwise linear interpolation over the features with half-pixel
    centres. No features: zeros.
    """
    x = x.astype(jnp.float32)
    count = count[..., None, None]
    row = jnp.arange(num_rows)[:, None]
    place = jnp.arange(x.shape[-2])
    norm = jnp.sum(x * x, axis=-1)
    weight = (norm if power == 2 else jnp.sqrt(norm)) + 1e-6
    first, end = row * count // num_rows, -(-(row + 1) * count // num_rows)
    window = jnp.where((place >= first) & (place < end), weight[..., None, :], 0)
    window = window / jnp.maximum(jnp.sum(window, axis=-1, keepdims=True), 1e-30)

    centre = jnp.maximum((row + 0.5) * count / num_rows - 0.5, 0)
    last = jnp.maximum(count - 1, 0)
    low = jnp.minimum(jnp.floor(centre).astype(jnp.int32), last)
    fraction = centre - low
    linear = jnp.where(place == low, 1 - fraction, 0)
    linear = linear + jnp.where(place == jnp.minimum(low + 1, last), fraction, 0)
    matrix = jnp.where(count > num_rows, window, linear)
    matrix = jnp.where((place < count) & (count > 0), matrix, 0)
    return jnp.einsum("...tn,...nd->...td", matrix, x, precision=jax.lax.Precision.HIGHEST)
