"""Pictures of runs of `latentomni eval`, as PNG data URIs: breakdowns, positions, sweeps.

Names come from data: they are drawn as they are, never as mathematics, and cut where they are long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentomni_jax.evaluate.compare import Sweep
from latentomni_jax.evaluate.pages.plots import COLOURS, WIDTH, pyplot, to_uri
from latentomni_jax.evaluate.runs import Run
from latentomni_jax.evaluate.scores import Tally

_LONGEST = 40  # characters of a name


def breakdown(tallies: Mapping[str, Mapping[str, Tally]]) -> str:
    """Accuracy of every value of an axis: a dot with its interval for each run.

    Args:
      tallies: run -> value -> tally.
    """
    values = list(dict.fromkeys(value for by_value in tallies.values() for value in by_value))
    figure, axis = pyplot().subplots(
        figsize=(WIDTH, 1.2 + (0.16 + 0.16 * len(tallies)) * len(values)), layout="constrained"
    )
    for i, (name, by_value) in enumerate(tallies.items()):
        places = [values.index(value) for value in by_value]
        offset = (i - (len(tallies) - 1) / 2) * 0.6 / len(tallies)
        _dots(axis, np.add(places, offset), list(by_value.values()), name, i, horizontal=True)
    axis.set_yticks(range(len(values)), [_short(value) for value in values], parse_math=False)
    axis.set(xlabel="right of all, % (lines: 95 % intervals)", xlim=(-2, 102))
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.grid(alpha=0.3, axis="x")
    _legend(axis, len(tallies))
    return to_uri(figure)


def positions(runs: Sequence[Run]) -> str:
    """How often every letter was expected and given, a panel for each run."""
    columns = min(len(runs), 3)
    figure, axes = pyplot().subplots(
        -(-len(runs) // columns), columns, figsize=(WIDTH, 2.4 * -(-len(runs) // columns)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis, run in zip(axes.flat, runs, strict=False):
        places = np.arange(len(run.positions))
        for side, label in enumerate(("given", "expected")):
            counts = [pair[side] for pair in run.positions.values()]
            axis.bar(places + 0.4 * side - 0.2, counts, 0.4, label=label, color=COLOURS[side])
        axis.set_xticks(places, [_short(name) for name in run.positions], parse_math=False)
        axis.set_ylabel("answers")
        axis.set_title(_short(run.name), fontsize=9, parse_math=False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", frameon=False)
    return to_uri(figure)


def sweep(swept: Sweep) -> str:
    """Accuracy of measured runs over the option in which they differ."""
    figure, axis = pyplot().subplots(figsize=(WIDTH / 1.5, 2.8), layout="constrained")
    tallies = [run.overall for run in swept.runs]
    if swept.is_numeric:
        places = [float(value) for value in swept.values]
        axis.plot(places, [100 * t.accuracy for t in tallies], color=COLOURS[4], linewidth=1)
    else:
        names = list(dict.fromkeys(map(str, swept.values)))
        places = [names.index(str(value)) for value in swept.values]
        axis.set_xticks(range(len(names)), map(_short, names), parse_math=False)
        axis.set_xlim(-0.5, len(names) - 0.5)
    _dots(axis, places, tallies, "", 0, horizontal=False)
    axis.set_xlabel(_short(swept.option), parse_math=False)
    axis.set_ylabel("right of all, %")
    axis.grid(alpha=0.3)
    return to_uri(figure)


# ------------------------------------------------------------------------- details


def _dots(
    axis: Any, places: Any, tallies: Sequence[Tally], name: str, number: int, *, horizontal: bool
) -> None:
    """Accuracies in %, with their intervals (where there are such), not evenly around them."""
    accuracies = np.array([100 * tally.accuracy for tally in tallies])
    ends = [tally.interval or (tally.accuracy, tally.accuracy) for tally in tallies]
    ends = 100 * np.array(ends).reshape(-1, 2).T
    lengths = np.abs(ends - accuracies)
    style = {"fmt": "o", "markersize": 4, "linewidth": 1, "color": COLOURS[number % len(COLOURS)]}
    if horizontal:
        drawn = axis.errorbar(accuracies, places, xerr=lengths, **style)
    else:
        drawn = axis.errorbar(places, accuracies, yerr=lengths, capsize=3, **style)
    drawn.set_label(" " + _short(name))  # what begins with "_" would not be in a legend


def _legend(axis: Any, runs: int) -> None:
    if runs > 1:
        legend = axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _short(name: str) -> str:
    """One printable line of limited length."""
    line = "".join(c if c.isprintable() else " " for c in name)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
