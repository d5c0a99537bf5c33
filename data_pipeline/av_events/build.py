"""The AV-Events set on disk: clips, their truth as a TFDS dataset, trajectories as JSON lines.

    DIR/world.json        dial, seed, counts: what makes the set, again to the bit
        alone.json        how well one modality alone guesses
        clips/            SPLIT-00000.mp4 ...
        av_events/1.0.0/  TFDS dataset, ArrayRecord files: clip, its hash, timeline, timed captions,
                          questions; written and read without TensorFlow
        base.jsonl        for a model from nothing: exercises in words alone, clips of one thing and
                          of one sound, lists of what is seen and heard in the training clips,
                          and their trajectories, also with reasoning that is silent about what
                          is found
        train.jsonl       trajectories with latent blocks; test.jsonl, novel.jsonl the same
        tokenizer/        for a model from nothing, trained on the texts of these

Every clip is drawn from (seed, split, number) alone, so splits share none, and any process can make
any clip. The split "novel" has things and sounds that no other split has;
"pictures" and "sounds" are short clips to learn from.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm

from data_pipeline import records
from data_pipeline.av_events.captions import captions
from data_pipeline.av_events.check import require_both, require_no_leak, single_modality
from data_pipeline.av_events.render import render
from data_pipeline.av_events.samples import (
    CHECK_SEED,
    FORMAT,
    SPLITS,
    World,
    clip_path,
    write_samples,
)
from data_pipeline.av_events.world import Dial, Timeline
from data_pipeline.shards import write_text
from latentomni_jax.layout import InputError

_MEASURED = 600  # clips on which a guess is fitted, and as many on which it is measured


def make_set(
    out: str | os.PathLike, world: World, *, workers: int = 1, progress: bool = True
) -> Alone:
    """Makes a set, or completes one that was interrupted, with the same result.

    Args:
      out: directory, new, empty, or begun with the same world.
      workers: processes that render.

    Returns:
      How well a guess from one modality does.

    Raises:
      InputError: `out` is something else; the world's questions do not need both modalities.
    """
    records.require_libraries()
    out = Path(out)
    _begin(out, world)
    jobs = [(split, i) for split, n in zip(SPLITS, world.clips, strict=True) for i in range(n)]
    with tqdm.tqdm(total=len(jobs), unit="clip", disable=not progress) as bar:
        alone = _make_files(out, world, jobs, workers, bar)
    if not (dataset_directory(out) / "dataset_info.json").is_file():
        records.tensorflow_datasets().disable_progress_bar()
        builder = _builder_class()(data_dir=str(out), file_format="array_record", out=out)
        builder.download_and_prepare()
        shutil.rmtree(out / "downloads", ignore_errors=True)  # TFDS makes it, nothing is in it
    return alone


class Alone(NamedTuple):
    """Accuracies of a learned guess from one modality, see `check.single_modality`.

    Attributes:
      fresh: on many clips of such a world. test: on those of the set's own test split.
    """

    fresh: dict[str, dict[str, float]]
    test: dict[str, dict[str, float]]

    def __str__(self) -> str:
        fresh, test = (
            ", ".join(f"{view} {of_type['all']:.0%}" for view, of_type in found.items())
            for found in self
        )
        return f"{fresh}; of this set's test questions {test}"


def measure(world: World, clips: int = _MEASURED) -> Alone:
    """How well a guess from one modality, fitted on so many other clips, answers such questions."""
    other = dataclasses.replace(world, seed=CHECK_SEED + world.seed)
    train = _items(other, range(clips))
    tests = _items(other, range(clips, 2 * clips)), _items(world, range(world.clips[1]))
    return Alone(*(single_modality(train, test) for test in tests))


def _items(world, numbers):
    found = []
    for number in numbers:
        timeline, questions = world.draw("test", number)
        for question in questions:
            require_no_leak(question)
        found += [(timeline, question) for question in questions]
    return found


def _measure_once(out: Path, world: World, clips: int) -> Alone:
    """Raises InputError where the world's questions do not need both modalities."""
    path = out / "alone.json"
    if not path.is_file():
        write_text(path, json.dumps(measure(world, clips)._asdict(), indent=1) + "\n")
    alone = Alone(**json.loads(path.read_text(encoding="utf-8")))
    require_both(alone.fresh, 3 * clips)  # two clips have six questions
    return alone


def read_world(out: str | os.PathLike) -> World:
    """The world of a set. Raises InputError where there is none."""
    path = Path(out) / "world.json"
    if not path.is_file():
        raise InputError(f"{out}: is no AV-Events set; make one with `latentomni data av-events`")
    taken = json.loads(path.read_text(encoding="utf-8"))
    if taken.get("format") != FORMAT:
        raise InputError(f"{path}: format {taken.get('format')}, expected {FORMAT}")
    return World(Dial(**taken["dial"]), taken["seed"], tuple(taken["clips"]))


def check_set(out: str | os.PathLike) -> list[str]:
    """What is wrong with the clips of a complete set, each named; empty if nothing is."""
    problems = []
    for split in SPLITS:
        for record in read_records(out, split):
            path = Path(out) / record["path"]
            if not path.is_file():
                problems.append(f"{path}: is missing")
            elif _hash(path.read_bytes()) != record["sha256"]:
                problems.append(f"{path}: is not the clip that was made (its hash differs)")
    return problems


def read_records(out: str | os.PathLike, split: str) -> Iterator[dict[str, Any]]:
    """The records of a split: `id`, `path`, `sha256`, `video` (bytes of the mp4), `timeline`,
    `captions`, `questions`."""
    read_world(out)
    tfds = records.tensorflow_datasets()
    try:
        source = tfds.builder_from_directory(dataset_directory(out)).as_data_source(split)
    except Exception as error:  # TFDS raises whatever a damaged or absent file makes it do
        raise InputError(f"{out}: the set is incomplete or damaged: {error!r}") from error
    for i in range(len(source)):
        record = source[i]
        yield {
            **{name: record[name].decode() for name in ("id", "path", "sha256")},
            "video": record["video"],
            "timeline": Timeline.from_json(json.loads(record["timeline"])),
            **{name: json.loads(record[name]) for name in ("captions", "questions")},
        }


def dataset_directory(out: str | os.PathLike) -> Path:
    return Path(out) / "av_events" / records.VERSION


# --------------------------------------------------------------------------- making


def _begin(out: Path, world: World) -> None:
    path = out / "world.json"
    if path.is_file():
        if (found := read_world(out)) != world:
            raise InputError(f"{out}: holds another set ({found}); name another directory")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; name another directory")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(world.to_json(), indent=1))


def _make_files(out, world, jobs, workers, bar) -> Alone:
    """Everything that is drawn from the world alone; a world that is refused stops it all."""
    render_job = functools.partial(_render_one, out, world)
    if workers == 1:
        alone = _measure_once(out, world, _MEASURED)
        for job in jobs:
            render_job(job)
            bar.update()
        write_samples(out, world)
        return alone
    context = multiprocessing.get_context("spawn")  # FFmpeg's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        try:
            # Each keeps one process busy for a while: begun first, they end beside the clips.
            measured = pool.submit(_measure_once, out, world, _MEASURED)
            written = pool.submit(write_samples, out, world)
            rendered = pool.map(render_job, jobs, chunksize=8)
            alone = measured.result()
            for _ in rendered:
                bar.update()
            written.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return alone


def _render_one(out: Path, world: World, job: tuple[str, int]) -> None:
    path = out / clip_path(*job)
    if path.is_file():
        return
    split, number = job
    partial = path.with_name(f".{path.name}")
    timeline, _ = world.draw(split, number)
    # Not the seed of the truth: what means nothing must not be able to tell.
    render(partial, timeline, int(_hash(f"{world.seed} {split} {number}".encode())[:12], 16))
    os.replace(partial, path)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.cache
def _builder_class():
    """The TFDS builder; made late, because TFDS is an extra."""
    tfds = records.tensorflow_datasets()

    class AvEvents(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version(records.VERSION)

        def __init__(self, *, out: Path, **kwargs):
            self.out = out
            super().__init__(**kwargs)

        def _info(self):
            text = tfds.features.Text()
            raw = tfds.features.Tensor(shape=(), dtype=np.object_)
            names = ("id", "path", "sha256", "timeline", "captions", "questions")
            return self.dataset_info_from_configs(
                description="Small clips in which things are seen and sounds are heard.",
                features=tfds.features.FeaturesDict({"video": raw} | dict.fromkeys(names, text)),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            world = read_world(self.out)
            return {
                split: self._generate_examples(world, split, count)
                for split, count in zip(SPLITS, world.clips, strict=True)
            }

        def _generate_examples(self, world, split, count):
            for number in range(count):
                timeline, questions = world.draw(split, number)
                path = clip_path(split, number)
                video = (self.out / path).read_bytes()
                yield (
                    number,
                    {
                        "id": f"{split}-{number:05d}",
                        "path": path,
                        "sha256": _hash(video),
                        "video": video,
                        "timeline": json.dumps(timeline.to_json()),
                        "captions": json.dumps(captions(timeline)),
                        "questions": json.dumps([dataclasses.asdict(q) for q in questions]),
                    },
                )

    return AvEvents
