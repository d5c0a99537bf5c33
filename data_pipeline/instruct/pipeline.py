"""The Beam graph: rows of captions in, kept items and the ledger's entries out.

What models reply is stored (`replies`), and everything else follows from it and the settings. So a
run that was killed is simply run again, on any runner, with the same result: what had a reply is
not asked again.

    captions -> question -> (leak) -> judge -> balance -> segments -> reasoning -> audit -> parts
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import tqdm
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsSingleton

from data_pipeline.instruct import balance, captions, chains, questions, segments
from data_pipeline.instruct.engine import ENDED, Halted, Host, Stage
from data_pipeline.instruct.items import Caption, Entry, Item, Reason
from data_pipeline.instruct.settings import Settings
from latentomni_jax.layout import InputError

REPLIES, CUTS, PARTS = "replies", "segments", "parts"


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      usage: counts of calls, tokens and so on, over all workers. halted: why items wait for
        another run, with how many; empty where every item has ended.
    """

    usage: dict[str, int]
    halted: Counter[str]


def run(
    paths: Sequence[str], videos: Path, out: Path, settings: Settings, options: Sequence[str] = ()
) -> Outcome:
    """Runs all stages; what comes out is read with `kept` and `ended`.

    Args:
      paths: caption files. videos: folder of the clips. out: directory of the run.
      options: of the Beam pipeline ("--runner=DataflowRunner", ...); default runs in this process.

    Raises:
      InputError: an option that Beam does not take.
    """
    parts = out / PARTS
    if parts.exists():  # of a run before
        shutil.rmtree(parts)
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(list(options)))
    except (Exception, SystemExit) as error:
        raise InputError(f"--beam-options: {error}") from error
    build(pipeline, paths, videos, out, settings)
    with _progress(settings, out / REPLIES):
        result = pipeline.run()
        result.wait_until_finish()
    found = result.metrics().query()["counters"]
    usage: Counter[str] = Counter()
    for counter in found:
        usage[counter.key.metric.name] += counter.result
    halted = Counter(line["why"] for line in _lines(parts, "halted"))
    return Outcome(dict(usage), halted)


def build(
    pipeline: beam.Pipeline, paths: Sequence[str], videos: Path, out: Path, settings: Settings
) -> None:
    """Puts the graph together."""
    replies = out / REPLIES
    ended = []

    def stage(items, name, step):
        done = items | Stage(name, step, settings, replies)
        ended.append(done[ENDED])
        return done["going"]

    rows = (
        pipeline
        | "files" >> beam.Create([list(paths)])
        | "captions" >> beam.FlatMap(_read).with_outputs(ENDED, main="good")
    )
    ended.append(rows[ENDED])
    items = (
        rows["good"]
        | "items" >> beam.FlatMap(questions.items_of, settings)
        | "spread" >> beam.Reshuffle()
    )
    items = stage(items, "question", questions.draft)
    if settings.leak_filter:
        items = stage(items, "leak", questions.check_leak)
    items = stage(items, "judge", questions.judge)
    if settings.ratio:
        chosen = items | Balance(settings)
        ended.append(chosen[ENDED])
        items = chosen["going"]
    describe = functools.partial(segments.describe, videos=videos, directory=out / CUTS)
    items = stage(items, "segments", describe)
    items = stage(items, "reasoning", chains.reason)
    items = stage(items, "audit", chains.audit)
    _write(items | "kept as text" >> beam.Map(_item_text), out, "kept")
    told = tuple(ended) | "all ended" >> beam.Flatten()
    for name, kind in (("ended", Entry), ("halted", Halted)):
        lines = told | f"{name} as text" >> beam.FlatMap(_text_of, kind)
        _write(lines, out, name)


class Balance(beam.PTransform):
    """Keeps of each category what `balance.caps` allows; the rest has ended."""

    def __init__(self, settings: Settings):
        super().__init__("balance")
        self._settings = settings

    def expand(self, items):
        seed = self._settings.seed
        ranked = items | beam.Map(lambda item: (item.scores.category, item.id))
        caps = (
            ranked
            | beam.combiners.Count.PerKey()
            | beam.combiners.ToDict()
            | beam.Map(lambda n: balance.caps(n, self._settings.ratio, self._settings.least))
        )
        chosen = (
            ranked
            | beam.GroupByKey()
            | beam.FlatMap(_choose, seed=seed, caps=AsSingleton(caps, default_value={}))
        )
        by_id = items | "by id" >> beam.Map(lambda item: (item.id, item))
        return (
            {"items": by_id, "chosen": chosen}
            | beam.CoGroupByKey()
            | beam.FlatMap(_keep_chosen).with_outputs(ENDED, main="going")
        )


def expected(paths: Sequence[str], settings: Settings) -> Iterator[str]:
    """Ids of all items, read from the captions anew: what the ledger has to hold."""
    for row in _rows(paths):
        if isinstance(row, Caption):
            yield from (item.id for item in questions.items_of(row, settings))
        else:
            yield row.id


def kept(out: Path) -> Iterator[Item]:
    """Kept items, by id."""
    return (Item.from_json(line) for line in _lines(out / PARTS, "kept"))


def ended(out: Path) -> Iterator[Entry]:
    """The ledger's entries, by id, those of kept items among them."""
    gone = (Entry(**line) for line in _lines(out / PARTS, "ended"))
    stayed = (Entry(id=item.id, fate="kept", stage="audit") for item in kept(out))
    return heapq.merge(gone, stayed, key=lambda entry: entry.id)


# ---------------------------------------------------------------------------- details


def _rows(paths: Iterable[str]) -> Iterator[Caption | Entry]:
    """Captions and unusable rows of all files; an id counts once over all of them."""
    seen: set[str] = set()
    for path in paths:
        yield from captions.read(path, seen)


def _read(paths: Iterable[str]) -> Iterator[Any]:
    for row in _rows(paths):
        yield row if isinstance(row, Caption) else beam.pvalue.TaggedOutput(ENDED, row)


def _choose(
    group: tuple[str, Iterable[str]], seed: int, caps: dict[str, int]
) -> Iterator[tuple[str, Reason | None]]:
    """Every id with why it is left out, None where it stays."""
    category, ids = group[0], list(group[1])
    taken = balance.choose(ids, caps[category], seed)
    reason = Reason.BALANCE if caps[category] else Reason.RARE
    for one in ids:
        yield one, None if one in taken else reason


def _keep_chosen(joined: tuple[str, dict[str, Any]]) -> Iterator[Any]:
    name, found = joined
    (item,), (reason,) = found["items"], found["chosen"]
    if reason is None:
        yield item
        return
    category = item.scores.category
    entry = Entry(id=name, fate="dropped", stage="balance", reason=reason, detail=category)
    yield beam.pvalue.TaggedOutput(ENDED, entry)


def _item_text(item: Item) -> tuple[str, str]:
    return item.id, json.dumps(item.to_json())


def _text_of(entry: Any, kind: type) -> Iterator[tuple[str, str]]:
    if isinstance(entry, kind):
        yield entry.id, json.dumps(dataclasses.asdict(entry))


@contextlib.contextmanager
def _progress(settings: Settings, replies: Path) -> Iterator[None]:
    """Shows what this process has done, while Beam works in it."""
    ended = threading.Event()

    def show():
        host = Host.of(settings, replies)
        with tqdm.tqdm(unit=" replies", mininterval=1) as bar:
            while not ended.wait(0.5):
                usage = host.ask.usage
                stages = (f"{name} {n}" for name, n in host.done.items())
                told = ", ".join([*stages, f"{usage['stored']} from the store"])
                bar.set_postfix_str(told, refresh=False)
                bar.update(usage["calls"] + usage["stored"] - bar.n)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        Host.close_all()


def _write(lines, out: Path, name: str) -> None:
    _ = (
        lines
        | f"{name} lines" >> beam.Values()
        | f"write {name}" >> beam.io.WriteToText(str(out / PARTS / name), ".jsonl")
    )


def _lines(parts: Path, name: str) -> Iterator[dict[str, Any]]:
    """Lines of all part files by id; keeps ids and places in memory, not the lines."""
    places = []
    files = sorted(parts.glob(f"{name}-*.jsonl"))
    for number, path in enumerate(files):
        with path.open("rb") as lines:
            at = 0
            for line in lines:
                places.append((json.loads(line)["id"], number, at))
                at += len(line)
    opened = [path.open("rb") for path in files]
    try:
        for _, number, at in sorted(places):
            opened[number].seek(at)
            yield json.loads(opened[number].readline())
    finally:
        for file in opened:
            file.close()
