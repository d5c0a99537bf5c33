"""OSPE in plain JAX: `h * cos(tΘ) + R(h) * sin(tΘ)`, R turning adjacent pairs (paper Eq. 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float


def rotate(
    h: Float[jax.Array, "*B D"], seconds: Float[jax.Array, "*B"], base: float
) -> Float[jax.Array, "*B D"]:
    """Turns pair i of each row by `seconds * base^(-2i/D)`; computed in at least f32."""
    width, dtype = h.shape[-1], jnp.promote_types(h.dtype, jnp.float32)
    lane = jnp.arange(width)
    theta = base ** (-(lane - lane % 2).astype(dtype) / width)
    angles = seconds[..., None] * theta
    # A lane's partner is its neighbour. Pairs as an axis of 2, or a roll, would have XLA:TPU write
    # copies of the tensor; a shift by padding stays inside one fusion: one read, one write.
    keep, zero = [(0, 0, 0)] * (h.ndim - 1), jnp.zeros((), h.dtype)
    following = jax.lax.pad(h, zero, [*keep, (-1, 1, 0)]).astype(dtype)
    preceding = jax.lax.pad(h, zero, [*keep, (1, -1, 0)]).astype(dtype)
    turned = jnp.where(lane % 2 == 0, -following, preceding)
    out = h.astype(dtype) * jnp.cos(angles) + turned * jnp.sin(angles)
    return out.astype(h.dtype)
