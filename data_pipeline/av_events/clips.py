"""A short video with sound, drawn and played by this file: something to show a model.

Each second is one event: a shape in a colour moves across the picture, and a tone sounds. Both
change together, so what is seen and what is heard can be told apart second by second.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

SIZE, FPS, RATE = (320, 240), 24, 44_100  # width and height in pixels; frames, samples per second
SHAPES = ("disc", "square", "triangle")
COLOURS = ((230, 80, 60), (70, 170, 90), (60, 110, 220))
TONES = (262.0, 392.0, 523.0)  # Hz: C, G, C
# Pictures in half of the default preset's time, sound in two thirds of the default coder's: as
# close to what was drawn, in files a tenth larger.
_FAST_H264, _FAST_AAC = {"preset": "superfast"}, {"aac_coder": "fast"}
# With several threads or a lookahead, x264 writes other bytes each time.
_REPEATABLE = {"threads": "1", "rc-lookahead": "0"}


class Event(NamedTuple):
    """One second: a shape in an RGB colour, and a tone in Hz."""

    shape: str
    colour: tuple[int, int, int]
    tone: float


EVENTS = tuple(map(Event, SHAPES, COLOURS, TONES))


def make_clip(
    path: str | os.PathLike,
    seconds: float = 6.0,
    events: Sequence[Event] = EVENTS,
    *,
    size: tuple[int, int] = SIZE,
    sound: bool = True,
) -> None:
    """Writes an mp4 of events, the same bytes for the same arguments.

    Args:
      seconds: length; the events repeat.
      size: width and height in pixels, both even.
      sound: False leaves the audio track out.
    """
    pictures = (draw(number / FPS, events, size) for number in range(round(seconds * FPS)))
    write_clip(path, pictures, play(seconds, events) if sound else None, fps=FPS, rate=RATE)


def write_clip(
    path: str | os.PathLike,
    pictures: Iterable[np.ndarray],
    sound: np.ndarray | None,
    *,
    fps: int,
    rate: int,
    quality: int | None = None,
) -> None:
    """Writes an mp4 with H.264 pictures and AAC sound, the same bytes for the same arguments.

    Args:
      pictures: u8[H,W,3], H and W even, one at least.
      sound: f32[C,N], one or two channels at `rate` samples per second; None for no track.
      quality: x264's constant rate factor, less is better; default is x264's.
    """
    options = _FAST_H264 | _REPEATABLE | ({} if quality is None else {"crf": str(quality)})
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("h264", rate=fps, options=options)
        video.pix_fmt = "yuv420p"
        audio, layout = None, "mono"
        if sound is not None:
            layout = "stereo" if len(sound) == 2 else "mono"
            audio = container.add_stream("aac", rate=rate, layout=layout, options=_FAST_AAC)
        for number, picture in enumerate(pictures):
            if not number:
                video.height, video.width = picture.shape[:2]
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is None or sound is None:
            return
        step = audio.codec_context.frame_size
        for start in range(0, sound.shape[1], step):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[:, start : start + step]), "fltp", layout
            )
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def draw(time: float, events: Sequence[Event] = EVENTS, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The picture at a time, u8[H,W,3]: the second's shape, moving from left to right."""
    event = events[int(time) % len(events)]
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    unit = min(width / SIZE[0], height / SIZE[1])  # what follows is for a picture of SIZE
    x = (x - width / 2) / unit - (200 * (time % 1) - 100)
    y = (y - height / 2) / unit - 30 * np.sin(2 * np.pi * time)
    inside = {
        "disc": x**2 + y**2 < 45**2,
        "square": np.maximum(abs(x), abs(y)) < 40,
        "triangle": (y < 40) & (y > 2 * abs(x) - 50),
    }[event.shape]
    picture = np.full((height, width, 3), 235, np.uint8)
    picture[inside] = event.colour
    return picture


def play(seconds: float, events: Sequence[Event] = EVENTS) -> np.ndarray:
    """The sound f32[2,N]: the second's tone, fading within it."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = np.array([event.tone for event in events])[time.astype(int) % len(events)]
    tone = 0.4 * np.sin(2 * np.pi * pitch * time) * np.exp(-2 * (time % 1))
    return np.stack([tone, tone]).astype(np.float32)
