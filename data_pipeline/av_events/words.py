"""Exercises in words alone, for a model from nothing: to repeat, to look up, to pick an option.

What is asked about a clip is asked in words, and its answer is a letter: whoever cannot copy a name
from a question, or find the option that says it, cannot be told from who saw nothing. Names are
those of the world, never novel ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.av_events.questions import LETTERS, NUM_OPTIONS
from data_pipeline.av_events.world import KNOWN_SOUNDS, KNOWN_THINGS

_THINGS = [thing.name for thing in KNOWN_THINGS]
_SOUNDS = [sound.name for sound in KNOWN_SOUNDS]
_PAIRS = 4


def exercises(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """One of every kind, as samples without a clip."""
    return {name: make(rng) for name, make in _KINDS.items()}


def _repeat(rng):
    names = _some(rng, [*_THINGS, *_SOUNDS], 6)
    text = "; ".join(names)
    return {"question": f"Say again: {text}.", "answer": f"{text}."}


def _recall(rng):
    """Pairs, and one side of each again in another order: the other side is to be found."""
    things, sounds = _some(rng, _THINGS, _PAIRS), _some(rng, _SOUNDS, _PAIRS)
    first, second = (things, sounds) if rng.random() < 0.5 else (sounds, things)
    given = "; ".join(f"{a}, {b}" for a, b in zip(things, sounds, strict=True))
    pairs = [f"{first[i]}: {second[i]}" for i in rng.permutation(_PAIRS)]
    return {"question": f"What goes together? {given}.", "answer": "; ".join(pairs) + "."}


def _option(rng):
    options = _some(rng, _THINGS if rng.random() < 0.5 else _SOUNDS, NUM_OPTIONS)
    answer = int(rng.integers(NUM_OPTIONS))
    return {
        "question": f"Which one is the {options[answer]}?",
        "choices": options,
        "answer": f"The {options[answer]}.\n\\boxed{{{LETTERS[answer]}}}",
    }


_KINDS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "repeat": _repeat,
    "recall": _recall,
    "option": _option,
}


def _some(rng: np.random.Generator, names: list[str], count: int) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))[:count]]
