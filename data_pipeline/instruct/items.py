"""What passes through the stages, and how it ends.

An item is one question to be made of one caption. It ends in exactly one way: kept, dropped (a
rule of the method, with its reason), or failed (a model or a file did not give what was asked for,
with what it gave). Ids are known before any model is asked, so a ledger can prove that the counts
add up.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Any, Literal, Self

Sense = Literal["video", "audio"]  # by which a timed caption, or a sentence, is known
Kind = Literal["open", "choice"]
Fate = Literal["kept", "dropped", "failed"]

CATEGORIES = (
    "audio-visual joint perception",
    "action and behaviour recognition",
    "spatial layout understanding",
    "temporal sequence understanding",
    "attribute comparison and change",
    "counting and quantification",
    "emotion and atmosphere perception",
    "semantic content summarisation",
    "logical relation reasoning",
    "intention and outcome prediction",
)
MODALITIES = ("AV-Strong", "Video-Strong", "Audio-Strong")


class Reason(enum.StrEnum):
    """Why an item was not kept; ledgers are counted by it."""

    # dropped: what was made is well formed, and a rule of the method leaves it out
    SCORE = "score below the threshold"
    LEAK = "answerable from one modality"
    BALANCE = "more than the balance of categories allows"
    RARE = "category with too few samples"
    ANSWER = "reasoning ends in another answer"
    AUDIT = "discarded by the audit"
    CITATION = "cites no segment that exists"
    # failed: there is nothing usable
    CAPTION = "unusable caption"
    MEDIA = "unreadable media"
    REPLY = "unusable reply"
    SERVER = "no reply"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """What a caption says of a stretch of its clip. start, end: seconds; sense None: of both."""

    start: float
    end: float
    text: str
    sense: Sense | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """A captioned video.

    Attributes:
      id: of this caption, unique in a run. video: path relative to the videos' folder.
      text: the whole caption. timed: its parts with times, where it has them, by start.
      shots: (start, end) seconds to cut by; without them pieces have a fixed length.
      layout: of the file it is from. where: "file:line", for messages.
      facts: kept as provenance (source, licence, ...), text to text.
    """

    id: str
    video: str
    text: str
    timed: tuple[Timed, ...] = ()
    shots: tuple[tuple[float, float], ...] = ()
    layout: str = "plain"
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    where: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """Attributes: options: four, or none where it is open. answer: of an option, its letter."""

    text: str
    options: tuple[str, ...] = ()
    answer: str
    reasoning_type: str

    @property
    def answer_text(self) -> str:
        return self.options[ord(self.answer) - ord("A")] if self.options else self.answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """A judge's view of a question: three scores from 1 to 5, and what kind of question it is."""

    context_utilization: int
    question_difficulty: int
    deductive_requirement: int
    category: str
    modality_dependency: str
    confidence: float
    reason: str

    @property
    def total(self) -> int:
        return self.context_utilization + self.question_difficulty + self.deductive_requirement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of the clip and what is known of it, given the question.

    Attributes:
      number: from 1, as `[Segment n]` cites it. start, end: seconds.
      seen, heard: sentences. captioner: "model", or "text" where they were cut out of the caption.
      fused: all of them, in one order. text: the fused ones, refined.
    """

    number: int
    start: float
    end: float
    seen: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()
    captioner: Literal["model", "text"] = "model"
    fused: tuple[str, ...] = ()
    text: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A piece of reasoning; segment: number of the one that is looked at behind it, or None."""

    text: str
    segment: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Reasoning and the answer that it ends in (a letter where there are options)."""

    steps: tuple[Step, ...]
    answer: str

    @property
    def cited(self) -> tuple[int, ...]:
        return tuple(step.segment for step in self.steps if step.segment is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """A second model's corrections of a chain.

    Attributes:
      removed: steps, numbered from 1. moved: (step, segment, or 0 for no citation).
      reason: in its words.
    """

    removed: tuple[int, ...] = ()
    moved: tuple[tuple[int, int], ...] = ()
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A question on its way; fields are filled stage by stage, none is changed."""

    id: str
    kind: Kind
    caption: Caption
    question: Question | None = None
    scores: Scores | None = None
    segments: tuple[Segment, ...] = ()
    drafted: Chain | None = None
    audit: Audit | None = None
    chain: Chain | None = None
    models: dict[str, str] = dataclasses.field(default_factory=dict)  # role -> model that replied

    def to_json(self) -> dict[str, Any]:
        """Without where the caption was read from, which differs between machines."""
        data = dataclasses.asdict(self)
        del data["caption"]["where"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`, also behind JSON, which has lists for tuples."""
        return _build(cls, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the ledger.

    Attributes:
      id: of the item. stage: where it ended. reason: None where it was kept.
      detail: for people. raw: what a model replied, where that was unusable.
    """

    id: str
    fate: Fate
    stage: str
    reason: Reason | None = None
    detail: str = ""
    raw: str = ""


class Ended(Exception):
    """Raised by a stage for an item that goes no further."""

    fate: Fate

    def __init__(self, reason: Reason, detail: str = "", raw: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason, self.detail, self.raw = reason, detail, raw


class Dropped(Ended):
    fate = "dropped"


class Failed(Ended):
    fate = "failed"


def _build(kind: Any, value: Any) -> Any:
    """A value of an annotated type out of what JSON has of it."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _build(hints[name], given) for name, given in value.items()})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in args:
        kept = [arg for arg in args if arg is not type(None)]
        return None if value is None else _build(kept[0], value) if len(kept) == 1 else value
    if origin is tuple:
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(_build(one, given) for one, given in zip(inner, value, strict=True))
    return value
