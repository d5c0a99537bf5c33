"""Media files become shards of the feature cache; the work of its worker processes.

A shard is a fixed list of files. It is written under another name and renamed when it is whole,
its report last: a shard with a report is finished, whatever happened to the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

from data_pipeline import records
from data_pipeline.trajectories import KINDS, Kind, Reason, fit_segment
from latentomni_jax.layout import AudioPart, Clip, InputError, MediaSpec, VisionPart
from latentomni_jax.media.processor import clip_part
from latentomni_jax.media.video import read_segments

REPORTS = ".reports"


@dataclasses.dataclass(frozen=True)
class MediaFile:
    """A file to decode, once: how it is shown, and all segments that anyone cites of it."""

    path: str
    kind: Kind
    segments: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of the cache: its number, of how many, and the media it holds."""

    directory: Path
    number: int
    count: int
    files: tuple[MediaFile, ...]
    spec: MediaSpec

    @property
    def path(self) -> Path:
        name = f"{records.DATASET}-{records.SPLIT}.array_record"
        return self.directory / f"{name}-{self.number:05d}-of-{self.count:05d}"

    @property
    def report_path(self) -> Path:
        return self.directory / REPORTS / f"{self.number:05d}.json"

    def report(self) -> dict[str, Any] | None:
        """What `write_shard` reported, None where it did not finish.

        Counts of `records`, `bytes` and `problems`; `warnings`; and `files`: of each, `media` and
        `segments` are sizes with the number of the `record` within the shard, or `problem`, a
        reason and a message.
        """
        if not (self.path.is_file() and self.report_path.is_file()):
            return None
        return json.loads(self.report_path.read_text(encoding="utf-8"))


def write_shards(
    shards: Sequence[Shard], workers: int, progress: Callable[[int], None]
) -> Iterator[Shard]:
    """Writes the shards that are not finished, and yields each shard when it is.

    Args:
      workers: processes; 1 works in this one. More than 1 start by importing the caller's main
        module, which must be guarded as usual for `multiprocessing`.
      progress: called with the number of files done since the last call.

    Raises:
      InputError: a worker process died.
    """
    waiting = []
    for shard in shards:
        if shard.report() is None:
            waiting.append(shard)
        else:
            progress(len(shard.files))
            yield shard
    if workers == 1 or len(waiting) < 2:
        for shard in waiting:
            write_shard(shard, progress)
            yield shard
        return
    context = multiprocessing.get_context("spawn")  # FFmpeg's threads do not survive a fork
    done, shown = context.Value("q", 0), 0
    pool = ProcessPoolExecutor(min(workers, len(waiting)), context, _begin_worker, (done,))
    try:
        with _one_blas_thread():
            running = {pool.submit(_work, shard): shard for shard in waiting}
        while running:
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            progress(done.value - shown)
            shown = done.value
            for future in finished:
                future.result()
                yield running.pop(future)
    except BrokenProcessPool:
        raise InputError(
            "a worker process died (out of memory, or a file that crashes the decoder); finished "
            "shards are kept: run again, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Processes that begin here multiply in one thread each; many would wait for one another.

    NumPy's OpenBLAS reads the variable once, when it is loaded: too late for `_begin_worker`.
    """
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]


def write_shard(shard: Shard, progress: Callable[[int], None] = lambda count: None) -> None:
    """Decodes the files of a shard and writes it and its report; replaces what is there."""
    from array_record.python.array_record_module import ArrayRecordWriter

    features = records.features()
    serializer = records.tensorflow_datasets().core.ExampleSerializer(
        features.get_serialized_info()
    )
    partial = shard.path.with_name(f".{shard.path.name}.partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    report: dict[str, Any] = {"records": 0, "bytes": 0, "warnings": [], "files": []}

    def write(part: VisionPart | AudioPart, file: MediaFile, cut: tuple[float, float]):
        name = os.path.basename(file.path).encode("utf-8", "replace").decode()
        example = features.encode_example(records.to_record(part, name, cut))
        # Protobuf's maps have another order in every process unless asked.
        data = serializer.get_tf_example(example).SerializeToString(deterministic=True)
        writer.write(data)
        report["records"] += 1
        report["bytes"] += len(data)
        return {"record": report["records"] - 1, "file": name, **records.part_size(part)}

    try:
        for file in shard.files:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = _cache_file(file, shard.spec, write)
            report["files"].append(result)
            report["warnings"] += [str(warning.message) for warning in caught]
            progress(1)
    finally:
        writer.close()
    sizes = [size for file in report["files"] for size in (file["media"], *file["segments"])]
    report["problems"] = sum("problem" in size for size in sizes)
    os.replace(partial, shard.path)
    write_text(shard.report_path, json.dumps(report))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A text file to write to, which is there either whole or, after an exception, not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        yield file
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there either whole or not at all."""
    with writing(path) as file:
        file.write(text)


def _cache_file(file: MediaFile, spec: MediaSpec, write: Callable) -> dict[str, Any]:
    """What the report says of a file; `write` writes a record and returns its size."""
    try:
        clip, parts = _read_parts(file, spec)
    except Exception as error:  # whatever it is, it is this file's, and others wait
        named = "" if isinstance(error, InputError) else f"{file.path}: {type(error).__name__}: "
        problem = {"problem": [Reason.MEDIA, f"{named}{error}"]}
        return {"media": problem, "segments": [problem] * len(file.segments)}
    media = write(parts[0], file, (0.0, clip.duration))
    segments: list[dict[str, Any]] = []
    for (start, end), part in zip(file.segments, parts[1:], strict=True):
        fitted = fit_segment(start, end, clip.duration)
        if fitted is None:
            problem = f"{start:g} to {end:g} s of a clip of {clip.duration:.2f} s"
            segments.append({"problem": [Reason.OUTSIDE, problem]})
        elif part is None:
            problem = f"nothing is seen or heard from {start:g} to {end:g} s"
            segments.append({"problem": [Reason.EMPTY, problem]})
        else:
            segments.append(write(part, file, fitted) | {"cut": fitted})
    return {"media": media, "segments": segments}


def _read_parts(
    file: MediaFile, spec: MediaSpec
) -> tuple[Clip, list[VisionPart | AudioPart | None]]:
    """The clip, and the parts that it and its segments become; None where nothing is."""
    clip, cuts = read_segments(file.path, spec, file.segments, video=file.kind != "audio")
    if (found := _kind(clip)) != file.kind:
        raise InputError(f"{file.path}: expected {file.kind}, it is {found}")
    return clip, [
        None if cut.frames is None and cut.audio is None else clip_part(cut, spec, pixels=True)
        for cut in (clip, *cuts)
    ]


def _kind(clip: Clip) -> Kind:
    video, audio, image = KINDS
    return audio if clip.frames is None else image if clip.is_image else video


_done: Any = None  # in a worker: files that all workers have done


def _begin_worker(done: Any) -> None:
    global _done
    _done = done

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # otherwise a killed run would go on writing

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(shard: Shard) -> None:
    def progress(count: int):
        with _done.get_lock():
            _done.value += count

    write_shard(shard, progress)
