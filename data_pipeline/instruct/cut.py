"""Stage 2 begins here: a clip cut by time, and what a captioner is sent of each piece.

    cuts = cut(Path("clip.mp4"), [(0, 5), (5, 10)], Path("pieces/0a1b"), frames_per_second=2)
    parts = payload(cuts[0], "video")       # content of a chat message
    key = digest(cuts[0], "video")          # of a cache of replies

A directory of pieces is written under another name and renamed when it is whole. What a killed
process leaves is beside it, with a dot in front, and may be deleted.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av.error

from data_pipeline.instruct.items import Failed, Reason, Sense
from data_pipeline.instruct.pieces import Files, write_pieces
from data_pipeline.instruct.survey import Source, plan_piece, survey
from data_pipeline.shards import write_text
from data_pipeline.trajectories import fit_segment
from latentomni_jax.layout import InputError
from latentomni_jax.media.container import one_line

MARKER = "cuts.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """A piece of a clip.

    Attributes:
      number: from 1, as `[Segment n]` cites it, and `00n` in the names of its files.
      start, end: seconds on the clip's clock, which is that of `latentomni_jax.media.video`.
      video: an mp4 for people, with sound where there is some; None without pictures.
      audio: an mp3, mono, 16 kHz; None without sound.
      frames: JPEGs, in order; none without pictures.
      digests: of what a captioner is sent, by sense.
    """

    number: int
    start: float
    end: float
    video: Path | None
    audio: Path | None
    frames: tuple[Path, ...]
    digests: dict[Sense, str] = dataclasses.field(hash=False)


def duration_of(source: Path) -> float:
    """Seconds of a clip, from its first picture (or sound, without pictures) to its end.

    Reads the times of all pictures and sounds and decodes nothing; sound counts to within its
    codec's padding, some 0.05 s.

    Raises:
      Failed: MEDIA, one line naming the file.
    """
    return _survey(source).duration


def cut(
    source: Path,
    stretches: Sequence[tuple[float, float]],
    directory: Path,
    frames_per_second: float,
) -> list[Cut]:
    """A clip's pieces as files, the same bytes for the same arguments; once, if they are there.

    A piece holds what `read_segments` returns for its stretch: pictures from the first one that
    begins in it (or the one on the screen), and the sound from that moment on. Processes that cut
    the same at the same time do not disturb each other.

    Args:
      stretches: (start, end) in seconds; an end up to `END_TOLERANCE` after the clip's is the
        clip's.
      directory: of these pieces alone; its name should tell the clip, the stretches and the
        frames per second apart from others.
      frames_per_second: of the JPEGs; at least 1 a piece, at most 16.

    Returns:
      One `Cut` a stretch, in their order.

    Raises:
      Failed: MEDIA, one line naming the file: it cannot be read, or a stretch is not in it.
      InputError: the directory holds something else.
    """
    asked = {
        "bytes": source.stat().st_size if source.is_file() else None,
        "stretches": [[float(start), float(end)] for start, end in stretches],
        "frames_per_second": float(frames_per_second),
    }
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}")
        work.mkdir()
        try:
            cuts = [_to_json(one) for one in _cut(source, stretches, work, frames_per_second)]
            write_text(work / MARKER, json.dumps({"asked": asked, "cuts": cuts}, indent=1))
            os.rename(work, directory)
        except OSError:
            if not directory.exists():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    try:
        found = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {}
    if found.get("asked") != asked:
        raise InputError(f"{directory}: holds no pieces, or others of {source}; delete it")
    return [_from_json(data, directory) for data in found["cuts"]]


def payload(cut: Cut, sense: Sense) -> list[dict[str, Any]]:
    """What a captioner is sent: parts of an OpenAI chat message's content.

    Images for "video", one mp3 for "audio"; none where the piece has no such part.
    """
    if sense == "video":
        urls = [f"data:image/jpeg;base64,{_base64(path)}" for path in cut.frames]
        return [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    if cut.audio is None:
        return []
    sound = {"data": _base64(cut.audio), "format": "mp3"}
    return [{"type": "input_audio", "input_audio": sound}]


def digest(cut: Cut, sense: Sense) -> str:
    """SHA-256, in hex, of what `payload` sends; known since the piece was cut, nothing is read."""
    return cut.digests[sense]


def _survey(source: Path) -> Source:
    try:
        return survey(source)
    except InputError as error:
        raise Failed(Reason.MEDIA, str(error)) from error


def _cut(
    source: Path,
    stretches: Sequence[tuple[float, float]],
    directory: Path,
    frames_per_second: float,
) -> list[Cut]:
    known = _survey(source)
    pieces = []
    for number, (start, end) in enumerate(stretches, 1):
        fitted = fit_segment(start, end, known.duration) if start < end else None
        if fitted is None:
            span = f"{start:g} to {end:g} s is no stretch of a clip of {known.duration:.2f} s"
            raise Failed(Reason.MEDIA, f"{source}: {span}")
        pieces.append(plan_piece(known, number, *fitted, frames_per_second))
    try:
        written = write_pieces(known, pieces, directory)
    except InputError as error:
        raise Failed(Reason.MEDIA, str(error)) from error
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):  # ours: a full disk, say
            raise
        raise Failed(Reason.MEDIA, f"{source}: cannot be encoded: {one_line(error)}") from error
    cuts = []
    for piece, files in zip(pieces, written, strict=True):
        if piece.shown and not (files.video and files.stills):
            span = f"from {piece.start:g} to {piece.end:g} s"
            raise Failed(Reason.MEDIA, f"{source}: no picture {span} can be decoded")
        cuts.append(
            Cut(
                number=piece.number,
                start=piece.start,
                end=piece.end,
                video=files.video,
                audio=files.audio,
                frames=files.stills,
                digests={"video": _digest(files.stills), "audio": _digest(_present(files))},
            )
        )
    return cuts


def _present(files: Files) -> list[Path]:
    return [] if files.audio is None else [files.audio]


def _digest(paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _to_json(cut: Cut) -> dict[str, Any]:
    """With the files' names alone: a directory may be moved."""
    return dataclasses.asdict(cut) | {
        "video": cut.video and cut.video.name,
        "audio": cut.audio and cut.audio.name,
        "frames": [path.name for path in cut.frames],
    }


def _from_json(data: dict[str, Any], directory: Path) -> Cut:
    paths = {
        "video": data["video"] and directory / data["video"],
        "audio": data["audio"] and directory / data["audio"],
        "frames": tuple(directory / name for name in data["frames"]),
    }
    return Cut(**(data | paths))
