"""Questions in, a line for each of them out, whatever is broken and whoever is killed."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.trajectories import DataProblem, Trajectory
from latentomni_jax.evaluate import generate as generating
from latentomni_jax.evaluate.answers import answer_all
from latentomni_jax.evaluate.generate import (
    Asking,
    answer_window,
    digest_of_model,
    generate,
    line_of,
    read_questions,
    windows_of,
)
from latentomni_jax.evaluate.parts import Parts
from latentomni_jax.latent.trajectory import collate
from latentomni_jax.layout import InputError
from latentomni_jax.media.processor import clip_part
from latentomni_jax.media.video import read_clip
from latentomni_jax.model import LatentOmni
from tests.processes import ROOT, environment
from tests.questions import BROKEN, make_questions

COUNT = 22  # questions: five windows of four, and one of two
OPTIONS = {"latents": "force", "max_blocks": 1, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A file of questions, as a run has it: windows, and how they are asked."""
    path = make_questions(tmp_path_factory.mktemp("questions"), COUNT)
    asking = Asking(root=path.parent, batch=2, window=2, options=OPTIONS)
    return windows_of(read_questions(path), asking), asking


def run(model, asked, out, process=0, processes=1, **more):
    """One process, from its start to its end. Returns whether the file is complete."""
    windows, asking = asked
    parts = Parts(out, [len(window) for window in windows], {"identity": 1})
    mine = range(process, len(windows), processes)
    generate(model, windows, asking, parts, mine, progress=False, **more)
    return parts.finish()


@pytest.fixture(scope="module")
def undisturbed(tiny_model, asked, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "answers.jsonl"
    assert run(tiny_model, asked, out)
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, out.name + ".run.json"]
    return out.read_bytes()


# ---------------------------------------------------------------------------- lines


def test_every_line_has_its_answer_or_its_error(tiny_model, asked, undisturbed):
    windows, asking = asked
    questions = [question for window in windows for question in window]
    lines = [json.loads(line) for line in undisturbed.splitlines()]
    assert [line["line"] for line in lines] == [2 * place + 1 for place in range(COUNT)]
    for place, line in enumerate(lines):
        expected = {6: None, 8: "q0"}.get(place, f"q{place}")
        assert line["id"] == expected and ("error" in line) == (place in BROKEN)
        if place in BROKEN:
            assert BROKEN.get(place, "") in line.get("error", "")
    # In other batches, one question after the other, they have the same answers.
    good = [place for place in range(COUNT) if place not in BROKEN]
    alone = answer_all(
        tiny_model, [questions[place] for place in good], asking.root, batch=2, **OPTIONS
    )
    for place, scored in zip(good, alone, strict=True):
        line, generation = lines[place], scored.generation
        assert (line["text"], line["answer"]) == (generation.text, scored.given)
        assert (line["expected"], line["right"]) == ("ABC"[place % 3], scored.is_right)
        assert line["finished"] == generation.finished and line["latent_steps"] == 40
        assert line["latent_blocks"] == 1 and line["tokens"] == len(generation.token_ids)
        has = {kind: line["prompt_tokens"][kind] > 0 for kind in ("video", "audio")}
        assert has["video"] == (questions[place].kind == "video")
        assert has["audio"] == (questions[place].path == "a.mp4")


def test_prompts_that_are_too_long_are_told(tiny_model, asked):
    windows, asking = asked
    asking = dataclasses.replace(asking, longest=200)
    lines = answer_window(tiny_model, windows[2], asking)
    assert "has 474 tokens, more than 200" in lines[3]["error"] and "text" in lines[2]


def test_files_without_questions_and_bad_numbers_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.jsonl: is empty"):
        read_questions(tmp_path / "empty.jsonl")
    for bad in ({"batch": 0}, {"window": 0}, {"longest": 0}, {"seed": -1}, {"view": "smell"}):
        with pytest.raises(InputError):
            Asking(root=tmp_path, **bad)


def test_what_is_drawn_is_the_questions_own(tiny_model, asked):
    """The same draws in another place and among others; another seed draws otherwise."""
    windows, asking = asked
    options = {"temperature": 1.0, "latents": "off", "max_new_tokens": 8}
    asking = dataclasses.replace(asking, options=options, view="question")
    short = [q for q in windows[3] + windows[4] if len(q.question) < 150]
    short[-1] = dataclasses.replace(short[-1], id="\ud800")  # half a surrogate pair

    def texts(questions, **changes):
        lines = answer_window(tiny_model, questions, dataclasses.replace(asking, **changes))
        return [line["text"] for line in lines]

    assert len(short) == 6 and len(set(texts(short))) > 1
    assert texts(short)[-3:] == texts(short[-3:]) != texts(short[-3:], seed=1)


# ---------------------------------------------------------------------------- shapes


def test_one_program_per_bucket(tiny_model, tmp_path):
    """30 questions of two lengths, in batches of a size that no other test has."""
    path = make_questions(tmp_path, 30, broken=False)
    asking = Asking(root=tmp_path, batch=3, window=5, view="question", options=OPTIONS)
    programs = (tiny_model._prefill, tiny_model._decode, tiny_model._splice)
    before = [program._cache_size() for program in programs]
    seen = []
    for window in windows_of(read_questions(path), asking):
        lines = answer_window(tiny_model, window, asking)
        seen += [sum(line["prompt_tokens"].values()) for line in lines]
    assert min(seen) <= 128 < max(seen) <= 256
    assert [program._cache_size() for program in programs] == [number + 2 for number in before]


def test_batches_are_of_one_size_with_the_longest_first():
    lengths = {0: 9, 1: 2, 2: 8, 3: 2, 5: 9, 7: 3, 8: 2}
    assert list(generating.batches(lengths, 3)) == [[0, 5, 2], [7, 1, 3], [8, 8, 8]]
    assert list(generating.batches({}, 3)) == []


def test_pixels_become_the_patches_that_the_processor_makes(tiny_model, asked):
    clip = read_clip(asked[1].root / "a.mp4", tiny_model.media)
    batches = [
        collate(tiny_model.config, [[clip_part(clip, tiny_model.media, pixels=pixels)]], media=spec)
        for pixels, spec in ((True, tiny_model.media), (False, None))
    ]
    assert batches[0][2] == batches[1][2]
    for one, other in zip(batches[0][1], batches[1][1], strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.asarray(x).dtype == np.asarray(y).dtype
    with pytest.raises(InputError, match="no MediaSpec"):
        collate(tiny_model.config, [[clip_part(clip, tiny_model.media, pixels=True)]])


@pytest.mark.parametrize("view", ["question", pytest.param("both", marks=pytest.mark.slow)])
def test_a_mesh_answers_as_one_device_does(tiny_directory, tmp_path, view):
    """Weights over two devices, questions over two groups of them: the same tokens."""
    data = make_questions(tmp_path, 8, broken=False)
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluate.sharded", str(tiny_directory), str(data), view],
        env=environment(4), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, mesh = map(json.loads, done.stdout.splitlines())
    assert mesh["tokens"] == one["tokens"] and len(one["tokens"]) == 8
    assert one["query"] == one["rows"] == 1 and (mesh["query"], mesh["rows"]) == (2, 2)
    assert "3 prompts do not divide over 2 devices" in mesh["refused"]


# ---------------------------------------------------------------------------- runs that end


def test_a_run_that_is_stopped_after_every_window_goes_on(tiny_model, asked, undisturbed, tmp_path):
    out, runs = tmp_path / "answers.jsonl", 1
    while not run(tiny_model, asked, out, stop=lambda window: True):
        assert not out.exists()
        runs += 1
    assert runs == len(asked[0]) and out.read_bytes() == undisturbed


def test_a_run_that_dies_in_a_window_loses_only_that(
    tiny_model, asked, undisturbed, tmp_path, monkeypatch
):
    out, calls = tmp_path / "answers.jsonl", []
    real = LatentOmni.generate

    def dies(self, prompts, **options):
        calls.append(len(prompts))
        if len(calls) == 4:  # the second batch of the second window
            raise MemoryError
        return real(self, prompts, **options)

    monkeypatch.setattr(LatentOmni, "generate", dies)
    with pytest.raises(MemoryError):
        run(tiny_model, asked, out)
    assert len(list((tmp_path / "answers.jsonl.parts").iterdir())) < len(asked[0])
    assert run(tiny_model, asked, out) and out.read_bytes() == undisturbed
    assert set(calls) == {2}


def test_hosts_apart_and_another_number_of_them_later(tiny_model, asked, undisturbed, tmp_path):
    out = tmp_path / "answers.jsonl"
    assert not run(tiny_model, asked, out, 1, 2)  # the other one died before its first window
    assert not run(tiny_model, asked, out, 2, 3)
    assert not run(tiny_model, asked, out, 1, 3)
    assert run(tiny_model, asked, out, 0, 3) and out.read_bytes() == undisturbed
    assert run(tiny_model, asked, out, 1, 3) and out.read_bytes() == undisturbed  # nothing to do


# ---------------------------------------------------------------------------- files


def parts_of(out: Path, *identity, sizes=(2, 1), **more) -> Parts:
    return Parts(out, sizes, {"model": "m", "identity": identity}, **more)


LINES = [[{"line": 1}, {"line": 2}], [{"line": 3}]]
WHOLE = "".join(json.dumps(line) + "\n" for window in LINES for line in window)


def write_all(parts):
    for window, lines in enumerate(LINES):
        parts.write(window, lines)


def test_two_processes_that_finish_at_once(tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    one, other = parts_of(out), parts_of(out)
    write_all(one)
    read = Parts._read

    def overtaken(self, window):
        if self is one and window == 1:
            assert other.finish()  # and removes what this one is about to read
        return read(self, window)

    monkeypatch.setattr(Parts, "_read", overtaken)
    assert one.finish() and out.read_text() == WHOLE
    one.write(0, LINES[0])  # a process that did a window for a second time comes later still
    assert one.finish() and one.missing() == 0 and out.read_text() == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]


def test_parts_of_another_run_are_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    parts_of(out, 1).write(0, LINES[0])
    with pytest.raises(InputError, match=r"identity was \[1\] and is \[2\].*--overwrite"):
        parts_of(out, 2)
    assert parts_of(out, 1).is_done(0) and not parts_of(out, 1).is_done(1)
    again = parts_of(out, 2, overwrite=True)
    assert not again.is_done(0)
    write_all(again)
    assert again.finish()
    with pytest.raises(InputError, match=r"identity was \[2\] and is \[1\]"):
        parts_of(out, 1)


def test_two_runs_that_begin_at_once_never_mix(tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as early:
        early.setattr(Path, "exists", lambda path: False)  # neither sees the other's run.json
        one, other = parts_of(out, 1), parts_of(out, 2)
    one.write(0, LINES[0])
    other.write(1, LINES[1])
    assert not one.finish() and not other.finish() and not one.is_done(1)


def test_files_of_unknown_origin_and_damaged_parts_are_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(InputError, match=r"out\.jsonl is there without out\.jsonl\.run\.json"):
        parts_of(out)
    assert out.read_text() == "mine\n"
    parts = parts_of(out, overwrite=True)
    write_all(parts)
    path = next((tmp_path / "out.jsonl.parts").glob("00000-*"))
    path.write_text(path.read_text()[:-1])
    with pytest.raises(InputError, match=rf"{path.name}: is damaged, with 1 lines in place of 2"):
        parts.finish()
    assert not out.exists()


def test_models_are_told_apart_by_their_weights(tmp_path):
    def digest(name="one", weights=bytes(300_000), **files):
        folder = tmp_path / name
        (folder / "params" / "d").mkdir(parents=True, exist_ok=True)
        (folder / "params" / "d" / "0a1b").write_bytes(weights)
        (folder / "latentomni.json").write_text("{}")
        for file, text in files.items():
            (folder / f"{file}.jsonl").write_text(text)
        return digest_of_model(folder)

    assert digest() == digest("elsewhere") == digest(answers="not of the model")
    assert digest() != digest("first", b"1" + bytes(299_999))
    assert digest() != digest("last", bytes(299_999) + b"1")
    assert digest() != digest("longer", bytes(300_001))


def test_problems_stand_where_their_lines_do(asked):
    questions = [question for window in asked[0] for question in window]
    assert [line_of(question) for question in questions] == [2 * k + 1 for k in range(COUNT)]
    kinds = [type(question) for question in questions]
    assert kinds == [DataProblem if k in (6, 8) else Trajectory for k in range(COUNT)]
