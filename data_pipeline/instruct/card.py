"""Counts of a data set, and the data card that tells them to people."""

from __future__ import annotations

import bisect
import collections
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from data_pipeline.instruct.items import CATEGORIES, MODALITIES, Entry, Fate, Item, Kind
from data_pipeline.instruct.settings import ROLES

_SCORES = ("context_utilization", "question_difficulty", "deductive_requirement")
_BOUNDS = (0, 1, 2, 3, 5, 10, 15, 30, 60)  # seconds, of a histogram's columns
_ROWS = 50  # of a table of free texts, the most frequent
_WIDTH = 100  # characters that are told of such a text
_OTHERS = "(all others)"
_UNSTATED = "(not stated)"
_INTRODUCTION = """\
# A LatentOmni-Instruct data set

Questions about video clips with sound, each with reasoning that cites the stretches of its clip
that it rests on, made by language models from captions of the clips. An item is a question
to be made of one caption; of {items} items {kept} were kept.

| file | one line of it is |
|---|---|
| trajectories.jsonl | an example to train with: question, reasoning with an empty pair of latent \
tokens where it cites, `segments` in seconds, answer in `\\boxed{{}}` |
| samples.jsonl | the same example with all that led to it: caption, scores, what is seen and \
heard in each segment, the draft, the audit |
| ledger.jsonl | how an item ended, with the reason, and a model's reply where that was unusable |
| counts.json | all lines: the numbers below |

The clips are not part of it: `video` is a path below the folder of the videos.
"""
_LIMITATIONS = """\
## Limitations

- Questions, answers, scores, reasoning and corrections are the work of language models. No person
  has checked them; the scores are one model's opinion of another's question.
- The models that asked, scored, reasoned and audited read text. What a caption gets wrong or leaves
  out, a question cannot know, and an answer is right as far as the caption is.
- "Needs both modalities" is judged from text. Nobody has measured here what can be answered from
  the pictures or the sound alone.
- Segments are cut by time, or by the shots that the captions give, not around events. A cited
  segment can hold more than what it is cited for, and an event can lie across its edge.
- Segments whose captioner is `text` were described by cutting timed captions. No model has looked
  at or listened to them.
- Language, subjects and biases are those of the captions' sources. Nothing was filtered for privacy
  or for what may offend.
- Licences are quoted as the caption files state them. They were not verified, and they need not be
  those of the clips.
"""


def licences(facts: Mapping[str, str]) -> dict[str, str]:
    """What a caption's facts state as its source and licence, by "source" and "licence"."""
    names = {"source": "source", "licence": "licence", "license": "licence"}
    return {names[key.lower()]: text for key, text in facts.items() if key.lower() in names}


class Counts:
    """Counts that grow by the item and the entry. They hold no item."""

    def __init__(self):
        self._ends: Counter[tuple[str, str, str]] = Counter()
        self._tables: dict[str, Counter] = collections.defaultdict(Counter)
        self._clips: Counter[str] = Counter()

    def add_entry(self, entry: Entry) -> None:
        """Counts the end of an item."""
        self._ends[entry.fate, entry.stage, entry.reason or ""] += 1

    def add_item(self, item: Item) -> None:
        """Counts a kept item, all of whose fields are filled."""
        question, scores, chain = item.question, item.scores, item.chain
        assert question is not None and scores is not None and chain is not None
        spans = {segment.number: segment for segment in item.segments}
        stated = licences(item.caption.facts)
        for table, value in {
            "category": scores.category,
            "modality": scores.modality_dependency,
            "kind": item.kind,
            "reasoning type": question.reasoning_type,
            **{name: getattr(scores, name) for name in _SCORES},
            "total": scores.total,
            "citations": len(chain.cited),
            "layout": item.caption.layout,
            "source": stated.get("source", _UNSTATED),
            "licence": stated.get("licence", _UNSTATED),
            **{role: item.models.get(role, _UNSTATED) for role in ROLES},
        }.items():
            self._tables[table][value if isinstance(value, int) else _short(value)] += 1
        for number in chain.cited:
            segment = spans[number]
            bound = bisect.bisect_right(_BOUNDS, segment.end - segment.start) - 1
            self._tables["seconds"][bound] += 1
            self._tables["described by"][segment.captioner] += 1
        self._clips[item.caption.video] += 1

    def to_json(self) -> dict[str, Any]:
        """All counts, in an order that depends on nothing else.

        `items` by fate; `ends` as rows of fate, stage, reason ("" where kept) and count; `clips`,
        how many; `tables`, of the kept items, as rows of a value and its count.
        """
        fates = {fate: 0 for fate in get_args(Fate)}
        for (fate, *_), count in self._ends.items():
            fates[fate] += count
        tables = {
            "category": _rows(self._tables["category"], CATEGORIES),
            "modality": _rows(self._tables["modality"], MODALITIES),
            "kind": _rows(self._tables["kind"], get_args(Kind)),
            **{name: _rows(self._tables[name], range(1, 6)) for name in _SCORES},
            "total": _span(self._tables["total"]),
            "citations": _span(self._tables["citations"]),
            "trajectories of a clip": _span(Counter(self._clips.values())),
            "seconds": [[_bound(place), count] for place, count in _span(self._tables["seconds"])],
        } | {
            name: _frequent(self._tables[name])
            for name in ("reasoning type", *ROLES, "described by", "layout", "source", "licence")
        }
        return {
            "items": fates,
            "ends": [[*end, count] for end, count in sorted(self._ends.items())],
            "clips": len(self._clips),
            "tables": tables,
        }


def card(counts: Mapping[str, Any]) -> str:
    """The data card as Markdown, of `Counts.to_json`."""
    fates, tables = counts["items"], counts["tables"]

    def table(name: str, heading: str, unit: str = "Trajectories") -> str:
        whole = sum(count for _, count in tables[name])
        rows = ((value, count, _share(count, whole)) for value, count in tables[name])
        return _table((heading, unit, "Share"), rows)

    scores = ((i, *(dict(tables[name])[i] for name in _SCORES)) for i in range(1, 6))
    return "\n".join(
        [
            _INTRODUCTION.format(items=sum(fates.values()), kept=fates["kept"]),
            "## What became of the items\n",
            _table(("Fate", "Items", "Share"), (
                (fate, count, _share(count, sum(fates.values()))) for fate, count in fates.items()
            )),
            _table(("Fate", "Stage", "Reason", "Items"), counts["ends"]),
            f"## What was kept\n\n{fates['kept']} trajectories of {counts['clips']} clips.\n",
            table("category", "Category"),
            table("modality", "Modality that it depends on"),
            table("kind", "Kind of question"),
            table("reasoning type", "Reasoning type, as its model named it"),
            "### Scores\n\nEach from 1 to 5.\n",
            _table(("Score", *_SCORES), scores),
            table("total", "Total of the three"),
            "### Citations\n",
            table("citations", "Citations in a trajectory"),
            table("seconds", "Seconds of a cited segment", "Citations"),
            table("described by", "Captioner of a cited segment", "Citations"),
            table("trajectories of a clip", "Trajectories of a clip", "Clips"),
            "## Provenance\n",
            _table(("Role", "Model", "Trajectories"), (
                (role, model, count) for role in ROLES for model, count in tables[role]
            )),
            table("layout", "Layout of the caption file"),
            table("source", "Source, as the captions state it"),
            table("licence", "Licence, as the captions state it"),
            _LIMITATIONS,
        ]
    )  # fmt: skip


# ----------------------------------------------------------------------------- rows of tables


def _rows(found: Counter, order: Iterable) -> list[list]:
    """Rows in a given order, none left out."""
    return [[value, found[value]] for value in order]


def _span(found: Counter[int]) -> list[list]:
    """Rows from the least number to the largest, none left out."""
    return _rows(found, range(min(found), max(found) + 1)) if found else []


def _frequent(found: Counter[str]) -> list[list]:
    """Rows by falling count, the last of them all that are rare."""
    rows = sorted(([value, count] for value, count in found.items()), key=lambda r: (-r[1], r[0]))
    rest = sum(count for _, count in rows[_ROWS:])
    return rows[:_ROWS] + ([[_OTHERS, rest]] if rest else [])


def _bound(place: int) -> str:
    low, *high = _BOUNDS[place : place + 2]
    return f"{low} to less than {high[0]}" if high else f"{low} and more"


def _short(text: str) -> str:
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _share(count: int, whole: int) -> str:
    return f"{count / max(whole, 1):.1%}"


def _table(head: Iterable[str], rows: Iterable[Iterable]) -> str:
    lines = [head, *(map(_cell, row) for row in rows)]
    first, *others = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([first, "|" + "---|" * len(tuple(head)), *others]) + "\n"


def _cell(value: object) -> str:
    """A value as plain text: no character of it is Markdown or HTML."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([^\w\s.,:;%()/…-])", r"\\\1", text, flags=re.ASCII)
