"""Building the feature cache: every file decoded once, before training, and never again.

Trajectories are checked, the files that they name are gathered (a file named often is read once,
with all its segments), shards of files are written by worker processes, and the index joins both.
What cannot be used is named and counted and does not stop the rest. See `records` for the format.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tqdm

from data_pipeline import records
from data_pipeline.shards import REPORTS, MediaFile, Shard, write_shards, write_text
from data_pipeline.trajectories import DataProblem, Reason, Trajectory, read_jsonl
from latentomni_jax.layout import InputError, MediaSpec

# The paper's training: at most 256 frames at 2 per second, at most 105,369 pixels each.
TRAINING_SPEC = MediaSpec(video_max_pixels=105_369)
_BEGUN = ".begun.json"
_SHOWN = 5  # problems of a kind in the summary


class Summary(NamedTuple):
    """What a cache holds: counts, bytes of media before compression, and what was left out."""

    trajectories: int
    records: int
    bytes: int
    problems: list[DataProblem]

    def __str__(self) -> str:
        lines = [
            f"{self.trajectories} trajectories, {self.records} media records, "
            f"{self.bytes / 1e6:.1f} MB; {len(self.problems)} left out"
        ]
        by_reason = collections.defaultdict(list)
        for problem in self.problems:
            by_reason[problem.reason].append(problem)
        for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            lines.append(f"{len(found):>6}  {reason}")
            for problem in found[:_SHOWN]:
                named = "" if problem.id is None else f" {problem.id!r}"
                lines.append(f"        {problem.where}{named}: {problem.detail}")
            if len(found) > _SHOWN:
                lines.append(f"        and {len(found) - _SHOWN} more, see problems.jsonl")
        return "\n".join(lines)


def build_cache(
    data: str | os.PathLike,
    out: str | os.PathLike,
    spec: MediaSpec = TRAINING_SPEC,
    *,
    media_root: str | os.PathLike | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    workers: int = 1,
    max_blocks: int = 3,
    shard_files: int = 16,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Builds a feature cache, or completes one that was interrupted, with the same result.

    Args:
      data: trajectories as JSON lines. out: directory to write.
      media_root: what their paths are relative to; default is the folder of `data`.
      on_error: "skip" leaves unusable trajectories out, "fail" raises the first found.
      workers: processes that decode; see `write_shards`.
      max_blocks: trajectories with more latent blocks are problems.
      shard_files: media files per shard; what is lost when a run is interrupted.
      overwrite: replace a complete or another cache in `out`.
      progress: show a bar on stderr.

    Raises:
      InputError: an unusable argument; `out` is complete, was begun otherwise, or is no cache;
        nothing can be used, or no media file; with "fail", the first unusable trajectory (finished
        shards are kept).
    """
    records.require_libraries()
    if on_error not in ("skip", "fail"):
        raise InputError(f"on_error should be skip or fail, got {on_error!r}")
    for name, value in {"workers": workers, "shard_files": shard_files}.items():
        if value < 1:
            raise InputError(f"{name} should be at least 1, got {value}")
    out = Path(out)
    trajectories, problems = read_jsonl(data, max_blocks=max_blocks)
    if problems and on_error == "fail":
        raise problems[0]
    root = Path(data).parent if media_root is None else Path(media_root)
    files = _gather(trajectories, root)
    every, size = list(files.values()), shard_files
    chunks = [tuple(every[k : k + size]) for k in range(0, len(every), size)]
    shards = [Shard(out, k, len(chunks), chunk, spec) for k, chunk in enumerate(chunks)]
    _begin(out, overwrite, [dataclasses.asdict(spec), chunks])
    with tqdm.tqdm(total=len(files), unit="file", disable=not progress) as bar:
        for shard in write_shards(shards, workers, bar.update):
            if on_error == "fail" and shard.report()["problems"]:
                joined = _join(trajectories, root, [shard])
                raise next(result for result in joined if isinstance(result, DataProblem))
    lines = []
    for result in _join(trajectories, root, shards):
        if isinstance(result, DataProblem):
            problems.append(result)
        else:
            lines.append(result)
    if not lines:
        raise InputError(f"no trajectory can be used: {problems[0] if problems else 'none given'}")
    reports = [shard.report() for shard in shards]
    if files and not any(report["records"] for report in reports):
        # One broken file is left out; all of them are no accident, and nothing to train on.
        shutil.rmtree(out)  # it holds nothing, and would be taken up again as it is
        raise InputError(f"none of {len(files)} media files can be used: {problems[-1]}")
    return _finish(out, spec, max_blocks, lines, problems, reports)


def _finish(out, spec, max_blocks, lines, problems, reports) -> Summary:
    """Writes the index, the problems, TFDS' own files and, last, meta.json."""
    for report in reports:
        for message in report["warnings"]:
            warnings.warn(message, stacklevel=3)
    counts = {key: sum(report[key] for report in reports) for key in ("records", "bytes")}
    summary = Summary(len(lines), problems=problems, **counts)
    _write_lines(out / "index.jsonl", lines)
    _write_lines(out / "problems.jsonl", map(_problem, problems))
    _write_dataset_info(out, reports)
    meta = {
        "format": records.FORMAT,
        "spec": dataclasses.asdict(spec),
        "trajectories": len(lines),
        **counts,
        "max_blocks": max_blocks,
        "problems": dict(sorted(collections.Counter(p.reason for p in problems).items())),
    }
    write_text(out / "meta.json", json.dumps(meta, indent=2) + "\n")
    shutil.rmtree(out / REPORTS)
    (out / _BEGUN).unlink()
    return summary


_Key = tuple[str, str]  # kind and real path: the same for trajectories about the same file


def _key(trajectory: Trajectory, root: Path) -> _Key:
    return trajectory.kind, os.path.realpath(root / trajectory.path)


def _gather(trajectories: Sequence[Trajectory], root: Path) -> dict[_Key, MediaFile]:
    """Every file once, in the order of first use, with all segments cited of it."""
    paths, segments = {}, collections.defaultdict(dict)
    for trajectory in trajectories:
        if trajectory.kind is not None:
            key = _key(trajectory, root)
            paths.setdefault(key, str(root / trajectory.path))
            segments[key].update(dict.fromkeys(trajectory.segments))
    return {key: MediaFile(path, key[0], tuple(segments[key])) for key, path in paths.items()}


def _join(
    trajectories: Sequence[Trajectory], root: Path, shards: Sequence[Shard]
) -> Iterator[dict[str, Any] | DataProblem]:
    """Lines of the index, or problems, of the trajectories without media or with it in `shards`."""
    found, first = {}, 0  # per path: the file, what came of it, the first record of its shard
    for shard in shards:
        report = shard.report()
        for file, result in zip(shard.files, report["files"], strict=True):
            found[file.kind, os.path.realpath(file.path)] = (file, result, first)
        first += report["records"]
    for trajectory in trajectories:
        if trajectory.kind is None:
            yield {"trajectory": trajectory.to_json(), "media": None, "segments": []}
        elif (key := _key(trajectory, root)) in found:
            try:
                yield _line(trajectory, *found[key])
            except DataProblem as problem:
                yield problem


def _line(trajectory: Trajectory, file: MediaFile, result: dict, first: int) -> dict[str, Any]:
    """The index's line of a trajectory with media. Raises DataProblem."""
    sizes = []
    cuts = [result["segments"][file.segments.index(cut)] for cut in trajectory.segments]
    for size in (result["media"], *cuts):
        if "problem" in size:
            reason, detail = size["problem"]
            raise DataProblem(Reason(reason), trajectory.where, trajectory.id, detail)
        sizes.append(size | {"record": first + size["record"]})
    fitted = tuple(tuple(size.pop("cut")) for size in sizes[1:])
    trajectory = dataclasses.replace(trajectory, segments=fitted)
    return {"trajectory": trajectory.to_json(), "media": sizes[0], "segments": sizes[1:]}


def _problem(problem: DataProblem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("where", "id", "reason", "detail")}


def _begin(out: Path, overwrite: bool, plan: Any) -> None:
    """Makes the directory ready: new, begun by the same plan, or refused."""
    text = json.dumps([records.FORMAT, plan], default=dataclasses.asdict)
    plan = hashlib.sha256(text.encode()).hexdigest()
    complete, begun = (out / "meta.json").is_file(), (out / _BEGUN).is_file()
    if out.exists() and not (complete or begun) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty, and no feature cache; name another directory")
    if overwrite and out.exists():
        shutil.rmtree(out)
    elif complete:
        raise InputError(f"{out}: holds a complete feature cache; use --overwrite to replace it")
    elif begun and json.loads((out / _BEGUN).read_text())["plan"] != plan:
        raise InputError(
            f"{out}: was begun with other data or options; use --overwrite to begin anew"
        )
    (out / REPORTS).mkdir(parents=True, exist_ok=True)
    write_text(out / _BEGUN, json.dumps({"plan": plan}))


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _write_dataset_info(out: Path, reports: Sequence[dict[str, Any]]) -> None:
    """The files by which TFDS knows the directory as a dataset."""
    tfds = records.tensorflow_datasets()
    identity = tfds.core.DatasetIdentity(
        name=records.DATASET,
        version=tfds.core.Version(records.VERSION),
        data_dir=str(out),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=records.features(),
        description="Clips and segments of clips, as LatentOmni's encoders take them.",
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        dataset_name=records.DATASET,
        data_dir=tfds.core.Path(out),
        split=records.SPLIT,
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name=records.SPLIT,
        shard_lengths=[report["records"] for report in reports],
        num_bytes=sum(report["bytes"] for report in reports),
        filename_template=template,
    )
    info.set_splits(tfds.core.SplitDict([split]))
    info.write_to_directory(out)
