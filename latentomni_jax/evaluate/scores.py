"""Scores of a benchmark from its lines of answers, and whether two sides differ.

A question that got no answer is counted in one of two ways by those who publish numbers: as wrong,
or not at all. Every score here has both, and the counts to tell them apart. Intervals come from
resampling clips, since questions about one clip are right or wrong together.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy.stats

Line = Mapping[str, Any]  # of a file of answers, see `generate.answer_window`
Outcome = Literal["right", "wrong", "unparsed", "failed"]
_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Tally:
    """What became of some questions; total = answered + unparsed + failed.

    Attributes:
      answered: an answer was found in what the model said. unparsed: none was. failed: the model
        was not asked, or the question cannot be read.
      right: of the answered.
      accuracy: right / total. interval: 95 % bootstrap over clips; None where there are fewer than
        two.
      accuracy_answered, interval_answered: of right / answered; None where nothing is.
    """

    total: int
    answered: int
    unparsed: int
    failed: int
    right: int
    accuracy: float
    interval: tuple[float, float] | None
    accuracy_answered: float | None
    interval_answered: tuple[float, float] | None

    @classmethod
    def of(cls, lines: Sequence[Line]) -> Tally:
        counts = collections.Counter(map(outcome, lines))
        right, answered = counts["right"], counts["right"] + counts["wrong"]
        return cls(
            total=len(lines),
            answered=answered,
            unparsed=counts["unparsed"],
            failed=counts["failed"],
            right=right,
            accuracy=right / max(len(lines), 1),
            interval=interval(lines),
            accuracy_answered=right / answered if answered else None,
            interval_answered=interval([x for x in lines if outcome(x) in ("right", "wrong")]),
        )


def outcome(line: Line) -> Outcome:
    """What became of a question."""
    if "error" in line:
        return "failed"
    if line["answer"] is None:
        return "unparsed"
    return "right" if line["right"] else "wrong"


def interval(lines: Sequence[Line]) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the share that is right, resampling clips.

    A line without a clip stands for itself. The order of the lines changes nothing.
    """
    clips: dict[tuple[str, int], list[int]] = collections.defaultdict(lambda: [0, 0])
    for place, line in enumerate(lines):
        counts = clips[(line["video"], 0) if "video" in line else ("", place)]
        counts[0] += outcome(line) == "right"
        counts[1] += 1
    if len(clips) < 2:
        return None
    right, count = np.array([clips[key] for key in sorted(clips)]).T
    found = scipy.stats.bootstrap(
        (right, count),
        lambda right, count, axis: right.sum(axis) / count.sum(axis),
        n_resamples=_RESAMPLES,
        batch=100,
        vectorized=True,
        paired=True,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def by_axis(lines: Sequence[Line], axes: Iterable[str]) -> dict[str, dict[str, Tally]]:
    """Tallies of every value of every axis, the most frequent first.

    A line with several values counts under each; one without the axis under none.
    """
    found = {}
    for axis in axes:
        groups: dict[str, list[Line]] = collections.defaultdict(list)
        for line in lines:
            values = (line.get("axes") or {}).get(axis, [])
            for value in [values] if isinstance(values, str) else values:
                groups[value].append(line)
        ordered = sorted(groups, key=lambda value: (-len(groups[value]), value))
        found[axis] = {value: Tally.of(groups[value]) for value in ordered}
    return found


def scores(lines: Sequence[Line], axes: Iterable[str]) -> dict[str, Any]:
    """Everything that `scores.json` tells of the lines, as JSON has it."""
    said = [line for line in lines if "error" not in line]
    given = collections.Counter(line["answer"] for line in said if line["answer"] is not None)
    expected = collections.Counter(line["expected"] for line in said)
    letters = sorted({*given, *expected})
    tallies = by_axis(lines, axes)
    return {
        "overall": dataclasses.asdict(Tally.of(lines)),
        "axes": {
            axis: {value: dataclasses.asdict(tally) for value, tally in values.items()}
            for axis, values in tallies.items()
        },
        "rules": dict(sorted(collections.Counter(line["rule"] for line in said).items())),
        "positions": {x: {"given": given[x], "expected": expected[x]} for x in letters},
    }


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test that two runs are equally good.

    Args:
      gained, lost: questions that only the one, only the other has right.
    """
    changed = gained + lost
    return float(scipy.stats.binomtest(gained, changed).pvalue) if changed else 1.0
