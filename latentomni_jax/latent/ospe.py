"""OSPE (paper Eq. 3): a latent is rotated by the real time it stands for.

`OSPE(h, t) = h * cos(t Θ) + R(h) * sin(t Θ)`; R turns adjacent pairs, `(h1, h2) -> (-h2, h1)`, and
`Θ_i = base^(-2(i-1)/d)` for pair i. One function for training, prefill and decode.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from latentomni_jax.backbone.types import Array


def ospe(
    h: Float[Array, "*B D"], seconds: Float[Array, "*#B"], base: float
) -> Float[Array, "*B D"]:
    """Rotates latents by their timestamps; keeps the norm.

    Args:
      h: latent states.
      seconds: since the start of the cited segment.
      base: of the frequencies (`LatentSpec.ospe_base`).

    Returns:
      Rotated latents in the dtype of `h`; angles and rotation in f32.
    """
    width = h.shape[-1]
    theta = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = jnp.asarray(seconds, jnp.float32)[..., None] * theta
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = h.astype(jnp.float32).reshape(*h.shape[:-1], width // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.reshape(h.shape).astype(h.dtype)
