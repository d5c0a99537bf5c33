"""The demo: from an empty folder to answers and a page, on the smallest set that has everything."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from latentomni_jax.__main__ import main
from latentomni_jax.layout import BatchShape
from latentomni_jax.train.config import load
from latentomni_jax.weights.checkpoint import load_model, read_specs
from launch import demo
from tests.notebooks import execute

ROOT = Path(__file__).parents[1]
STAGES = ("senses", "latentomni")  # first and last
# Of so many clips the first step of the last stage has latent blocks.
SMALL = demo.Scale(12, 6, dict.fromkeys(STAGES, 1), one_shape=True)


def test_the_demo_from_an_empty_folder(tmp_path, monkeypatch, capfd):
    """With a step of two of its stages. One test, so that it is run once."""
    out, told = tmp_path / "out", io.StringIO()
    monkeypatch.setattr(demo, "QUICK", SMALL)
    monkeypatch.setattr(demo.build, "_MEASURED", 60)
    monkeypatch.setattr(sys, "argv", ["demo", "--quick", "--out", str(out)])
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(told):
        demo.main()
    it_tells_what_was_seen_and_how_it_went(told.getvalue())
    the_page_has_all_sections(out)
    who_was_trained_with_blocks_says_so(out)
    the_encoders_learn_in_the_first_stage_alone(out)
    its_last_words_are_a_command_that_works(told.getvalue(), capfd)
    the_notebook_shows_the_same(out, monkeypatch)


def it_tells_what_was_seen_and_how_it_went(told):
    assert "8 train, 2 test, 2 novel, 8 pictures, 8 sounds" in told
    assert "dial      easy: moments 6, alone 0" in told
    assert re.search(r"alone     best learned guess question \d+%, video \d+%, audio \d+%", told)
    assert told.count("samples seen; loss") == len(STAGES)
    for part in range(1, len(SMALL.seconds) + 1):
        assert f"[{part}/{len(SMALL.seconds)}] " in told
    assert told.count("min left)") == len(SMALL.seconds)
    for view in demo.VIEWS.values():
        assert re.search(rf"{view} +\d+ of \d+ right, [\d.]+% \(chance 25%, p = ", told)
    assert "latentomni answer --model" in told


def the_page_has_all_sections(out):
    page = (out / "report.html").read_text()
    for heading in ("In short", "An unseen clip", "What the model says", "Where its latents look",
                    "Right answers", "Training"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert page.count("data:image/png;base64,") >= 3
    for stage in STAGES:
        lines = [json.loads(line) for line in (out / stage / "metrics.jsonl").open()]
        assert [line["step"] for line in lines] == [0]
        assert (lines[0]["loss/latent"] > 0) == (stage == "latentomni")


def who_was_trained_with_blocks_says_so(out):
    trained = {stage: read_specs(out / stage / "model")[1].is_trained for stage in STAGES}
    assert trained == {"senses": False, "latentomni": True}


def the_encoders_learn_in_the_first_stage_alone(out):
    first, last = (load_model(out / stage / "model").params for stage in STAGES)
    for tower in ("vision", "audio"):
        jax.tree.map(np.testing.assert_array_equal, first[tower], last[tower])
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first["text"], last["text"])
    assert not all(jax.tree.leaves(same))


def its_last_words_are_a_command_that_works(told, capfd):
    command = told[told.index("latentomni answer") :].replace("\\\n", " ")
    assert main([*shlex.split(command)[1:], "--max-new-tokens", "8"]) == 0
    assert capfd.readouterr().out


def the_notebook_shows_the_same(out, monkeypatch):
    """On what the demo has made: it goes on where the demo was, which is at the end."""
    small = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from launch import demo
        demo.QUICK = demo.{SMALL}
        demo.build._MEASURED = 60"""
    told = execute("see_it_work", monkeypatch, {"OUT": out}, textwrap.dedent(small))
    assert "finished before" in told and "whole clip" in told and "expected" in told


@pytest.mark.parametrize("stage", demo.TITLES)
def test_one_shape_holds_all_of_a_stage(stage):
    shapes = load(f"{demo.CONFIGS}/av_events.py:{stage}").shapes
    whole = BatchShape(**demo._holding_all(shapes))
    for shape in shapes:
        assert all(getattr(whole, name) >= size for name, size in shape.items())
    assert whole.tokens == max(shape["tokens"] for shape in shapes)


def test_the_agenda_learns_the_pace(capsys, monkeypatch):
    clock = iter([0.0, 120.0, 120.0, 150.0])
    monkeypatch.setattr(demo.time, "monotonic", lambda: next(clock))
    agenda = demo.Agenda({"a": 60.0, "b": 300.0})
    with agenda.part("a", "First"):
        pass
    with agenda.part("b", "Second"):
        pass
    told = capsys.readouterr().out
    assert "[1/2] First   (about 6 min left)" in told
    assert "[2/2] Second   (about 10 min left)" in told  # half as fast as planned


def test_help_says_how_long_it_takes():
    ran = subprocess.run(
        [sys.executable, "-m", "launch.demo", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0 and "--quick" in ran.stdout and "two cores" in ran.stdout
