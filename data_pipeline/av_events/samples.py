"""What is in a set: which clips, and the samples about them that are trained and tested with.

Every clip is drawn from (seed, split, number) alone, so splits share none, and any process can make
any clip.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.av_events.captions import lists
from data_pipeline.av_events.questions import Question, ask
from data_pipeline.av_events.words import exercises
from data_pipeline.av_events.world import Dial, Kind, Timeline, draw_timeline
from data_pipeline.shards import write_text
from data_pipeline.trajectories import PAIR
from latentomni_jax.layout import InputError
from latentomni_jax.media.chat import BUILT_IN_TEMPLATE, chat_prompt
from latentomni_jax.media.processor import with_choices
from latentomni_jax.media.text import train_sentencepiece

FORMAT = 3
QUESTIONED = ("train", "test", "novel")  # splits whose clips have questions
SPLITS = (*QUESTIONED, "pictures", "sounds")
_SHARES = (0.72, 0.14, 0.14)
_SHORT = 1  # pictures and sounds for every clip of "train"
_PIECES = 640  # of the tokenizer: a word of this world is mostly one
CHECK_SEED = 1 << 32  # of no set: seeds of sets are below


@dataclasses.dataclass(frozen=True)
class World:
    """What makes a set. Attributes: clips: of each of `SPLITS`."""

    dial: Dial
    seed: int
    clips: tuple[int, int, int, int, int]

    @classmethod
    def of(cls, clips: int, seed: int, dial: Dial) -> World:
        """A world of so many clips with questions."""
        if clips < 10:
            raise InputError(f"a set has at least 10 clips, got {clips}")
        if not 0 <= seed < CHECK_SEED:
            raise InputError(f"a seed lies in 0 .. 2^32 - 1, got {seed}")
        test, novel = (round(clips * share) for share in _SHARES[1:])
        train = clips - test - novel
        return cls(dial, seed, (train, test, novel, *[_SHORT * train] * 2))

    def draw(self, split: str, number: int) -> tuple[Timeline, list[Question]]:
        """The truth of a clip, and the questions about it."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        kinds: dict[str, Kind] = {"pictures": "picture", "sounds": "sound"}
        kind = kinds.get(split, "covered" if number % 2 else "plain")
        timeline = draw_timeline(rng, self.dial, kind, novel=split == "novel")
        return timeline, ask(rng, timeline)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | json.loads(json.dumps(dataclasses.asdict(self)))


def clip_path(split: str, number: int) -> str:
    """Of a clip, within the set."""
    return f"clips/{split}-{number:05d}.mp4"


def write_samples(out: Path, world: World) -> None:
    """Every file of samples, and the tokenizer that learned from "base"."""
    trajectories = {split: _trajectories(world, split) for split in QUESTIONED}
    for split, lines in trajectories.items():
        _write_jsonl(out / f"{split}.jsonl", lines)
    lists = [_list_samples(world, split) for split in (*SPLITS[3:], "train")]
    silent = _trajectories(world, "train", silent=True)
    base = itertools.chain(_word_samples(world), *lists, trajectories["train"], silent)
    _write_jsonl(out / "base.jsonl", base)
    train_sentencepiece(_texts(out / "base.jsonl"), out / "tokenizer", vocab_size=_PIECES)


def _texts(path: Path) -> Iterator[str]:
    """What a model reads and writes in the samples of a file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        question = with_choices(sample["question"], sample.get("choices", ()))
        chat = chat_prompt([{"role": "user", "content": question}], BUILT_IN_TEMPLATE)
        yield from re.split(r"<\|\w+\|>", chat)
        yield from sample.get("reasoning", "").split(PAIR)
        yield sample["answer"]


def _trajectories(world: World, split: str, *, silent: bool = False) -> list[dict[str, Any]]:
    lines, mark = [], "-silent" if silent else ""
    for number in range(world.clips[SPLITS.index(split)]):
        _, questions = world.draw(split, number)
        lines += [
            question.to_sample(
                f"{split}-{number:05d}-{question.type}{mark}",
                clip_path(split, number),
                silent=silent,
            )
            for question in questions
        ]
    return lines


def _list_samples(world: World, split: str) -> list[dict[str, Any]]:
    """Of every clip a list of every kind."""
    lines = []
    for number in range(world.clips[SPLITS.index(split)]):
        timeline, _ = world.draw(split, number)
        rng = np.random.default_rng([world.seed, len(SPLITS), number])
        lines += [
            {
                "id": f"{split}-{number:05d}-{kind}",
                "video": clip_path(split, number),
                "question": request,
                "answer": answer + ".",
            }
            for kind, (request, answer) in lists(rng, timeline).items()
        ]
    return lines


def _word_samples(world: World) -> list[dict[str, Any]]:
    """As many of every kind as there are pictures."""
    lines = []
    for number in range(world.clips[SPLITS.index("pictures")]):
        rng = np.random.default_rng([world.seed, len(SPLITS) + 1, number])
        lines += [
            {"id": f"words-{number:05d}-{kind}", **sample}
            for kind, sample in exercises(rng, world.dial.alike).items()
        ]
    return lines


def _write_jsonl(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
