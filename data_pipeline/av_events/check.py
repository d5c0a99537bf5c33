"""How well questions are guessed from one modality, by a guess that is learned.

Whoever knows only the pictures (or only the sounds, or only the question) sees of every option its
words, its letter, and where and how often its side of it happens, also counted from where the
question's side happens. A conditional logit over these, fitted for each type of question on one
half and measured on the other, is the guess. It finds what a careless generator leaks: answers
that are never first, values that are commoner, letters that are right more often. It is linear in
what it sees: a floor of what could be guessed, not a proof.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.optimize
import scipy.special

from data_pipeline.av_events import world
from data_pipeline.av_events.questions import NUM_OPTIONS, TYPES, Question
from data_pipeline.av_events.world import Moment, Timeline, relation
from latentomni_jax.layout import InputError

View = Literal["question", "video", "audio"]
VIEWS: tuple[View, ...] = ("question", "video", "audio")
CHANCE, MARGIN = 1 / NUM_OPTIONS, 0.05
_PLACES = 13  # moments of a clip at most
_PENALTY = 3.0
# What a clip may show and play, by the words that name it.
_WORDS = frozenset(
    itertools.chain(
        *(world.COLOURS, world.SHAPES, world.PLACES, world.MOTIONS),
        *(world.VOICES, world.PITCHES, world.RHYTHMS),
    )
)
Item = tuple[Timeline, Question]


def single_modality(train: Sequence[Item], test: Sequence[Item]) -> dict[View, dict[str, float]]:
    """Accuracy on `test` of the guess fitted on `train`: for each view, each type, "all"."""
    return {view: _accuracies(train, test, view) for view in VIEWS}


def require_both(accuracies: dict[View, dict[str, float]], count: int) -> None:
    """Raises InputError where a view is clearly better than chance.

    Args:
      count: questions that were asked, of all types together.
    """
    for view, of_type in accuracies.items():
        for type, accuracy in of_type.items():
            asked = count if type == "all" else count // (len(of_type) - 1)
            error = math.sqrt(CHANCE * (1 - CHANCE) / max(asked, 1))
            if accuracy > CHANCE + MARGIN and accuracy > CHANCE + 4 * error:
                raise InputError(
                    f"from the {view} alone {accuracy:.0%} of {type} questions are guessed, chance "
                    f"is {CHANCE:.0%}: this world does not need both modalities"
                )


def require_no_leak(question: Question) -> None:
    """Raises InputError where the reasoning names, before it cites, what the question does not: it
    would tell the answer, or part of it, to who has no clip; and silent reasoning would tell it."""
    before = set(_words(" ".join(said for said, _ in question.steps)))
    if leaked := sorted((before & _WORDS) - set(_words(question.text))):
        raise InputError(
            f"reasoning says {', '.join(leaked)} before it cites the clip: {question.reasoning()!r}"
        )


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text).split()


def _accuracies(train, test, view):
    found = {}
    right = asked = 0
    for type in TYPES:
        sides = [[item for item in items if item[1].type == type] for items in (train, test)]
        if not all(sides):
            continue
        (x, answers), (x_test, answers_test) = (_features(items, view) for items in sides)
        weights = _fit(x, answers)
        hits = np.argmax(x_test @ weights, axis=1) == answers_test
        found[type] = float(hits.mean())
        right, asked = right + hits.sum(), asked + len(hits)
    return found | {"all": float(right / max(asked, 1))}


def _fit(x, answers):
    """Weights of the logit, f64[F]; x f64[N,options,F]."""

    def loss(weights):
        scores = x @ weights
        log_p = scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)
        gap = np.exp(log_p)
        gap[np.arange(len(x)), answers] -= 1
        value = -log_p[np.arange(len(x)), answers].sum() + _PENALTY * (weights**2).sum() / 2
        return value, np.einsum("no,nof->f", gap, x) + _PENALTY * weights

    start = np.zeros(x.shape[-1])
    return scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x


def _features(items, view):
    x = np.stack([_of_question(timeline, question, view) for timeline, question in items])
    return x, np.array([question.answer for _, question in items])


def _of_question(timeline: Timeline, question: Question, view: View) -> np.ndarray:
    """f64[options, F]."""
    letters = np.eye(NUM_OPTIONS)
    words = np.stack([_bag(option) for option in question.options])
    if view == "question":
        return np.concatenate([letters, words], axis=1)
    named = [i for i, m in enumerate(timeline.moments) if _is_named(m, question.text, view)]
    curtain = [i for i, m in enumerate(timeline.moments) if m.is_covered and view == "video"]
    rows = []
    for option in question.options:
        at = _where(timeline, option, view)
        where, offset = np.zeros(_PLACES + 1), np.zeros(2 * _PLACES + 1)
        for i in at:
            where[i] += 1
            for start in named + curtain:
                offset[i - start + _PLACES] += 1
        where[-1] = _count_relation(timeline, option) if view == "video" else 0
        count = np.eye(5)[min(len(at), 4)]
        last = max(at, default=-1) == len(timeline.moments) - 1
        rows.append(np.concatenate([where, offset, count, [last]]))
    return np.concatenate([letters, words, np.stack(rows)], axis=1)


def _bag(text: str, size: int = 64) -> np.ndarray:
    """Words, by a hash that is the same in every process."""
    bag = np.zeros(size)
    for word in _words(text):
        bag[sum(ord(c) * 31**i for i, c in enumerate(word)) % size] += 1
    return bag


def _names(moment: Moment, view: View) -> set[str]:
    """What is seen, or heard, in a moment, by the names that questions and options use."""
    if view == "audio":
        return set() if moment.sound is None else {moment.sound.name}
    if moment.thing is None or moment.is_covered:
        return set()
    return {moment.thing.name, moment.thing.place, moment.thing.motion}


def _is_named(moment: Moment, text: str, view: View) -> bool:
    return any(" " in name and name in text for name in _names(moment, view))


def _where(timeline: Timeline, option: str, view: View) -> list[int]:
    return [i for i, m in enumerate(timeline.moments) if option in _names(m, view)]


def _count_relation(timeline: Timeline, option: str) -> float:
    things = [m.thing for m in timeline.moments if m.thing is not None and not m.is_covered]
    pairs = [relation(a, b) == option for a, b in itertools.combinations(things, 2)]
    return float(np.mean(pairs or [0]))
