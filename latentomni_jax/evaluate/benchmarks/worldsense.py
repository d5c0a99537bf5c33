"""WorldSense (data honglyhly/WorldSense): 3,172 questions about 1,662 videos of the world.

Annotations: `worldsense_qa.json`, an object of videos with task0, task1, ..., or the TSV that
VLMEvalKit makes of it, whose lists are written as Python. Videos: `{video}.mp4`, as the kit unpacks
them. Questions are numbered within their video: "dvOkwKAs-1".

The benchmark's authors evaluate with VLMEvalKit. It puts the prompt's first sentence before the
video and the rest behind; here all of it is behind. Its extraction has lead-ins joined by missing
commas ("Best answer:Best option:"); here they are apart. Where it finds no letter the kit compares
options' texts; here there is then no answer.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import Style
from latentomni_jax.evaluate.benchmarks.base import BOXED, Benchmark, Reading
from latentomni_jax.evaluate.benchmarks.reading import (
    Row,
    literal_list,
    read_json,
    read_rows,
    read_text,
)
from latentomni_jax.layout import InputError
from latentomni_jax.media.extract import NOTHING, Found

_DURATIONS = ("<1min", "1-2min", "2-4min", "4-6min", "6-8min", ">8min")
_TASK = re.compile(r"task\d+")
_COLUMNS = {"video", "question", "candidates", "answer"}
_LISTS = ("candidates", "audio_class")  # columns of lists, written as Python writes them
_AREA = 28 * 28  # pixels of a token
_PIXELS = {  # of the kit's entry for Qwen2.5-Omni
    "video_min_pixels": 128 * _AREA,
    "video_max_pixels": 768 * _AREA,
    "total_pixels": 24_576 * _AREA,
}
_LEAD_INS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
    "Answer:",
    "Option:",
)


def read(path: Path) -> Reading:
    """See `Benchmark.read`."""
    rows = _tsv_rows(path) if path.suffix == ".tsv" else _json_rows(path)
    return read_rows(path, rows, _parse)


def _parse(row: Row) -> Trajectory:
    video = row.name("video")
    row.number_within(video)
    if row.data.get("video_id", video) != video:
        row.refuse(f"video_id {row.data['video_id']!r:.60} stands under {video!r}")
    options = row.options("candidates", sizes=(3, 4))
    axes: dict[str, Any] = row.axes(
        "task_type",
        "domain",
        duration=_DURATIONS,
        task_domain=("Recognition", "Understanding", "Reasoning"),
    )
    heard = row.data.get("audio_class")
    if not isinstance(heard, list) or not all(isinstance(one, str) and one for one in heard):
        row.refuse(f"audio_class should be a list of texts, got {heard!r:.60}")
    return row.question(
        path=f"{video}.mp4",
        question=row.text("question"),
        options=options,
        answer=row.letter("answer", options),
        axes=axes | {"audio_class": list(dict.fromkeys(heard))},
    )


def _json_rows(path: Path) -> Iterator[Any]:
    videos = read_json(path)
    if not isinstance(videos, dict):
        raise InputError(f"{path}: expected an object with videos by their ids")
    for name, video in videos.items():
        tasks = [key for key in video if _TASK.fullmatch(key)] if isinstance(video, dict) else []
        if not tasks:
            yield {"video": name}
            continue
        shared = {key: value for key, value in video.items() if key not in tasks}
        for key in tasks:
            task = video[key]
            yield {**shared, **(task if isinstance(task, dict) else {}), "video": name}


def _tsv_rows(path: Path) -> Iterator[Any]:
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    try:
        if missing := _COLUMNS - set(table.fieldnames or ()):
            raise InputError(f"{path}: expected columns {', '.join(sorted(missing))} in its header")
        for row in table:
            if None in row:
                yield "cells beyond the last column"
            else:
                yield row | {key: literal_list(row.get(key)) or row.get(key) for key in _LISTS}
    except csv.Error as error:
        raise InputError(f"{path}:{table.line_num}: is not TSV: {error}") from None


def ask(question: Trajectory) -> str:
    """See `Style.ask`."""
    options = "\n".join((question.metadata or {})["options"])
    return (
        "Carefully watch this video and pay attention to every detail. Based on your observations, "
        "select the best option that accurately addresses the question.\n"
        "You are given the frames of the video and its sound. Choose the best answer to the "
        "multiple-choice question and reply with its letter (A, B, C, or D) only.\n"
        f"Question: {question.question}\n{options}\nAnswer: "
    )


def extract(text: str, choices: Sequence[str]) -> Found:
    """The first capital A to D that is left when lead-ins are taken out, as part of a word too."""
    for lead_in in _LEAD_INS:
        text = text.replace(lead_in, "")
    match = re.search(r"[ABCD]", text)
    return Found(match[0], "first capital") if match else NOTHING


BENCHMARK = Benchmark(
    name="worldsense",
    title="WorldSense",
    read=read,
    axes=("task_domain", "task_type", "domain", "audio_class", "duration"),
    styles={
        # How many tokens the authors allow is not documented; a letter takes one.
        "own": Style(
            ask=ask,
            extract=extract,
            clock="nominal",
            options={"temperature": 0.0},
            media=_PIXELS,
        ),
        "boxed": BOXED,
    },
    published={
        "GPT-4o": 42.6,
        "Gemini-2.0-Flash": 56.2,
        "Gemini-2.5-Pro": 64.6,
        "VideoLLaMA2-7B": 25.4,
        "MiniCPM-o-7B": 29.7,
        "VITA-1.5-7B": 36.9,
        "HumanOmniV2-7B": 47.1,
        "Baichuan-Omni-1.5": 43.3,
        "OmniVinci": 48.2,
        "Qwen2.5-Omni-7B": 45.4,
        "Qwen2.5-Omni-7B + Text CoT": 46.6,
        "Qwen2.5-Omni-7B + SFT": 47.5,
        "LatentOmni": 48.9,
    },
)
