"""OSPE as a Mosaic kernel: one read and one write of the tensor, angles made on the way.

```
lane        0    1    2    3   ..          the same row, twice rolled by one lane
h           h1   h2   h3   h4
R(h)       -h2   h1  -h4   h3              even lanes: -(next), odd lanes: previous
```
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from pallas_kernels.manual_axes import shape_like

# Elements of a block: its f32 temporaries (angles, sine, cosine, two rolls) then fit in 16 MB.
_BLOCK = 1 << 18


def rotate(
    h: Float[jax.Array, "*B D"], seconds: Float[jax.Array, "*B"], base: float
) -> Float[jax.Array, "*B D"]:
    """As `reference.rotate`.

    Raises:
      ValueError: D is not a multiple of 128, the lanes of a vector register, or `h` is not f32 or
        bf16.
    """
    width = h.shape[-1]
    if h.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"the OSPE kernel needs float32 or bfloat16, got {h.dtype}")
    if width % 128:
        raise ValueError(f"the OSPE kernel needs a width that is a multiple of 128, got {width}")
    if not h.size:
        return h
    rows = h.size // width
    block = min(rows, max(16, _BLOCK // width // 16 * 16))
    blocks = pl.cdiv(rows, block)
    # A row of seconds per block: as a column [rows, 1] they would be padded to 128 lanes in HBM.
    seconds = jnp.pad(seconds.reshape(rows), (0, blocks * block - rows)).reshape(blocks, 1, block)
    out = pl.pallas_call(
        functools.partial(_kernel, base=base),
        grid=(blocks,),
        in_specs=[
            pl.BlockSpec((1, 1, block), lambda i: (i, 0, 0)),
            pl.BlockSpec((block, width), lambda i: (i, 0)),
        ],
        out_specs=pl.BlockSpec((block, width), lambda i: (i, 0)),
        out_shape=shape_like(h, (rows, width), h.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=pl.CostEstimate(
            flops=4 * h.size,
            transcendentals=2 * h.size,
            bytes_accessed=2 * h.size * h.dtype.itemsize + 4 * seconds.size,
        ),
        name="ospe",
    )(seconds, h.reshape(rows, width))
    return out.reshape(h.shape)


def _kernel(seconds_ref, h_ref, out_ref, *, base):
    h = h_ref[...].astype(jnp.float32)
    width = h.shape[1]
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    theta = jnp.exp((lane - lane % 2).astype(jnp.float32) * (-math.log(base) / width))
    angles = seconds_ref[0].reshape(-1, 1) * theta
    turned = jnp.where(lane % 2 == 0, -pltpu.roll(h, width - 1, 1), pltpu.roll(h, 1, 1))
    out_ref[...] = (h * jnp.cos(angles) + turned * jnp.sin(angles)).astype(out_ref.dtype)
