"""Items for tests: whole ones, of which a test changes what it is about."""

from __future__ import annotations

import dataclasses
from typing import Any

from data_pipeline.instruct.items import (
    Audit,
    Caption,
    Chain,
    Entry,
    Fate,
    Item,
    Question,
    Reason,
    Scores,
    Segment,
    Step,
)

CAPTION = Caption(
    id="clip.mp4",
    video="clip.mp4",
    text="A red disc moves to the right while a low tone sounds. Then a green square, and a high "
    "tone.",
    facts={"source": "made up", "license": "CC0"},
)
QUESTION = Question(
    text="Which shape moves while the higher tone sounds?",
    options=("the disc", "the square", "the triangle", "none"),
    answer="B",
    reasoning_type="sound-action attribution",
)
SCORES = Scores(
    context_utilization=5,
    question_difficulty=4,
    deductive_requirement=4,
    category="audio-visual joint perception",
    modality_dependency="AV-Strong",
    confidence=0.9,
    reason="Both are needed.",
)
SEGMENTS = (
    Segment(
        number=1,
        start=0.0,
        end=2.0,
        seen=("A red disc moves right.",),
        heard=("A low tone sounds.",),
        fused=("A red disc moves right.", "A low tone sounds."),
        text="While a low tone sounds, a red disc moves right.",
    ),
    Segment(
        number=2,
        start=2.0,
        end=3.5,
        seen=("A green square moves.",),
        heard=("A higher tone sounds.",),
        fused=("A higher tone sounds.", "A green square moves."),
        text="A green square moves to a higher tone.",
    ),
)
DRAFT = Chain(
    steps=(
        Step(text="I listen for the higher tone.", segment=1),
        Step(text="The weather is nice."),
        Step(text="The square moves there.", segment=2),
        Step(text="So it is the square."),
    ),
    answer="B",
)
AUDIT = Audit(removed=(2,), moved=((1, 2), (3, 0)), reason="The higher tone is in segment 2.")
CHAIN = Chain(
    steps=(
        Step(text="I listen for the higher tone.", segment=2),
        Step(text="The square moves there."),
        Step(text="So it is the square."),
    ),
    answer="B",
)


def make_item(id: str = "clip.mp4#choice", **changes: Any) -> Item:
    """A kept multiple-choice item whose draft the audit corrected; `changes` are its fields."""
    whole: dict[str, Any] = {
        "kind": "choice",
        "caption": CAPTION,
        "question": QUESTION,
        "scores": SCORES,
        "segments": SEGMENTS,
        "drafted": DRAFT,
        "audit": AUDIT,
        "chain": CHAIN,
        "models": {"question": "asker", "judge": "judge", "reasoner": "reasoner"},
    }
    return Item(id=id, **(whole | changes))


def make_open(id: str = "clip.mp4#open", answer: str = "the square", **changes: Any) -> Item:
    """A kept open item."""
    question = dataclasses.replace(QUESTION, options=(), answer=answer)
    chain = dataclasses.replace(CHAIN, answer=answer)
    return make_item(id, **{"kind": "open", "question": question, "chain": chain} | changes)


def make_entry(id: str, fate: Fate = "kept", **changes: Any) -> Entry:
    """The end of an item: kept, dropped for its scores, or failed for a reply."""
    whole: dict[str, Any] = {
        "kept": {"stage": "chains"},
        "dropped": {"stage": "questions", "reason": Reason.SCORE, "detail": "12, expected 13"},
        "failed": {"stage": "segments", "reason": Reason.REPLY, "raw": "I cannot do that."},
    }[fate]
    return Entry(id=id, fate=fate, **(whole | changes))
