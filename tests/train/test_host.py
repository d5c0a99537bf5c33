"""A process that computes on CPU keeps the memory of its steps; one that is alone ends alone."""

import os
import signal
import subprocess
import sys
import types

import jax
import pytest

from latentomni_jax.train import host
from tests.processes import environment

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from latentomni_jax.train.host import keep_freed_memory

kept = keep_freed_memory() if "keep" in sys.argv else False

@jax.jit
def step(x):
    y = jnp.sin(x[:, None] + x)  # 64 MB, written out for the product
    return y @ x

x = jnp.arange(4096.0)
for _ in range(8):  # the heap finds its size in the first ones
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = jax.block_until_ready(step(x))
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_steps_memory_is_there_for_the_next():
    kept, faults = run("keep")
    assert kept and faults < 100
    kept, faults = run()
    assert not kept and faults > 10_000  # 64 MB are 16,384 pages


@pytest.mark.parametrize("platforms", [None, "cuda", "tpu,cpu"])
def test_where_an_accelerator_may_compute_nothing_is_changed(monkeypatch, platforms):
    config = types.SimpleNamespace(jax_platforms=platforms)
    monkeypatch.setattr(host, "jax", types.SimpleNamespace(config=config))
    assert not host.keep_freed_memory()


def test_a_process_that_is_alone_asks_no_others_whether_to_end(monkeypatch, caplog):
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # as on a pod
    before = signal.getsignal(signal.SIGTERM)
    with host.StopSignal("finishing", alone=True) as stop:
        assert not stop.is_asked(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_asked(1) and "finishing, then stopping" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
