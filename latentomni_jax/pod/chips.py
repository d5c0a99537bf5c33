"""Chips and topologies: what a name such as "v5e:4x8" stands for, and what its chips can do.

Figures are those of cloud.google.com/tpu/docs (v5e, v6e, v5p; November 2026).
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import numpy as np
from jax.sharding import Mesh

from latentomni_jax.layout import InputError
from latentomni_jax.train.mesh import make_mesh

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's published figures.

    Attributes:
      memory: bytes of HBM. flops: dense bf16 FLOP/s. bandwidth: bytes/s of HBM.
      link: bytes/s of one interconnect link in one direction; a chip has two on every dimension.
      network: bytes/s of a chip's share of the network between slices.
      wraps: what a dimension is a multiple of where it is a ring.
      layouts: of slices that can be ordered.
    """

    memory: int
    flops: float
    bandwidth: float
    link: float
    network: float
    wraps: int
    layouts: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# Links: published as both directions of all links together (v5e 400, v6e 800, v5p 1200 GB/s).
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 819e9, 50e9, 25e9 / 8, 16, _FLAT),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 100e9, 100e9 / 8, 16, _FLAT),
    "v5p": Chip(
        95 * GIB, 459e12, 2765e9, 100e9, 50e9 / 8, 4,
        ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips. Attributes: layout: chips along each dimension of a slice."""

    kind: str
    layout: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, name: str) -> Topology:
        """Of "v5e:4x8", or "2*v5e:4x4" for two slices.

        Raises:
          InputError: no such chip or layout; the error has those that there are.
        """
        found = re.fullmatch(r"(?:([1-9]\d?)\*)?(\w+):([\dx]+)", name.strip())
        if not found:
            raise InputError(
                f"a topology is CHIP:LAYOUT or SLICES*CHIP:LAYOUT, such as v5e:4x8 or "
                f"2*v5e:4x4: {name!r}"
            )
        slices, kind, layout = found.groups()
        if kind not in CHIPS:
            raise InputError(f"no chip {kind!r}; there are {', '.join(CHIPS)}")
        if layout not in CHIPS[kind].layouts:
            layouts = ", ".join(CHIPS[kind].layouts)
            raise InputError(f"no layout {layout!r} of {kind}; there are {layouts}")
        return cls(kind, tuple(map(int, layout.split("x"))), int(slices or 1))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        """Chips of all slices."""
        return math.prod(self.layout) * self.slices

    def __str__(self) -> str:
        name = f"{self.kind}:{'x'.join(map(str, self.layout))}"
        return name if self.slices == 1 else f"{self.slices}*{name}"

    def devices(self) -> list[Any]:
        """Descriptions of the chips to compile for; needs libtpu, not a TPU."""
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # beside other processes
        from jax.experimental import topologies

        name = f"{self.kind}:{'x'.join(map(str, self.layout))}"
        more = {} if self.slices == 1 else {"num_slices": self.slices}
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
        except Exception as error:  # of libtpu: missing, or in use, or without this layout
            raise InputError(
                f"{self}: cannot be described ({str(error).splitlines()[0]}); compiling for a "
                "TPU needs libtpu: pip install 'latentomni_jax[tpu]'"
            ) from error
        return list(found.devices)

    def mesh(self, data: int = 1, fsdp: int = -1, tensor: int = 1) -> Mesh:
        """The mesh of a run on these chips. Raises InputError as `make_mesh`."""
        return make_mesh(data, fsdp, tensor, self.devices())

    def speed(self, devices: list[Any]) -> float:
        """Bytes/s that one of a group of chips can receive from the others.

        Between slices its share of the network; else its links along the dimensions in which the
        group's chips differ: two where the dimension is a ring, else one, as at the end of a line.
        """
        if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
            return self.chip.network
        coords = np.array([device.coords for device in devices])
        links = 0
        for axis, size in enumerate(self.layout):
            if len(set(coords[:, axis].tolist())) > 1:
                links += 2 if size % self.chip.wraps == 0 else 1
        return max(links, 1) * self.chip.link
