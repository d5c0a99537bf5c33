"""AV-Events, our own procedural set: its splits are trajectories, the paths in them relative to it.

Not one of the field's benchmarks: a world in which a model can be trained from nothing and the
whole way of a benchmark be walked in minutes (`latentomni data av-events`, docs/results.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.benchmarks.base import BOXED, Benchmark, Reading
from latentomni_jax.evaluate.generate import read_questions
from latentomni_jax.media.extract import extract_answer


def read(path: Path) -> Reading:
    """A split, `test.jsonl`. Raises InputError where there is none, or nothing in it."""
    questions = [
        dataclasses.replace(one, answer=extract_answer(one.answer, one.choices) or one.answer)
        if isinstance(one, Trajectory)
        else one
        for one in read_questions(path)
    ]
    return Reading(questions, [])


BENCHMARK = Benchmark(
    name="av_events",
    title="AV-Events",
    read=read,
    axes=("type",),
    styles={"boxed": BOXED},
)
