"""A step is the same on every mesh, and however its rows are cut into micro-batches."""

import json
import subprocess
import sys

import pytest

from tests.processes import ROOT, environment

MESHES = ("1x1x1", "8x1x1", "2x2x2", "1x4x2")


@pytest.mark.parametrize(
    ("negatives", "mode", "meshes", "steps"),
    [
        ("block", "teacher", ("2x2x2/2",), 1),  # mesh and micro-batches at once
        pytest.param("block", "teacher", MESHES, 7, marks=pytest.mark.slow),
        pytest.param("global", "teacher", MESHES, 4, marks=pytest.mark.slow),
        pytest.param("block", "rollout", MESHES, 7, marks=pytest.mark.slow),
    ],
)
def test_sharded_step_is_the_step_of_one_device(negatives, mode, meshes, steps):
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.sharded", negatives, mode, *meshes],
        env=environment(8), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == steps  # each mesh, in one pass and in two where rows allow it
    for result in results:
        assert result["moved"] > 1e-3  # the step changed something
        assert result["parameters"] < 1e-5 and result["metrics"] < 1e-5, result
