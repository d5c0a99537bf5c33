"""What a timeline looks and sounds like in words: timed captions, and lists that bind the two.

Lists are what a model from nothing learns to see and hear from. Each names everything in a clip
once, in order of time or of chance, and beside it what the reader has to find: by the clock, by
what is seen, or by what is heard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from data_pipeline.av_events.world import Moment, Timeline


def captions(timeline: Timeline) -> dict[str, list[tuple[float, float, str]]]:
    """(start, end, text) of everything seen under "video", of everything heard under "audio"."""
    moments = timeline.moments
    return {
        "video": [
            (m.start, m.end, seen(m)) for m in moments if m.thing is not None or m.is_covered
        ],
        "audio": [(*m.heard, _heard(m)) for m in moments if m.sound is not None],
    }


def lists(rng: np.random.Generator, timeline: Timeline) -> dict[str, tuple[str, str]]:
    """Request and list of every kind that the clip has; of a picture or a sound what it is."""
    if timeline.kind == "picture":
        return {"picture": ("What is seen?", seen(timeline.moments[0]))}
    if timeline.kind == "sound":
        return {"sound": ("What is heard?", _heard(timeline.moments[0]))}
    return {name: (ask, "; ".join(make(rng, timeline))) for name, (ask, make) in _LISTS.items()}


def _by_time(rng, timeline):
    return [f"{m.start:g} s {seen(m)}, {_heard(m)}" for m in timeline.moments]


def _by_thing(rng, timeline):
    return [f"{_name(m)}: {_heard(m)}" for m in _shuffled(rng, timeline) if _name(m)]


def _by_sound(rng, timeline):
    return [f"{_heard(m)}: {seen(m)}" for m in _shuffled(rng, timeline) if m.sound]


def _after_thing(rng, timeline):
    pairs = _shuffled_pairs(rng, timeline)
    return [f"after {_name(a)}: {both(b)}" for a, b in pairs if _name(a)]


def _after_sound(rng, timeline):
    pairs = _shuffled_pairs(rng, timeline)
    return [f"after {_heard(a)}: {both(b)}" for a, b in pairs if a.sound]


def _twins(rng, timeline):
    pairs = twins(timeline)
    return [beside(*pairs[i]) for i in rng.permutation(len(pairs))]


_LISTS: dict[str, tuple[str, Callable[[np.random.Generator, Timeline], list[str]]]] = {
    "by-time": ("What is seen and heard?", _by_time),
    "by-thing": ("What is heard with each thing?", _by_thing),
    "by-sound": ("What is seen with each sound?", _by_sound),
    "after-thing": ("What follows each thing?", _after_thing),
    "after-sound": ("What follows each sound?", _after_sound),
    "twins": ("What is heard with the other thing of each shape?", _twins),
}


def _shuffled(rng: np.random.Generator, timeline: Timeline) -> list[Moment]:
    return [timeline.moments[i] for i in rng.permutation(len(timeline.moments))]


def _shuffled_pairs(rng: np.random.Generator, timeline: Timeline) -> list[tuple[Moment, Moment]]:
    pairs = list(itertools.pairwise(timeline.moments))
    return [pairs[i] for i in rng.permutation(len(pairs))]


def both(moment: Moment) -> str:
    """What is heard, and the name of what is seen."""
    return f"{_heard(moment)}, {_name(moment) or 'nothing'}"


def twins(timeline: Timeline) -> list[tuple[Moment, Moment]]:
    """Pairs of one shape, seen and heard, both ways round."""
    clear = [m for m in timeline.moments if m.thing and m.sound and not m.is_covered]
    pairs = itertools.permutations(clear, 2)
    return [(one, other) for one, other in pairs if one.thing.shape == other.thing.shape]


def beside(one: Moment, other: Moment) -> str:
    """A thing, the other of its shape, and what is heard with that."""
    return f"{_name(one)}, other {_name(other)}: {_heard(other)}"


def _name(moment: Moment) -> str:
    if moment.is_covered:
        return "curtain"
    return "" if moment.thing is None else moment.thing.name


def seen(moment: Moment) -> str:
    """The thing, where it is and how it moves."""
    if moment.is_covered or moment.thing is None:
        return _name(moment) or "nothing"
    return f"{moment.thing.name} {moment.thing.place} {moment.thing.motion}"


def _heard(moment: Moment) -> str:
    return "silence" if moment.sound is None else moment.sound.name
