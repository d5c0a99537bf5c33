"""Stage 3: reasoning that cites segments, corrected by a second model and checked by us."""

from __future__ import annotations

import dataclasses

from data_pipeline.instruct.dataset import trajectory
from data_pipeline.instruct.items import (
    Audit,
    Chain,
    Dropped,
    Failed,
    Item,
    Reason,
    Segment,
    Step,
)
from data_pipeline.instruct.prompts import request
from data_pipeline.instruct.questions import told_by
from data_pipeline.instruct.replies import Asker, seed_of
from data_pipeline.trajectories import parse_object
from latentomni_jax.layout import InputError

MOST = 3  # segments that a trajectory cites; at least one


async def reason(item: Item, ask: Asker) -> Item:
    """Drafts the reasoning. The model is not told the answer: to reach it has to mean something."""
    question = item.question
    assert question is not None
    asked = request(
        "reason",
        segments=_told(item),
        numbers=[segment.number for segment in _told(item)],
        question=question.text,
        options=list(zip("ABCD", question.options, strict=False)),
    )
    reply = await ask(asked, seed_of(ask.settings.seed, item.id))
    steps = tuple(
        Step(text=step["text"], segment=step["segment"] or None) for step in reply.data["steps"]
    )
    chain = Chain(steps=steps, answer=reply.data["answer"])
    return told_by(item, "reasoner", reply.model, drafted=chain)


async def audit(item: Item, ask: Asker) -> Item:
    """Corrects and checks the draft.

    Raises:
      Dropped: the auditor discards it, it ends in another answer, or what is left cites nothing.
    """
    question, drafted = item.question, item.drafted
    assert question is not None and drafted is not None
    if question.options and drafted.answer != question.answer:  # no need to ask anyone
        raise Dropped(Reason.ANSWER, f"{drafted.answer}, right is {question.answer}")
    given = drafted.answer
    if question.options:
        given = question.options[ord(given) - ord("A")]
    asked = request(
        "audit",
        segments=_told(item),
        numbers=[segment.number for segment in _told(item)],
        question=question.text,
        answer=question.answer_text,
        steps=drafted.steps,
        given=given,
    )
    reply = await ask(asked, seed_of(ask.settings.seed, item.id))
    data = reply.data
    if data["verdict"] == "discard":
        raise Dropped(Reason.AUDIT, data["reason"])
    same = given == question.answer_text if question.options else data["same_answer"]
    if not same:
        raise Dropped(Reason.ANSWER, f"{given!r}, right is {question.answer_text!r}")
    done = Audit(
        removed=tuple(sorted(set(data["removed"]))),
        moved=tuple((move["step"], move["segment"]) for move in data["moved"]),
        reason=data["reason"],
    )
    chain = apply(done, drafted)
    check_citations(chain, item.segments)
    if not question.options:
        chain = dataclasses.replace(chain, answer=question.answer)
    item = told_by(item, "auditor", reply.model, audit=done, chain=chain)
    try:  # now, where it is about one item
        parse_object(trajectory(item).to_json())
    except InputError as error:
        raise Failed(Reason.REPLY, f"cannot be trained with: {error}") from error
    return item


def apply(audit: Audit, chain: Chain) -> Chain:
    """The chain with the auditor's corrections; of two moves of one step the last counts.

    Two steps in a row that look at the same segment look once: the first look is kept.
    """
    moves = dict(audit.moved)
    steps: list[Step] = []
    looked = None
    for number, step in enumerate(chain.steps, start=1):
        if number in audit.removed:
            continue
        segment = (moves[number] or None) if number in moves else step.segment
        steps.append(dataclasses.replace(step, segment=None if segment == looked else segment))
        looked = segment
    return dataclasses.replace(chain, steps=tuple(steps))


def check_citations(chain: Chain, segments: tuple[Segment, ...]) -> None:
    """Raises Dropped where the chain cites none, too many, or what does not exist."""
    numbers = {segment.number for segment in segments}
    if strange := sorted(set(chain.cited) - numbers):
        raise Dropped(Reason.CITATION, f"segment {strange[0]} of {len(numbers)}")
    if not 1 <= len(chain.cited) <= MOST:
        raise Dropped(Reason.CITATION, f"{len(chain.cited)} citations, 1 to {MOST} are wanted")


def _told(item: Item) -> list[Segment]:
    """Segments of which something is known."""
    return [segment for segment in item.segments if segment.text]
