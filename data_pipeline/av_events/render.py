"""A timeline drawn and played: mp4 with H.264 pictures and AAC sound."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from data_pipeline.av_events.clips import write_clip
from data_pipeline.av_events.world import COLOURS, Sound, Thing, Timeline

SIDE, FPS, RATE = 112, 8, 16_000  # pixels; frames and samples per second
# What a small model is shown: 56 x 56 pixels, four tokens a frame pair.
CACHE_OPTIONS = {"video_min_pixels": 56**2, "video_max_pixels": 56**2}
_BACKGROUND, _SHADE, _CURTAIN, _MARK = 140, 40, (225, 225, 225), 180
_CENTRES = {"left": (-22, 0), "right": (22, 0), "top": (0, -22), "bottom": (0, 22)}
_RADIUS, _SWING = 22.0, 12.0  # pixels
_HERTZ = {"low": 160.0, "middle": 500.0, "high": 1600.0}
_FADE = 0.02  # seconds at the ends of a sound


def render(path: str | os.PathLike, timeline: Timeline, seed: int) -> None:
    """Writes the clip; the same bytes for the same arguments.

    Args:
      seed: of what means nothing: phases, noise, distractors.
    """
    rng = np.random.default_rng(seed)
    sound = None if timeline.kind == "picture" else samples(timeline, rng)
    write_clip(path, pictures(timeline, rng), sound, fps=FPS, rate=RATE, quality=16)


def pictures(timeline: Timeline, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The frames u8[H,W,3]."""
    # Lit from one corner: even a piece of a picture shows where it is from.
    slope = np.linspace(0, _SHADE, SIDE)
    shade = np.stack([*np.broadcast_arrays(slope, 0.0, slope[:, None])], axis=-1)
    wall = np.round(_BACKGROUND - shade).astype(np.uint8)
    marks = rng.integers(8, SIDE - 8, (timeline.distractors, 2))
    for number in range(round(timeline.seconds * FPS)):
        time = number / FPS
        picture = wall.copy()
        for x, y in marks:
            picture[y - 6 : y + 6, x - 6 : x + 6] = _MARK
        for moment in timeline.moments:
            if moment.start <= time < moment.end and moment.is_covered:
                picture[:, :] = _CURTAIN
                picture[:, ::14] = 60  # folds
            elif moment.start <= time < moment.end and moment.thing is not None:
                picture[inside(moment.thing, time - moment.start)] = COLOURS[moment.thing.colour]
        yield picture


def inside(thing: Thing, time: float) -> np.ndarray:
    """bool[H,W]: the pixels of a thing, `time` seconds after it appeared. Motions take a second."""
    swing = np.cos(2 * np.pi * time)
    x0, y0 = _CENTRES[thing.place]
    x0 += _SWING * swing * (thing.motion == "sliding")
    y0 += _SWING * swing * (thing.motion == "bouncing")
    size = _RADIUS * (1 - 0.5 * (0.5 + 0.5 * swing) * (thing.motion == "growing"))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5 - SIDE / 2
    x, y = (x - x0) / size, (y - y0) / size
    radius, side = np.hypot(x, y), np.maximum(abs(x), abs(y))
    return {
        "disc": radius < 1,
        "square": side < 0.9,
        "triangle": (y < 0.85) & (y > 2.2 * abs(x) - 1.1),
        "ring": (radius < 1) & (radius > 0.55),
        "cross": (side < 1) & (np.minimum(abs(x), abs(y)) < 0.33),
        "bar": (abs(x) < 1.1) & (abs(y) < 0.33),
    }[thing.shape]


def samples(timeline: Timeline, rng: np.random.Generator) -> np.ndarray:
    """The sound, f32[1,N]."""
    total = np.zeros(round(timeline.seconds * RATE), np.float32)
    for moment in timeline.moments:
        if moment.sound is None:
            continue
        start, end = (round(t * RATE) for t in moment.heard)
        total[start:end] += _play(moment.sound, end - start, rng)
    total += 0.002 * timeline.distractors * rng.normal(size=len(total))
    return total.astype(np.float32)[None]


def _play(sound: Sound, count: int, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(count) / RATE
    turns = _HERTZ[sound.pitch] * time + rng.random()
    if sound.voice == "tone":
        wave = np.sin(2 * np.pi * turns)
    elif sound.voice == "buzz":
        wave = 0.7 * (2 * (turns % 1) - 1)
    else:
        wave = _band(rng.normal(size=count), _HERTZ[sound.pitch])
    if sound.rhythm == "pulsing":
        wave = wave * (time * 6 % 1 < 0.5)
    edge = np.minimum(time, time[::-1]) / _FADE
    return 0.3 * wave * np.minimum(edge, 1)


def _band(noise: np.ndarray, hertz: float) -> np.ndarray:
    """Noise of an octave around a frequency, of unit deviation."""
    spectrum, at = np.fft.rfft(noise), np.fft.rfftfreq(len(noise), 1 / RATE)
    spectrum[(at < hertz / 1.4) | (at > hertz * 1.4)] = 0
    wave = np.fft.irfft(spectrum, len(noise))
    return wave / max(float(wave.std()), 1e-9) * 0.7
