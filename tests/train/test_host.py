"""A process that computes on CPU keeps the memory of its steps."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from latentomni_jax.train.host import keep_freed_memory

kept = keep_freed_memory() if "keep" in sys.argv else False

@jax.jit
def step(x):
    y = jnp.sin(x[:, None] + x)  # 64 MB
    return (y @ y)[0]

x = jnp.arange(4096.0)
for _ in range(8):  # the heap finds its size in the first ones
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = jax.block_until_ready(step(x))
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(platforms, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_steps_memory_is_there_for_the_next():
    kept, faults = run("cpu", "keep")
    assert kept and faults < 100
    kept, returned = run("cpu")
    assert not kept and returned > 10_000  # 64 MB are 16,384 pages


def test_other_platforms_are_left_alone():
    assert run("", "keep")[0] is False
