"""The whole training step compiled for a TPU topology that is not there, and its memory per chip.

    from latentomni_jax.train.aot import Memory, lower_step, topology_mesh
    lowered = lower_step(config, options, optimizer, topology_mesh("v5e:4x8"), 32, shape)
    memory = Memory.of(lowered.compile())

Nothing is allocated: parameters and batch are shapes. Needs libtpu, not a TPU.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.sharding import param_shardings
from latentomni_jax.backbone.thinker import Thinker, abstract_params
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.sync import init_sync
from latentomni_jax.layout import BatchShape
from latentomni_jax.train.state import OptimizerConfig, new_state, state_shardings
from latentomni_jax.train.step import abstract_batch, jit_step

GIB = 1 << 30
HBM = {"v5e": 16 * GIB, "v6e": 32 * GIB, "v5p": 95 * GIB}  # per chip


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip: of the state and batch, of temporaries, and the most at once."""

    arguments: int
    temporaries: int
    peak: int

    @classmethod
    def of(cls, compiled: Any) -> Memory:
        analysis = compiled.memory_analysis()
        return cls(
            analysis.argument_size_in_bytes,
            analysis.temp_size_in_bytes,
            analysis.peak_memory_in_bytes,
        )


def topology_mesh(name: str, data: int = 1, fsdp: int = -1, tensor: int = 1) -> Mesh:
    """A (data, fsdp, tensor) mesh over a topology such as "v5e:4x8"; -1 takes the rest."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    shape = (data, fsdp, tensor)
    return Mesh(devices.reshape(shape), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)


def lower_step(
    config: ThinkerConfig,
    options: Objective,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    rows: int,
    shape: BatchShape,
    *,
    micro: int = 1,
    frozen: tuple[str, ...] = ("vision/",),
    remat_policy: str = "full",
) -> Any:
    """The step for `micro` times `rows` rows of `shape`, lowered: `.compile()` it."""
    thinker = Thinker(config, dtype=jnp.bfloat16, platform="tpu", remat_policy=remat_policy)
    transformation = optimizer.transformation()

    def make():
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_params(config))
        sync = init_sync(options, config.text.hidden_size, jax.random.key(0))
        return new_state({**params, "sync": sync}, frozen, transformation, seed=0)

    abstract = jax.eval_shape(make)
    shardings = state_shardings(abstract, param_shardings(config, mesh), mesh)

    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
    batch = abstract_batch(config, options, mesh, micro=micro, rows=rows, shape=shape)
    with jax.set_mesh(mesh):
        step = jit_step(thinker, options, transformation, mesh, shardings)
        return step.lower(state, batch)
