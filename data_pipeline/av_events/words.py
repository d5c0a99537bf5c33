"""Exercises in words alone, for a model from nothing: to find a name again, what goes with it, what
is said of it, and to compare.

What is asked about a clip is asked in words: whoever cannot find a name of the question again
cannot be told from who saw nothing. Names are those of the world, never novel ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.av_events.world import RELATIONS, draw_names, draw_sounds, draw_thing, relation

_PAIRS = 4  # at most


def exercises(rng: np.random.Generator, alike: bool) -> dict[str, dict[str, Any]]:
    """One of every kind, as samples without a clip; `alike` as of the world's `Dial`."""
    return {name: make(rng, alike) for name, make in _KINDS.items()}


def _chain(rng, alike):
    """Names in a row, and again from one of them: places do not tell what follows."""
    names = [*_things(rng, 3, alike), *_sounds(rng, 3, alike)]
    names = [names[i] for i in rng.permutation(len(names))]
    first = int(rng.integers(len(names)))
    again = "; ".join(names[first:] + names[:first])
    return {
        "question": f"Say again from the {names[first]}: {'; '.join(names)}.",
        "answer": f"{again}.",
    }


def _recall(rng, alike):
    """Pairs, and their first sides again in another order: the second sides are to be found."""
    count = int(rng.integers(2, _PAIRS + 1))
    things, sounds = _things(rng, count, alike), _sounds(rng, count, alike)
    first, second = (things, sounds) if rng.random() < 0.5 else (sounds, things)
    given = "; ".join(f"{a}, {b}" for a, b in zip(first, second, strict=True))
    pairs = [f"{first[i]}: {second[i]}" for i in rng.permutation(count)]
    return {"question": f"What goes together? {given}.", "answer": "; ".join(pairs) + "."}


def _compare(rng, alike):
    """Two things, and whether they are of one shape and one motion."""
    wanted = RELATIONS[rng.integers(len(RELATIONS))]
    while True:
        one, other = draw_thing(rng), draw_thing(rng)
        if one.name != other.name and relation(one, other) == wanted:
            break
    said = ". ".join(f"{t.name} {t.place} {t.motion}" for t in (one, other))
    return {"question": f"Compare. {said}.", "answer": f"{wanted}."}


def _tell(rng, alike):
    """Where a thing is, or how it moves."""
    thing = draw_thing(rng)
    ask, answer = (
        ("Where is the thing?", thing.place),
        ("How does the thing move?", thing.motion),
    )[rng.integers(2)]
    return {
        "question": f"{ask} {thing.name} {thing.place} {thing.motion}.",
        "answer": f"{answer}.",
    }


def _things(rng, count, alike):
    return [thing.name for thing in draw_names(rng, count, alike)]


def _sounds(rng, count, alike):
    return [sound.name for sound in draw_sounds(rng, count, alike)]


_KINDS: dict[str, Callable[[np.random.Generator, bool], dict[str, Any]]] = {
    "chain": _chain,
    "recall": _recall,
    "compare": _compare,
    "tell": _tell,
}
