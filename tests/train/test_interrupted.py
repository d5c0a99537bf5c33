"""The real thing: processes killed, processes stopped, and a run that moves to other devices."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.processes import ROOT, environment

STEPS = 24


def start(workdir, cache, *settings, devices=1):
    settings = (
        f"data.cache={cache}", "data.tiny=False", f"optimizer.steps={STEPS}",
        "checkpoint.every=3", "log.tensorboard=False", *settings,
    )  # fmt: skip
    command = [sys.executable, "-m", "latentomni_jax", "train", "--config", "configs/tiny.py"]
    command += ["--workdir", str(workdir)]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(devices),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    return [{k: v for k, v in line.items() if k.startswith("loss/")} for line in lines]


def wait_for_step(workdir, step, process):
    path = workdir / "metrics.jsonl"
    for _ in range(3000):
        if process.poll() is not None:
            return
        if path.exists() and any(f'"step": {step},' in line for line in path.open()):
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_five_kills_change_nothing(tiny_cache, tmp_path):
    whole = start(tmp_path / "whole", tiny_cache)
    assert whole.wait() == 0, whole.stderr.read()
    deaths = sorted(random.Random(0).sample(range(2, STEPS - 1), 5))
    for step in deaths:
        process = start(tmp_path / "killed", tiny_cache)
        wait_for_step(tmp_path / "killed", step, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    last = start(tmp_path / "killed", tiny_cache)
    _, errors = last.communicate()
    assert last.returncode == 0 and "continuing from step" in errors, errors
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_polite_stop_saves_the_very_step_and_another_mesh_continues(tiny_cache, tmp_path):
    """SIGTERM saves and exits with 3; the run then goes on, on 8 devices, to the same losses."""
    whole = start(tmp_path / "whole", tiny_cache)
    assert whole.wait() == 0
    process = start(tmp_path / "moved", tiny_cache)
    wait_for_step(tmp_path / "moved", 7, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 3 and "saving a checkpoint" in errors, errors
    stopped = len((tmp_path / "moved" / "metrics.jsonl").read_text().splitlines())
    moved = start(
        tmp_path / "moved", tiny_cache, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", devices=8
    )
    _, errors = moved.communicate()
    assert moved.returncode == 0 and f"continuing from step {stopped}" in errors, errors
    for step, (got, want) in enumerate(
        zip(losses(tmp_path / "moved"), losses(tmp_path / "whole"), strict=True)
    ):
        if step < stopped:
            assert got == want
        if step == stopped:  # later ones amplify rounding, as any two meshes do
            np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
