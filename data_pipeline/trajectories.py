r"""Trajectories: a question about a clip, reasoning that cites stretches of it, and an answer.

They come as JSON lines, one object a line, from files that are not to be trusted:

    {"id": "a1", "video": "clips/a1.mp4", "question": "Which shape is seen at the highest tone?",
     "reasoning": "I listen.<Unified_Latent></Unified_Latent>It is the second.",
     "segments": [[1.0, 2.5]], "answer": "\\boxed{B}", "choices": ["disc", "square"]}

Required are `id`, `question` and `answer`. At most one of `video`, `audio`, `image` names a file.
Each empty pair of latent tokens in `reasoning` is a latent block (method section 1) and cites one
of `segments`, (start, end) in seconds. `system`, `choices` and `metadata` are free to be absent.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from latentomni_jax.layout import InputError
from latentomni_jax.media.processor import LETTERS
from latentomni_jax.media.text import LATENT_TOKENS

PAIR = LATENT_TOKENS[1] + LATENT_TOKENS[2]
END_TOLERANCE = 0.5  # seconds that a segment may end after its clip
Kind = Literal["video", "audio", "image"]
KINDS: tuple[Kind, ...] = ("video", "audio", "image")
_REQUIRED = ("id", "question", "answer")
_OPTIONAL = (*KINDS, "system", "choices", "reasoning", "segments", "metadata")


class Reason(enum.StrEnum):
    """Why a trajectory cannot be used; problems are counted by it."""

    MALFORMED = "malformed line"
    DUPLICATE = "duplicate id"
    CITATION = "citation mismatch"
    BLOCKS = "too many blocks"
    EMPTY = "empty segment"
    OUTSIDE = "segment outside the clip"
    MEDIA = "unreadable media"


class DataProblem(InputError):
    """One unusable trajectory.

    Attributes:
      reason: for counting. where: "file:line". id: None where it is not known. detail: the rest.
    """

    def __init__(self, reason: Reason, where: str, id: str | None, detail: str):
        named = "" if id is None else f" {id!r}"
        super().__init__(f"{where}:{named} {reason}: {detail}")
        self.reason, self.where, self.id, self.detail = reason, where, id, detail


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One training example as written, checked.

    Attributes:
      kind, path: of the one media file, relative to the media root; None for text only.
      system: system turn; None leaves it to the tokenizer's chat template.
      reasoning: text with a `PAIR` per latent block.
      segments: (start, end) seconds on the clip's clock, one per pair; start < end.
      metadata: kept as it is; scores are told apart by its "type", training does not read it.
      where: "file:line" it was read from, for messages.
    """

    id: str
    question: str
    answer: str
    kind: Kind | None = None
    path: str | None = None
    system: str | None = None
    choices: tuple[str, ...] = ()
    reasoning: str = ""
    segments: tuple[tuple[float, float], ...] = ()
    metadata: dict[str, Any] | None = None
    where: str = dataclasses.field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        """The object of a line that `parse_line` makes this trajectory of."""
        taken = {"id": self.id, "question": self.question, "answer": self.answer}
        if self.kind is not None:
            taken[self.kind] = self.path
        for name in ("system", "reasoning", "metadata"):
            if (value := getattr(self, name)) not in (None, ""):
                taken[name] = value
        for name in ("choices", "segments"):
            if value := getattr(self, name):
                taken[name] = [list(x) if isinstance(x, tuple) else x for x in value]
        return taken


def read_jsonl(
    path: str | os.PathLike, *, max_blocks: int | None = None
) -> tuple[list[Trajectory], list[DataProblem]]:
    """The trajectories of a file in order, and what is wrong with the others.

    Blank lines are passed over; of lines with the same id the first counts.

    Args:
      max_blocks: more latent blocks than this are a problem.

    Raises:
      InputError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected trajectories as JSON lines")
    trajectories: dict[str, Trajectory] = {}
    problems = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                trajectory = parse_line(line, where)
                _check_use(trajectory, trajectories, max_blocks)
                trajectories[trajectory.id] = trajectory
            except DataProblem as problem:
                problems.append(problem)
    return list(trajectories.values()), problems


def parse_line(line: str | bytes, where: str = "trajectory") -> Trajectory:
    """One line as a checked trajectory. Raises DataProblem, which names `where` and the id."""
    try:
        data = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        message = f"is not a JSON object: {' '.join(str(error).split())}"
        raise DataProblem(Reason.MALFORMED, where, None, message) from None
    return parse_object(data, where)


def parse_object(data: Any, where: str = "trajectory") -> Trajectory:
    """The object of a line as a checked trajectory. Raises DataProblem."""
    if not isinstance(data, dict):
        message = f"expected a JSON object, got {data!r:.60}"
        raise DataProblem(Reason.MALFORMED, where, None, message)
    name = data["id"] if isinstance(data.get("id"), str) else None

    def check(condition: object, message: str, reason: Reason = Reason.MALFORMED):
        if not condition:
            raise DataProblem(reason, where, name, message)

    unknown = sorted(set(data) - {*_REQUIRED, *_OPTIONAL})
    check(not unknown, f"unknown keys {', '.join(map(repr, unknown))}")
    for key in _REQUIRED:
        text = data.get(key)
        check(isinstance(text, str) and text.strip(), f"{key} should be text, got {text!r:.60}")
    for key in ("system", "reasoning", *KINDS):
        text = data.get(key)
        check(text is None or isinstance(text, str), f"{key} should be text, got {text!r:.60}")
    named = [kind for kind in KINDS if data.get(kind) is not None]
    check(len(named) <= 1, f"at most one file, got {' and '.join(named)}")
    kind = named[0] if named else None
    check(kind is None or _is_path(data[kind]), f"{kind} should be a path")
    choices = [] if data.get("choices") is None else data["choices"]
    check(
        isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices),
        f"choices should be a list of texts, got {choices!r:.60}",
    )
    check(len(choices) <= len(LETTERS), f"{len(choices)} choices; letters are for {len(LETTERS)}")
    metadata = data.get("metadata")
    check(metadata is None or isinstance(metadata, dict), "metadata should be an object")
    reasoning = data.get("reasoning") or ""
    segments = _segments(data.get("segments"), check)
    pairs = reasoning.count(PAIR)
    check(
        pairs == len(segments),
        f"{pairs} empty latent pairs in reasoning, {len(segments)} segments",
        Reason.CITATION,
    )
    check(kind or not segments, "segments without a media file", Reason.CITATION)
    return Trajectory(
        id=data["id"],
        question=data["question"],
        answer=data["answer"],
        kind=kind,
        path=data[kind] if kind else None,
        system=data.get("system"),
        choices=tuple(choices),
        reasoning=reasoning,
        segments=segments,
        metadata=metadata,
        where=where,
    )


def fit_segment(start: float, end: float, duration: float) -> tuple[float, float] | None:
    """The segment with its end cut to the clip's; None where it lies outside the clip."""
    if start < 0 or start >= duration or end > duration + END_TOLERANCE:
        return None
    return start, min(end, duration)


def _segments(given: Any, check: Callable) -> tuple[tuple[float, float], ...]:
    check(given is None or isinstance(given, list), f"segments should be a list, got {given!r:.60}")
    segments = []
    for pair in given or ():
        is_pair = isinstance(pair, list) and len(pair) == 2
        numbers = is_pair and all(type(x) in (int, float) and abs(x) < 1e9 for x in pair)
        check(numbers, f"a segment should be [start, end] in seconds, got {pair!r:.60}")
        start, end = map(float, pair)
        check(start < end, f"from {start:g} to {end:g} s", Reason.EMPTY)
        check(start >= 0, f"from {start:g} s", Reason.OUTSIDE)
        segments.append((start, end))
    return tuple(segments)


def _check_use(trajectory: Trajectory, seen: dict[str, Trajectory], max_blocks: int | None):
    """Raises DataProblem on a repeated id or too many blocks."""
    where, name, blocks = trajectory.where, trajectory.id, len(trajectory.segments)
    if name in seen:
        detail = f"first used at {seen[name].where}"
        raise DataProblem(Reason.DUPLICATE, where, name, detail)
    if max_blocks is not None and blocks > max_blocks:
        detail = f"{blocks} latent blocks, at most {max_blocks} are allowed"
        raise DataProblem(Reason.BLOCKS, where, name, detail)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key is given twice among {', '.join(key for key, _ in pairs):.80}")
    return found


def _is_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half surrogate pairs
        return False
