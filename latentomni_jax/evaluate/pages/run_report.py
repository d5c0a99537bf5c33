"""One page of one or several runs of `latentomni eval`: scores, comparisons, every question."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.shards import write_text
from latentomni_jax.evaluate.compare import Sweep, options_of, pairs, sweeps
from latentomni_jax.evaluate.explore import read_explored
from latentomni_jax.evaluate.pages import explorer, run_plots
from latentomni_jax.evaluate.pages.explorer import Media
from latentomni_jax.evaluate.pages.report import picture
from latentomni_jax.evaluate.runs import Run, read_runs
from latentomni_jax.evaluate.scores import Tally

_COUNTS = ("total", "answered", "unparsed", "failed")
_VERDICTS = {True: "right", False: "wrong", None: "not known"}
_NOTE = (
    "“of all” counts a question that failed or whose answer was not found as wrong, “of answered” "
    "leaves it out; papers do either. In brackets: 95 % bootstrap intervals."
)


def write_report(folders: Sequence[Path], out: Path, media: Media | None = None) -> Media:
    """Writes the page of runs.

    Args:
      media: whether the page holds the clips that can be looked into, links to where they are, or
        is without them; default is to hold them as long as they are small.

    Returns:
      What became of the clips.

    Raises:
      InputError: a folder that is no complete run or is damaged; a clip that is not there.
    """
    runs = read_runs(folders)
    found = [(run, read_explored(path)) for run in runs for path in run.explored]
    kind = explorer.chosen(media, [Path(item["video"]) for _, item in found])
    folder = out.absolute().parent
    text = page(runs, found, lambda clip: explorer.address(clip, kind, folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return kind


def page(
    runs: Sequence[Run],
    found: Sequence[tuple[Run, dict[str, Any]]],
    address: Callable[[Path], str | None],
) -> str:
    """The document.

    Args:
      found: (run, explored question) for the explorer.
      address: clip's path -> its address, or None.
    """
    explored = [
        (
            f"{run.name}: {item['id']} ({_VERDICTS[item['right']]})",
            item,
            address(Path(item["video"])),
        )
        for run, item in found
    ]
    places = {(run.name, item["id"]): i for i, (run, item) in enumerate(found)}
    titles = list(dict.fromkeys(run.title for run in runs))
    return explorer.page(
        f"{', '.join(titles)}: {runs[0].name if len(runs) == 1 else f'{len(runs)} runs'}",
        _sections(runs, bool(explored)),
        explored,
        **explorer.listed(runs, places),
    )


# ------------------------------------------------------------------------- tables


def _sections(runs: Sequence[Run], explored: bool) -> str:
    """Everything that stands still, with links to it and to what does not."""
    parts = [("In short", _in_short(runs))]
    parts += [(f"{title} by axis", _breakdowns(ours)) for title, ours in _by_title(runs).items()]
    if compared := _comparison(runs):
        parts.append(("Runs compared", compared))
    if swept := "".join(map(_sweep, sweeps(runs))):
        parts.append(("Sweeps", swept))
    parts += [
        ("How answers were found", _rules(runs)),
        ("Letters given and expected", _positions(runs)),
        ("Cost", _costs(runs)),
        ("Options", _options(runs)),
    ]
    links = [(f"section-{i}", name) for i, (name, _) in enumerate(parts)]
    links += [("look", "A look inside")] if explored else []
    links += [("questions", "Questions")]
    nav = "".join(f'<a href="#{id}">{html.escape(name)}</a>' for id, name in links)
    body = "".join(
        f'<h2 id="section-{i}">{html.escape(name)}</h2>\n{content}\n'
        for i, (name, content) in enumerate(parts)
    )
    return f"<nav>{nav}</nav>\n{body}"


def _by_title(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.title, []).append(run)
    return found


def _in_short(runs: Sequence[Run]) -> str:
    """A table for each benchmark: our runs, and what is published."""
    out = []
    for title, ours in _by_title(runs).items():
        rows = [("ours", [run.name, run.style, run.model, *_tally(run.overall)]) for run in ours]
        published = {model: number for run in ours for model, number in run.published.items()}
        rows += [
            ("", [model, "published", "", *_cited(number)]) for model, number in published.items()
        ]
        head = [title, "style", "model", *_HEAD]
        out.append(_table(head, rows))
    return "".join(out) + f'<p class="note">{_NOTE}</p>'


def _breakdowns(runs: Sequence[Run]) -> str:
    out = []
    for axis in dict.fromkeys(axis for run in runs for axis in run.axes):
        tallies = {run.name: run.axes[axis] for run in runs if axis in run.axes}
        values = dict.fromkeys(value for by_value in tallies.values() for value in by_value)
        cited = {
            f"{model} ({run.title}, published)": by_value
            for run in runs
            for model, by_value in run.published_by.get(axis, {}).items()
        }
        rows = []
        for value in values:
            for name, by_value in tallies.items():
                if value in by_value:
                    rows.append(("ours", [value, name, *_tally(by_value[value])]))
            for name, by_value in cited.items():
                if value in by_value:
                    rows.append(("", [value, name, *_cited(by_value[value])]))
        uri = run_plots.breakdown(tallies)
        table = _table([axis, "run", *_HEAD], rows)
        out.append(
            f"<h3>{html.escape(axis)}</h3>{picture(uri, f'accuracy by {axis}')}{_folded(table)}"
        )
    return "".join(out)


def _comparison(runs: Sequence[Run]) -> str:
    rows = []
    for pair in pairs(runs):
        right = [f"{count} ({100 * count / pair.shared:.1f})" for count in pair.right]
        counts = [pair.shared, *right, pair.gained, pair.lost, f"{pair.p_value:.2g}"]
        rows.append(("", [pair.first.name, pair.second.name, *map(str, counts)]))
    if not rows:
        return ""
    head = ["first", "second", "questions", "first right (%)", "second right (%)",
            "second only", "first only", "p"]  # fmt: skip
    return _table(head, rows) + (
        '<p class="note">Questions that both have; p: exact McNemar test, two-sided, not corrected '
        "for the number of pairs.</p>"
    )


def _sweep(sweep: Sweep) -> str:
    title = f"{sweep.runs[0].title}: {sweep.option}"
    rows = [
        ("", [str(value), run.name, run.model, *_tally(run.overall)])
        for value, run in zip(sweep.values, sweep.runs, strict=True)
    ]
    note = "Each value has a model of its own." if sweep.models_differ else ""
    return (
        f"<h3>{html.escape(title)}</h3>{picture(run_plots.sweep(sweep), f'accuracy over {title}')}"
        f'{_table([sweep.option, "run", "model", *_HEAD], rows)}<p class="note">{note}</p>'
    )


def _rules(runs: Sequence[Run]) -> str:
    rules = dict.fromkeys(rule for run in runs for rule in run.rules)
    rows = [("", [rule, *(str(run.rules.get(rule, 0)) for run in runs)]) for rule in rules]
    return _table(["rule", *(run.name for run in runs)], rows)


def _positions(runs: Sequence[Run]) -> str:
    rows = [
        ("", [letter, run.name, str(given), str(expected)])
        for run in runs
        for letter, (given, expected) in run.positions.items()
    ]
    table = _table(["letter", "run", "given", "expected"], rows)
    return picture(run_plots.positions(runs), "letters given and expected") + _folded(table)


def _costs(runs: Sequence[Run]) -> str:
    head = ["run", "seconds", "questions", "seconds a question", "text tokens", "latent steps",
            "prompt tokens", "peak memory, GiB", "device"]  # fmt: skip
    rows = []
    for run in runs:
        cost = run.cost
        memory = cost["peak_memory"]
        counts = [cost[name] for name in ("text_tokens", "latent_steps", "prompt_tokens")]
        rows.append(
            (
                "",
                [
                    run.name,
                    f"{cost['seconds']:.1f}",
                    str(cost["questions"]),
                    f"{cost['seconds'] / max(cost['questions'], 1):.3f}",
                    *map(str, counts),
                    "not known" if memory is None else f"{memory / 2**30:.2f}",
                    cost["device"],
                ],
            )
        )
    return _table(head, rows)


def _options(runs: Sequence[Run]) -> str:
    taken = [options_of(run) for run in runs]
    names = dict.fromkeys(name for options in taken for name in options)
    rows = [("", [name, *(str(options.get(name, "")) for options in taken)]) for name in names]
    return _table(["option", *(run.name for run in runs)], rows)


# ------------------------------------------------------------------------- details

_HEAD = ["of all, %", "", "of answered, %", "", "right", *_COUNTS]


def _cited(percent: float) -> list[str]:
    """The cells under `_HEAD` of a number that others have published."""
    return [f"{percent:.1f}", *[""] * (len(_HEAD) - 1)]


def _tally(tally: Tally) -> list[str]:
    """The cells under `_HEAD`."""
    return [
        f"{100 * tally.accuracy:.1f}",
        _interval(tally.interval),
        "" if tally.accuracy_answered is None else f"{100 * tally.accuracy_answered:.1f}",
        _interval(tally.interval_answered),
        str(tally.right),
        *(str(getattr(tally, name)) for name in _COUNTS),
    ]


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"[{100 * ends[0]:.1f},\N{NO-BREAK SPACE}{100 * ends[1]:.1f}]"


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Rows are (class, cells)."""
    lines = [f"<tr>{''.join(_cells('th', head))}</tr>"]
    for kind, cells in rows:
        lines.append(f'<tr class="{kind}">{"".join(_cells("td", cells))}</tr>')
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _cells(tag: str, texts: Iterable[str]) -> Iterator[str]:
    return (f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _folded(table: str) -> str:
    return f"<details><summary>As a table</summary>{table}</details>"
