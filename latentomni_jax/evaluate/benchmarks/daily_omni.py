"""Daily-Omni (github.com/Lliar-liar/Daily-Omni, fccb838): everyday videos of 30 or 60 s.

Annotations: `qa.json`, a list of 1,197 questions about 684 videos, or the `qa.json` of one of the
repository's example folders. Their optional fields come in three sets; none of them is read.
Videos: `{id}/{id}_video.mp4`. Questions are numbered within their video: "Ec_lQgZ9wlg-1".

The authors' script samples greedily, puts the text before the video, and reads the letter that the
reply begins with, whatever follows it: "Because ..." is B.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import Style
from latentomni_jax.evaluate.benchmarks.base import (
    BOXED,
    QWEN_SYSTEM,
    Benchmark,
    Reading,
)
from latentomni_jax.evaluate.benchmarks.reading import Row, read_json, read_rows
from latentomni_jax.layout import InputError
from latentomni_jax.media.extract import NOTHING, Found


def read(path: Path) -> Reading:
    """See `Benchmark.read`."""
    data = read_json(path)
    rows = data.get("benchmark_qa") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of questions, or an object with benchmark_qa")
    return read_rows(path, rows, _parse)


def _parse(row: Row) -> Trajectory:
    video = row.name("video_id")
    row.number_within(video)
    options = row.options("Choice")
    return row.question(
        path=f"{video}/{video}_video.mp4",
        question=row.text("Question"),
        options=options,
        answer=row.letter("Answer", options),
        axes=row.axes("Type", "video_category", video_duration=("30s", "60s")),
    )


def ask(question: Trajectory) -> str:
    """See `Style.ask`."""
    options = (question.metadata or {})["options"]
    return (
        "Answer a multiple-choice question about the given video.\n"
        "Select the single most accurate answer among the choices.\n"
        f"Question: {question.question}\n"
        f"Choices: {options}\n"
        "Your answer should be a capital letter representing your choice: A, B, C, or D. "
        "Don't generate any other text."
    )


def extract(text: str, choices: Sequence[str]) -> Found:
    """The letter A to D, of either case, that begins what stands after the last "assistant"."""
    match = re.match(r"\s*([A-D])", text.rpartition("assistant")[2], re.IGNORECASE)
    return Found(match[1].upper(), "first letter") if match else NOTHING


BENCHMARK = Benchmark(
    name="daily_omni",
    title="Daily-Omni",
    read=read,
    axes=("Type", "video_category", "video_duration"),
    styles={
        "own": Style(
            ask=ask,
            extract=extract,
            clock="nominal",
            system=QWEN_SYSTEM,
            text_first=True,
            options={"temperature": 0.0, "max_new_tokens": 10},
        ),
        "boxed": BOXED,
    },
    published={
        "GPT-4o": 56.5,
        "Gemini-2.0-Flash": 67.8,
        "Gemini-2.5-Pro": 81.4,
        "VideoLLaMA2-7B": 35.2,
        "MiniCPM-o-7B": 53.1,
        "VITA-1.5-7B": 44.7,
        "HumanOmniV2-7B": 58.5,
        "Baichuan-Omni-1.5": 50.0,
        "OmniVinci": 66.5,
        "Qwen2.5-Omni-7B": 62.9,
        "Qwen2.5-Omni-7B + Text CoT": 65.6,
        "Qwen2.5-Omni-7B + SFT": 62.0,
        "LatentOmni": 67.4,
    },
)
