"""A study's rows: means, deviations, paired tests, tables, and results that are no results."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from latentomni_jax.evaluate import study
from latentomni_jax.evaluate.pages import plots
from latentomni_jax.layout import InputError
from tests.evaluate.test_answers import generation, question, score

TYPES = ("context", "sequence")


def result(row, seed, right, **changes):
    right = [bool(x) for x in right]
    half = len(right) // 2
    given = study.RunResult(
        row=row, seed=seed, settings={}, questions=f"of {seed}", right=right,
        by_type={"context": (sum(right[:half]), half), "sequence": (sum(right[half:]), half)},
        well_formed=len(right), positions=30.0, steps=5, seconds=9.0, flops=2e12,
        losses={"text": 0.1, "latent": 400.0, "sync": 0.2}, states={"rank": 3.0},
    )  # fmt: skip
    return dataclasses.replace(given, **changes)


def test_a_result_counts_what_was_answered_and_what_it_cost(tmp_path):
    texts = ["\\boxed{B}", "\\boxed{A}", "nothing", "\\boxed{B}"]
    answers = [score(question(i, TYPES[i // 2]), generation(t)) for i, t in enumerate(texts)]
    metrics = [
        {
            "loss/text": 9.0 - i, "loss/latent": 5.0 * (i % 2), "loss/sync": 0.0, "blocks": i % 2,
            "seconds": 0.5, "flops": 3.0,
        }
        for i in range(20)
    ]  # fmt: skip
    got = study.RunResult.of(answers, metrics, row="a", seed=1, settings={"x": 2}, states={})
    assert got.right == [True, False, False, True] and got.accuracy == 0.5
    assert got.by_type == {"context": (1, 2), "sequence": (1, 2)}
    assert (got.well_formed, got.positions, got.steps) == (3, 3.0, 20)
    assert (got.seconds, got.flops) == (10.0, 60.0)
    assert got.losses["text"] == -9.5 and got.losses["latent"] == 5.0  # the last tenth; with blocks
    assert math.isnan(got.losses["sync"])  # switched off
    got = dataclasses.replace(got, losses=got.losses | {"sync": 1.0})  # nan is not equal to itself
    got.write(tmp_path / "result.json")
    assert study.RunResult.read(tmp_path / "result.json") == got
    other = [score(question(9), generation("\\boxed{B}")), *answers[1:]]
    assert other[0].is_right and got.questions == study._digest(other)  # the same words
    assert got.questions != study._digest(answers[:3])
    (tmp_path / "result.json").write_text('{"row": "a"}')
    with pytest.raises(InputError, match=r"result.json: is no result of a study"):
        study.RunResult.read(tmp_path / "result.json")


def test_what_is_not_finite_and_what_compiles_is_left_out():
    answers = [score(question(), generation("\\boxed{B}"))]
    line = {
        "loss/text": 1.0, "loss/latent": None, "loss/sync": 2.0, "blocks": 3,
        "seconds": 0.5, "flops": 3.0,
    }  # fmt: skip
    metrics = [line | {"seconds": 12.0}, *[line] * 8, line | {"loss/text": None}]
    got = study.RunResult.of(answers, metrics, row="a", seed=1, settings={}, states={})
    assert got.seconds == 5.0 and math.isnan(got.losses["text"])
    assert math.isnan(got.losses["latent"]) and got.losses["sync"] == 2.0


def test_rows_are_compared_question_by_question_over_shared_seeds():
    rng = np.random.default_rng(0)
    right = {(row, seed): rng.random(40) < p for row, p in (("full", 0.8), ("less", 0.5))
             for seed in range(3)}  # fmt: skip
    results = [result(row, seed, right[row, seed]) for row, seed in right]
    extra = result("less", 9, np.ones(40))  # a seed that the reference lacks: mean only
    full, less = study.compare([*results, extra], "full")
    assert (full.name, full.difference, full.p_value) == ("full", 0.0, 1.0)
    one, other = (np.concatenate([right[row, s] for s in range(3)]) for row in ("less", "full"))
    assert less.gained == (one & ~other).sum() and less.lost == (other & ~one).sum()
    expected = scipy.stats.binomtest(less.gained, less.gained + less.lost).pvalue
    assert less.p_value == pytest.approx(expected) and less.p_value < 0.05
    assert less.difference == pytest.approx(one.mean() - other.mean())
    accuracies = [right["less", s].mean() for s in range(3)] + [1.0]
    assert less.mean == pytest.approx(np.mean(accuracies))
    assert less.deviation == pytest.approx(np.std(accuracies, ddof=1))
    assert math.isnan(study.compare([extra], "full")[0].deviation)
    assert study.compare([extra], "full")[0].difference is None


def test_results_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match="two results of a, seed 0"):
        study.compare([result("a", 0, [1, 0]), result("a", 0, [1, 0])], "a")
    other = result("b", 0, [1, 0], questions="others")
    with pytest.raises(InputError, match="seed 0: b and a answered different questions"):
        study.compare([result("a", 0, [1, 0]), other], "a")


def test_tables_say_what_was_measured():
    results = [result("full", s, [1, 1, 1, s % 2]) for s in range(2)]
    results += [result("less", s, [0, 1, 0, 0], states={}) for s in range(2)]
    rows = study.compare(results, "full")
    lines = study.table(rows, TYPES, "full").splitlines()
    assert lines[0].startswith("| row | seeds | right, % | against full | p | context | sequence |")
    assert lines[2] == "| full | 2 | 87.5 ± 17.7 |  |  | 100 | 75 | 100 | 30 | 2.0 | 9 |"
    p = scipy.stats.binomtest(0, 5).pvalue
    assert lines[3].startswith(f"| less | 2 | 25.0 ± 0.0 | -62.5 | {p:.1g} | 50 | 0 |")
    states = study.states_table(rows).splitlines()
    assert states[0] == "| row | L_latent | L_sync | rank |" and len(states) == 3
    assert states[2] == "| full | 400 | 0.2 | 3 |"
    assert study.states_table(rows[1:]) == ""
    pytest.importorskip("matplotlib")
    picture = plots.to_bytes(plots.study_rows(rows, 0.25))
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
