"""Stage 2: the clip in segments, and what is seen and heard in each, given the question.

The captioner is a model that gets frames and sound, each sense by itself; or with `--captioner
text` the timed parts of the caption are shared out. Sentences of both senses are put in one order
(places are asked for, not the text, so that no sentence can be lost or changed), and the whole is
mended with the full caption.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from data_pipeline.instruct import cut
from data_pipeline.instruct.items import Caption, Failed, Item, Reason, Segment, Sense
from data_pipeline.instruct.prompts import Media, request
from data_pipeline.instruct.replies import Asker, seed_of
from data_pipeline.instruct.settings import Settings
from data_pipeline.instruct.stretches import stretches
from latentomni_jax.layout import InputError

T = TypeVar("T")
# Not about one clip: disk or file handles are used up.
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
_JOB: dict[Sense, str] = {"video": "see", "audio": "hear"}


def cut_clip(caption: Caption, videos: Path, directory: Path, settings: Settings) -> list[cut.Cut]:
    """The caption's clip cut into files, once for all of its questions.

    Args:
      videos: folder that the caption's path is relative to. directory: of all cut clips.

    Raises:
      Failed: the clip cannot be read.
    """
    source = videos / caption.video
    try:
        duration = cut.duration_of(source)
        pieces = stretches(duration, caption.shots, settings.segment_seconds)
        seen = source.stat()
        about = (caption.video, seen.st_size, seen.st_mtime_ns, pieces, settings.frames_per_second)
        name = hashlib.sha256(repr(about).encode("utf-8", "replace")).hexdigest()[:16]
        return cut.cut(source, pieces, directory / name, settings.frames_per_second)
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise Failed(Reason.MEDIA, f"{caption.video}: {error.strerror or error}") from error
    except (InputError, ValueError, LookupError) as error:
        raise Failed(Reason.MEDIA, f"{caption.video}: {error}") from error


async def describe(item: Item, ask: Asker, *, videos: Path, directory: Path) -> Item:
    """Fills the item's segments."""
    caption = item.caption
    cuts = await ask.once(
        (caption.video, caption.shots),
        functools.partial(cut_clip, caption, videos, directory, ask.settings),
    )
    duration = cuts[-1].end
    done = await _all(_describe_one(item, ask, one, duration) for one in cuts)
    segments = tuple(segment for segment, _ in done)
    if not any(segment.text for segment in segments):
        raise Failed(Reason.CAPTION, "no timed caption tells of any segment")
    models = {role: model for _, told in done for role, model in told.items()}
    return dataclasses.replace(item, segments=segments, models=item.models | models)


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """What all of it comes to; of errors the first in order, whichever came first."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return done  # pyright: ignore[reportReturnType]


async def _describe_one(
    item: Item, ask: Asker, one: cut.Cut, duration: float
) -> tuple[Segment, dict[str, str]]:
    seed = seed_of(ask.settings.seed, item.id, one.number)
    times = {"start": f"{one.start:g}", "end": f"{one.end:g}"}
    told: dict[str, str] = {}
    found: dict[Sense, tuple[str, ...]]
    if ask.settings.captioner == "text":
        found = share_out(item.caption, one.start, one.end)
    else:
        assert item.question is not None
        known = {"question": item.question.text, "answer": item.question.answer_text}
        senses: list[Sense] = [
            sense for sense, has in (("video", one.frames), ("audio", one.audio)) if has
        ]
        replies = await _all(
            ask(request(_JOB[sense], media=_media(one, sense), **known, **times), seed)
            for sense in senses
        )
        found = {s: tuple(r.data["sentences"]) for s, r in zip(senses, replies, strict=True)}
        told |= {"captioner": replies[0].model} if replies else {}
    segment = Segment(
        number=one.number,
        start=one.start,
        end=one.end,
        seen=found.get("video", ()),
        heard=found.get("audio", ()),
        captioner=ask.settings.captioner,
    )
    if not (segment.seen or segment.heard):
        return segment, told
    fused = segment.seen + segment.heard
    if segment.seen and segment.heard:
        reply = await ask(request("fuse", seen=segment.seen, heard=segment.heard), seed)
        fused, told["editor"] = fuse(segment.seen, segment.heard, reply.data["behind"]), reply.model
    piece = " ".join(fused)
    asked = request(
        "refine", caption=item.caption.text, piece=piece, duration=f"{duration:g}", **times
    )
    reply = await ask(asked, seed)
    told["editor"] = reply.model
    return dataclasses.replace(segment, fused=fused, text=reply.data["text"]), told


def fuse(seen: Sequence[str], heard: Sequence[str], behind: Sequence[int]) -> tuple[str, ...]:
    """All sentences in one order.

    Args:
      behind: for each of `heard`, how many of `seen` stand before it.

    Raises:
      ValueError: places for fewer or more sentences than there are, or outside of them.
    """
    placed = zip(behind, heard, strict=True)
    if any(not 0 <= place <= len(seen) for place in behind):
        raise ValueError(f"places {list(behind)} among {len(seen)} sentences")
    # Sounds behind a sentence, itself at its place; a sort keeps those of one place in order.
    sounds = [(place, 1, text) for place, text in placed]
    sights = [(place, 0, text) for place, text in enumerate(seen, start=1)]
    return tuple(text for *_, text in sorted(sights + sounds, key=lambda one: one[:2]))


def share_out(caption: Caption, start: float, end: float) -> dict[Sense, tuple[str, ...]]:
    """Timed parts of the caption that belong to a stretch: most of the part, or of the stretch.

    What is told of both senses at once stands with what is seen.
    """
    found: dict[Sense, tuple[str, ...]] = {"video": (), "audio": ()}
    for part in caption.timed:
        shared = min(end, part.end) - max(start, part.start)
        if shared >= 0.5 * min(part.end - part.start, end - start) and shared > 0:
            found[part.sense or "video"] += (part.text,)
    return found


def _media(one: cut.Cut, sense: Sense) -> Media:
    return Media(functools.partial(_payload, one, sense), cut.digest(one, sense))


# Several questions about a clip are often under way at a time; 64 segments may be some 20 MB.
_payload = functools.lru_cache(maxsize=64)(cut.payload)
