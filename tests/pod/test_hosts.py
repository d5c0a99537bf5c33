"""Hosts that compute as one: who hangs is named; a simulated pod trains as one process does."""

import collections
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import pytest

from data_pipeline.av_events.tiny import CACHE_OPTIONS, make_tiny_set
from data_pipeline.cache import TRAINING_SPEC, build_cache
from latentomni_jax.layout import InputError
from latentomni_jax.pod.hosts import HUNG, Watchdog, join

ROOT = pathlib.Path(__file__).parents[2]


def tell(directory, process, step, alive):
    told = {"step": step, "alive": alive, "host": f"host-{process}"}
    (directory / f"{process}.json").write_text(json.dumps(told))


def complaint(tmp_path, monkeypatch, others, steps=(1, 2)):
    """What process 0 of three says, after some steps and then none."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    said, left = [], threading.Event()
    watch = Watchdog(
        tmp_path,
        0.4,
        first=0.4,
        say=said.append,
        leave=lambda code: said.append(code) or left.set(),
    )
    with watch:
        for step in steps:
            watch(step)
        for process, (step, age) in others.items():
            tell(tmp_path, process, step, time.time() - age)
        assert left.wait(30)
    assert said[1] == HUNG
    return said[0]


def test_a_host_that_is_dead_or_stopped_is_named(tmp_path, monkeypatch):
    said = complaint(tmp_path, monkeypatch, {1: (2, -60), 2: (1, 45)})
    assert "after step 2" in said and "process 2 on host-2 (last alive 4" in said
    assert "host-1" not in said


def test_a_host_that_is_behind_is_named(tmp_path, monkeypatch):
    said = complaint(tmp_path, monkeypatch, {1: (1, -60), 2: (2, -60)})
    assert "process 1 on host-1 (at step 1)" in said and "host-2" not in said


def test_a_host_that_never_came_is_named(tmp_path, monkeypatch):
    said = complaint(tmp_path, monkeypatch, {1: (0, -60)}, steps=())
    assert "process 2 (never heard of)" in said


def test_who_steps_is_left_alone(tmp_path):
    said = []
    with Watchdog(tmp_path, 5, say=said.append, leave=said.append) as watch:
        for step in range(3):
            watch(step)
            time.sleep(0.05)
    assert not said and json.loads((tmp_path / "0.json").read_text())["host"]


@pytest.mark.parametrize(
    ("given", "said"),
    [(("a:1", None, None), "go together"), (("a:1", 2, 2), "numbered from 0")],
)
def test_hosts_that_do_not_fit_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        join(*given)


# ---------------------------------------------------------------------------- simulated pods

STEPS, ROWS, RECORDS = 20, 8, 32  # five epochs of four steps
SMALL = [
    "--set", f"optimizer.steps={STEPS}", "--set", "checkpoint.every=3",
    "--set", "log.tensorboard=False", "--set", f"batch_size={ROWS}", "--set", "data.log_rows=True",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The option that names a set of a few steps an epoch."""
    folder = tmp_path_factory.mktemp("set")
    data = make_tiny_set(folder / "clips", n=RECORDS)
    build_cache(data, folder / "cache", dataclasses.replace(TRAINING_SPEC, **CACHE_OPTIONS))
    return ["--set", f"data.cache={folder / 'cache'}"]


def check_rows(workdir):
    """Over all hosts every record is read once an epoch, whatever happened in between."""
    steps = collections.defaultdict(dict)  # the last time that each was taken
    for host in range(4):
        path = workdir / "hosts" / f"{host}.rows.jsonl"
        for line in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
            steps[line["step"]][host, line["processes"]] = line
    assert sorted(steps) == list(range(STEPS))
    seen = collections.defaultdict(list)
    for taken in steps.values():
        processes = next(n for (host, n) in reversed(taken) if host == 0)
        for host in range(processes):
            line = taken[host, processes]
            assert len(line["records"]) == ROWS // processes
            seen[line["epoch"]] += line["records"]
    assert len(seen) == STEPS * ROWS // RECORDS
    for records in seen.values():
        assert sorted(records) == list(range(RECORDS))


def pod(workdir, *options, more=()):
    """Runs `launch.simulate_pod`; its exit code, what hosts printed, and the loss of every step."""
    train = ["--config", "configs/tiny.py", "--workdir", str(workdir), *SMALL, *more]
    done = subprocess.run(
        [sys.executable, "-m", "launch.simulate_pod", *options, "--", *train],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, timeout=1500,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    logs = "".join(path.read_text() for path in sorted((workdir / "hosts").glob("*.log")))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss/total"] for line in lines]
    return done.returncode, done.stdout + logs, losses


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    """Losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    code, said, losses = pod(workdir, "--hosts", "1", "--devices-per-host", "1", more=cache)
    assert code == 0, said[-3000:]
    check_rows(workdir)
    assert len(losses) == STEPS and all(map(math.isfinite, losses))
    return losses


@pytest.mark.slow
def test_four_hosts_train_as_one_and_go_on_after_a_death(alone, cache, tmp_path):
    """A killed host ends all; started again they have the losses of a run in which nobody died."""
    code, said, losses = pod(
        tmp_path, "--hosts", "4", "--devices-per-host", "2", "--kill-one", "2", more=cache
    )
    assert code == 0, said[-3000:]
    assert "gets SIGKILL" in said and "starting all again" in said
    assert losses == pytest.approx(alone, rel=1e-5)
    check_rows(tmp_path)


@pytest.mark.slow
def test_a_preempted_run_goes_on_with_fewer_hosts(alone, cache, tmp_path):
    """Some steps of four hosts, the rest of two: the iterator's state is the step."""
    code, said, losses = pod(
        tmp_path, "--hosts", "4", "--devices-per-host", "1", "--preempt-one", "1",
        "--restarts", "0", more=cache,
    )  # fmt: skip
    assert code == 1 and "gets SIGTERM" in said and "hosts ended with [3, 3, 3, 3]" in said
    assert 0 < len(losses) < STEPS
    code, said, losses = pod(tmp_path, "--hosts", "2", "--devices-per-host", "2", more=cache)
    assert code == 0, said[-3000:]
    assert "continuing from step" in said
    assert losses == pytest.approx(alone, rel=1e-5)
    check_rows(tmp_path)


@pytest.mark.slow
def test_a_stopped_host_is_named_and_the_run_ends(tmp_path):
    code, said, _ = pod(
        tmp_path, "--hosts", "2", "--devices-per-host", "1", "--restarts", "0", "--stop-one", "2",
        more=["--set", "optimizer.steps=2000", "--hung-after", "20"],
    )  # fmt: skip
    assert code == 1 and "gets SIGSTOP" in said
    assert "no step for 20 s" in said and "last alive" in said
