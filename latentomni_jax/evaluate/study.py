"""Comparing trained variants of a model: what every run gave, means over seeds, paired tests.

Runs of one seed answer the same questions. A row of a study is one variant under several seeds; it
is compared with a reference row question by question and seed by seed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.shards import write_text
from latentomni_jax.evaluate.answers import Scored, by_type
from latentomni_jax.evaluate.scores import mcnemar
from latentomni_jax.layout import InputError


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What one variant under one seed gave.

    Attributes:
      row: name of the variant. settings: of its config, over that of all variants.
      questions: digest of what was asked. right: whether each was answered right, in that order.
      by_type: right answers and questions of every type.
      well_formed: answers that end and can be parsed. positions: tokens and slots of latents that
        an answer takes, mean.
      steps, seconds, flops: of its last stage of training; compiling is no part of seconds.
      losses: at its end; of latents over steps with blocks, nan where they are not computed.
      states: measures of the latents, see `states.measure_states`.
    """

    row: str
    seed: int
    settings: dict[str, object]
    questions: str
    right: list[bool]
    by_type: dict[str, tuple[int, int]]
    well_formed: int
    positions: float
    steps: int
    seconds: float
    flops: float
    losses: dict[str, float]
    states: dict[str, float]

    @classmethod
    def of(
        cls,
        answers: Sequence[Scored],
        metrics: Sequence[Mapping[str, float]],
        **given,
    ) -> RunResult:
        """From a model's answers and the lines of its `metrics.jsonl`; `given` is the rest."""
        scores = by_type(answers)
        scores.pop("all")
        end = metrics[-max(len(metrics) // 10, 1) :]
        seconds = np.array([line["seconds"] for line in metrics])
        running = seconds[seconds < 10 * np.median(seconds)]  # the others compiled
        return cls(
            questions=_digest(answers),
            right=[answer.is_right for answer in answers],
            by_type={type: (score.right, score.asked) for type, score in scores.items()},
            well_formed=sum(answer.well_formed for answer in answers),
            positions=float(np.mean([len(answer.generation.token_ids) for answer in answers])),
            steps=len(metrics),
            seconds=float(running.mean() * len(metrics)),
            flops=float(sum(line["flops"] for line in metrics)),
            losses={
                "text": _mean([line["loss/text"] for line in end]),
                "latent": _of_blocks(end, "loss/latent"),
                "sync": _of_blocks(end, "loss/sync"),
            },
            **given,
        )

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.right))

    def write(self, path: Path) -> None:
        """Whole or not at all; its directory is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Raises InputError where the file is no result."""
        try:
            taken = json.loads(path.read_text(encoding="utf-8"))
            return cls(**taken | {"by_type": {k: tuple(v) for k, v in taken["by_type"].items()}})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: is no result of a study ({error}); delete it") from error


def _digest(answers: Sequence[Scored]) -> str:
    asked = [(a.question.question, a.question.choices, a.expected) for a in answers]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _of_blocks(lines: Sequence[Mapping[str, float]], name: str) -> float:
    """A loss of latents is written as 0 in steps without a block, and where it is switched off."""
    found = _mean([line[name] for line in lines if line["blocks"]])
    return found or float("nan")


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are finite: metrics write the others as null."""
    finite = [value for value in values if value is not None]
    return float(np.mean(finite)) if finite else float("nan")


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant over its seeds, compared with the reference.

    Attributes:
      accuracies: of every seed. difference: mean of (this - reference) over the shared seeds, None
        without one. gained, lost: questions that only this row, only the reference has right, over
        the shared seeds. p_value: exact McNemar test of these, two-sided; it holds for these
        trained models: how much other seeds would differ is what `deviation` shows.
    """

    name: str
    runs: tuple[RunResult, ...]
    accuracies: tuple[float, ...]
    difference: float | None
    gained: int
    lost: int
    p_value: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds, of a sample; nan for one seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.runs) > 1 else float("nan")

    def average(self, name: str) -> float:
        return float(np.mean([getattr(run, name) for run in self.runs]))

    def type_accuracy(self, type: str) -> float:
        counts = [run.by_type.get(type, (0, 0)) for run in self.runs]
        return sum(right for right, _ in counts) / max(sum(asked for _, asked in counts), 1)


def compare(results: Sequence[RunResult], reference: str) -> list[Row]:
    """Rows in the order of their first result.

    Raises:
      InputError: two results of one row and seed; runs of a seed that answered other questions.
    """
    runs: dict[str, dict[int, RunResult]] = collections.defaultdict(dict)
    for result in results:
        if result.seed in runs[result.row]:
            raise InputError(f"two results of {result.row}, seed {result.seed}")
        runs[result.row][result.seed] = result
        first = next(one for one in results if one.seed == result.seed)
        if result.questions != first.questions:
            raise InputError(
                f"seed {result.seed}: {result.row} and {first.row} answered different questions; "
                "delete one of the results and run it again"
            )
    rows, shared = [], runs.get(reference, {})
    for name, by_seed in runs.items():
        pairs = [(run, shared[s]) for s, run in by_seed.items() if s in shared]
        one, other = (
            np.array([run.right for run in side], bool).ravel()
            for side in (zip(*pairs, strict=True) if pairs else ((), ()))
        )
        gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
        rows.append(
            Row(
                name,
                tuple(by_seed.values()),
                tuple(run.accuracy for run in by_seed.values()),
                float(one.mean() - other.mean()) if pairs else None,
                gained,
                lost,
                mcnemar(gained, lost),
            )
        )
    return rows


def table(rows: Sequence[Row], types: Sequence[str], reference: str) -> str:
    """Rows as a table in Markdown: accuracy, difference, types, cost."""
    head = ["row", "seeds", "right, %", "against " + reference, "p", *types, "well formed, %",
            "positions", "10^12 FLOPs", "seconds"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in rows:
        spread = "" if len(row.runs) < 2 else f" ± {100 * row.deviation:.1f}"
        compared = row.name != reference and row.difference is not None
        asked = len(row.runs[0].right)
        lines.append(
            [
                row.name,
                str(len(row.runs)),
                f"{100 * row.mean:.1f}{spread}",
                f"{100 * row.difference:+.1f}" if compared else "",
                f"{row.p_value:.1g}" if compared else "",
                *(f"{100 * row.type_accuracy(type):.0f}" for type in types),
                f"{100 * row.average('well_formed') / asked:.0f}",
                f"{row.average('positions'):.0f}",
                f"{row.average('flops') / 1e12:.1f}",
                f"{row.average('seconds'):.0f}",
            ]
        )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def states_table(rows: Sequence[Row]) -> str:
    """What the latents of every row are like; rows without latents are left out."""
    names = list(dict.fromkeys(name for row in rows for run in row.runs for name in run.states))
    if not names:
        return ""
    head = ["row", "L_latent", "L_sync", *names]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        measured = [run for run in row.runs if run.states]
        if not measured:
            continue
        cells = [float(np.mean([run.losses[k] for run in measured])) for k in ("latent", "sync")]
        for name in names:
            values = [run.states[name] for run in measured if name in run.states]
            cells.append(float(np.mean(values)) if values else float("nan"))
        shown = ("" if np.isnan(cell) else f"{cell:.3g}" for cell in cells)
        lines.append([row.name, *shown])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
