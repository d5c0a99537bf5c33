r"""Questions of Daily-Omni's six types about a timeline, options, and reasoning that cites it.

Every question needs pictures and sound. One of its sides names what is seen, the other what is
heard, and the options are drawn so that for whoever knows only one side they are equally likely:
first the answer is drawn evenly among values that occur, then a place in the clip that has it.

Reasoning says nothing before its first citation that is not in the question; behind a citation it
says what the lists of `captions` say, or, where it is silent, nothing: then words do not carry what
was found. Answers are an option's words: to find the letter before them
is no part of seeing and hearing, and a small model from nothing learns it last.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.av_events.captions import beside, both, seen, twins
from data_pipeline.av_events.world import (
    MOTIONS,
    PLACES,
    RELATIONS,
    Moment,
    Timeline,
    relation,
)
from data_pipeline.trajectories import PAIR

NUM_OPTIONS = 4


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with four options.

    Attributes:
      type: one of `TYPES`. answer: index of the right option.
      steps: for each of `segments`, (start, end) in seconds, what is said before it is cited, and
        what is found there.
    """

    type: str
    text: str
    options: tuple[str, ...]
    answer: int
    steps: tuple[tuple[str, str], ...]
    segments: tuple[tuple[float, float], ...]

    def reasoning(self, *, silent: bool = False) -> str:
        """Text with a `PAIR` for each segment; `silent` leaves out what is found."""
        text = ""
        for before, found in self.steps:
            gap = " " if text and not text.endswith(PAIR) else ""
            text += f"{gap}{before}{PAIR}{'' if silent else found}"
        return text

    def to_sample(self, id: str, video: str, *, silent: bool = False) -> dict[str, Any]:
        """The trajectory as `data_pipeline.trajectories` takes it."""
        return {
            "id": id,
            "video": video,
            "question": self.text,
            "choices": list(self.options),
            "reasoning": self.reasoning(silent=silent),
            "segments": [list(segment) for segment in self.segments],
            "answer": f"\\boxed{{{self.options[self.answer]}}}",
            "metadata": {"type": self.type},
        }


def ask(rng: np.random.Generator, timeline: Timeline) -> list[Question]:
    """A question of every type that the clip allows."""
    return [make(rng, timeline) for make in _MAKERS[timeline.kind]]


# ------------------------------------------------------------------------- the types


def _alignment(rng, timeline):
    """Which sound with this thing, or which thing with this sound."""
    moments = _clear(timeline)
    target = moments[rng.integers(len(moments))]
    others = [m for m in moments if m is not target]
    if rng.random() < 0.5:
        others += [m for m in timeline.moments if m.thing is None]
        return _question(
            rng, "alignment",
            f"Which sound is heard while the {target.thing.name} is seen?",
            target.sound.name, [m.sound.name for m in others],
            [(f"I look for the {target.thing.name} and listen.",
              f"{target.thing.name}: {target.sound.name}.")],
            [target],
        )  # fmt: skip
    others += [m for m in timeline.moments if m.sound is None]
    return _question(
        rng, "alignment",
        f"What is seen while the {target.sound.name} is heard?",
        target.thing.name, [m.thing.name for m in others],
        [(f"I listen for the {target.sound.name} and look.",
          f"{target.sound.name}: {seen(target)}.")],
        [target],
    )  # fmt: skip


def _sequence(rng, timeline):
    """What comes right after: a sound after a thing, or a thing after a sound."""
    pairs = list(itertools.pairwise(timeline.moments))
    if rng.random() < 0.5:
        pairs = [(a, b) for a, b in pairs if a.thing is not None and b.sound is not None]
        first, target = pairs[rng.integers(len(pairs))]
        return _question(
            rng, "sequence",
            f"Which sound is heard right after the {first.thing.name} was seen?",
            target.sound.name, [b.sound.name for _, b in pairs if b is not target],
            [(f"I look for the {first.thing.name}.", ""),
             ("I listen to what follows.", f"after {first.thing.name}: {both(target)}.")],
            [first, target],
        )  # fmt: skip
    pairs = [(a, b) for a, b in pairs if a.sound is not None and b.thing is not None]
    first, target = pairs[rng.integers(len(pairs))]
    return _question(
        rng, "sequence",
        f"What is seen right after the {first.sound.name} was heard?",
        target.thing.name, [b.thing.name for _, b in pairs if b is not target],
        [(f"I listen for the {first.sound.name}.", ""),
         ("I look at what follows.", f"after {first.sound.name}: {both(target)}.")],
        [first, target],
    )  # fmt: skip


def _context(rng, timeline):
    """Where the thing is, or how it moves, while a sound is heard."""
    attribute, values, ask = (
        ("place", PLACES, "Where is the thing that is seen"),
        ("motion", MOTIONS, "How does the thing move that is seen"),
    )[rng.integers(2)]
    moments = _clear(timeline)
    value = str(rng.choice(values))
    fitting = [m for m in moments if getattr(m.thing, attribute) == value]
    target = fitting[rng.integers(len(fitting))]
    return _question(
        rng, "context",
        f"{ask} while the {target.sound.name} is heard?",
        value, [v for v in values if v != value],
        [(f"I listen for the {target.sound.name} and look.",
          f"{target.sound.name}: {seen(target)}.")],
        [target],
    )  # fmt: skip


def _comparative(rng, timeline):
    """Shape and motion of the things with two sounds: the same or not."""
    wanted = RELATIONS[rng.integers(len(RELATIONS))]
    pairs = [
        pair
        for pair in itertools.permutations(_clear(timeline), 2)
        if relation(pair[0].thing, pair[1].thing) == wanted
    ]
    one, other = pairs[rng.integers(len(pairs))]
    return _question(
        rng, "comparative",
        f"Compare what is seen with the {one.sound.name} and with the {other.sound.name}.",
        wanted, [r for r in RELATIONS if r != wanted],
        [(f"I listen for the {m.sound.name}.", f"{m.sound.name}: {seen(m)}.")
         for m in (one, other)],
        [one, other],
    )  # fmt: skip


def _inference(rng, timeline):
    """What the curtain hides: the thing that its sound belongs to."""
    hidden = next(m for m in timeline.moments if m.is_covered)
    shown = next(m for m in timeline.moments if m.thing == hidden.thing and not m.is_covered)
    others = [m for m in timeline.moments if m.thing is not None and m.thing != hidden.thing]
    return _question(
        rng, "inference",
        "Every thing has a sound of its own. What is behind the curtain?",
        shown.thing.name, [m.thing.name for m in others],
        [("I listen at the curtain.", f"curtain: {hidden.sound.name}."),
         ("I look for it elsewhere.", f"{hidden.sound.name}: {seen(shown)}.")],
        [hidden, shown],
    )  # fmt: skip


def _reasoning(rng, timeline):
    """From a sound to its thing, to the other one of that shape, to its sound."""
    pairs = twins(timeline)
    one, other = pairs[rng.integers(len(pairs))]
    sounds = [m.sound.name for m in timeline.moments if m.sound and m not in (one, other)]
    return _question(
        rng, "reasoning",
        f"Take the shape that is seen with the {one.sound.name}. Which sound is heard with the "
        "other thing of that shape?",
        other.sound.name, sounds,
        [(f"I listen for the {one.sound.name}.", f"{one.sound.name}: {seen(one)}."),
         ("I look for the other of that shape.", f"{beside(one, other)}.")],
        [one, other],
    )  # fmt: skip


_MAKERS: dict[str, tuple[Callable[..., Question], ...]] = {
    "plain": (_alignment, _sequence, _context, _comparative, _reasoning),
    "covered": (_inference,),
    "picture": (),
    "sound": (),
}
TYPES = ("alignment", "sequence", "context", "comparative", "inference", "reasoning")


def _clear(timeline: Timeline) -> list[Moment]:
    """Moments with both a thing and a sound."""
    return [m for m in timeline.moments if m.thing is not None and m.sound is not None]


def _question(
    rng: np.random.Generator,
    type: str,
    text: str,
    right: str,
    others: Sequence[str],
    steps: Sequence[tuple[str, str]],
    cited: Sequence[Moment],
) -> Question:
    """Options in random order: the right one, and three of the others."""
    wrong = rng.permutation(np.array(others, object))[: NUM_OPTIONS - 1]
    options = [right, *wrong]
    order = rng.permutation(NUM_OPTIONS)
    return Question(
        type,
        text,
        tuple(str(options[i]) for i in order),
        int(np.flatnonzero(order == 0)[0]),
        tuple(steps),
        tuple(m.span for m in cited),
    )
