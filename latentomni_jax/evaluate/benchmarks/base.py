"""What a benchmark is: a reader of its annotations, ways of asking its questions, axes of scores.

A benchmark is a module of this folder with a `BENCHMARK`; `benchmarks.NAMES` finds it there.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.trajectories import DataProblem, Trajectory
from latentomni_jax.evaluate.answers import HOUSE, Style, View
from latentomni_jax.media.processor import LETTERS

Question = Trajectory | DataProblem


class Reading(NamedTuple):
    """Annotations as read.

    Attributes:
      questions: in the file's order; a DataProblem stands for a row that is refused. `where` of
        both is "file:row", rows from 1 in the order of the file's questions. A question's `answer`
        is a letter and its `choices` are texts without letters; its `path` is relative to the
        folder of videos. `metadata` has a value (str, or a list of them) for every axis that the
        row knows, and "options", the choices as they are printed in the file.
      repaired: one line each, "file:row id: what was mended and how", or "file: ..." where it is
        about the file.
    """

    questions: list[Question]
    repaired: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
      name: on the command line. title: as its authors write it.
      read: its annotations. Raises InputError where the file as a whole is unusable.
      axes: keys of `Trajectory.metadata` by which its paper breaks scores down.
      styles: by name; "own" is its authors', "boxed" asks for reasoning and a box.
      view: what the model is given of a clip. needs_sound: a prompt without audio tokens is an
        error.
      published: accuracies in %, by model, as the LatentOmni paper prints them (Tables 1 and 3).
      published_by: axis -> model -> value of the axis -> the same (Tables 2 and 3).
    """

    name: str
    title: str
    read: Callable[[Path], Reading]
    axes: tuple[str, ...]
    styles: Mapping[str, Style]
    view: View = "both"
    needs_sound: bool = True
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    published_by: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )


# What the house asks all of its questions with, so that benchmarks can be compared. Reasoning
# takes more than the 256 tokens of an ordinary answer, and one that is cut off has no box.
BOXED = dataclasses.replace(HOUSE, options={"temperature": 0.0, "max_new_tokens": 1024})

# The system turn that Qwen2.5-Omni was trained with, which several authors send; the checkpoint's
# chat template has another default.
QWEN_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech."
)


class Counts(NamedTuple):
    """What a reading holds.

    Attributes:
      questions, refused, repaired: rows that can be asked, rows that cannot, repairs.
      videos: different files of the questions.
      answers: questions by the letter that is right.
      axes: questions by value, for every axis; one with several values counts in each, and one
        without a value in none.
    """

    questions: int
    refused: int
    repaired: int
    videos: int
    answers: dict[str, int]
    axes: dict[str, dict[str, int]]


def counts(benchmark: Benchmark, reading: Reading) -> Counts:
    """Counts a reading along every axis of its benchmark, the most frequent values first."""
    asked = [question for question in reading.questions if isinstance(question, Trajectory)]
    axes = {axis: collections.Counter[str]() for axis in benchmark.axes}
    for question in asked:
        for axis, counter in axes.items():
            value = (question.metadata or {}).get(axis, [])
            counter.update([value] if isinstance(value, str) else value)
    return Counts(
        questions=len(asked),
        refused=len(reading.questions) - len(asked),
        repaired=len(reading.repaired),
        videos=len({question.path for question in asked}),
        answers=dict(sorted(collections.Counter(q.answer for q in asked).items())),
        axes={axis: dict(counter.most_common()) for axis, counter in axes.items()},
    )


def printed(choices: Sequence[str]) -> list[str]:
    """Options as a benchmark prints them: "A. a dog"."""
    return [f"{LETTERS[place]}. {choice}" for place, choice in enumerate(choices)]


def shuffled(question: Trajectory, seed: int) -> Trajectory:
    """The question with its options in another order, and the letter that is then right.

    The order follows from the seed and the question's id alone, wherever the question stands.
    """

    def key(place: int) -> bytes:
        drawn = f"{seed} {place} {question.id}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(drawn).digest()

    order = sorted(range(len(question.choices)), key=key)
    choices = tuple(question.choices[place] for place in order)
    return dataclasses.replace(
        question,
        choices=choices,
        answer=LETTERS[order.index(LETTERS.index(question.answer))],
        metadata={**(question.metadata or {}), "options": printed(choices)},
    )
