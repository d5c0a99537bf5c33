"""A stage as a Beam transform: one async function of an item, run on many items at a time.

A Beam worker hands its elements over one by one. Here a process has one event loop with one client
(`Host`), a stage hands its items to it and gives on what is finished, in the order in which it came
in; so all stages of a process share its limit of calls at a time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import os
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from data_pipeline.instruct.items import Ended, Entry, Item
from data_pipeline.instruct.replies import Asker, Store, Waiting
from data_pipeline.instruct.settings import Settings

ENDED: Final = "ended"  # the output of entries
_AHEAD = 4  # items under way in a stage, for each call that may be

StepFn = Callable[[Item, Asker], Awaitable[Item]]


@dataclasses.dataclass(frozen=True)
class Halted:
    """Why an item got no further in this run; it is not its end. Attributes: id, why."""

    id: str
    why: str


class Host:
    """The event loop and client of a process, for all stages of the same settings."""

    _hosts: dict[tuple[str, Path], Host] = {}
    _lock = threading.Lock()
    _collected: tuple[int, int, int]

    def __init__(self, settings: Settings, replies: Path):
        self.loop = asyncio.new_event_loop()
        self.ask = Asker(settings, Store(replies), os.environ)
        self.done: Counter[str] = Counter()  # items by stage, for who shows progress
        self._reported: Counter[str] = Counter()
        self._thread = threading.Thread(target=self.loop.run_forever, name="calls", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, settings: Settings, replies: Path) -> Host:
        key = repr(settings), replies
        with cls._lock:
            if not cls._hosts:
                # Many calls are many objects, and few of them rings: looking for rings as often as
                # Python does by itself took a sixth of the time (docs/instruct.md).
                cls._collected = gc.get_threshold()
                gc.freeze()
                gc.set_threshold(50_000, 20, 100)
            if key not in cls._hosts:
                cls._hosts[key] = cls(settings, replies)
            return cls._hosts[key]

    @classmethod
    def close_all(cls) -> None:
        """Ends all loops of this process."""
        with cls._lock:
            for host in cls._hosts.values():
                asyncio.run_coroutine_threadsafe(host.ask.close(), host.loop).result(30)
                host.loop.call_soon_threadsafe(host.loop.stop)
                host._thread.join(30)
            if cls._hosts:
                gc.set_threshold(*cls._collected)
                gc.unfreeze()
            cls._hosts.clear()

    def report(self) -> None:
        """Adds to Beam's counters what was used since the last report."""
        with self._lock:
            for name, count in list(self.ask.usage.items()):
                if more := count - self._reported[name]:
                    Metrics.counter("replies", name).inc(more)
                    self._reported[name] = count

    def submit(self, work: Any) -> concurrent.futures.Future:
        return asyncio.run_coroutine_threadsafe(work, self.loop)


class Stage(beam.PTransform):
    """Runs a step on every item.

    Gives items that go on, and under `ENDED` entries of those that do not (`Halted` where the run
    stopped asking).
    """

    def __init__(self, name: str, step: StepFn, settings: Settings, replies: Path):
        super().__init__(name)
        self._do = _Step(name, step, settings, replies)

    def expand(self, items):
        return items | beam.ParDo(self._do).with_outputs(ENDED, main="going")


class _Step(beam.DoFn):
    def __init__(self, name: str, step: StepFn, settings: Settings, replies: Path):
        self._name, self._step, self._settings, self._replies = name, step, settings, replies

    def setup(self):
        self._host = Host.of(self._settings, self._replies)
        self._limit = _AHEAD * self._settings.concurrency

    def start_bundle(self):
        self._under_way: deque[concurrent.futures.Future] = deque()

    def process(self, item: Item) -> Iterator[Any]:
        self._under_way.append(self._host.submit(self._run(item)))
        while self._under_way and (len(self._under_way) > self._limit or self._under_way[0].done()):
            yield self._take()

    def finish_bundle(self):
        while self._under_way:
            out = self._take()
            tagged = isinstance(out, beam.pvalue.TaggedOutput)
            value = WindowedValue(
                out.value if tagged else out, GlobalWindow().max_timestamp(), [GlobalWindow()]
            )
            yield beam.pvalue.TaggedOutput(out.tag, value) if tagged else value
        self._host.report()

    def _take(self) -> Any:
        done = self._under_way.popleft().result()
        self._host.done[self._name] += 1
        return done if isinstance(done, Item) else beam.pvalue.TaggedOutput(ENDED, done)

    async def _run(self, item: Item) -> Item | Entry | Halted:
        try:
            return await self._step(item, self._host.ask)
        except Ended as end:
            return Entry(
                id=item.id, fate=end.fate, stage=self._name,
                reason=end.reason, detail=end.detail, raw=end.raw,
            )  # fmt: skip
        except Waiting as why:
            return Halted(item.id, str(why))
