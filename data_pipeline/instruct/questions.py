"""Stage 1: a question about a caption that needs eyes and ears, scored by a judge, and filtered."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from data_pipeline.instruct.items import (
    CATEGORIES,
    MODALITIES,
    Caption,
    Dropped,
    Item,
    Question,
    Reason,
    Scores,
)
from data_pipeline.instruct.prompts import request
from data_pipeline.instruct.replies import Asker, seed_of
from data_pipeline.instruct.settings import Settings

REASONING_TYPES = (
    "causal",
    "spatial",
    "temporal sequence",
    "sound-action attribution",
    "object interaction",
    "comparison",
    "intention",
)
_WORDS = 10  # of an open answer, at most
# What a question must not speak of: clock times, tags and boxes, file names, its own source.
_FORBIDDEN = re.compile(
    r"\b\d{1,2}:\d{2}\b|[<>\[\]{}|]|\.(mp4|mkv|webm|avi|wav)\b"
    r"|\b(the|this|given) (description|caption|transcript)\b",
    re.IGNORECASE,
)


def items_of(caption: Caption, settings: Settings) -> Iterator[Item]:
    """One item for each kind of question."""
    for kind in settings.kinds:
        yield Item(id=f"{caption.id}-{kind}", kind=kind, caption=caption)


async def draft(item: Item, ask: Asker) -> Item:
    """Writes the question. Options are in an order of chance, so that no letter is favoured."""
    caption = item.caption.text
    asked = request(f"{item.kind}_question", caption=caption, reasoning_types=REASONING_TYPES)
    seed = seed_of(ask.settings.seed, item.id)
    reply = await ask(asked, seed, _check_open if item.kind == "open" else _check_choice)
    data = reply.data
    kept = {"text": data["question"], "reasoning_type": data["reasoning_type"]}
    if item.kind == "open":
        question = Question(answer=data["answer"], **kept)
    else:
        options = [data["right"], *data["wrong"]]
        order = np.random.default_rng(seed).permutation(len(options)).tolist()
        answer = "ABCD"[order.index(0)]
        question = Question(options=tuple(options[i] for i in order), answer=answer, **kept)
    return told_by(item, "question", reply.model, question=question)


async def check_leak(item: Item, ask: Asker) -> Item:
    """Drops a question that one modality alone answers (not in the paper; optional)."""
    reply = await ask(request("leak", **_known(item)), seed_of(ask.settings.seed, item.id))
    found = [sense for sense in ("sight", "sound") if reply.data[f"found_by_{sense}"]]
    if found:
        raise Dropped(Reason.LEAK, f"by {' and by '.join(found)}: {reply.data['reason']}")
    return told_by(item, "judge", reply.model)


async def judge(item: Item, ask: Asker) -> Item:
    """Scores and classifies; drops what is below the threshold."""
    asked = request("judge", **_known(item), categories=CATEGORIES, modalities=MODALITIES)
    reply = await ask(asked, seed_of(ask.settings.seed, item.id))
    scores = Scores(**reply.data | {"confidence": float(reply.data["confidence"])})
    if scores.total < ask.settings.threshold:
        raise Dropped(Reason.SCORE, f"{scores.total} of 15, {ask.settings.threshold} are wanted")
    return told_by(item, "judge", reply.model, scores=scores)


def _known(item: Item) -> dict[str, str]:
    """What a judge is told of a question."""
    question = item.question
    assert question is not None
    return {
        "caption": item.caption.text,
        "question": question.text,
        "answer": question.answer_text,
    }


def _check_open(data) -> None:
    _check_text(data["question"], data["answer"])
    if len(data["answer"].split()) > _WORDS:
        raise ValueError(f"an answer of more than {_WORDS} words")


def _check_choice(data) -> None:
    options = [data["right"], *data["wrong"]]
    _check_text(data["question"], *options)
    if len({option.casefold().strip(" .") for option in options}) < len(options):
        raise ValueError("two options are the same")


def _check_text(*texts: str) -> None:
    for text in texts:
        if found := _FORBIDDEN.search(text):
            raise ValueError(f"speaks of {found[0]!r}")


def told_by(item: Item, role: str, model: str, **found) -> Item:
    return dataclasses.replace(item, models=item.models | {role: model}, **found)
