"""Exercises in words alone, for a model from nothing: to repeat, to look up, to pick an option.

What is asked about a clip is asked in words, and its answer is a letter: whoever cannot copy a name
from a question, or find the option that says it, cannot be told from who saw nothing. Names are
those of the world, never novel ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.av_events.questions import LETTERS, NUM_OPTIONS, relation_name
from data_pipeline.av_events.world import MOTIONS, PLACES, RELATIONS, draw_names, draw_sounds

# What options of a question are, where they are not names.
_OPTIONS = (PLACES, MOTIONS, tuple(relation_name(r) for r in RELATIONS))
_PAIRS = 4


def exercises(rng: np.random.Generator, alike: bool) -> dict[str, dict[str, Any]]:
    """One of every kind, as samples without a clip; `alike` as of the world's `Dial`."""
    return {name: make(rng, alike) for name, make in _KINDS.items()}


def _repeat(rng, alike):
    names = [*_things(rng, 3, alike), *_sounds(rng, 3, alike)]
    text = "; ".join(names[i] for i in rng.permutation(len(names)))
    return {"question": f"Say again: {text}.", "answer": f"{text}."}


def _recall(rng, alike):
    """Pairs, and one side of each again in another order: the other side is to be found."""
    things, sounds = _things(rng, _PAIRS, alike), _sounds(rng, _PAIRS, alike)
    first, second = (things, sounds) if rng.random() < 0.5 else (sounds, things)
    given = "; ".join(f"{a}, {b}" for a, b in zip(things, sounds, strict=True))
    pairs = [f"{first[i]}: {second[i]}" for i in rng.permutation(_PAIRS)]
    return {"question": f"What goes together? {given}.", "answer": "; ".join(pairs) + "."}


def _option(rng, alike):
    """Every option once, in another order, and its letter."""
    kind = int(rng.integers(2 + len(_OPTIONS)))
    if kind < 2:
        options = (_things, _sounds)[kind](rng, NUM_OPTIONS, alike)
    else:
        options = [_OPTIONS[kind - 2][i] for i in rng.permutation(NUM_OPTIONS)]
    answers = [f"{options[i]}\n\\boxed{{{LETTERS[i]}}}" for i in rng.permutation(NUM_OPTIONS)]
    return {"question": "Which letters?", "choices": options, "answer": "; ".join(answers)}


def _things(rng, count, alike):
    return [thing.name for thing in draw_names(rng, count, alike)]


def _sounds(rng, count, alike):
    return [sound.name for sound in draw_sounds(rng, count, alike)]


_KINDS: dict[str, Callable[[np.random.Generator, bool], dict[str, Any]]] = {
    "repeat": _repeat,
    "recall": _recall,
    "option": _option,
}
