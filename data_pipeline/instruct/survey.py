"""What is in a clip and when, and what a piece of it will hold; nothing but one picture is decoded.

All times are those of `latentomni_jax.media.video`: 0 s is the first picture, and sound is counted
by samples from its first one, so that gaps in it are closed.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av.container
import numpy as np

from latentomni_jax.layout import InputError, MediaSpec
from latentomni_jax.media.container import existing_file, open_media, packets_of
from latentomni_jax.media.video import (
    LATEST_SOUND,
    TOLERANCE,
    PictureIndex,
    decode_pictures,
    index_pictures,
    is_image,
    pick_frames,
    upright,
)

TICK = Fraction(1, 90_000)  # seconds; encoded pictures are timed by it
MAX_STILLS = 16
_GAP = 2e-3  # seconds between packets of sound; less is rounding
# Such packets carry their true times, and may stand in an mp4 as they are.
_COPIED_FROM = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
# MPEG-4 part 2 could stand there too, but no browser plays it.
_COPIED = {"video": {"h264", "hevc", "vp9", "av1"}, "audio": {"aac", "mp3", "opus"}}


class Packets(NamedTuple):
    """The packets of a video that may be copied, in the file's order."""

    pts: np.ndarray  # i64[n] ticks
    is_keyframe: np.ndarray  # bool[n]

    def hold(self, ticks: list[int]) -> bool:
        """Whether pictures, ascending, can be decoded from their own packets alone."""
        own = np.flatnonzero((self.pts >= ticks[0]) & (self.pts <= ticks[-1]))
        if len(own) != len(ticks):
            return False
        # What is among them and shown before them is left out: pictures that lead up to a
        # keyframe, and that no later one refers to. What is shown after them may be referred to.
        run = self.pts[own[0] : own[-1] + 1]
        return bool(run[0] == ticks[0] and self.is_keyframe[own[0]] and (run <= ticks[-1]).all())


class Sound(NamedTuple):
    """Where the sound of a file is; seconds are of the container's clock."""

    stream: int
    is_copied: bool  # its codec and container allow it
    start: float
    end: float  # with the gaps closed, as samples are counted
    whole_until: float  # seconds before the first gap


class Source(NamedTuple):
    """What is known of a file before any of it is decoded."""

    path: Path
    index: PictureIndex | None
    packets: Packets | None
    sound: Sound | None

    @property
    def origin(self) -> float:
        """0 s of the clip's clock, in seconds of the container's."""
        if self.index is None:
            return 0.0 if self.sound is None else self.sound.start
        return float(self.index.ticks[0] * self.index.seconds)

    @property
    def duration(self) -> float:
        """Seconds to the end of what lasts longer, pictures or sound."""
        pictures = 0.0 if self.index is None else self.index.duration
        return pictures if self.sound is None else max(pictures, self.sound.end - self.origin)


def survey(path: Path) -> Source:
    """Reads the times of everything in a file, and decodes nothing.

    Raises:
      InputError: one line naming the file, where it is no video or sound file.
    """
    path = existing_file(path)
    if is_image(path):
        raise InputError(f"{path}: is an image; expected a video or a sound file")
    index = index_pictures(path)
    pictures, sounds = [], []
    with open_media(path) as container:
        video = None if index is None else container.streams[index.stream]
        audio = container.streams.audio[0] if container.streams.audio else None
        for packet in packets_of(container, *filter(None, (video, audio))):
            if not packet.size or packet.pts is None:
                continue
            if packet.stream is audio:
                duration = float((packet.duration or 0) * packet.time_base)
                sounds.append((float(packet.pts * packet.time_base), duration, packet.is_discard))
            elif packet.dts is not None and not packet.is_discard:
                pictures.append((packet.pts, packet.is_keyframe))
        packets, sound = None, None
        if _may_copy(container, video) and index is not None and index.has_pts and pictures:
            packets = Packets(*map(np.array, zip(*pictures, strict=True)))
        if audio is not None and not all(is_discard for _, _, is_discard in sounds):
            sound = _find_sound(audio.index, _may_copy(container, audio), sounds)
    source = Source(path, index, packets, sound)
    if index is None and sound is None:
        raise InputError(f"{path}: no pictures or sound in it; expected a video or a sound file")
    if sound is not None and index is not None:
        late = sound.start - source.origin
        if late > index.duration + LATEST_SOUND:
            raise InputError(f"{path}: its sound begins {late:.0f} s after its pictures")
    return source


def _may_copy(container: av.container.InputContainer, stream: Any) -> bool:
    return (
        stream is not None
        and container.format.name in _COPIED_FROM
        and stream.codec_context.codec.canonical_name in _COPIED[stream.type]
    )


def _find_sound(stream: int, is_copied: bool, packets: list[tuple[float, float, bool]]) -> Sound:
    """`packets`: seconds at which each begins, its seconds, and whether it is not to be played."""
    times, lengths, discarded = (np.array(x) for x in zip(*packets, strict=True))
    gaps = np.diff(times) - lengths[:-1]
    gaps[np.abs(gaps) <= _GAP] = 0.0
    is_gap = np.flatnonzero(gaps)
    whole_until = times[is_gap[0]] if len(is_gap) else np.inf
    end = times[-1] + lengths[-1] - gaps.sum()
    return Sound(stream, is_copied, times[~discarded][0], float(end), float(whole_until))


class Look(NamedTuple):
    """What an encoder has to know of a video's pictures; width and height are even."""

    width: int
    height: int
    rate: Fraction  # pictures per second, about
    as_pixels: bool  # encoded from upright RGB, and not as decoded
    colours: dict[str, Any]  # and the pixels' shape, of the codec context


def look_at(path: Path, index: PictureIndex) -> Look:
    """Decodes the first picture."""
    with open_media(path) as container:
        for _, frame in decode_pictures(path, container, index, index.ticks[:1].tolist()):
            context = container.streams[index.stream].codec_context
            is_yuv = not (frame.format.is_rgb or frame.format.has_palette)
            as_pixels, colours = not is_yuv or round(frame.rotation / 90) % 4 != 0, {}
            height, width = upright(frame).shape[:2]
            if not as_pixels:
                names = ("color_range", "colorspace", "color_primaries", "color_trc")
                colours = {name: getattr(context, name) for name in names}
                colours["sample_aspect_ratio"] = context.sample_aspect_ratio or Fraction(1)
            rate = Fraction(len(index.ticks) / max(index.duration, 1e-3)).limit_denominator(1001)
            return Look(max(2, width & ~1), max(2, height & ~1), rate, as_pixels, colours)
    raise InputError(f"{path}: no frame of its video can be decoded; re-encode or replace it")


# ---------------------------------------------------------------------------- a piece


class Piece(NamedTuple):
    """A stretch of a clip and what will be written of it. Times are seconds on the clip's clock."""

    number: int
    start: float
    end: float
    opens: float  # nothing of it is before: where its first picture is shown, or its start
    begin: float  # where the first picture is, which is 0 s of the piece; at the start without one
    shown: dict[int, tuple[int, int]]  # picture's tick: when in the piece, how long, in TICK
    stills: tuple[int, ...]  # ticks
    copies_pictures: bool
    copies_sound: bool
    encodes_sound: bool  # in the mp4

    @property
    def needed(self) -> set[int]:
        """Ticks of the pictures that have to be decoded."""
        return set(self.stills) if self.copies_pictures else set(self.shown)


def plan_piece(
    source: Source, number: int, start: float, end: float, frames_per_second: float
) -> Piece:
    """Which pictures and which sound a stretch holds, and what of it can be copied.

    Args:
      number: names its files. start, end: within the clip.
      frames_per_second: of the stills; at least one, at most `MAX_STILLS`.
    """
    opens, begin, shown, stills, copies = start, start, {}, (), False
    index = source.index
    first, stop = (0, 0) if index is None else index.stretch(start, end)
    if index is not None and first < stop:
        times, ticks = index.times[first:stop], index.ticks[first:stop].tolist()
        opens, begin = min(start, float(times[0])), max(start, float(times[0]))
        until = float(index.times[stop]) if stop < len(index.ticks) else index.duration
        edges = np.append(np.maximum(times, begin), min(until, end)) - begin
        edges = np.round(edges / float(TICK)).astype(int)
        lengths = np.maximum(np.diff(edges), 1).tolist()
        shown = dict(zip(ticks, zip(edges[:-1].tolist(), lengths, strict=True), strict=True))
        spec = MediaSpec(fps=frames_per_second, min_frames=1, max_frames=MAX_STILLS)
        picked = pick_frames(times - times[0], min(end, index.duration) - begin, spec)
        stills = tuple(ticks[i] for i in picked)
        usual = float(np.median(np.diff(index.times, append=index.duration)))
        copies = (
            source.packets is not None
            and times[0] >= start - TOLERANCE
            and until - times[-1] < 1.5 * usual + TOLERANCE  # copies cannot say otherwise
            and source.packets.hold(ticks)
        )
    sound, heard = source.sound, False
    copies_sound = False
    if shown and sound is not None:
        heard = sound.end - source.origin > begin
        copies_sound = (
            sound.is_copied
            and heard
            and sound.start - source.origin <= begin + TOLERANCE
            and end <= sound.whole_until - source.origin
        )
    encodes_sound = heard and not copies_sound
    return Piece(
        number, start, end, opens, begin, shown, stills, copies, copies_sound, encodes_sound
    )
