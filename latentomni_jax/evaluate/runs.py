"""The folder that `latentomni eval` leaves, read and checked, for whoever shows or compares runs.

scores.json            tallies: overall, by axis; rules, positions, published numbers, options
cost.json              what the run took
answers.jsonl          a line for each question, in order
explore/00000.json     questions to look into, with the clip's path and the maps of every latent
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from latentomni_jax.evaluate.scores import Tally, outcome
from latentomni_jax.layout import InputError

SCORES, COST, ANSWERS, EXPLORE = "scores.json", "cost.json", "answers.jsonl", "explore"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
      name: what it is called among others, see `read_runs`.
      benchmark, title, style, model: names. options: how the questions were asked.
      axes: axis -> value -> tally. rules: rule -> answers that it found.
      positions: letter -> (times given, times expected). published: model -> accuracy in %.
      published_by: axis -> model -> value -> accuracy in %.
      cost, answers: as their files have them. explored: files of questions to look into.
    """

    name: str
    folder: Path
    benchmark: str
    title: str
    style: str
    model: str
    options: dict[str, Any]
    overall: Tally
    axes: dict[str, dict[str, Tally]]
    rules: dict[str, int]
    positions: dict[str, tuple[int, int]]
    published: dict[str, float]
    published_by: dict[str, dict[str, dict[str, float]]]
    cost: dict[str, Any]
    answers: list[dict[str, Any]]
    explored: list[Path]

    def by_question(self) -> dict[tuple[str | None, int], dict[str, Any]]:
        """The lines of answers by id and how often it occurred before: refused rows may have the id
        of another, or none."""
        seen: collections.Counter[str | None] = collections.Counter()
        found = {}
        for line in self.answers:
            found[line["id"], seen[line["id"]]] = line
            seen[line["id"]] += 1
        return found


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs, named by their folders, with as much of the paths as tells them apart.

    Raises:
      InputError: a folder that is no complete run or is damaged, or one that is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    if twice := [path for path, count in collections.Counter(paths).items() if count > 1]:
        raise InputError(f"{twice[0]}: is named twice")
    names = [path.name for path in paths]
    for size in range(2, max(len(path.parts) for path in paths) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(path.parts[-size:]) for path in paths]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    for needed in (SCORES, COST, ANSWERS):
        if not (folder / needed).is_file():
            raise InputError(
                f"{folder}: no complete run, {needed} is not in it; expected the --out of a "
                "`latentomni eval` that came to its end"
            )
    scores = _read(folder / SCORES, _scores)
    answers = _read_answers(folder / ANSWERS)
    counts = collections.Counter(map(outcome, answers))
    overall: Tally = scores["overall"]
    told = (overall.right, overall.total, overall.unparsed, overall.failed)
    found = (counts["right"], len(answers), counts["unparsed"], counts["failed"])
    if told != found:
        raise InputError(
            f"{folder / SCORES}: says (right, total, unparsed, failed) are {told}, and {ANSWERS} "
            f"has {found}; run `latentomni eval` again to score it anew"
        )
    return Run(
        name=name,
        folder=folder,
        cost=_read(folder / COST, _cost),
        answers=answers,
        explored=sorted((folder / EXPLORE).glob("*.json")),
        **scores,
    )


def _scores(taken: dict[str, Any]) -> dict[str, Any]:
    """Fields of `Run` that scores.json has."""
    names = {name: _text(taken[name]) for name in ("benchmark", "title", "style", "model")}
    return names | {
        "options": dict(taken["options"]),
        "overall": _tally(taken["overall"]),
        "axes": {
            axis: {value: _tally(tally) for value, tally in by_value.items()}
            for axis, by_value in taken["axes"].items()
        },
        "rules": {rule: int(count) for rule, count in taken["rules"].items()},
        "positions": {
            letter: (int(counts["given"]), int(counts["expected"]))
            for letter, counts in taken["positions"].items()
        },
        "published": _numbers(taken["published"]),
        "published_by": {
            axis: {model: _numbers(by_value) for model, by_value in by_model.items()}
            for axis, by_model in taken["published_by"].items()
        },
    }


def _numbers(taken: dict[str, Any]) -> dict[str, float]:
    return {name: float(number) for name, number in taken.items()}


def _cost(taken: dict[str, Any]) -> dict[str, Any]:
    for name in ("seconds", "questions", "text_tokens", "latent_steps", "prompt_tokens"):
        if not isinstance(taken[name], int | float) or taken[name] < 0:
            raise ValueError(f"{name} is {taken[name]!r}")
    return {"peak_memory": taken["peak_memory"], "device": _text(taken["device"])} | taken


def _read_answers(path: Path) -> list[dict[str, Any]]:
    lines = _load(path).removesuffix("\n").split("\n")
    return [_parse(line, _answer, f"{path}:{i}") for i, line in enumerate(lines, start=1)]


def _answer(line: dict[str, Any]) -> dict[str, Any]:
    _text(line["id"], type(None))
    if "error" in line:
        _text(line["error"])
        return line
    for name in ("video", "question", "text", "rule", "expected"):
        _text(line[name])
    _text(line["answer"], type(None))
    if not isinstance(line["right"], bool) or not isinstance(line["axes"], dict):
        raise TypeError("right is no truth value, or axes are no object")
    for choice in line["choices"]:
        _text(choice)
    return line


# ------------------------------------------------------------------------- details


def _read(path: Path, check: Callable[[dict[str, Any]], T]) -> T:
    return _parse(_load(path), check, str(path))


def _load(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected text in UTF-8") from error


def _parse(text: str, check: Callable[[dict[str, Any]], T], where: str) -> T:
    """A JSON object as `check` returns it. Raises InputError that names `where` and the cause."""
    try:
        taken = json.loads(text, parse_constant=_refuse)
        if not isinstance(taken, dict):
            raise TypeError(f"{taken!r:.40} is no object")
        return check(taken)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"without {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"{where}: is damaged ({why!s:.300}); run `latentomni eval` again, to another folder"
        ) from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _text(value: Any, *others: type) -> Any:
    if not isinstance(value, (str, *others)):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _tally(taken: dict[str, Any]) -> Tally:
    """From its object in scores.json. Raises KeyError, TypeError, ValueError."""
    intervals = {
        name: None if taken[name] is None else _interval(taken[name])
        for name in ("interval", "interval_answered")
    }
    tally = Tally(
        **{field.name: taken[field.name] for field in dataclasses.fields(Tally)} | intervals
    )
    parts = (tally.answered, tally.unparsed, tally.failed)
    if min(*parts, tally.right) < 0 or sum(parts) != tally.total or tally.right > tally.answered:
        raise ValueError(f"counts that do not add up: {taken}")
    shares = [(tally.accuracy, tally.total), (tally.accuracy_answered, tally.answered)]
    for share, count in shares:
        if share is not None and abs(share - tally.right / max(count, 1)) > 1e-6:
            raise ValueError(f"an accuracy that is not right / {count}: {taken}")
    return tally


def _interval(pair: Any) -> tuple[float, float]:
    low, high = map(float, pair)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"an interval {pair}")
    return low, high
