"""A model answers a file of questions; its answers are scored by type.

Questions are trajectories (`data_pipeline.trajectories`): what they hold of reasoning is not shown
to the model, and their answer is compared with the model's. With a `view` the model is given one
modality only, or none.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.stats

from data_pipeline.trajectories import Trajectory
from latentomni_jax.backbone.positions import Clock
from latentomni_jax.layout import AudioPart, EncodedPart, InputError, Part, VisionPart
from latentomni_jax.media.extract import Found, extract_answer, find_answer
from latentomni_jax.media.processor import build_prompt, clip_part, with_choices
from latentomni_jax.media.video import read_clip
from latentomni_jax.model import Generation, LatentOmni

View = Literal["both", "video", "audio", "question"]
Media = VisionPart | AudioPart | EncodedPart
Read = Callable[[Path, str], Media]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """A way of asking a question, and of finding the answer in what a model says.

    Attributes:
      ask: the user's text. extract: (text, choices) -> the answer and the rule that found it.
      system: the system turn; None leaves it to the question, then to the checkpoint's template.
      text_first: the text stands before the clip.
      clock: what dates the frames, see `clip_part`.
      options: of `LatentOmni.generate`. media: fields of `MediaSpec`. Both where the command line
        does not say otherwise. Latents are not among them: a model may reason in latents before a
        letter as before anything else, and `max_new_tokens` counts text alone.
    """

    ask: Callable[[Trajectory], str]
    extract: Callable[[str, Sequence[str]], Found]
    system: str | None = None
    text_first: bool = False
    clock: Clock = "true"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    media: Mapping[str, Any] = dataclasses.field(default_factory=dict)


HOUSE = Style(ask=lambda asked: with_choices(asked.question, asked.choices), extract=find_answer)


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """One answered question.

    Attributes:
      given: the model's answer, None where it cannot be parsed. rule: what found it. expected: the
        right one.
      well_formed: it ended by itself, with an answer that can be parsed.
    """

    question: Trajectory
    generation: Generation
    given: str | None
    rule: str
    expected: str | None
    well_formed: bool

    @property
    def is_right(self) -> bool:
        return self.given is not None and self.given == self.expected

    @property
    def type(self) -> str:
        return str((self.question.metadata or {}).get("type", "all"))


@dataclasses.dataclass(frozen=True)
class Score:
    """Right answers of so many, and the chance that guessing does as well (one-sided binomial)."""

    right: int
    asked: int
    p_value: float

    @property
    def accuracy(self) -> float:
        return self.right / max(self.asked, 1)


def answer_all(
    model: LatentOmni,
    questions: Sequence[Trajectory],
    root: Path,
    *,
    view: View = "both",
    batch: int = 16,
    given: Sequence[np.ndarray] | None = None,
    **options,
) -> Iterator[Scored]:
    """Answers questions in batches of one size, in order.

    Args:
      root: what the questions' paths are relative to.
      view: what the model is given of the clip.
      given: states of every question, see `LatentOmni.generate`.
      options: of `LatentOmni.generate`.

    Raises:
      InputError: an unknown view, or an unreadable clip.
    """
    if view not in ("both", "video", "audio", "question"):
        raise InputError(f"view must be both, video, audio or question, got {view!r}")

    @functools.lru_cache(maxsize=64)  # questions about a clip stand together
    def read(path: Path, kind: str) -> Media:
        return read_part(model, path, kind)

    for start in range(0, len(questions), batch):
        rows = questions[start : start + batch]
        filled = [*rows, *[rows[-1]] * (batch - len(rows))]  # one shape, one program
        if given is not None:
            states = [*given[start : start + batch]]
            options["given"] = states + states[-1:] * (batch - len(rows))
        generations = model.generate(
            [prompt_of(model, row, root, view=view, read=read) for row in filled], **options
        )
        for row, generation in zip(rows, generations, strict=False):
            yield score(row, generation)


def read_part(
    model: LatentOmni, path: Path, kind: str, clock: Clock = "true"
) -> VisionPart | AudioPart:
    """A clip as a model is given it, pixels as they are, since many are kept at a time. Raises
    InputError where it is unreadable."""
    clip = read_clip(path, model.media, video=kind != "audio")
    return clip_part(clip, model.media, nominal_clock=clock == "nominal", pixels=True)


def prompt_of(
    model: LatentOmni,
    question: Trajectory,
    root: Path,
    *,
    view: View = "both",
    style: Style = HOUSE,
    read: Read | None = None,
) -> list[Part]:
    """What a model is asked: the clip as far as `view` goes, question and choices.

    Args:
      root: what the question's path is relative to.
      read: `read_part` of (path, kind), for whoever keeps clips.
    """
    if model.tokenizer is None:
        raise InputError("this model was made without a tokenizer")
    read = read or functools.partial(read_part, model, clock=style.clock)
    media: list[Media] = []
    if question.kind is not None and question.path is not None and view != "question":
        media = see_through(read(root / question.path, question.kind), view)
    return build_prompt(
        model.tokenizer,
        style.ask(question),
        media,
        system=question.system if style.system is None else style.system,
        text_first=style.text_first,
    )


def score(question: Trajectory, generation: Generation, style: Style = HOUSE) -> Scored:
    """Compares an answer with the question's."""
    given, rule = style.extract(generation.text, question.choices)
    expected = extract_answer(question.answer, question.choices)
    well_formed = generation.finished and given is not None
    return Scored(question, generation, given, rule, expected, well_formed)


def see_through(part: Media, view: View) -> list[Media]:
    """What a view leaves of a clip: nothing, or one part."""
    if view == "both":
        return [part]
    if view == "question":
        return []
    if isinstance(part, EncodedPart):
        if view == "audio":
            sound = EncodedPart("audio", None, part.audio, (0, 0, 0), part.seconds[:0])
            return [] if part.audio is None else [sound]
        return [] if part.video is None else [dataclasses.replace(part, audio=None)]
    mel = part.mel
    if view == "audio":
        return [] if mel is None else [AudioPart(mel)]
    return [dataclasses.replace(part, mel=None)] if isinstance(part, VisionPart) else []


def by_type(scored: Sequence[Scored]) -> dict[str, Score]:
    """Scores of every type of question, and of "all"; chance is one over the number of choices."""
    groups = collections.defaultdict(list)
    for one in scored:
        groups[one.type].append(one)
    groups["all"] = list(scored)
    found = {}
    for type, ones in sorted(groups.items(), key=lambda item: (item[0] == "all", item[0])):
        right = sum(one.is_right for one in ones)
        guess = sum(1 / max(len(one.question.choices), 2) for one in ones) / max(len(ones), 1)
        p = float(scipy.stats.binom.sf(right - 1, len(ones), guess)) if ones else 1.0
        found[type] = Score(right, len(ones), p)
    return found
