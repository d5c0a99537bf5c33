"""What readers of annotations share: files, rows, and the checks of what a row says.

A row is understood, mended (and the repair told), or refused. Mending changes how something is
written and never what it means; what could mean two things is refused.
"""

from __future__ import annotations

import ast
import collections
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from data_pipeline.trajectories import DataProblem, Reason, Trajectory, parse_object
from latentomni_jax.evaluate.benchmarks.base import Reading, printed
from latentomni_jax.layout import InputError
from latentomni_jax.media.processor import LETTERS

# A letter with its mark ("A. ", "A.", "A: ", "(A) "), or with nothing but a space ("A ").
_LETTERED = re.compile(r"\s*(?:\(?([A-Za-z])\s?[.:)：．、]|([A-Z])\s)\s*")
_LETTER = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:]{0,2}\s*")
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*+"|,(?=\s*+[\]}])', re.DOTALL)


def read_text(path: Path) -> str:
    """A file's text. Raises InputError where there is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the annotations of a benchmark")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises InputError where there is none."""
    return _parse_json(read_text(path), path)


def read_loose_json(path: Path) -> tuple[Any, list[str]]:
    """The value in a JSON file that may have commas before closing brackets, and the repairs.

    Raises:
      InputError: no such file, or no JSON for another reason.
    """
    text, commas = read_text(path), 0

    def without(match: re.Match) -> str:
        nonlocal commas
        commas += match[0] == ","
        return "" if match[0] == "," else match[0]

    text = _STRING_OR_COMMA.sub(without, text)
    told = [f"{path}: {commas} commas before a closing bracket left out"] if commas else []
    return _parse_json(text, path), told


def read_jsonl(path: Path) -> list[Any]:
    """The values of a file of JSON lines; a line that is no JSON stays a text, which no reader
    takes for a row. Raises InputError where there is no file."""
    values = []
    for line in filter(str.strip, read_text(path).split("\n")):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            values.append(line)
    return values


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {' '.join(str(error).split())}") from None


def flatten(videos: Sequence[Any], key: str) -> Iterator[Any]:
    """The questions under `key` of every video, each with its video's fields beside its own.

    What has none is passed on as it is: it is a question itself, or refused as one.
    """
    for video in videos:
        questions = video.get(key) if isinstance(video, dict) else None
        if not isinstance(questions, list) or not questions:
            yield video
            continue
        shared = {name: value for name, value in video.items() if name != key}
        for question in questions:
            yield {**shared, **question} if isinstance(question, dict) else question


def read_rows(
    path: Path, rows: Iterable[Any], parse: Callable[[Row], Trajectory], told: Sequence[str] = ()
) -> Reading:
    """Reads the rows of a file one by one, in order.

    Args:
      parse: makes a question of a row; raises DataProblem (`Row.refuse`).
      told: repairs of the file itself.

    Raises:
      InputError: there are no rows, or not one of them is understood.
    """
    reading = Reading([], list(told))
    first: dict[str, str] = {}
    seen = collections.Counter[str]()
    for number, data in enumerate(rows, start=1):
        row = Row(data if isinstance(data, dict) else {}, f"{path}:{number}", seen)
        try:
            if not isinstance(data, dict):
                row.refuse(f"expected an object, got {data!r:.60}")
            question = parse(row)
            if question.id in first:
                detail = f"first used at {first[question.id]}"
                raise DataProblem(Reason.DUPLICATE, row.where, question.id, detail)
        except DataProblem as problem:
            reading.questions.append(problem)
            continue
        first[question.id] = row.where
        reading.questions.append(question)
        reading.repaired.extend(f"{row.where} {question.id}: {line}" for line in row.mended)
    if not reading.questions:
        raise InputError(f"{path}: has no questions")
    if not first:
        raise InputError(
            f"{path}: none of {len(reading.questions)} rows can be used, is it this benchmark's "
            f"file? The first: {reading.questions[0]}"
        )
    return reading


class Options(NamedTuple):
    """Options as they are printed, and their texts without letters."""

    printed: list[str]
    texts: list[str]


class Row:
    """One row while it is read.

    Attributes:
      data: its fields. where: "file:row". id: of the question, as soon as it is known.
      mended: what was mended so far, a line each.
    """

    def __init__(self, data: dict[str, Any], where: str, seen: collections.Counter[str]):
        self.data, self.where, self._seen = data, where, seen
        self.id: str | None = None
        self.mended: list[str] = []

    def refuse(self, detail: str) -> NoReturn:
        raise DataProblem(Reason.MALFORMED, self.where, self.id, detail)

    def text(self, key: str) -> str:
        """A text, without the blanks around it."""
        value = self.data.get(key)
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"{key} should be a text, got {self._shown(key)}")
        return value.strip()

    def name(self, key: str) -> str:
        """What names a video or a question: a text or a number that is no path."""
        value = self.data.get(key)
        value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"{key} should be a name, got {self._shown(key)}")
        value = value.strip()
        if not value.isprintable() or re.search(r"[/\\]", value) or value in (".", ".."):
            self.refuse(f"{key} should be a name and no path, got {value!r:.60}")
        return value

    def number_within(self, video: str) -> None:
        """Gives a question without an id one, by its number among its video's questions."""
        self._seen[video] += 1
        self.id = f"{video}-{self._seen[video]}"

    def options(
        self, key: str, *, sizes: tuple[int, ...] = (4,), by_place: bool = False
    ) -> Options:
        """A list of options, lettered in order or not at all.

        Args:
          sizes: how many there may be.
          by_place: options that repeat letters, A, B, A, B, are known to count by their place.
        """
        given = self.data.get(key)
        if not isinstance(given, list) or len(given) not in sizes:
            number = " or ".join(map(str, sizes))
            self.refuse(f"{key} should be a list of {number} texts, got {self._shown(key)}")
        for option in given:
            if not isinstance(option, str):
                self.refuse(f"{key} should be texts, got {option!r:.60}")
        found = [_LETTERED.match(option) for option in given]
        letters = [match and (match[1] or match[2]).upper() for match in found]
        expected = list(LETTERS[: len(given)])
        if letters != expected and not any(match and match[1] for match in found):
            self.mended.append("options without letters, lettered by their place")
            given = printed([option.strip() for option in given])
            found = [_LETTERED.match(option) for option in given]
        elif letters != expected:
            told = ", ".join(letter or "none" for letter in letters)
            if not by_place or None in letters or len(set(letters)) == len(letters):
                self.refuse(f"options have the letters {told}; expected {', '.join(expected)}")
            self.mended.append(f"options have the letters {told}; they count by their place")
        texts = [
            option[match.end() if match else 0 :].strip()
            for option, match in zip(given, found, strict=True)
        ]
        if "" in texts:
            self.refuse(f"option {LETTERS[texts.index('')]} has no text")
        return Options(given, texts)

    def letter(self, key: str, options: Options) -> str:
        """The letter of the right option."""
        value, count = self.data.get(key), len(options.texts)
        match = _LETTER.fullmatch(value) if isinstance(value, str) else None
        letter = match[1].upper() if match else ""
        if not letter or LETTERS.index(letter) >= count:
            self.refuse(
                f"{key} should be a letter from A to {LETTERS[count - 1]}, got {self._shown(key)}"
            )
        if letter != value:
            self.mended.append(f"{key} {value!r} read as {letter}")
        return letter

    def axes(self, *keys: str, **legal: Sequence[str]) -> dict[str, str]:
        """Values by which scores are told apart; one that is missing is told, and left out.

        Args:
          keys: with any value. legal: the values that there are.
        """
        found = {}
        for key in (*keys, *legal):
            if self.data.get(key) in (None, ""):
                self.mended.append(f"no {key}; not counted by it")
                continue
            value = found[key] = self.text(key)
            if key not in legal or value in legal[key]:
                continue
            same = [one for one in legal[key] if one.lower() == value.lower()]
            if not same:
                self.refuse(f"{key} should be {', '.join(legal[key])}, got {value!r:.60}")
            found[key] = same[0]
            self.mended.append(f"{key} {value!r} read as {same[0]}")
        return found

    def seconds(self, key: str) -> int:
        """A duration, "MM:SS" or "HH:MM:SS"."""
        match = re.fullmatch(r"(?:(\d{1,2}):)?(\d{1,3}):([0-5]\d)", self.text(key))
        seconds = 0
        if match and not (match[1] and int(match[2]) > 59):
            seconds = int(match[1] or 0) * 3600 + int(match[2]) * 60 + int(match[3])
        if not seconds:
            self.refuse(f"{key} should be MM:SS or HH:MM:SS, got {self._shown(key)}")
        return seconds

    def question(
        self, *, path: str, question: str, options: Options, answer: str, axes: dict[str, Any]
    ) -> Trajectory:
        """The question that the row is; its id has to be known."""
        return parse_object(
            {
                "id": self.id,
                "question": question,
                "answer": answer,
                "video": path,
                "choices": options.texts,
                "metadata": {**axes, "options": options.printed},
            },
            self.where,
        )

    def _shown(self, key: str) -> str:
        if key in self.data:
            return f"{self.data[key]!r:.60}"
        return f"nothing; there is {', '.join(map(repr, self.data)):.80}"


def literal_list(text: Any) -> list[Any] | None:
    """The list that a text writes, in Python or JSON; None where it writes none."""
    if not isinstance(text, str):
        return None
    for parse in (ast.literal_eval, json.loads):
        try:
            value = parse(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return None
