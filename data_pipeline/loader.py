"""Batches for training: the plan's records are read, turned into parts and collated, ahead of time.

Grain runs it. Every process reads only its own rows. A record that cannot be read becomes an empty
row and is counted; the run goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.examples import Reasoning, example_parts
from data_pipeline.plan import Assignment, Plan
from data_pipeline.records import Records
from latentomni_jax.layout import BatchShape, InputError, Part, TrainBatch
from latentomni_jax.media.text import Tokenizer

Collate = Callable[[list[list[Part] | None], BatchShape], TrainBatch]
_ENDLESS = 1 << 40  # steps


class Loaded(NamedTuple):
    """One step's batch, this process's rows of it.

    Attributes:
      step, epoch, shape: of the plan's assignment.
      records: i64[rows] numbers of the records, -1 for rows that are empty by plan.
      batch: what `collate` returned.
      problems: records that could not be read, number and reason; their rows are empty too.
    """

    step: int
    epoch: int
    shape: BatchShape
    records: np.ndarray
    batch: TrainBatch
    problems: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
    """Everything that turns a plan into batches; `steps` gives an iterator over them.

    With `workers` > 0 all fields are pickled to the worker processes, `collate` included, and the
    main module must be guarded as usual for `multiprocessing`.

    Attributes:
      collate: examples (None for an empty row) and shape to a batch; see
        `latentomni_jax.latent.examples`.
      process_index, process_count: which rows of the global batch are read, a contiguous block.
      workers: processes that read and collate; 0 uses threads of this one.
      prefetch: batches made ahead, per worker.
    """

    records: Records
    plan: Plan
    tokenizer: Tokenizer
    collate: Collate
    reasoning: Reasoning = "latent"
    read_segments: bool = True  # False where anchors are taken from the prompt
    process_index: int = 0
    process_count: int = 1
    workers: int = 0
    prefetch: int = 2

    def __post_init__(self):
        if not 0 <= self.process_index < self.process_count:
            raise InputError(f"process {self.process_index} of {self.process_count}")
        if self.plan.batch_size % self.process_count:
            raise InputError(
                f"batch_size {self.plan.batch_size} is not a multiple of the "
                f"{self.process_count} processes"
            )

    def steps(self, num_steps: int | None = None, *, start: int = 0) -> Steps:
        """An iterator over the steps from `start` up to `num_steps` of the run, None for ever."""
        return Steps(self, _ENDLESS if num_steps is None else num_steps, start)

    def rows(self, assignment: Assignment) -> Assignment:
        """This process's part of an assignment."""
        count = self.plan.batch_size // self.process_count
        first = self.process_index * count
        return assignment._replace(records=assignment.records[first : first + count])

    def load(self, assignment: Assignment) -> Loaded:
        """Reads and collates the given rows."""
        examples: list[list[Part] | None] = []
        problems: dict[int, str] = {}
        with_segments = self.read_segments and self.reasoning == "latent"
        for record in map(int, assignment.records):
            example = None
            if record >= 0:
                try:
                    trajectory, media = self.records.read(record, segments=with_segments)
                    example = example_parts(
                        self.tokenizer, trajectory, media, reasoning=self.reasoning
                    )
                except InputError as error:
                    problems[record] = str(error)
            examples.append(example)
        batch = self.collate(examples, assignment.shape)
        return Loaded(*assignment, batch, problems)


class Steps(Iterator[Loaded]):
    """The batches of a run in order.

    Attributes:
      step: the next one.
      problems: records that could not be read so far, number and reason; the same for any number
        of workers, because each batch brings its own.
    """

    def __init__(self, loader: Loader, num_steps: int, start: int):
        self.step = start
        self.problems: dict[int, str] = {}
        self._loader, self._num_steps = loader, num_steps
        self._iterator: Any = None  # Grain's

    def __next__(self) -> Loaded:
        if self.step >= self._num_steps:
            self.close()
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._begin()
        loaded = next(self._iterator)
        self.step += 1
        self.problems |= loaded.problems
        return loaded

    def close(self) -> None:
        """Ends the threads and processes that read ahead; the next batch begins them anew."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _begin(self) -> Any:
        import grain  # imports JAX, which planning does not need
        from absl import flags

        loader = self._loader
        data = grain.MapDataset.source(_Planned(loader.plan, self.step, self._num_steps))
        data = data.map(loader.rows).map(loader.load)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=loader.prefetch)
        data = data.to_iter_dataset(options)
        if loader.workers:
            if not flags.FLAGS.is_parsed():  # Grain's worker processes want absl's flags settled
                flags.FLAGS.mark_as_parsed()
            data = data.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=loader.workers, per_worker_buffer_size=loader.prefetch
                )
            )
        return iter(data)


@dataclasses.dataclass(frozen=True)
class _Planned:
    """The assignments from one step to another, as Grain's source."""

    plan: Plan
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Assignment:
        return self.plan[self.start + index]
