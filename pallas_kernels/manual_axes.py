"""Inside `jax.shard_map`, arrays carry the mesh axes they vary over; a kernel wants them alike."""

from __future__ import annotations

import jax


def vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """The same arrays, all marked as varying over the axes that any of them varies over.

    The gradient of an array that was the same on every device is then summed over them. Outside
    `shard_map`, and with its `check_vma=False`, nothing changes.
    """
    own = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    union = frozenset().union(*own)
    missing = [tuple(sorted(union - axes)) for axes in own]
    return [
        jax.lax.pcast(x, axes, to="varying") if axes else x
        for x, axes in zip(arrays, missing, strict=True)
    ]


def shape_like(x: jax.Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """The shape of a kernel's result that varies over the axes of `x`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
