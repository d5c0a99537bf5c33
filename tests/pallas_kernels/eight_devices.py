"""Run by test_info_nce.py with eight CPU devices: sharded ops equal the same on one device."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.info_nce.api import info_nce
from pallas_kernels.ospe.api import ospe
from tests.pallas_kernels.test_info_nce import (
    assert_all_close,
    losses_and_gradients,
    random_pairs,
)

AXES = ("data", "fsdp")
ROWS = jax.P(AXES)


def variants():
    """Implementations, with and without shard_map's checks."""
    for implementation in ("reference", "tpu"):
        for check in (True, False):
            kernel = pltpu.force_tpu_interpret_mode(pltpu.InterpretParams())
            with kernel if implementation == "tpu" else contextlib.nullcontext():
                yield implementation, check


def check_info_nce(mesh):
    groups = np.random.default_rng(2).integers(-1, 3, 40)
    q, k, bars = random_pairs(groups, 128)
    ids = jnp.asarray(groups, jnp.int32)
    expected = losses_and_gradients(q, k, groups, bars, implementation="reference")
    for implementation, check in variants():
        run = functools.partial(info_nce, implementation=implementation, axis_name=AXES)
        sharded = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(ROWS, ROWS, ROWS, jax.P()),
            out_specs=ROWS,
            check_vma=check,
        )
        losses, pull = jax.vjp(
            jax.jit(lambda q, k, scale, f=sharded: f(q, k, ids, scale)), q, k, jnp.float32(1 / 0.07)
        )
        assert_all_close((*losses, *pull(tuple(bars))), expected, 1e-5)


def check_ospe(mesh):
    h = jnp.asarray(np.random.default_rng(0).normal(size=(24, 128)), jnp.float32)
    seconds = jnp.linspace(0, 5, 24)
    expected, pull = jax.vjp(lambda h: ospe(h, seconds, 1e6), h)
    gradient = pull(h[::-1])[0]
    for implementation, check in variants():
        run = functools.partial(ospe, base=1e6, implementation=implementation)
        sharded = jax.shard_map(
            run, mesh=mesh, in_specs=(ROWS, ROWS), out_specs=ROWS, check_vma=check
        )
        ours, pull = jax.vjp(jax.jit(lambda h, f=sharded: f(h, seconds)), h)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        np.testing.assert_allclose(pull(h[::-1])[0], gradient, atol=1e-5)


if __name__ == "__main__":
    mesh = jax.make_mesh((4, 2), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    assert mesh.size == 8
    for name, run in {"info_nce": check_info_nce, "ospe": check_ospe}.items():
        run(mesh)
        print(name)
