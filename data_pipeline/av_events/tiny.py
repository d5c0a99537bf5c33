"""A tiny training set: clips of drawn and played events, and trajectories whose answers are true.

Small enough to train on with a CPU, and every kind of row occurs: video with sound, video without,
sound alone, text alone, and reasoning with two, one and no latent blocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.av_events.clips import COLOURS, SHAPES, Event, make_clip
from data_pipeline.trajectories import PAIR, parse_object
from latentomni_jax.layout import InputError

NUM_SAMPLES = 16
SIZE = (112, 112)  # pixels
# What the feature cache should be told, so that pictures stay as small as they are.
CACHE_OPTIONS = {"video_min_pixels": 56 * 56, "video_max_pixels": 112 * 112}
_NAMES = dict(zip(COLOURS, ("red", "green", "blue"), strict=True))
_PITCHES = (220.0, 330.0, 494.0, 740.0)  # Hz
_ORDINALS = ("first", "second", "third", "fourth")
_SILENT, _SOUND_ONLY, _TEXT_ONLY = 5, 9, 13  # places of the unusual samples


def make_tiny_set(out: str | os.PathLike, n: int = NUM_SAMPLES, seed: int = 0) -> Path:
    """Writes `trajectories.jsonl` and its clips of 3 or 4 s; the same for the same arguments.

    Args:
      out: directory, new or empty.
      n: trajectories; each has a clip of its own, but for one in 16 that is text alone.

    Returns:
      The path of `trajectories.jsonl`.

    Raises:
      InputError: `out` holds something, or n < 1.
    """
    out = Path(out)
    if n < 1:
        raise InputError(f"a training set has at least 1 sample, got {n}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; name another directory")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    path = out / "trajectories.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for number in range(n):
            events = _draw_events(rng)
            sample = {"id": f"tiny-{number:04d}"}
            if number % NUM_SAMPLES != _TEXT_ONLY:
                name, has_sound = f"clips/{number:04d}.mp4", number % NUM_SAMPLES != _SILENT
                make_clip(out / name, len(events), events, size=SIZE, sound=has_sound)
                sample["audio" if number % NUM_SAMPLES == _SOUND_ONLY else "video"] = name
            sample |= _question(number, events)
            parse_object(sample)
            lines.write(json.dumps(sample) + "\n")
    return path


def _draw_events(rng: np.random.Generator) -> list[Event]:
    """Three or four seconds: no tone twice, no shape or colour twice in a row."""
    count = int(rng.integers(3, 5))
    tones = rng.permutation(_PITCHES)[:count]
    shapes = _walk(rng, len(SHAPES), count)
    colours = _walk(rng, len(COLOURS), count)
    return [
        Event(SHAPES[s], COLOURS[c], float(t))
        for s, c, t in zip(shapes, colours, tones, strict=True)
    ]


def _walk(rng: np.random.Generator, choices: int, count: int) -> np.ndarray:
    """Numbers below `choices`, no two neighbours alike, i64[count]."""
    steps = rng.integers(1, choices, count)
    steps[0] = rng.integers(choices)
    return np.cumsum(steps) % choices


def _question(number: int, events: Sequence[Event]) -> dict[str, Any]:
    """Question, reasoning, segments and answer about the events of a clip."""
    kind = number % NUM_SAMPLES
    if kind == _TEXT_ONLY:
        return {
            "question": "A tone of 440 Hz is followed by one of 220 Hz. Does the pitch go up?",
            "reasoning": "Fewer vibrations per second are a lower pitch.",
            "answer": "\\boxed{no}",
        }
    if kind == _SOUND_ONLY:
        return _second_of_tone(events)
    if kind == _SILENT:
        return _what_follows(events, events[0])
    makers = (_shape_at_tone, _colour_at_tone, _tone_of_shape, _what_follows, _first_and_last)
    target = events[number * 7 % len(events)]
    return makers[number % len(makers)](events, target)


def _second(events: Sequence[Event], event: Event) -> list[float]:
    start = float(events.index(event))
    return [start, start + 1.0]


def _named(event: Event) -> str:
    return f"{_NAMES[event.colour]} {event.shape}"


def _extreme(events: Sequence[Event], target: Event) -> tuple[str, Event]:
    """ "highest" or "lowest" and the event of that tone, by whichever the target is nearer to."""
    by_tone = sorted(events, key=lambda event: event.tone)
    if by_tone.index(target) * 2 >= len(events) - 1:
        return "highest", by_tone[-1]
    return "lowest", by_tone[0]


def _shape_at_tone(events, target):
    which, event = _extreme(events, target)
    place = _ORDINALS[events.index(event)]
    return {
        "question": f"Which shape is on the screen when the {which} tone sounds?",
        "choices": list(SHAPES),
        "reasoning": f"I listen for the {which} tone.{PAIR}It sounds in the {place} second, "
        f"and a {event.shape} is seen then.",
        "segments": [_second(events, event)],
        "answer": f"\\boxed{{{'ABC'[SHAPES.index(event.shape)]}}}",
    }


def _colour_at_tone(events, target):
    which, event = _extreme(events, target)
    return {
        "question": f"What colour is the shape while the {which} tone sounds?",
        "reasoning": f"First I find the {which} tone.{PAIR}Then I look at what moves.{PAIR}"
        f"It is a {_named(event)}.",
        "segments": [[0.0, float(len(events))], _second(events, event)],
        "answer": f"\\boxed{{{_NAMES[event.colour]}}}",
    }


def _tone_of_shape(events, target):
    before = events[events.index(target) - 1]
    place = events.index(target)
    higher = place > 0 and target.tone > before.tone
    return {
        "question": f"In the {_ORDINALS[place]} second, is the tone higher than the one before?",
        "choices": ["yes", "no", "there is none before"],
        "reasoning": f"I listen to the {_ORDINALS[place]} second.{PAIR}"
        + (f"It is {'higher' if higher else 'lower'}." if place else "Nothing is before it."),
        "segments": [[max(0.0, place - 1.0), place + 1.0]],
        "answer": "\\boxed{C}" if not place else "\\boxed{A}" if higher else "\\boxed{B}",
    }


def _what_follows(events, target):
    place = min(events.index(target), len(events) - 2)
    return {
        "question": f"Which shape comes after the {_named(events[place])}"
        f" of the {_ORDINALS[place]} second?",
        "reasoning": f"I look at the change.{PAIR}A {_named(events[place + 1])} follows.",
        "segments": [[place + 0.5, place + 1.5]],
        "answer": f"\\boxed{{{events[place + 1].shape}}}",
    }


def _first_and_last(events, target):
    same = events[0].shape == events[-1].shape
    return {
        "question": "Do the first and the last second show the same shape?",
        "reasoning": f"The first is a {events[0].shape}, the last a {events[-1].shape}.",
        "answer": f"\\boxed{{{'yes' if same else 'no'}}}",
    }


def _second_of_tone(events):
    highest = max(events, key=lambda event: event.tone)
    return {
        "question": "In which second does the highest tone sound?",
        "reasoning": f"I compare the tones.{PAIR}It is the {_ORDINALS[events.index(highest)]} one.",
        "segments": [_second(events, highest)],
        "answer": f"\\boxed{{{_ORDINALS[events.index(highest)]}}}",
    }
