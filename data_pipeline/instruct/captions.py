r"""Rows of caption files become `Caption`, whatever the row's layout; files are not to be trusted.

One JSON object a line. Its keys tell its layout:

    plain          {"video": "a/b.mp4", "caption": "A dog ...", "id": "b7",
                    "timed": [{"start": 0, "end": 2.5, "text": "A bark.", "sense": "audio"}],
                    "shots": [[0, 2.5], [2.5, 9]], "source": "home", "licence": "CC BY 4.0"}
    messages       {"messages": [{"role": "user", "content": "<video>Describe it."},
                    {"role": "assistant", "content": "A dog ..."}], "videos": ["a/b.mp4"]}
    conversations  {"conversations": [{"from": "human", "value": "<video>Describe it."},
                    {"from": "gpt", "value": "A dog ..."}], "video": "a/b.mp4"}

Plain rows need `video` and `caption`. In the other two the caption is what the one assistant's turn
says; the video is `original_video_path`, else `video`, else the one entry of `videos`, else the
video part of a turn whose content is a list of parts. `id`, `timed` and `shots` may be in any
layout; other keys with one text, number or truth value are kept as facts, as is the user's turn
("prompt"), up to 1,000 characters each. Keys with anything else are not read.

What is known of the paper's sources:

- The LatentOmni release (pipeline/dataset_syn_qwen.py, audio_clip.py, AV_segment_caption.py) reads
  its captions from `messages` rows with `original_video_path`, where `videos` are lists of frames.
- AVoCaDO's 107K captions are not published as far as could be found (issue 2 of its repository
  asks for them). Rows in its repository (eval_scripts/DREAM-1K/dream_example.jsonl) are `messages`
  with lists of parts, the video in {"video_file": ...}; both ways are read.
- ASID-1M is published as JSON lines (all_attributes_*, single_attribute_*, and raw ones). Its rows
  could not be looked at: its training scripts hand the first two to ms-swift, whose documented
  layout is `messages` with `videos`, and its videos are LLaVA-Video-178K's, whose rows are
  `conversations` with `video`. If rows are something else, they are refused, not guessed at.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from data_pipeline.instruct.items import Caption, Entry, Failed, Reason, Timed
from data_pipeline.instruct.parsing import one_line, tidy
from latentomni_jax.layout import InputError

MAX_CAPTION = 20_000  # characters
_MAX_LINE = 1 << 20  # bytes
_MAX_ID, _MAX_PATH, _MAX_FACT = 200, 1000, 1000  # characters
_ROW = "line:"  # begins the ids of rows that have none
_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_SPEAKERS = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_READ = {"id", "caption", "timed", "shots", "original_video_path", "video", "videos", *_KEYS}
_TAGS = re.compile(r"<(video|audio|image)>")
_Check = Callable[[object, str], None]


def read(path: str | os.PathLike, seen: set[int] | None = None) -> Iterator[Caption | Entry]:
    """The rows of a file in order, as a stream; a row that cannot be used is a failed `Entry`.

    Blank lines are passed over. Of rows with the same id the first counts. Memory is that of one
    row and of `seen`, about 100 bytes a row.

    Args:
      seen: hashes of ids that are taken; hand the same set to several reads to keep ids unique.

    Raises:
      InputError: there is no such file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected captions as JSON lines")
    return _rows(Path(path), set() if seen is None else seen)


def parse_row(data: Any, where: str) -> Caption:
    """The object of a row as a checked caption.

    Args:
      where: "file:line", for messages and `Caption.where`.

    Raises:
      Failed: with one line that says what was expected.
    """

    def check(condition: object, message: str):
        if not condition:
            raise Failed(Reason.CAPTION, f"{where}: {message}")

    check(isinstance(data, dict), f"expected a JSON object, got {data!r:.60}")
    layout = next((name for name in ("caption", *_KEYS) if name in data), "")
    named = f"{[*data]!r:.80}"
    check(layout, f"expected caption, messages or conversations among its keys, got {named}")
    prompt, text, part = "", data.get("caption"), None
    if layout in _KEYS:
        prompt, text, part = _talk(data[layout], layout, check)
    check(isinstance(text, str), f"caption should be text, got {text!r:.60}")
    text = tidy(text)
    check(text, "caption is empty")
    check(len(text) <= MAX_CAPTION, f"caption of {len(text)} characters, at most {MAX_CAPTION}")
    video = _video(data, part, check)
    return Caption(
        id=_id(data.get("id"), video, text, check),
        video=video,
        text=text,
        timed=_timed(data.get("timed"), check),
        shots=_shots(data.get("shots"), check),
        layout="plain" if layout == "caption" else layout,
        facts=_facts({"prompt": prompt} | {k: v for k, v in data.items() if k not in _READ}),
        where=where,
    )


def _rows(path: Path, seen: set[int]) -> Iterator[Caption | Entry]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if line is not None and not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                caption = parse_row(_object(line, where), where)
                key = int.from_bytes(_digest(caption.id)[:8])
                if key in seen:
                    raise Failed(Reason.CAPTION, f"{where}: id {caption.id!r} was used before")
                seen.add(key)
                yield caption
            except Failed as failed:
                yield Entry(
                    id=tidy(f"{_ROW}{number} of {path}"),
                    fate="failed",
                    stage="captions",
                    reason=failed.reason,
                    detail=failed.detail,
                )


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines; None for one that is too long, of which only pieces are held."""
    while line := file.readline(_MAX_LINE + 1):
        is_long = len(line) > _MAX_LINE
        while is_long and line and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE)
        yield None if is_long else line


def _object(line: bytes | None, where: str) -> Any:
    if line is None:
        raise Failed(Reason.CAPTION, f"{where}: expected at most {_MAX_LINE} bytes in a line")
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise Failed(Reason.CAPTION, f"{where}: expected a JSON object: {told:.120}") from None


def _talk(turns: Any, layout: str, check: _Check) -> tuple[str, Any, Any]:
    """What the user and the assistant say, and what the last part that is a video names."""
    speaker_key, content_key = _KEYS[layout]
    is_list = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    check(is_list, f"{layout} should be a list of turns, got {turns!r:.60}")
    said: dict[str, list[Any]] = {"user": [], "assistant": []}
    video = None
    for turn in turns:
        content, speaker = turn.get(content_key), turn.get(speaker_key)
        if isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict)]
            content = "\n".join(p["text"] for p in parts if isinstance(p.get("text"), str))
            for named in (part.get("video") for part in parts):
                named = named.get("video_file") if isinstance(named, dict) else named
                video = video if named is None else named
        if isinstance(speaker, str) and speaker in _SPEAKERS:
            said[_SPEAKERS[speaker]].append(content)
    count = len(said["assistant"])
    check(count == 1, f"expected one turn of an assistant among {layout}, got {count}")
    prompt = "\n".join(text for text in said["user"] if isinstance(text, str))
    return _TAGS.sub(" ", prompt), said["assistant"][0], video


def _video(data: dict[str, Any], part: Any, check: _Check) -> str:
    """A path that stays inside the videos' folder, in one spelling."""
    listed = data.get("videos")
    single = listed[0] if isinstance(listed, list) and len(listed) == 1 else None
    given = next(
        (x for x in (data.get("original_video_path"), data.get("video"), single) if x is not None),
        part,
    )
    check(isinstance(given, str), f"video should be a path, got {given!r:.60}")
    is_clean = all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in given)
    check(is_clean, f"video should be a path without control characters, got {given!r:.60}")
    windows = PureWindowsPath(given)
    is_inside = not (windows.anchor or given.startswith("/") or ".." in windows.parts)
    check(
        is_inside and "://" not in given,
        f"video should be a path relative to the videos' folder without '..', got {given!r:.60}",
    )
    path = PurePosixPath(given)
    check(path.parts, f"video should be a path to a file, got {given!r:.60}")
    check(len(given) <= _MAX_PATH, f"video: {len(given)} characters, at most {_MAX_PATH}")
    return str(path)


def _id(given: Any, video: str, text: str, check: _Check) -> str:
    """The one given, else one of the video and the caption: a video may have several captions."""
    if given is None:
        return f"{video}:{_digest(text).hex()[:8]}"
    is_text = isinstance(given, str) or type(given) is int
    check(is_text, f"id should be text or a whole number, got {given!r:.60}")
    name = one_line(str(given))
    check(
        0 < len(name) <= _MAX_ID and not name.startswith(_ROW),
        f"id should be 1 to {_MAX_ID} characters that do not begin with {_ROW!r}, got {name!r:.60}",
    )
    return name


def _timed(given: Any, check: _Check) -> tuple[Timed, ...]:
    check(given is None or isinstance(given, list), f"timed should be a list, got {given!r:.60}")
    found = []
    for part in given or ():
        check(isinstance(part, dict), f"a timed part should be an object, got {part!r:.60}")
        start, end = _span((part.get("start"), part.get("end")), check)
        text, sense = part.get("text"), part.get("sense")
        check(isinstance(text, str), f"text of a timed part should be text, got {text!r:.60}")
        text = tidy(text)
        check(
            0 < len(text) <= MAX_CAPTION,
            f"text of a timed part has {len(text)} characters, expected 1 to {MAX_CAPTION}",
        )
        check(sense in (None, "video", "audio"), f"sense is video or audio, got {sense!r:.60}")
        found.append(Timed(start=start, end=end, text=text, sense=sense))
    return tuple(sorted(found, key=lambda part: (part.start, part.end)))


def _shots(given: Any, check: _Check) -> tuple[tuple[float, float], ...]:
    check(given is None or isinstance(given, list), f"shots should be a list, got {given!r:.60}")
    return tuple(sorted(_span(pair, check) for pair in given or ()))


def _span(pair: Any, check: _Check) -> tuple[float, float]:
    is_pair = isinstance(pair, list | tuple) and len(pair) == 2
    is_span = is_pair and all(type(x) in (int, float) and abs(x) < 1e9 for x in pair)
    is_span = is_span and 0 <= pair[0] < pair[1]
    check(is_span, f"expected 0 <= start < end in seconds, got {pair!r:.60}")
    return float(pair[0]), float(pair[1])


def _facts(found: dict[str, Any]) -> dict[str, str]:
    facts = {}
    for key, value in found.items():
        if isinstance(value, bool | int | float):
            value = json.dumps(value)
        if isinstance(value, str) and 0 < len(value := tidy(value)) <= _MAX_FACT >= len(key):
            facts[tidy(key)] = value
    return facts


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
