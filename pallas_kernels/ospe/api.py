"""OSPE (paper Eq. 3): a latent is rotated by the real time it stands for.

`OSPE(h, t) = h * cos(tΘ) + R(h) * sin(tΘ)`; R turns adjacent pairs, `(h1, h2) -> (-h2, h1)`, and
`Θ_i = base^(-2(i-1)/D)` for pair i. One function for training, prefill and decode.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pallas_kernels.manual_axes import vary_alike
from pallas_kernels.ospe import reference, tpu

_ROTATE = {"reference": reference.rotate, "tpu": tpu.rotate}


def ospe(
    h: Float[jax.Array, "*B D"],
    seconds: Float[jax.Array, "*#B"],
    base: float,
    *,
    implementation: Literal["auto", "reference", "tpu"] = "auto",
) -> Float[jax.Array, "*B D"]:
    """Rotates latents by their timestamps; keeps the norm. Differentiable in `h` only.

    Args:
      h: latent states; D is even.
      seconds: since the start of the cited segment; broadcast against the rows of `h`. A
        constant: its gradient is zero.
      base: of the frequencies (`LatentSpec.ospe_base`).
      implementation: "auto" is the reference everywhere: XLA:TPU fuses it into one read and one
        write, as the kernel does, and can fuse it with its neighbours and partition it. "tpu" is
        the kernel: D a multiple of 128, and `jax.shard_map` around it under a mesh of devices.

    Returns:
      Rotated latents in the dtype of `h`; angles and rotation in f32 (f64 for f64 latents).

    Raises:
      ValueError: unknown implementation, or inputs that it cannot serve.
    """
    if implementation not in ("auto", *_ROTATE):
        raise ValueError(f"unknown OSPE implementation {implementation!r}")
    if h.shape[-1] % 2:
        raise ValueError(f"OSPE turns pairs and needs an even width, got {h.shape[-1]}")
    rotate = _ROTATE["reference" if implementation == "auto" else implementation]
    dtype = jnp.promote_types(h.dtype, jnp.float32)
    seconds = jnp.broadcast_to(jnp.asarray(seconds, dtype), h.shape[:-1])
    h, seconds = vary_alike(h, seconds)
    with jax.named_scope("ospe"):
        return _ospe(h, jax.lax.stop_gradient(seconds), rotate, float(base))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _ospe(h, seconds, rotate, base):
    return rotate(h, seconds, base)


def _forward(h, seconds, rotate, base):
    return rotate(h, seconds, base), seconds


def _backward(rotate, base, seconds, gradient):
    """The transpose of a rotation is the rotation back."""
    return rotate(gradient, -seconds, base), None


_ospe.defvjp(_forward, _backward)
