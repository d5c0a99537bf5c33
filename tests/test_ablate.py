"""The study's launcher: rows are chosen, run once, and written between two marks."""

import json

import pytest

from configs.av_events_study import GROUPS, ROWS
from latentomni_jax.layout import InputError
from latentomni_jax.train.config import load, resolve
from launch import ablate, demo
from tests.evaluate.test_study import result

SMALL = demo.Scale(14, 4, dict.fromkeys([*demo.TITLES, "further"], 2))


def marked(path):
    path.write_text(f"# Results\n\n{ablate._BEGIN}\nold\n{ablate._END}\n\n## Older\n")
    return path


def test_rows_are_chosen_by_group_and_name_the_reference_first():
    assert ablate.choose(["main"])[:2] == ["latentomni", "text_cot"]
    assert ablate.choose(["teacher", "split", "split_6_4"]) == [
        "latentomni", "teacher", "split_6_4", "split_7_3", "split_9_1",
    ]  # fmt: skip
    assert ablate.choose(["silent_text_cot", "bottleneck_latentomni"]) == [
        "latentomni", "silent_latentomni", "text_cot", "silent_text_cot", "bottleneck_latentomni",
    ]  # fmt: skip
    assert set(ROWS) == set(ablate.choose(list(GROUPS)))
    with pytest.raises(InputError, match="no group or row 'all'; there are main, count"):
        ablate.choose(["all"])


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_config(row):
    run = resolve(load(f"{demo.CONFIGS}/av_events_study.py:{row}"))
    assert run.raw.optimizer.name == "muon"
    assert (max(shape.blocks for shape in run.shapes) > 0) == (run.raw.data.reasoning == "latent")


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    """A study whose trainings are noted and done at once."""
    trained = []

    def train(config, out, workdir, steps, seed, start):
        trained.append((config, seed, start and str(start.relative_to(out))))
        (workdir / "model").mkdir(parents=True, exist_ok=True)
        return workdir / "model"

    def make_world(out, *args, **kwargs):
        (out / "events").mkdir(parents=True, exist_ok=True)
        (out / "events" / "test.jsonl").touch()

    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo, "make_world", make_world)
    monkeypatch.setattr(demo, "make_cache", lambda out: None)
    monkeypatch.setattr(
        ablate,
        "ask",
        lambda directory, row, seed, *rest: result(row, seed, [1, seed, 0, 1], settings=ROWS[row]),
    )
    return trained


def test_what_is_finished_is_not_done_again(stubbed, tmp_path):
    out, results, report = tmp_path / "study", tmp_path / "kept", marked(tmp_path / "results.md")
    rows = ["latentomni", "silent_latentomni"]
    ablate.run_all(out, results, SMALL, [0, 1], rows, report)
    stages = [(f"av_events.py:{stage}", before) for stage, before in
              (("senses", None), ("base", "senses/model"), ("order", "base/model"))]  # fmt: skip
    expected = []
    for seed in (0, 1):
        expected += [(config, seed, before) for config, before in stages]
        expected += [(f"av_events_study.py:{row}", seed, before) for row, before in
                     zip(rows, ("order/model", "rows/latentomni/model"), strict=True)]  # fmt: skip
    assert stubbed == expected
    text = report.read_text()
    assert text.startswith("# Results\n\n<!-- study") and text.endswith("\n\n## Older\n")
    assert "\nold\n" not in text
    assert "4 runs: 14 clips of the dial easy, steps of senses 2, base 2, order 2, latent" in text
    assert "| latentomni | 2 | 62.5 ± 17.7 |" in text and "| silent_latentomni | 2 |" in text
    assert text.count("| against ") == 2  # a table for those that are compared with each other
    assert (tmp_path / "figures" / "study.png").read_bytes().startswith(b"\x89PNG")

    ablate.run_all(out, results, SMALL, [0, 1], rows, report)
    assert stubbed == expected
    # On a machine that has results, and no models: what a row goes on from is trained again.
    (results / "seed-1" / "silent_latentomni.json").unlink()
    out = tmp_path / "elsewhere"
    ablate.run_all(out, results, SMALL, [0, 1], rows, report)
    assert stubbed[len(expected) :] == expected[5:]
    assert report.read_text() == text


def test_what_cannot_be_written_or_mixed_is_named(stubbed, tmp_path):
    out, results, report = tmp_path / "study", tmp_path / "kept", marked(tmp_path / "results.md")
    with pytest.raises(InputError, match="kept: has no result yet"):
        ablate.write_report(results, report)
    ablate.run_all(out, results, SMALL, [0], ["latentomni"], report)
    with pytest.raises(InputError, match=r"holds a study of .*'clips': 14.*not of .*'clips': 20"):
        ablate.run_all(out, results, demo.Scale(20, 4, SMALL.steps), [0], ["latentomni"], report)
    report.write_text("# no marks\n")
    with pytest.raises(InputError, match=r"results.md: lacks the lines"):
        ablate.write_report(results, report)


@pytest.mark.slow
def test_it_trains_and_asks(tmp_path):
    results, report = tmp_path / "kept", marked(tmp_path / "results.md")
    ablate.run_all(tmp_path, results, SMALL, [0], ["latentomni", "text_cot"], report)
    taken = json.loads((results / "seed-0" / "text_cot.json").read_text())
    assert taken["settings"] == {"data.reasoning": "text"} and len(taken["right"]) == 4
    assert taken["flops"] > 0 and taken["seconds"] > 0 and taken["steps"] == 2
    assert "| latentomni | 1 |" in report.read_text()
