"""Pieces of a clip, written in one reading of it, however long it is.

What a piece holds is what `read_segments` returns for the same stretch, on the same clock: the
pictures from its first one on, and the sound from that moment on.

    source ─┬─ pictures, decoded ──────┬─> stills; pictures of the mp4, encoded
            ├─ sound, decoded ─────────┼─> mp3; sound of the mp4, encoded      merged by time, so
            └─ packets, as they are ───┴─> streams of the mp4, copied          few pieces are open

A stream of an mp4 is copied where nothing is lost by it: pictures that begin with a keyframe and
need none from after the end, sound without gaps. The rest is encoded, H.264 and AAC.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import operator
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.container
import numpy as np
from PIL import Image

from data_pipeline.instruct.survey import TICK, Look, Piece, Source, look_at
from latentomni_jax.media.audio import Resampler, mean_channel
from latentomni_jax.media.container import decode, open_media, packets_of
from latentomni_jax.media.video import TOLERANCE, decode_pictures, upright

RATE = 16_000  # samples per second of the sound that a captioner gets
STILL_SIDE, STILL_QUALITY = 448, 80  # pixels, at most; of JPEG
_MARGIN = 2.0  # seconds that one kind of event may lag behind another: blocks of sound last 1 s
_PREROLL = 0.1  # seconds of copied sound that are not played; decoders need them to begin
_AAC_RATES = {8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000}

# One thread, no lookahead, nothing that names a version or a date: the same bytes each time. No
# B-frames either: packets are in the order, and at the times, of the pictures.
_FILE = {"fflags": "+bitexact"}
_MP4 = _FILE | {"movflags": "+faststart"}
_EXACT = {"flags": "+bitexact"}
_H264 = _EXACT | {"preset": "veryfast", "crf": "23", "threads": "1", "rc-lookahead": "0", "bf": "0"}
_AAC = _EXACT | {"aac_coder": "fast"}
_MP3_BITS = 64_000  # per second


class Files(NamedTuple):
    """What was written of a piece; None, or none, where it has no such part."""

    video: Path | None = None
    audio: Path | None = None
    stills: tuple[Path, ...] = ()


def write_pieces(source: Source, pieces: Sequence[Piece], directory: Path) -> list[Files]:
    """Writes the files of pieces: `001.mp4`, `001.mp3`, `001-00.jpg` and on, of the first.

    The mp4 has the pictures, and the sound where there is some; without pictures there is none.
    The mp3 is mono, `RATE` samples per second. Files that are there are replaced.

    Raises:
      InputError: one line naming the source, where it cannot be decoded.
      av.error.FFmpegError: an encoder refuses what was decoded. OSError: a file cannot be written.
    """
    look = None
    if source.index is not None and any(piece.shown for piece in pieces):
        look = look_at(source.path, source.index)
    files = {piece.number: Files() for piece in pieces}
    waiting = deque(sorted(pieces, key=operator.attrgetter("opens")))
    active: list[_Writer] = []
    # Left by `close` alone: the source is not to be blamed for what goes wrong with our files.
    opened = contextlib.ExitStack()
    inputs = opened.enter_context(open_media(source.path))
    track = _Track.of(source, inputs)
    try:
        for time, give in heapq.merge(*_events(source, pieces, track), key=operator.itemgetter(0)):
            while waiting and waiting[0].opens - _MARGIN <= time:
                active.append(_Writer(source, waiting.popleft(), directory, inputs, look, track))
            for writer in list(active):
                if time < writer.piece.end + _MARGIN:
                    give(writer)
                else:
                    files[writer.piece.number] = writer.close()
                    active.remove(writer)
            if not waiting and not active:
                break
        while active:
            files[active[0].piece.number] = active[0].close()
            del active[0]
    finally:
        for writer in active:
            writer.abandon()
        opened.close()
    return list(files.values())


# ---------------------------------------------------------------------------- a piece's files


class _Track(NamedTuple):
    """How the sound of an mp4 is encoded."""

    rate: int
    layout: str

    @classmethod
    def of(cls, source: Source, inputs: av.container.InputContainer) -> _Track | None:
        if source.sound is None:
            return None
        context = inputs.streams[source.sound.stream].codec_context
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48_000
        return cls(rate, "mono" if context.layout.nb_channels == 1 else "stereo")


class _Writer:
    """The open files of a piece. Is given what is read around its stretch, and takes its own."""

    def __init__(
        self,
        source: Source,
        piece: Piece,
        directory: Path,
        inputs: av.container.InputContainer,
        look: Look | None,
        track: _Track | None,
    ):
        self.piece = piece
        self._source, self._look, self._track = source, look, track
        self._stem = directory / f"{piece.number:03d}"
        self._due = deque(piece.stills)
        self._stills: list[Path] = []
        self._mp3 = self._voice = self._mp4 = self._pictures = self._sound = None
        self._has_pictures = False
        self._last, self._lengths = -1, dict(piece.shown.values())  # in TICK
        if not piece.shown:
            return
        self._mp4 = av.open(f"file:{self._stem}.mp4", "w", format="mp4", options=_MP4)
        if piece.copies_pictures:
            template = inputs.streams[source.index.stream]
            self._pictures = self._mp4.add_stream_from_template(template, opaque=True)
        else:
            self._pictures = self._mp4.add_stream("libx264", rate=look.rate, options=_H264)
            context = self._pictures.codec_context
            context.width, context.height, context.pix_fmt = look.width, look.height, "yuv420p"
            context.time_base = TICK
            for name, value in look.colours.items():
                setattr(context, name, value)
        if piece.copies_sound:
            template = inputs.streams[source.sound.stream]
            self._sound = self._mp4.add_stream_from_template(template, opaque=True)
        elif piece.encodes_sound:
            self._sound = self._mp4.add_stream(
                "aac", rate=track.rate, layout=track.layout, options=_AAC
            )

    def see(self, tick: int, frame: av.VideoFrame):
        """Takes a decoded picture."""
        shown = self.piece.shown
        if not shown or not next(iter(shown)) <= tick <= next(reversed(shown)):
            return
        if self._due and self._due[0] <= tick:
            while self._due and self._due[0] <= tick:  # after damage it stands for several
                self._due.popleft()
            image = Image.fromarray(upright(frame))
            image.thumbnail((STILL_SIDE, STILL_SIDE), Image.Resampling.BICUBIC)
            self._stills.append(Path(f"{self._stem}-{len(self._stills):02d}.jpg"))
            image.save(self._stills[-1], quality=STILL_QUALITY)
        if self.piece.copies_pictures or tick not in shown or shown[tick][0] <= self._last:
            return
        if self._look.as_pixels:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright(frame)), "rgb24")
        frame = frame.reformat(self._look.width, self._look.height, "yuv420p")
        frame.pts, frame.time_base, frame.pict_type = shown[tick][0], TICK, 0
        self._last = frame.pts
        self._mux_pictures(self._pictures.encode(frame))

    def _mux_pictures(self, packets: Sequence[av.Packet]):
        for packet in packets:
            packet.duration = self._lengths[packet.pts]
            self._mp4.mux(packet)
            self._has_pictures = True

    def hear(self, first: int, samples: np.ndarray):
        """Takes sound f32[N] of `RATE`, of which `first` is the number of the first sample."""
        start, part = self._part(first, samples, RATE)
        if not len(part):
            return
        if self._mp3 is None:
            self._mp3 = av.open(f"file:{self._stem}.mp3", "w", format="mp3", options=_FILE)
            self._voice = self._mp3.add_stream(
                "libmp3lame", rate=RATE, layout="mono", options=_EXACT
            )
            self._voice.codec_context.bit_rate = _MP3_BITS
        self._mp3.mux(self._voice.encode(_sound_frame(part[:, None], start, RATE, "mono")))

    def play(self, first: int, samples: np.ndarray):
        """Takes sound f32[N,C] as the mp4 has it."""
        if self.piece.encodes_sound:
            start, part = self._part(first, samples, self._track.rate)
            if len(part):
                frame = _sound_frame(part, start, *self._track)
                self._mp4.mux(self._sound.encode(frame))

    def _part(self, first: int, samples: np.ndarray, rate: int) -> tuple[int, np.ndarray]:
        """What of a block is the piece's, and the number of its first sample in the piece."""
        begin, end = round(self.piece.begin * rate), round(self.piece.end * rate)
        return max(first, begin) - begin, samples[max(0, begin - first) : max(0, end - first)]

    def copy_picture(self, packet: av.Packet):
        """Takes a packet of the source's pictures."""
        if self.piece.copies_pictures and packet.pts in self.piece.shown:
            self._copy(packet, self._pictures, next(iter(self.piece.shown)))
            self._has_pictures = True

    def copy_sound(self, packet: av.Packet):
        """Takes a packet of the source's sound."""
        if not self.piece.copies_sound:
            return
        time = float(packet.pts * packet.time_base) - self._source.origin
        if self.piece.begin - _PREROLL <= time < self.piece.end - TOLERANCE:
            begin = (self._source.origin + self.piece.begin) / packet.time_base
            self._copy(packet, self._sound, round(begin))

    def _copy(self, packet: av.Packet, stream: Any, begin: int):
        copy = av.Packet(bytes(packet))  # muxing changes a packet, and others may want it
        copy.pts, copy.dts = packet.pts - begin, packet.dts - begin
        copy.duration, copy.time_base = packet.duration, packet.time_base
        copy.is_keyframe = packet.is_keyframe
        copy.stream = stream
        self._mp4.mux(copy)

    def close(self) -> Files:
        """Ends the files and says which there are."""
        if self._mp3 is not None:
            self._mp3.mux(self._voice.encode(None))
        if self.piece.shown and not self.piece.copies_pictures and self._last >= 0:
            self._mux_pictures(self._pictures.encode(None))
        if self.piece.encodes_sound:
            self._mp4.mux(self._sound.encode(None))
        self.abandon()
        return Files(
            Path(f"{self._stem}.mp4") if self._has_pictures else None,
            Path(f"{self._stem}.mp3") if self._mp3 is not None else None,
            tuple(self._stills),
        )

    def abandon(self):
        for container in (self._mp4, self._mp3):
            if container is not None:
                container.close()


def _sound_frame(samples: np.ndarray, start: int, rate: int, layout: str) -> av.AudioFrame:
    """f32[N,C] for an encoder; `start` is the number of the first sample."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame


# ---------------------------------------------------------------------------- what is read

_Event = tuple[float, Callable[[_Writer], None]]  # seconds on the clip's clock; gives it to a piece


def _events(
    source: Source, pieces: Sequence[Piece], track: _Track | None
) -> list[Iterator[_Event]]:
    """What pieces need of a source, each kind in order of its times, which never go back."""
    events: list[Iterator[_Event]] = []
    index, sound = source.index, source.sound
    if needed := set().union(*(piece.needed for piece in pieces)):
        events.append(_seen(source, needed))
    if sound is not None:
        lines = [_Line(_Writer.hear, RATE)]
        if any(piece.encodes_sound for piece in pieces):
            lines.append(_Line(_Writer.play, *track))
        events.append(_heard(source, lines))
    if any(piece.copies_pictures for piece in pieces):
        events.append(_packets(source, index.stream, _Writer.copy_picture))
    if any(piece.copies_sound for piece in pieces):
        events.append(_packets(source, sound.stream, _Writer.copy_sound))
    return events


def _seen(source: Source, needed: Container[int]) -> Iterator[_Event]:
    index, time = source.index, 0.0
    with open_media(source.path) as container:
        for tick, frame in decode_pictures(source.path, container, index, needed):
            time = max(time, (tick - index.ticks[0]) * index.seconds)
            yield time, partial(_Writer.see, tick=tick, frame=frame)


class _Line:
    """Sound at one rate on its way to the pieces; a layout of None is the mean of all channels."""

    def __init__(self, give: Callable, rate: int, layout: str | None = None):
        self._give, self._rate, self._layout = give, rate, layout
        self._resampler = Resampler(rate, layout)
        self._next = 0  # number of the next sample

    def begin(self, late: float) -> Iterator[_Event]:
        """Sound begins `late` seconds after the clip; it is silent until then."""
        offset = round(late * self._rate)
        self._next = min(offset, 0)
        while self._next < offset:
            silence = np.zeros((min(offset - self._next, self._rate), 1), np.float32)
            yield self._event(np.repeat(silence, 2, 1) if self._layout == "stereo" else silence)

    def events(self, frame: av.AudioFrame | None) -> Iterator[_Event]:
        yield from map(self._event, self._resampler(frame))

    def _event(self, samples: np.ndarray) -> _Event:
        first = self._next
        self._next += len(samples)
        samples = np.nan_to_num(samples, copy=False, posinf=0.0, neginf=0.0)
        if self._layout is None:
            samples = mean_channel(samples)
        return first / self._rate, partial(self._give, first=first, samples=samples)


def _heard(source: Source, lines: Sequence[_Line]) -> Iterator[_Event]:
    time, begun = -_MARGIN, False
    with open_media(source.path) as container:
        stream = container.streams[source.sound.stream]
        for frame in itertools.chain(decode(source.path, container, stream), [None]):
            parts = [line.events(frame) for line in lines]
            if not begun and frame is not None:
                start = float((frame.pts or 0) * frame.time_base)
                late = 0.0 if source.index is None else start - source.origin
                parts = [*(line.begin(late) for line in lines), *parts]
                begun = True
            for moment, give in itertools.chain(*parts):
                time = max(time, moment)
                yield time, give


def _packets(source: Source, stream: int, give: Callable) -> Iterator[_Event]:
    time = -_MARGIN
    with open_media(source.path) as container:
        for packet in packets_of(container, container.streams[stream]):
            if packet.size and packet.pts is not None and packet.dts is not None:
                moment = float(min(packet.pts, packet.dts) * packet.time_base) - source.origin
                time = max(time, moment)
                yield time, partial(give, packet=packet)
