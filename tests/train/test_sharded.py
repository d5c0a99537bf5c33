"""A step is the same on every mesh, and however its rows are cut into micro-batches."""

import json
import subprocess
import sys

import pytest

from tests.processes import ROOT, environment


@pytest.mark.parametrize(
    ("negatives", "mode"),
    [
        ("block", "teacher"),
        pytest.param("global", "teacher", marks=pytest.mark.slow),
        pytest.param("block", "rollout", marks=pytest.mark.slow),
    ],
)
def test_sharded_step_is_the_step_of_one_device(negatives, mode):
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.sharded", negatives, mode],
        env=environment(8), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == (4 if negatives == "global" else 7)
    for result in results:
        assert result["moved"] > 1e-3  # the step changed something
        assert result["parameters"] < 1e-5 and result["metrics"] < 1e-5, result
