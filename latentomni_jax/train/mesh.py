"""The mesh of a run: devices along (data, fsdp, tensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from latentomni_jax.layout import InputError

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A (data, fsdp, tensor) mesh over all devices; one of the sizes may be -1, the rest.

    Neighbours on an axis are neighbours in the torus where that can be. Several TPU slices lie
    along `data`: what fsdp and tensor gather stays inside a slice, gradients alone cross.

    Args:
      devices: default is all; descriptions of a topology's will do.

    Raises:
      InputError: sizes that do not multiply to the number of devices, or slices that would be cut.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    given = (data, fsdp, tensor)
    known = math.prod(size for size in given if size != -1)
    sizes = [
        count // known if size == -1 and known > 0 and count % known == 0 else size
        for size in given
    ]
    told = ", ".join(f"{name} {size}" for name, size in zip(AXES, given, strict=True))
    if math.prod(sizes) != count or min(sizes) < 1:
        raise InputError(f"a mesh of {told} does not multiply to {count} devices")
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise InputError(
            f"a mesh of {told} would cut {slices} slices: let mesh.data be {slices}, or a multiple"
        )
    if slices > 1:
        inside = (sizes[0] // slices, *sizes[1:])
        placed = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        # A dimension of the torus may be shared by two axes: 32 chips as 16 x 2 are 4 x 8.
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, (AxisType.Auto,) * 3)
