"""`latentomni eval`: real clips and drawn ones, killed runs, other orders and batches."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.av_events.clips import make_clip
from latentomni_jax.__main__ import main
from tests.processes import ROOT, environment

# A random model says anything; what is read is whether the same comes out.
QUICK = ("--window", 1, "--latents", "force", "--max-blocks", 1, "--max-new-tokens", 8)
LETTERS = "ABCD"


def rows(count):
    """Questions in Daily-Omni's own form about three clips, one of which is missing."""
    return [
        {
            "Question": f"Which shape is seen at moment {n}?",
            "Choice": [f"{letter}. shape {n * 4 + i}" for i, letter in enumerate(LETTERS)],
            "Answer": LETTERS[n % 4],
            "video_id": ("one", "two", "gone")[n % 3],
            "Type": ("Event Sequence", "Inference")[n % 2],
            "video_category": "Music",
            "video_duration": "30s",
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in (("one", 2.0), ("two", 2.5)):
        (folder / name).mkdir()
        make_clip(folder / name / f"{name}_video.mp4", seconds, size=(112, 112))
    return folder


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    path = tmp_path_factory.mktemp("annotations") / "qa.json"
    path.write_text(json.dumps(rows(12)))
    return path


def arguments(model, annotations, videos, out, *more, batch=2):
    command = [
        "eval",
        "--benchmark",
        "daily_omni",
        "--annotations",
        annotations,
        "--videos",
        videos,
    ]
    return [*command, "--model", model, "--out", out, "--batch", batch, *QUICK, *more]


def read(out):
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return lines, json.loads((out / "scores.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tiny_model, annotations, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([str(one) for one in arguments(tiny_model, annotations, videos, out)]) == 1
    return out


def test_every_question_is_counted(latentomni, tiny_model, annotations, videos, undisturbed):
    cost = json.loads((undisturbed / "cost.json").read_text())
    # It is done: another start only tells of it.
    ran = latentomni(*arguments(tiny_model, annotations, videos, undisturbed))
    lines, scores = read(undisturbed)
    assert ran.code == 1, ran.err
    assert [line["line"] for line in lines] == list(range(1, 13))
    failed = [line for line in lines if "error" in line]
    assert len(failed) == 4 and all("gone_video.mp4" in line["error"] for line in failed)
    overall = scores["overall"]
    assert overall["total"] == 12 and overall["failed"] == 4
    assert overall["answered"] + overall["unparsed"] == 8
    assert overall["right"] == sum(line.get("right", False) for line in lines)
    assert sum(scores["rules"].values()) == 8
    by_type = scores["axes"]["Type"]
    assert {value: tally["total"] for value, tally in by_type.items()} == {
        "Event Sequence": 6, "Inference": 6,
    }  # fmt: skip
    assert f"{overall['right']} right, {overall['answered']} answered" in ran.out
    assert "4 failed of 12" in ran.out and ran.err.count("gone_video.mp4") >= 4
    assert json.loads((undisturbed / "cost.json").read_text()) == cost
    assert cost["questions"] == 12 and cost["latent_steps"] == 8 * 40 and cost["decode_s"] > 0
    for line in lines:
        if "error" not in line:
            assert line["prompt_tokens"]["audio"] > 0 and line["latent_steps"] == 40


@pytest.mark.slow
def test_a_killed_run_goes_on(tiny_model, annotations, videos, undisturbed, tmp_path):
    command = arguments(tiny_model, annotations, videos, tmp_path)
    full = [sys.executable, "-m", "latentomni_jax", *map(str, command)]
    process = subprocess.Popen(full, cwd=ROOT, env=environment())
    parts = tmp_path / "answers.jsonl.parts"
    while process.poll() is None and len(list(parts.glob("0*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "answers.jsonl").exists()
    assert subprocess.run(full, cwd=ROOT, env=environment()).returncode == 1
    for name in ("answers.jsonl", "scores.json"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    ["order", *(pytest.param(name, marks=pytest.mark.slow) for name in ("batch", "features"))],
)
def test_order_batch_and_kept_features_change_no_answer(
    latentomni, tiny_model, annotations, videos, undisturbed, tmp_path, change
):
    lines, scores = read(undisturbed)
    more, path, batch = [], annotations, 2
    if change == "order":
        path = tmp_path / "qa.json"
        asked = json.loads(annotations.read_text())
        path.write_text(json.dumps(random.Random(0).sample(asked, len(asked))))
    elif change == "batch":
        batch = 4
    else:
        more = ["--features", tmp_path / "features"]
        latentomni(*arguments(tiny_model, path, videos, tmp_path / "first", *more))
    latentomni(*arguments(tiny_model, path, videos, tmp_path / "run", *more, batch=batch))
    others, again = read(tmp_path / "run")

    def said(lines):
        return {line["question"]: line["text"] for line in lines if "error" not in line}

    assert said(others) == said(lines)
    if change == "order":  # the questions' numbers are their places, so a draw is none here
        assert {k: v for k, v in again.items() if k != "options"} == {
            k: v for k, v in scores.items() if k != "options"
        }
    else:
        assert again["overall"] == scores["overall"] and again["axes"] == scores["axes"]


def test_sound_that_is_lost_is_an_error(latentomni, tiny_model, annotations, tmp_path):
    for name in ("one", "two", "gone"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        clip = tmp_path / "videos" / name / f"{name}_video.mp4"
        make_clip(clip, 2.0, size=(112, 112), sound=False)
    ran = latentomni(*arguments(tiny_model, annotations, tmp_path / "videos", tmp_path / "run"))
    lines, scores = read(tmp_path / "run")
    assert ran.code == 1 and scores["overall"]["failed"] == 12
    assert all("no audio tokens" in line["error"] for line in lines)


def test_annotations_are_listed_without_a_model(latentomni, annotations):
    ran = latentomni("eval", "--benchmark", "daily_omni", "--annotations", annotations, "--list")
    assert ran.code == 0 and "12 questions, 3 videos" in ran.out
    assert "     6  Event Sequence" in ran.out and "refused: 0" in ran.out


@pytest.mark.parametrize(
    "change,told",
    [
        (("--style", "loud"), "own, boxed"),
        (("--videos", "nowhere"), "is no folder"),
        (("--annotations", "nowhere.json"), "no such file"),
        (("--batch", "0"), "at least one question"),
    ],
)
def test_bad_options_are_told(latentomni, tiny_model, annotations, videos, tmp_path, change, told):
    ran = latentomni(*arguments(tiny_model, annotations, videos, tmp_path / "run", *change))
    assert ran.code == 2 and told in ran.err and ran.err.count("\n") == 1


@pytest.mark.slow
def test_real_questions_about_real_clips(latentomni, tiny_qwen, assets, tmp_path):
    """All of Daily-Omni's questions about the two clips that are at hand, as its authors ask."""
    asked = json.loads((assets / "benchmarks" / "daily_omni" / "qa.json").read_text())
    folder = assets / "clips" / "daily_omni"
    here = {path.name for path in folder.iterdir()}
    asked = [row for row in asked if row["video_id"] in here]
    (tmp_path / "qa.json").write_text(json.dumps(asked))
    for name in here:  # four seconds of each are enough for a random model
        (tmp_path / "videos" / name).mkdir(parents=True)
        shutil.copy(
            folder / name / f"{name}_tiny4s.mp4", tmp_path / "videos" / name / f"{name}_video.mp4"
        )
    command = ["eval", "--benchmark", "daily_omni", "--annotations", tmp_path / "qa.json"]
    command += ["--videos", tmp_path / "videos", "--model", tiny_qwen, "--out", tmp_path / "run"]
    ran = latentomni(*command, "--style", "own", "--batch", 2)
    lines, scores = read(tmp_path / "run")
    assert ran.code == 0, ran.err
    assert len(lines) == 6 == scores["overall"]["total"] and scores["overall"]["failed"] == 0
    assert all(line["tokens"] <= 10 for line in lines)  # its authors' limit
    assert all(line["prompt_tokens"]["audio"] and line["prompt_tokens"]["video"] for line in lines)
