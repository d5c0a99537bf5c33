"""AV-Events: a small world of things that are seen and sounds that are heard, drawn from a seed.

A clip is a row of moments. In most of them a thing is seen while a sound is heard; in some there is
only one of the two. What goes with what is decided by independent draws, so that neither pictures
nor sounds alone tell. Kinds of clips:

```
plain      three shapes, two things of each      all places and motions occur
covered    one moment has a curtain before its thing; its sound is that of another moment, whose
           thing it is
picture    one thing, no sound      to learn from: what things look like,
sound      one sound, no thing      and what sounds sound like
```
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import numpy as np

from latentomni_jax.layout import InputError

COLOURS = {
    "red": (220, 60, 50),
    "green": (60, 170, 80),
    "blue": (50, 90, 220),
    "yellow": (235, 200, 50),
    "purple": (150, 60, 180),
    "black": (30, 30, 30),
}
SHAPES = ("disc", "square", "triangle", "ring", "cross", "bar")
PLACES = ("left", "right", "top", "bottom")
MOTIONS = ("still", "sliding", "falling", "growing")
VOICES = ("tone", "buzz", "noise", "chord", "warble", "rattle")
PITCHES = ("low", "middle", "high")
RHYTHMS = ("steady", "pulsing")
RELATIONS = tuple(
    f"{shape} shape, {motion} motion" for shape in ("same", "other") for motion in ("same", "other")
)
Kind = Literal["plain", "covered", "picture", "sound"]
_CORE = 6  # moments of a clip that have both a thing and a sound, at least
_COVERED_SHARE = 0.1  # of pictures
_RARE = 3  # sounds of a novel clip that are novel
_TRIES = 10_000


@dataclasses.dataclass(frozen=True)
class Thing:
    """What is seen: a shape in a colour, where, and how it moves."""

    colour: str
    shape: str
    place: str
    motion: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def is_novel(self) -> bool:
        """One of the six pairs of colour and shape that training never shows."""
        return list(COLOURS).index(self.colour) == SHAPES.index(self.shape)


@dataclasses.dataclass(frozen=True)
class Sound:
    """What is heard: a voice, its pitch, its rhythm."""

    voice: str
    pitch: str
    rhythm: str

    @property
    def name(self) -> str:
        """The voice first: who has found it can tell the rest from it (see docs/design.md)."""
        return f"{self.voice} {self.pitch} {self.rhythm}"

    @property
    def is_novel(self) -> bool:
        """One of the six sounds that training never plays."""
        number = PITCHES.index(self.pitch) + VOICES.index(self.voice)
        return number % 3 == 0 and self.rhythm == "pulsing"


SOUNDS = tuple(itertools.starmap(Sound, itertools.product(VOICES, PITCHES, RHYTHMS)))
# What training shows: everything that is not novel; of things, the names alone.
KNOWN_SOUNDS = tuple(sound for sound in SOUNDS if not sound.is_novel)
_NAMED = (Thing(*name, "", "") for name in itertools.product(COLOURS, SHAPES))
KNOWN_THINGS = tuple(thing for thing in _NAMED if not thing.is_novel)


@dataclasses.dataclass(frozen=True)
class Moment:
    """A stretch of a clip, in seconds, and what happens in it.

    Attributes:
      start, end: when the thing is seen. heard: when the sound is heard.
      is_covered: a curtain is before the thing.
    """

    start: float
    end: float
    thing: Thing | None
    sound: Sound | None
    heard: tuple[float, float]
    is_covered: bool = False

    @property
    def span(self) -> tuple[float, float]:
        """From the first to the last of what is seen and heard."""
        starts, ends = [], []
        if self.thing is not None:
            starts, ends = [self.start], [self.end]
        if self.sound is not None:
            starts, ends = [*starts, self.heard[0]], [*ends, self.heard[1]]
        return min(starts), max(ends)


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The truth of a clip. Attributes: moments in order; seconds: the clip's length; distractors:
    grey marks in the picture, and hum under the sound, that mean nothing."""

    kind: Kind
    moments: tuple[Moment, ...]
    seconds: float
    distractors: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, taken: dict[str, Any]) -> Timeline:
        moments = tuple(
            Moment(
                **moment
                | {
                    "thing": moment["thing"] and Thing(**moment["thing"]),
                    "sound": moment["sound"] and Sound(**moment["sound"]),
                    "heard": tuple(moment["heard"]),
                }
            )
            for moment in taken["moments"]
        )
        return cls(**taken | {"moments": moments})


@dataclasses.dataclass(frozen=True)
class Dial:
    """How hard a world is.

    Attributes:
      moments: with both a thing and a sound, at least 6. alone: further ones with one of the two.
      seconds: of a moment. jitter: seconds that a sound may begin earlier or later than its thing.
      overlap: seconds that a sound goes on into the next moment. distractors: see `Timeline`.
      alike: things of a clip may have one colour, and sounds one voice; without it a colour, or a
        voice, is enough to know it by.
    """

    moments: int = 6
    alone: int = 0
    seconds: float = 1.0
    jitter: float = 0.0
    overlap: float = 0.0
    distractors: int = 0
    alike: bool = True

    def __post_init__(self):
        if not _CORE <= self.moments <= 9:
            raise InputError(f"a dial has {_CORE} to 9 moments, got {self.moments}")
        if not 0 <= self.alone <= 4:
            raise InputError(f"a dial has 0 to 4 moments alone, got {self.alone}")
        if not 0 <= self.distractors <= 100:
            raise InputError(f"a dial has 0 to 100 distractors, got {self.distractors}")
        if not 0.25 <= self.seconds <= 10:
            raise InputError(f"a moment takes 0.25 to 10 seconds, got {self.seconds}")
        if not self.alike and self.moments + self.alone > len(SHAPES):
            raise InputError(f"at most {len(SHAPES)} moments can all look and sound different")
        parts = (self.jitter, self.overlap)
        if not (min(parts) >= 0 and sum(parts) <= self.seconds / 2):
            raise InputError(
                f"jitter and overlap are not negative, together at most half a moment: {parts}"
            )


DIALS = {
    "easy": Dial(seconds=0.5, alike=False),
    "medium": Dial(alone=1, jitter=0.1, distractors=1),
    "hard": Dial(moments=8, alone=2, jitter=0.25, overlap=0.25, distractors=2),
}


def draw_timeline(
    rng: np.random.Generator, dial: Dial, kind: Kind, *, novel: bool = False
) -> Timeline:
    """A clip's truth.

    Args:
      kind: see the module; the last two are never novel.
      novel: with things and sounds that are otherwise never drawn (a thing of every pair of one
        shape is novel, and three sounds are).
    """
    if kind in ("picture", "sound"):
        return _draw_short(rng, dial, kind)
    both = dial.moments
    things = _draw_things(rng, dial, kind, novel)
    sounds = draw_sounds(rng, both + dial.alone, dial.alike, novel=novel)
    number = np.arange(both + dial.alone)
    silent = {int(i) for i in number[both:] if rng.random() < 0.5}
    unseen = set(map(int, number[both:])) - silent
    covered = None
    if kind == "covered":
        covered, shown = (int(i) for i in rng.permutation(both)[:2])
        sounds[covered], things[covered] = sounds[shown], things[shown]
    moments = []
    for place, i in enumerate(map(int, rng.permutation(number))):
        start, end = place * dial.seconds, (place + 1) * dial.seconds
        late = rng.uniform(-dial.jitter, dial.jitter)
        heard = (max(start + late, 0.0), min(end + late + dial.overlap, len(number) * dial.seconds))
        moments.append(
            Moment(
                start,
                end,
                None if i in unseen else things[i],
                None if i in silent else sounds[i],
                tuple(round(float(t), 3) for t in heard),
                is_covered=i == covered,
            )
        )
    return Timeline(kind, tuple(moments), len(number) * dial.seconds, dial.distractors)


def _draw_short(rng, dial, kind):
    """One moment, everything drawn evenly."""
    span = (0.0, dial.seconds)
    if kind == "sound":
        (sound,) = draw_sounds(rng, 1, dial.alike)
        moment = Moment(*span, None, sound, span)
    else:
        moment = Moment(*span, draw_thing(rng), None, span, bool(rng.random() < _COVERED_SHARE))
    return Timeline(kind, (moment,), dial.seconds, dial.distractors)


def draw_thing(rng: np.random.Generator) -> Thing:
    """A thing that training shows, with a place and a motion."""
    thing = KNOWN_THINGS[rng.integers(len(KNOWN_THINGS))]
    place, motion = _one_of(rng, PLACES), _one_of(rng, MOTIONS)
    return dataclasses.replace(thing, place=place, motion=motion)


def draw_names(rng: np.random.Generator, count: int, alike: bool) -> list[Thing]:
    """Different things that training shows, their names alone; see `Dial.alike`."""
    return _different(rng, KNOWN_THINGS, count, lambda thing: thing if alike else thing.colour)


def draw_sounds(
    rng: np.random.Generator, count: int, alike: bool, *, novel: bool = False
) -> list[Sound]:
    """Different sounds, three of them novel ones or none; see `Dial.alike`."""
    rare = [sound for sound in SOUNDS if sound.is_novel]
    chosen = [rare[i] for i in rng.permutation(len(rare))[: _RARE if novel else 0]]
    chosen = _different(
        rng, KNOWN_SOUNDS, count, lambda sound: sound if alike else sound.voice, chosen
    )
    return [chosen[i] for i in rng.permutation(count)]


def _one_of(rng, values):
    """What `rng.choice` would draw, without making an array of the values first."""
    return values[rng.integers(len(values))]


def _different(rng, values, count, key, chosen=()):
    """`chosen` and further values, so many together, in which no key comes twice."""
    chosen = list(chosen)
    for i in rng.permutation(len(values)):
        if len(chosen) < count and key(values[i]) not in {key(value) for value in chosen}:
            chosen.append(values[i])
    return chosen


def _draw_things(rng, dial, kind, novel):
    """Things of different names; of a plain clip the first six are pairs of three shapes, and
    have all places, all motions and all relations."""
    for _ in range(_TRIES):
        things = _try_things(rng, dial, novel)
        core = things[:_CORE]
        if len(things) == dial.moments + dial.alone and (
            kind == "covered"
            or (
                {t.place for t in core} == set(PLACES)
                and {t.motion for t in core} == set(MOTIONS)
                and {relation(a, b) for a, b in itertools.combinations(core, 2)} == set(RELATIONS)
            )
        ):
            return things
    raise AssertionError("no such things")  # one in a few dozen draws is good


def _try_things(rng, dial, novel):
    """Fewer than the dial has where no colour is left."""
    shapes, things = rng.permutation(SHAPES), []
    for i in range(dial.moments + dial.alone):
        # Three pairs; further things have other shapes, so that a pair stays a pair.
        shape = str(shapes[i // 2] if i < _CORE else _one_of(rng, shapes[3:]))
        colours = [
            colour
            for colour in COLOURS
            if not any(t.colour == colour and (t.shape == shape or not dial.alike) for t in things)
            and Thing(colour, shape, "", "").is_novel == (novel and i % 2 == 0 and i < _CORE)
        ]
        if not colours:
            break
        place, motion = _one_of(rng, PLACES), _one_of(rng, MOTIONS)
        things.append(Thing(_one_of(rng, colours), shape, place, motion))
    return things


def relation(one: Thing, other: Thing) -> str:
    """One of `RELATIONS`: whether two things have the same shape, and the same motion."""
    shape, motion = (
        "same" if a == b else "other"
        for a, b in ((one.shape, other.shape), (one.motion, other.motion))
    )
    return f"{shape} shape, {motion} motion"
