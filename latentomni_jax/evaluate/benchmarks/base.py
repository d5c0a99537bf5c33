"""What a benchmark is: a reader of its annotations, ways of asking its questions, axes of scores.

A benchmark is a module of this folder with a `BENCHMARK`; `benchmarks.NAMES` finds it there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipeline.trajectories import DataProblem, Trajectory
from latentomni_jax.evaluate.answers import Style, View

Question = Trajectory | DataProblem


class Reading(NamedTuple):
    """Annotations as read.

    Attributes:
      questions: in the file's order; a DataProblem stands for a row that is refused. `where` of
        both is "file:row", rows from 1 in the order of the file's questions. A question's `answer`
        is a letter and its `choices` are texts without letters; its `path` is relative to the
        folder of videos. `metadata` has a value (str, or a list of them) for every axis that the
        row knows, and "options", the choices as they are printed in the file.
      repaired: one line each, "file:row id: what was mended and how".
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
      published: accuracies in %, by model and "Table n of the LatentOmni paper" style source.
    """

    name: str
    title: str
    read: Callable[[Path], Reading]
    axes: tuple[str, ...]
    styles: Mapping[str, Style]
    view: View = "both"
    needs_sound: bool = True
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
