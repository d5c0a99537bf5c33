"""Timed captions that lie elsewhere, as plain rows for `captions`.

AV-Events: a set of `latentomni data av-events`, what is seen and heard to the moment. Daily-Omni:
folders of that benchmark, to try the pipeline on real clips; who tests on it must not train on it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.av_events.build import read_records
from data_pipeline.instruct.items import Sense, Timed
from data_pipeline.shards import write_text
from latentomni_jax.layout import InputError

_LINE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*s\s*:\s*(\S.*)")  # "0-10s: text"
_DAILY_OMNI: dict[str, Sense] = {
    "video_consistent_captions": "video",
    "audio_revised_captions": "audio",
}


def write_av_events_captions(
    set_directory: str | os.PathLike, out_path: str | os.PathLike, split: str = "train"
) -> int:
    """Writes a row for every clip of a split; paths are relative to the set's directory.

    Moments are shots: the clips are of a few seconds. Returns the number of rows.

    Raises:
      InputError: there is no complete set, or no such split.
    """
    rows = [av_events_row(record) for record in read_records(set_directory, split)]
    write_text(Path(out_path), "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def av_events_row(record: dict[str, Any]) -> dict[str, Any]:
    """The row of a record of `av_events.build.read_records`."""
    timed = [
        Timed(start=start, end=end, text=text, sense=sense)
        for sense in ("video", "audio")
        for start, end, text in record["captions"][sense]
    ]
    shots = [[m.start, m.end] for m in record["timeline"].moments]
    row = {"id": record["id"], "video": record["path"], "source": "AV-Events"}
    return row | _told(timed) | {"shots": shots}


def daily_omni_row(folder: str | os.PathLike) -> dict[str, Any]:
    """The row of a folder ID of Daily-Omni, with ID_video.mp4 and qa.json.

    Of the captions in qa.json those are taken that its authors corrected and that have times, of
    what is seen and of what is heard; none of its questions.

    Raises:
      InputError: the folder lacks one of them.
    """
    folder = Path(folder)
    path, video = folder / "qa.json", folder / f"{folder.name}_video.mp4"
    for file in (path, video):
        if not file.is_file():
            raise InputError(f"{file}: no such file; expected a folder of Daily-Omni")
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))["captions"]
        texts: dict[Sense, str] = {sense: str(captions[key]) for key, sense in _DAILY_OMNI.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected captions.{{{','.join(_DAILY_OMNI)}}}") from error
    timed: list[Timed] = []
    for sense, text in texts.items():
        timed += (found := timed_lines(text, sense))
        if not found:
            raise InputError(f"{path}: expected lines like '0-10s: text' of {sense}, found none")
    row = {"id": folder.name, "video": f"{folder.name}/{video.name}", "source": "Daily-Omni"}
    return row | _told(timed)


def timed_lines(text: str, sense: Sense | None = None) -> tuple[Timed, ...]:
    """Timed parts of lines "0-10s: what happens"; other lines belong to the one before them."""
    found: list[tuple[float, float, str]] = []
    for line in filter(str.strip, text.splitlines()):
        match = _LINE.fullmatch(line)
        if match and float(match[1]) < float(match[2]):
            found.append((float(match[1]), float(match[2]), match[3].strip()))
        elif found:
            found[-1] = (*found[-1][:2], f"{found[-1][2]} {line.strip()}")
    return tuple(Timed(start=s, end=e, text=told, sense=sense) for s, e, told in found)


def _told(timed: Iterable[Timed]) -> dict[str, Any]:
    """`caption` and `timed` of a row: in order of time, what is seen before what is heard."""
    words: dict[Sense | None, str] = {"video": "seen", "audio": "heard"}
    parts = sorted(timed, key=lambda p: (p.start, p.end, p.sense != "video"))
    return {
        "caption": "\n".join(
            f"{p.start:g} to {p.end:g} s, {words[p.sense]}: {p.text}" for p in parts
        ),
        "timed": [
            {"start": p.start, "end": p.end, "text": p.text, "sense": p.sense} for p in parts
        ],
    }
