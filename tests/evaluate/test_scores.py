"""Counts, intervals and tests of scores against brute force and statsmodels."""

import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as of_statsmodels

from latentomni_jax.evaluate.scores import Tally, by_axis, interval, mcnemar, scores


def line(number, right=False, *, video=None, answer="A", **axes):
    """An answered question; `answer` None is an unparsed one."""
    return {
        "line": number, "id": f"q{number}", "video": video or f"v{number}", "axes": axes,
        "answer": answer, "expected": "A" if right else "B", "right": right, "rule": "boxed",
    }  # fmt: skip


def failed(number, **axes):
    return {
        "line": number,
        "id": f"q{number}",
        "video": f"v{number}",
        "axes": axes,
        "error": "gone",
    }


def test_both_ways_of_counting_can_be_read():
    lines = [line(1, True), line(2), line(3, answer=None), failed(4), line(5, True)]
    tally = Tally.of(lines)
    assert (tally.total, tally.answered, tally.unparsed, tally.failed) == (5, 3, 1, 1)
    assert tally.right == 2 and tally.accuracy == 2 / 5 and tally.accuracy_answered == 2 / 3
    nothing = Tally.of([failed(1)])
    assert nothing.accuracy == 0 and nothing.accuracy_answered is None
    assert nothing.interval is None and nothing.interval_answered is None


def test_the_interval_is_that_of_resampled_clips():
    """Against a bootstrap by hand, to what so many draws allow."""
    rng = np.random.default_rng(3)
    lines = [
        line(10 * clip + n, bool(rng.random() < 0.2 + 0.6 * (clip % 2)), video=f"v{clip}")
        for clip in range(60)
        for n in range(1 + clip % 5)
    ]
    clips = {}
    for one in lines:
        clips.setdefault(one["video"], []).append(one["right"])
    rows = list(clips.values())
    drawn = []
    for _ in range(20_000):
        taken = [right for i in rng.integers(len(rows), size=len(rows)) for right in rows[i]]
        drawn.append(np.mean(taken))
    low, high = interval(lines)
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.012)
    # Wider than if the questions of a clip were independent.
    alone = interval([one | {"video": f"{i}"} for i, one in enumerate(lines)])
    assert high - low > alone[1] - alone[0]


def test_with_one_question_a_clip_it_is_the_binomials():
    lines = [line(n, n % 10 < 7) for n in range(400)]
    expected = scipy.stats.binom.ppf([0.025, 0.975], 400, 0.7) / 400
    np.testing.assert_allclose(interval(lines), expected, atol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_questions_changes_nothing(seed):
    lines = [line(n, n % 3 == 0, video=f"v{n % 7}", type="xyz"[n % 3]) for n in range(40)]
    lines += [failed(90), {"line": 91, "id": None, "error": "no question"}]
    shuffled = random.Random(seed).sample(lines, len(lines))
    assert scores(shuffled, ["type"]) == scores(lines, ["type"])


def test_axes_have_their_own_tallies():
    lines = [line(1, True, type="a", tags=["x", "y"]), line(2, type="a", tags=["x"]), line(3)]
    found = by_axis(lines, ["type", "tags"])
    assert {k: (t.right, t.total) for k, t in found["type"].items()} == {"a": (1, 2)}
    assert {k: t.total for k, t in found["tags"].items()} == {"x": 2, "y": 1}
    assert list(found["tags"]) == ["x", "y"]


def test_letters_given_and_expected_are_counted():
    lines = [line(1, True), line(2), line(3, answer="C"), line(4, answer=None)]
    assert scores(lines, [])["positions"] == {
        "A": {"given": 2, "expected": 1},
        "B": {"given": 0, "expected": 3},
        "C": {"given": 1, "expected": 0},
    }


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_one(gained, lost):
    expected = of_statsmodels([[5, gained], [lost, 7]], exact=True).pvalue
    assert mcnemar(gained, lost) == pytest.approx(1.0 if gained + lost == 0 else expected)
