"""Runs beside each other: pairs on the questions that both have, and sweeps over one option."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from latentomni_jax.evaluate.runs import Run
from latentomni_jax.evaluate.scores import mcnemar, outcome

SLOTS = ("num_visual", "num_audio")  # options that a sweep over K or its split changes together


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runs of a benchmark. A question that failed or was not parsed counts as wrong.

    Attributes:
      shared: questions that both have. right: of these, by the first and by the second.
      gained, lost: questions that only the second, only the first has right.
      p_value: exact McNemar test of these, two-sided.
    """

    first: Run
    second: Run
    shared: int
    right: tuple[int, int]
    gained: int
    lost: int
    p_value: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Measured runs of a benchmark that differ in one option.

    Attributes:
      runs: by the option's value, in order. values: of each; numbers where all are.
      models_differ: each run has a model of its own, which the option may be of the training of.
    """

    option: str
    runs: tuple[Run, ...]
    values: tuple[Any, ...]
    models_differ: bool

    @property
    def is_numeric(self) -> bool:
        return all(map(_is_number, self.values))


def pairs(runs: Sequence[Run]) -> Iterator[Pair]:
    """All pairs of runs of the same benchmark that share questions."""
    for first, second in itertools.combinations(runs, 2):
        if first.benchmark != second.benchmark:
            continue
        before, after = (
            {key: outcome(line) == "right" for key, line in run.by_question().items()}
            for run in (first, second)
        )
        shared = [key for key in before if key in after]
        if not shared:
            continue
        gained = sum(after[key] and not before[key] for key in shared)
        lost = sum(before[key] and not after[key] for key in shared)
        right = (sum(before[key] for key in shared), sum(after[key] for key in shared))
        yield Pair(first, second, len(shared), right, gained, lost, mcnemar(gained, lost))


def sweeps(runs: Sequence[Run]) -> Iterator[Sweep]:
    """Every option over which runs that are otherwise alike can be drawn; the style is one, too."""
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        asked = [(run, options_of(run)) for run in runs if run.benchmark == benchmark]
        for name in dict.fromkeys(name for _, options in asked for name in options):
            alike = collections.defaultdict(list)
            for run, options in asked:
                rest = {key: value for key, value in options.items() if key != name}
                alike[json.dumps(rest, sort_keys=True)].append((run, options.get(name)))
            for rows in alike.values():
                yield from _split(name, rows)


def options_of(run: Run) -> dict[str, Any]:
    """How a run was asked; both counts of slots are one option, "slots", written "32+8"."""
    options = {"style": run.style, **run.options}
    if all(isinstance(options.get(name), int) for name in SLOTS):
        visual, audio = (options.pop(name) for name in SLOTS)
        options["slots"] = f"{visual}+{audio}"
    return options


def _split(name: str, rows: Sequence[tuple[Run, Any]]) -> Iterator[Sweep]:
    """The sweep of these runs; one a model, unless the model differs wherever the option does."""
    values = {json.dumps(value) for _, value in rows}
    models = list(dict.fromkeys(run.model for run, _ in rows))
    if len(values) < 2:
        return
    if len(models) > 1 and not len(models) == len(values) == len(rows):
        for model in models:
            yield from _split(name, [row for row in rows if row[0].model == model])
        return
    order = sorted(rows, key=lambda row: _place(row[1]))
    runs, found = zip(*order, strict=True)
    yield Sweep(name, runs, found, len(models) > 1)


def _place(value: Any) -> tuple:
    """Numbers by size, "32+8" by their sum, all else by its letters."""
    if _is_number(value):
        return 0, value, ""
    text = str(value)
    parts = text.split("+")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        return 1, sum(map(int, parts)), f"{int(parts[0]):09d}"
    return 2, 0, text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
