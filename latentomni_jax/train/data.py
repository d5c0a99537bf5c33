"""Examples of a feature cache become the batches of every step, on the devices that need them.

Which rows a step has, and their shape, is a pure function of (seed, step) that all processes
compute alike; each process reads only the rows that its own devices hold.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.loader import Loaded, Loader
from data_pipeline.plan import plan_records
from data_pipeline.records import Records
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.latent.examples import (
    AnchorSource,
    collate_examples,
    lay_out_example,
    needed_shape,
)
from latentomni_jax.layout import (
    BatchShape,
    InputError,
    LatentSpec,
    MediaSpec,
    Part,
    TrainBatch,
)
from latentomni_jax.media.text import Tokenizer
from latentomni_jax.train.config import Run
from latentomni_jax.train.step import batch_shardings

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # left-out examples that a log line names


@dataclasses.dataclass(frozen=True)
class Collator:
    """Parts of examples to a batch, and what shape an example needs. Pickles to data workers."""

    config: ThinkerConfig
    media: MediaSpec
    spec: LatentSpec
    source: AnchorSource

    def __call__(self, examples: list[list[Part] | None], shape: BatchShape) -> TrainBatch:
        laid_out = [None if parts is None else self._lay_out(parts) for parts in examples]
        return collate_examples(self.config, self.media, self.spec, laid_out, shape)

    def measure(self, parts: Sequence[Part]) -> BatchShape:
        return needed_shape(self.config, self._lay_out(parts))

    def _lay_out(self, parts):
        return lay_out_example(self.config, self.spec, parts, self.source)


class Feed:
    """The batches of a run.

    Attributes:
      plan: see `data_pipeline.plan`. skipped: records that are in no batch, and why.

    Args:
      log: file to which a line is added for every step: its number, its epoch, how many processes
        there are and which records this one reads. What is taken again after a restart is there
        again.

    Raises:
      InputError: nothing fits; processes that do not divide the batch; with `data.on_misfit`
        "fail", the first example that fits no shape.
    """

    def __init__(
        self,
        run: Run,
        collator: Collator,
        records: Records,
        tokenizer: Tokenizer,
        mesh: Mesh,
        log: pathlib.Path | None = None,
    ):
        config = run.raw
        self.accumulate, self.mesh, self._log = config.accumulate, mesh, log
        self.plan, self.skipped = plan_records(
            records, tokenizer, collator.measure, run.shapes, config.batch_size,
            seed=config.seed, reasoning=config.data.reasoning, only=config.data.only,
            on_error=config.data.on_misfit,
        )  # fmt: skip
        index = (records.directory / "index.jsonl").read_bytes()
        self._index = hashlib.sha256(index).hexdigest()[:16]
        self._shardings = batch_shardings(mesh)
        self._check_processes(config.batch_size // config.accumulate)
        self._loader = Loader(
            records=records,
            plan=self.plan,
            tokenizer=tokenizer,
            collate=collator,
            reasoning=config.data.reasoning,
            read_segments=collator.source == "segment",
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.data.workers,
            prefetch=config.data.prefetch,
        )
        self._steps = None

    def identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that continues it."""
        return {"plan": self.plan.fingerprint, "index": self._index}

    def batches(self, start: int, stop: int) -> Iterator[tuple[TrainBatch, TrainBatch]]:
        """From step `start` on: this process's rows on the host, and the global batch on the mesh.

        Leaves have a leading axis of micro-batches.
        """
        known = 0
        with contextlib.closing(self._loader.steps(stop, start=start)) as self._steps:
            for loaded in self._steps:
                for record in list(self._steps.problems)[known:]:
                    _LOG.warning("left out: %s", self._steps.problems[record])
                known = len(self._steps.problems)
                if self._log:
                    _append(self._log, loaded)
                host = loaded.batch.map_rows(self._micro)
                yield (
                    host,
                    jax.tree.map(jax.make_array_from_process_local_data, self._shardings, host),
                )

    def summary(self) -> str:
        """One line for each reason why examples were left out; empty if none were."""
        found = collections.defaultdict(list)
        for skipped in self.skipped:
            found[skipped.reason].append(f"{skipped.id} ({skipped.detail})")
        problems = self._steps.problems if self._steps else {}
        found["unreadable"] += problems.values()
        lines = []
        for reason, who in found.items():
            if who:
                more = f", and {len(who) - _SHOWN} more" if len(who) > _SHOWN else ""
                lines.append(f"{len(who)} {reason}: {', '.join(who[:_SHOWN])}{more}")
        return "\n".join(lines)

    def counts(self) -> dict[str, int]:
        """Examples left out so far, by reason."""
        counts = collections.Counter(skipped.reason for skipped in self.skipped)
        counts["unreadable"] = len(self._steps.problems) if self._steps else 0
        return dict(counts)

    def _micro(self, x: np.ndarray, axis: int) -> np.ndarray:
        """[B, ...] -> [micro, B / micro, ...], the rows being on `axis`."""
        rows = x.shape[axis] // self.accumulate
        x = x.reshape(*x.shape[:axis], self.accumulate, rows, *x.shape[axis + 1 :])
        return np.moveaxis(x, axis, 0)

    def _check_processes(self, rows: int) -> None:
        """Every process must hold an equal block of rows (a tensor axis stays within a host)."""
        sharding = self._shardings.lengths
        held = sharding.addressable_devices_indices_map((1, rows)).values()
        spans = {(s.start or 0, rows if s.stop is None else s.stop) for _, s in held}
        mine = sum(stop - start for start, stop in spans)
        if mine * jax.process_count() != rows:
            raise InputError(
                f"process {jax.process_index()} would hold {mine} of {rows} rows with "
                f"{jax.process_count()} processes: let data x fsdp be a multiple of the processes"
            )


def _append(path: pathlib.Path, loaded: Loaded) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"step": loaded.step, "epoch": loaded.epoch, "processes": jax.process_count()}
    line["records"] = loaded.records.tolist()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
