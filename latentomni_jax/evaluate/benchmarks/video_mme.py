"""Video-MME (github.com/MME-Benchmarks/Video-MME): 2,700 questions about 900 videos, without sound.

Annotations: the parquet file of the dataset, its rows as JSON or JSON lines, or the authors' result
template, a list of videos with their questions that is not strict JSON. Videos: `{videoID}.mp4`, or
`{video_id}.mp4` in the template, which has no videoID. The paper shows pictures alone.

The authors have no rule of extraction in their repository. Here it is the ranking of lmms-eval
75571cfe, which also sets the 16 tokens: of all ways in which a letter is given the best one counts,
and of several letters given so the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import Style
from latentomni_jax.evaluate.benchmarks.base import BOXED, Benchmark, Reading
from latentomni_jax.evaluate.benchmarks.reading import (
    Row,
    flatten,
    read_jsonl,
    read_loose_json,
    read_rows,
)
from latentomni_jax.layout import InputError
from latentomni_jax.media.extract import NOTHING, Found

_LETTERS = "ABCD"
_NOUNS = (
    "answer",
    "choice",
    *(f"{which} {noun}" for which in ("correct", "best") for noun in ("answer", "option")),
    "correct choice",
)
_PHRASES = (
    *(f"{the}{noun} is" for the in ("", "the ") for noun in _NOUNS),
    *("my answer is", "my choice is", "i choose", "i select", "i pick"),
    *("答案是", "答案为", "选", "정답은", "답은", "답:", "옵션", "答えは"),
)
_MARKS = ("({})", "{}.", "{}:", "{})", "{} ")  # the best first


def read(path: Path) -> Reading:
    """See `Benchmark.read`."""
    told: list[str] = []
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix == ".jsonl":
        rows = read_jsonl(path)
    else:
        rows, told = read_loose_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of questions, or of videos with their questions")
    return read_rows(path, flatten(rows, "questions"), _parse, told)


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the annotations of a benchmark")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: is not parquet: {' '.join(str(error).split())}") from None


def _parse(row: Row) -> Trajectory:
    row.id = row.name("question_id")
    video = row.name("videoID" if "videoID" in row.data else "video_id")
    options = row.options("options")
    return row.question(
        path=f"{video}.mp4",
        question=row.text("question"),
        options=options,
        answer=row.letter("answer", options),
        axes=row.axes("domain", "sub_category", "task_type", duration=("short", "medium", "long")),
    )


def ask(question: Trajectory) -> str:
    """See `Style.ask`."""
    options = "\n".join((question.metadata or {})["options"])
    return (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        f"{question.question}\n{options}\nThe best answer is:"
    )


def extract(text: str, choices: Sequence[str]) -> Found:
    """A capital A to D, from the best of: at the beginning, at the end, behind a phrase, "(A)",
    "A.", "A:", "A)", "A ", anywhere. Behind a phrase the first of each letter is looked at."""
    text = text.strip()
    for mark in ",.!?;:'\"":  # one after the other, as the kit does
        text = text.strip(mark)
    text = text.strip()
    for rule, end, beside in (("beginning", text[:1], text[1:2]), ("end", text[-1:], text[-2:-1])):
        if end and end in _LETTERS and not (len(text) > 1 and beside.isalpha()):
            return Found(end, rule)
    text, lower = f" {text} ", f" {text} ".lower()
    starts = [lower.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lower]
    found = [(text.find(letter, start), letter) for start in starts for letter in _LETTERS]
    if max(found, default=(-1, ""))[0] >= 0:
        return Found(max(found)[1], "phrase")
    for mark in (*_MARKS, "{}"):
        place, letter = max((text.rfind(mark.format(letter)), letter) for letter in _LETTERS)
        if place >= 0:
            return Found(letter, f"like {mark.format('A').strip()}" if mark != "{}" else "any")
    return NOTHING


BENCHMARK = Benchmark(
    name="video_mme",
    title="Video-MME",
    read=read,
    axes=("duration", "domain", "sub_category", "task_type"),
    styles={
        "own": Style(
            ask=ask,
            extract=extract,
            clock="nominal",
            options={"temperature": 0.0, "max_new_tokens": 16},
        ),
        "boxed": BOXED,
    },
    view="video",
    needs_sound=False,
    published={"LVR": 36.7, "Monet": 51.6, "LatentOmni": 60.8},
    published_by={
        "duration": {
            "LVR": {"short": 39.2, "medium": 36.6, "long": 34.3},
            "Monet": {"short": 52.9, "medium": 56.0, "long": 46.0},
            # Of 900 questions each, and yet their mean is 60.6.
            "LatentOmni": {"short": 70.8, "medium": 60.5, "long": 50.4},
        }
    },
)
