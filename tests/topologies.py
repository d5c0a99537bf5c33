"""TPU topologies to compile for; needs libtpu and no TPU."""

import os

import numpy as np
import pytest
from jax.sharding import Mesh

# Programs take the compiler long: one kind of chip by default, the others with the slow tests.
FOUR_CHIPS = [
    "v5e:2x2",
    *(pytest.param(t, marks=pytest.mark.slow) for t in ("v6e:2x2", "v5p:2x2x1")),
]
ONE_CHIP = [
    "v5e:1x1",
    *(pytest.param(t, marks=pytest.mark.slow) for t in ("v6e:1x1", "v5p:1x1x1")),
]


def tpu_mesh(name, fsdp=1, data=1):
    """A (data, fsdp, tensor) mesh of a topology's chips; tensor takes those that are left."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return Mesh(np.array(devices).reshape(data, fsdp, -1), ("data", "fsdp", "tensor"))
