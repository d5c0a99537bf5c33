"""Which records make which batch, for every step of a run: pure functions of seed and step.

Every host computes the same plan and takes its own rows of each batch, so nothing is communicated,
and a run resumes at any step. Batches have few static shapes. An epoch:

    records of each shape, permuted  ->  full batches  ->  leftovers join the next larger shape
    what remains of shapes that no other contains  ->  batches filled up with empty rows (-1)
    order of the batches, permuted
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline.examples import Reasoning, example_parts
from data_pipeline.records import Records
from latentomni_jax.layout import BatchShape, InputError, Part
from latentomni_jax.media.text import Tokenizer

Measure = Callable[[list[Part]], BatchShape]


class Assignment(NamedTuple):
    """What one step trains on.

    Attributes:
      step, epoch: counted from 0 over the whole run.
      shape: of the batch's rows.
      records: i64[batch_size] numbers of the records, -1 for an empty row.
    """

    step: int
    epoch: int
    shape: BatchShape
    records: np.ndarray


class Skipped(NamedTuple):
    """A record that is not trained on: its id, "over-long" or "unusable", and why."""

    id: str
    reason: str
    detail: str


class Plan:
    """The batches of a run. `plan[step]` is an `Assignment`, for any step, at any time.

    Attributes:
      shapes: the table, sorted; the first that a record fits is its own.
      batch_size: rows of a global batch.
      shape_of: i64[records] place in `shapes`, -1 for records that are in no batch.
      steps_per_epoch: the same in every epoch.
    """

    def __init__(
        self,
        needs: Sequence[BatchShape | None],
        shapes: Sequence[BatchShape],
        batch_size: int,
        *,
        seed: int = 0,
    ):
        """Plans batches for records that need the given shapes.

        Args:
          needs: per record, the smallest shape that holds it; None leaves it out.

        Raises:
          InputError: no shapes, no record fits, or an unusable batch size or seed.
        """
        if not shapes or batch_size < 1 or not 0 <= seed < 2**63:
            raise InputError(
                "a plan needs shapes, batch_size >= 1 and a seed from 0 to 2^63, got "
                f"{len(shapes)} shapes, {batch_size} and {seed}"
            )
        self.shapes = tuple(sorted(set(shapes)))
        self.batch_size, self.seed = batch_size, seed
        self.shape_of = np.array([self._place(need) for need in needs], np.int64)
        # Leftovers of a shape go to the first larger one that holds it, whatever they are
        # themselves, so that every epoch has equally many batches.
        self._next = [
            next((j for j in range(k + 1, len(self.shapes)) if self.shapes[j].fits(shape)), None)
            for k, shape in enumerate(self.shapes)
        ]
        if (self.shape_of < 0).all():
            smallest = min((need for need in needs if need is not None), default=None)
            raise InputError(
                f"none of {len(needs)} records fits a shape of the table; the smallest of them "
                f"needs {smallest}"
            )
        self.steps_per_epoch = len(_epoch(self, 0)[0])

    def _place(self, need: BatchShape | None) -> int:
        fitting = (k for k, s in enumerate(self.shapes) if need is not None and s.fits(need))
        return next(fitting, -1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The same for plans with the same steps."""
        text = repr((self.shapes, self.batch_size, self.seed, self.shape_of.tolist()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __getitem__(self, step: int) -> Assignment:
        """What a step trains on. Raises IndexError for a negative step."""
        if step < 0:
            raise IndexError(f"step {step}")
        epoch, place = divmod(int(step), self.steps_per_epoch)
        shapes, rows = _epoch(self, epoch)
        return Assignment(int(step), epoch, self.shapes[shapes[place]], rows[place])

    def shapes_of(self, begin: int, end: int) -> list[BatchShape]:
        """The shapes of steps `begin` to `end`, in the order in which they come first."""
        # Every epoch has the same shapes, as often.
        steps = range(begin, min(end, begin + 2 * self.steps_per_epoch))
        return list(dict.fromkeys(self[step].shape for step in steps))

    def counts(self) -> dict[BatchShape, int]:
        """Records per shape of the table, before leftovers move."""
        found = collections.Counter(self.shape_of.tolist())
        return {shape: found[k] for k, shape in enumerate(self.shapes)}


@functools.lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Shape i64[n] and records i64[n, batch_size] of an epoch's batches, in order."""
    # Raw bits of Philox are the same on every platform and in every version of NumPy, which
    # `Generator.permutation` does not promise.
    bits = np.random.Philox(key=np.array([plan.seed, epoch], np.uint64))

    def permuted(values: np.ndarray) -> np.ndarray:
        return values[np.argsort(bits.random_raw(len(values)), kind="stable")]

    left: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    shapes, rows = [], []
    for k, larger in enumerate(plan._next):
        own = permuted(np.flatnonzero(plan.shape_of == k))
        records = np.concatenate([*left.pop(k, ()), own])
        full = len(records) // plan.batch_size * plan.batch_size
        if larger is not None:
            left[larger].append(records[full:])
            records = records[:full]
        empty = np.full(-len(records) % plan.batch_size, -1, np.int64)
        batches = np.concatenate([records, empty]).reshape(-1, plan.batch_size)
        shapes += [k] * len(batches)
        rows.append(batches)
    order = permuted(np.arange(len(shapes)))
    rows = np.concatenate(rows)[order]
    rows.setflags(write=False)
    return np.array(shapes, np.int64)[order], rows


def plan_records(
    records: Records,
    tokenizer: Tokenizer,
    measure: Measure,
    shapes: Sequence[BatchShape],
    batch_size: int,
    *,
    seed: int = 0,
    reasoning: Reasoning = "latent",
    only: str = "",
    on_error: Literal["skip", "fail"] = "skip",
) -> tuple[Plan, list[Skipped]]:
    """A plan for a feature cache. Reads its index only, no media.

    Args:
      measure: the shape that an example needs; its media are blank, of the right sizes. May raise
        InputError for one that cannot be used.
      only: regular expression that ids have to match somewhere; others are left out uncounted.
      on_error: "skip" leaves out records that fit no shape or cannot be used, "fail" raises.

    Raises:
      InputError: as `Plan`, and with "fail" for the first such record; no id matches `only`.
    """
    wanted = _matching(only)
    needs: list[BatchShape | None] = []
    skipped: list[Skipped] = []
    found = 0
    for i in range(len(records)):
        need = None
        if not wanted.search(records.id(i)):
            needs.append(need)
            continue
        found += 1
        trajectory, media = records.sizes(i)
        try:
            need = measure(example_parts(tokenizer, trajectory, media, reasoning=reasoning))
            if not any(shape.fits(need) for shape in shapes):
                skipped.append(Skipped(trajectory.id, "over-long", _excess(need, shapes)))
        except InputError as error:
            skipped.append(Skipped(trajectory.id, "unusable", str(error)))
        if skipped and on_error == "fail":
            raise InputError("{!r} is {}: {}".format(*skipped[0]))
        needs.append(need)
    if not found:
        raise InputError(f"no id of {len(records)} records matches data.only {only!r}")
    return Plan(needs, shapes, batch_size, seed=seed), skipped


def _matching(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.only is no regular expression: {pattern!r}: {error}") from None


def _excess(need: BatchShape, shapes: Sequence[BatchShape]) -> str:
    """What of an example is more than the largest shape has."""
    largest = max(shapes)
    over = [
        f"{field.name} {getattr(need, field.name)} > {getattr(largest, field.name)}"
        for field in dataclasses.fields(BatchShape)
        if getattr(need, field.name) > getattr(largest, field.name)
    ]
    return ", ".join(over) or f"{need} is not within any one shape"
