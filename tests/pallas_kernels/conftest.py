"""What the kernel tests share: the TPU interpreter, and chips to compile for."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh


@pytest.fixture
def interpreted(capfd):
    """A context in which kernels run in the TPU interpreter: fresh memory is NaN, races fail."""

    @contextlib.contextmanager
    def mode():
        capfd.readouterr()
        params = pltpu.InterpretParams(
            detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2
        )
        with pltpu.force_tpu_interpret_mode(params):
            yield
        assert "RACE DETECTED" not in "".join(capfd.readouterr())

    return mode


@pytest.fixture(scope="session")
def tpu_mesh():
    """`tpu_mesh(topology)` is a mesh ("x",) of TPU chips to compile for; there need be none."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    def make(topology):
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        return Mesh(np.array(devices), ("x",))

    return make
