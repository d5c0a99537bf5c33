"""A timeline drawn and played: mp4 with H.264 pictures and AAC sound."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from data_pipeline.av_events.clips import write_clip
from data_pipeline.av_events.world import COLOURS, Sound, Thing, Timeline

SIDE, FPS, RATE = 112, 8, 16_000  # pixels; frames and samples per second
# What a small model is shown: 56 x 56 pixels, four tokens a frame pair, a pair every half second.
CACHE_OPTIONS = {"fps": 4.0, "video_min_pixels": 56**2, "video_max_pixels": 56**2}
_BACKGROUND, _SHADE, _CURTAIN, _MARK = 140, 40, (225, 225, 225), 180
_CENTRES = {"left": (-22, 0), "right": (22, 0), "top": (0, -22), "bottom": (0, 22)}
_RADIUS, _SWING = 22.0, 12.0  # pixels
_HERTZ = {"low": 160.0, "middle": 500.0, "high": 1600.0}
_FADE = 0.02  # seconds at the ends of a sound
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5 - SIDE / 2  # from the middle


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
                share = (time - moment.start) / (moment.end - moment.start)
                picture[inside(moment.thing, share)] = COLOURS[moment.thing.colour]
        yield picture


def inside(thing: Thing, share: float) -> np.ndarray:
    """bool[H,W]: the pixels of a thing when a share of its moment, 0 to 1, has passed.

    Motions are steady: any two frames show them, whichever a sampler takes.
    """
    x0, y0 = _CENTRES[thing.place]
    x0 += _SWING * (2 * share - 1) * (thing.motion == "sliding")
    y0 += _SWING * (2 * share - 1) * (thing.motion == "falling")
    size = _RADIUS * (0.5 + 0.5 * share if thing.motion == "growing" else 1.0)
    x, y = (_COLUMNS - x0) / size, (_ROWS - y0) / size
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
    time, hertz, phase = np.arange(count) / RATE, _HERTZ[sound.pitch], rng.random()

    def sine(turns):
        return np.sin(2 * np.pi * (turns + phase))

    if sound.voice == "tone":
        wave = sine(hertz * time)
    elif sound.voice == "buzz":
        wave = 0.7 * (2 * ((hertz * time + phase) % 1) - 1)
    elif sound.voice == "noise":
        wave = _band(rng.normal(size=count), hertz)
    elif sound.voice == "chord":
        wave = sum(sine(ratio * hertz * time) for ratio in (1, 1.5, 2.25)) / 2
    elif sound.voice == "warble":
        wave = sine(hertz * (time + 0.005 * np.sin(2 * np.pi * 8 * time)))
    else:  # a rattle: a knock every 40 ms
        wave = 1.5 * sine(hertz * time) * np.exp(-120 * (time % 0.04))
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
