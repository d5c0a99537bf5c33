r"""What was kept becomes a data set: trajectories, what led to them, what became of the rest.

    OUT/trajectories.jsonl  kept items as training reads them
        samples.jsonl       the same items with all that led to them, in the same order
        ledger.jsonl        how every item ended, one `Entry` a line
        README.md           the data card
        counts.json         its numbers; written last, so that with it the set is complete

Texts come from models and may hold anything. In a trajectory they are `harmless`: the latent pairs
of its reasoning are those put here, one behind each step that cites a segment.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipeline.instruct.card import Counts, card, licences
from data_pipeline.instruct.items import Entry, Item
from data_pipeline.shards import write_text, writing
from data_pipeline.trajectories import PAIR, Trajectory, parse_object
from latentomni_jax.layout import InputError
from latentomni_jax.media.text import CHAT_TOKENS, LATENT_TOKENS, MEDIA_TOKENS

TRAJECTORIES, SAMPLES, LEDGER = "trajectories.jsonl", "samples.jsonl", "ledger.jsonl"
COUNTS, CARD = "counts.json", "README.md"
_SPECIAL = re.compile("|".join(map(re.escape, LATENT_TOKENS + CHAT_TOKENS + MEDIA_TOKENS)))
_NO_BRACES = str.maketrans("{}", "()")
_NAMED = 5  # ids that a message names


def harmless(text: str) -> str:
    """Text of a model in which no special token stands, and no half of a surrogate pair.

    A space behind its `<` breaks a token. Unlike blanking, as `strip_special` does, that leaves
    something of an option that is nothing else.
    """
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return _SPECIAL.sub(lambda found: f"< {found[0][1:]}", valid)


def trajectory(item: Item) -> Trajectory:
    r"""What is trained with of a kept item.

    `reasoning` is the steps of `item.chain`, a `PAIR` behind each that cites a segment; steps
    between two citations are parted by a space. `answer` is `\boxed{}` of the option's letter, or
    of the text with round brackets for braces. `metadata` is for people and for scores by type.

    Raises:
      InputError: the item went not through all stages, or cites a segment that it does not have.
    """
    question, scores, chain = item.question, item.scores, item.chain
    if question is None or scores is None or chain is None:
        raise InputError(f"{item.id!r}: expected an item with a question, scores and a chain")
    spans = {segment.number: (segment.start, segment.end) for segment in item.segments}
    if missing := sorted(set(chain.cited) - set(spans)):
        raise InputError(f"{item.id!r}: cites segment {missing[0]}, it has {sorted(spans)}")
    runs: list[list[str]] = [[]]
    for step in chain.steps:
        runs[-1].append(step.text.strip())
        if step.segment is not None:
            runs.append([])
    answer = chain.answer if question.options else harmless(chain.answer).translate(_NO_BRACES)
    return Trajectory(
        id=item.id,
        kind="video",
        path=item.caption.video,
        question=harmless(question.text),
        choices=tuple(map(harmless, question.options)),
        reasoning=PAIR.join(harmless(" ".join(filter(None, run))) for run in runs),
        segments=tuple(spans[number] for number in chain.cited),
        answer=f"\\boxed{{{answer}}}",
        metadata={
            "type": scores.category,
            "modality": scores.modality_dependency,
            "scores": [
                scores.context_utilization,
                scores.question_difficulty,
                scores.deductive_requirement,
            ],
            "kind": item.kind,
            "reasoning_type": harmless(question.reasoning_type),
            "models": item.models,
            "captioner": " and ".join(sorted({segment.captioner for segment in item.segments})),
            **{name: harmless(text) for name, text in licences(item.caption.facts).items()},
        },
    )


def write_dataset(
    out: str | os.PathLike,
    items: Iterable[Item],
    entries: Iterable[Entry],
    expected_ids: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Writes the data set, the same bytes for the same items and entries; replaces what is there.

    Args:
      out: directory, made where it is missing.
      items: the kept ones, in the order in which they are written.
      entries: of all items, also of the kept ones. expected_ids: see `check_ledger`.

    Returns:
      The counts, see `card.Counts`.

    Raises:
      InputError: an item cannot be trained with, or the ledger keeps others (`check_ledger`). What
        was in `out` is then as it was.
    """
    out, counts, kept = Path(out), Counts(), []
    out.mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as files:
        trajectories, samples, ledger = (
            files.enter_context(writing(out / name)) for name in (TRAJECTORIES, SAMPLES, LEDGER)
        )
        for item in items:
            made = trajectory(item).to_json()
            parse_object(made, f"{out / TRAJECTORIES}:{len(kept) + 1}")
            trajectories.write(json.dumps(made) + "\n")
            samples.write(json.dumps(item.to_json()) + "\n")
            counts.add_item(item)
            kept.append(item.id)

        def written():
            for entry in entries:
                ledger.write(json.dumps(dataclasses.asdict(entry)) + "\n")
                counts.add_entry(entry)
                yield entry

        check_ledger(written(), expected_ids, kept)
        (out / COUNTS).unlink(missing_ok=True)
    found = counts.to_json()
    write_text(out / CARD, card(found))
    write_text(out / COUNTS, json.dumps(found, indent=1) + "\n")
    return found


def check_ledger(
    entries: Iterable[Entry],
    expected_ids: Iterable[str] | None = None,
    kept_ids: Iterable[str] | None = None,
) -> None:
    """Proves that the counts add up: each item ended, once, and the kept ones are there.

    Args:
      expected_ids: of all items that began. kept_ids: of the trajectories. None compares nothing.

    Raises:
      InputError: which names the ids that differ.
    """
    fates: dict[str, list[str]] = collections.defaultdict(list)
    for entry in entries:
        fates[entry.id].append(entry.fate)
    _none([f"{id!r} ({', '.join(all)})" for id, all in fates.items() if len(all) > 1], "end twice")
    if expected_ids is not None:
        expected = set(expected_ids)
        _none(map(repr, expected - set(fates)), "began and did not end")
        _none(map(repr, set(fates) - expected), "ended and did not begin")
    if kept_ids is not None:
        trained = collections.Counter(kept_ids)
        kept = {id for id, (fate, *_) in fates.items() if fate == "kept"}
        _none((repr(id) for id, count in trained.items() if count > 1), "are trained with twice")
        _none(map(repr, kept - set(trained)), "are kept and no trajectory")
        _none(map(repr, set(trained) - kept), "are a trajectory and not kept")


def _none(ids: Iterable[str], what: str) -> None:
    if found := sorted(ids):
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise InputError(
            f"ledger: {len(found)} items {what}: {', '.join(found[:_NAMED])}{more}; "
            "expected each to end once, as kept, dropped or failed"
        )
