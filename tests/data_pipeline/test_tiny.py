"""The tiny set and the command that makes and caches it."""

from __future__ import annotations

import filecmp
import json

import numpy as np
import pytest

from data_pipeline.av_events.tiny import make_tiny_set
from data_pipeline.records import Records
from data_pipeline.trajectories import read_jsonl
from latentomni_jax.__main__ import main
from latentomni_jax.layout import InputError, MediaSpec
from latentomni_jax.media.video import read_clip


def test_every_kind_of_row_occurs(tiny):
    trajectories, problems = read_jsonl(tiny, max_blocks=2)
    assert len(trajectories) == 16 and not problems
    kinds = [t.kind for t in trajectories]
    assert kinds.count("video") == 14 and kinds.count("audio") == 1 and kinds.count(None) == 1
    blocks = {len(t.segments) for t in trajectories}
    assert blocks == {0, 1, 2}
    silent = read_clip(tiny.parent / trajectories[5].path, MediaSpec(), video=True)
    assert silent.audio is None
    assert len({t.answer for t in trajectories}) > 8
    assert len({t.question for t in trajectories}) > 8


def test_answers_are_true(tiny):
    trajectories, _ = read_jsonl(tiny)
    checked = 0
    for trajectory in trajectories:
        if "highest tone sounds?" not in trajectory.question or trajectory.kind != "video":
            continue
        clip = read_clip(tiny.parent / trajectory.path, MediaSpec())
        pitches = []
        for second in range(int(clip.duration)):
            heard = clip.audio[second * 16_000 + 1600 : second * 16_000 + 9600]
            pitches.append(np.abs(np.fft.rfft(heard * np.hanning(heard.size))).argmax())
        start = float(np.argmax(pitches))
        assert trajectory.segments[-1] == (start, start + 1)
        checked += 1
    assert checked


def test_the_same_seed_draws_the_same_set(tiny, tmp_path):
    again = make_tiny_set(tmp_path / "again")
    assert again.read_bytes() == tiny.read_bytes()
    names = [path.name for path in sorted((tiny.parent / "clips").iterdir())]
    _, differ, errors = filecmp.cmpfiles(
        tiny.parent / "clips", again.parent / "clips", names, shallow=False
    )
    assert len(names) == 15 and not differ and not errors
    other = make_tiny_set(tmp_path / "other", n=2, seed=1)
    assert len(other.read_text().splitlines()) == 2
    assert other.read_text() not in tiny.read_text()
    with pytest.raises(InputError, match="is not empty"):
        make_tiny_set(tmp_path / "other")
    with pytest.raises(InputError, match="at least 1 sample"):
        make_tiny_set(tmp_path / "none", n=0)


def test_the_command_makes_and_caches_a_set(tmp_path, capsys):
    assert main(["data", "tiny", "--out", str(tmp_path / "tiny"), "--samples", "3"]) == 0
    printed = capsys.readouterr().out
    command = printed.split("latentomni ")[1].split()  # what it says to do next
    assert main(command) == 0
    done = capsys.readouterr()
    assert done.out.startswith("3 trajectories, ") and "0 left out" in done.out
    assert "3/3" in done.err  # the progress bar
    records = Records(tmp_path / "tiny-cache")
    assert len(records) == 3 and records.read(0)[1].prompt.grid == (4, 8, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--fps", "0"], "--fps should be more than 0"),
        (["--video-max-pixels", "784"], "--video-min-pixels 100352 is more than"),
        (["--max-frames", "2"], "--min-frames 4 is more than"),
        (["--workers", "0"], "workers should be at least 1"),
        (["--on-error", "fail"], "'x' malformed line: unknown keys 'b'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys, options, message):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"id": "x", "question": "a", "answer": "b", "b": 1}) + "\n")
    arguments = ["data", "cache", "--data", str(data), "--out", str(tmp_path / "cache"), *options]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latentomni data: error: ") and message in line


@pytest.mark.parametrize("verb", ["data", "data cache", "data tiny"])
def test_help_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*verb.split(), "--help"])
    assert stopped.value.code == 0 and "example" in capsys.readouterr().out
