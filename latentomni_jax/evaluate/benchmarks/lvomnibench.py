"""LVOmniBench (github.com/KD-TAO/LVOmniBench, 41b843c): 1,014 questions about 275 long videos.

Annotations: `data.json`, a list of questions. Some exports name the right letter `answer`, and some
have the options as one text: a list as Python or JSON writes it, or options one after the other,
which are parted where A, B, C and D follow each other. Videos: `{video_id}.mp4`.

The authors' script compares with one of the letters A to F, also where there are four options.
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
from latentomni_jax.evaluate.benchmarks.reading import Row, literal_list, read_json, read_rows
from latentomni_jax.layout import InputError
from latentomni_jax.media.extract import NOTHING, Found

_LETTERS = "ABCDEF"
# Where an option begins in a text of several: at its start or behind blanks, quotes, separators.
_BEGINS = re.compile(r"(?:^|(?<=[\s,;|'\"\[]))(['\"]?)\(?([A-D])[.:)]\s?")
_STARTS = re.compile(rf"([{_LETTERS}])(?:[.): ,]|\Z)")
_SAID = re.compile(r"ANSWER\s*(?:IS|:)\s*([A-F])")


def read(path: Path) -> Reading:
    """See `Benchmark.read`."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of questions")
    return read_rows(path, rows, _parse)


def _parse(row: Row) -> Trajectory:
    row.id = row.name("question_id")
    row.data["options"] = _options(row)
    options = row.options("options")
    key = "correct_option"
    if key not in row.data and "answer" in row.data:
        key = "answer"
        row.mended.append("the right letter is named answer and not correct_option")
    return row.question(
        path=f"{row.name('video_id')}.mp4",
        question=row.text("question"),
        options=options,
        answer=row.letter(key, options),
        axes=row.axes(
            "question_type", "audio_type", "video_category", difficulty=("Low", "Medium", "High")
        ),
    )


def _options(row: Row) -> object:
    """The list of options, where they are one text what that can be read as."""
    given = row.data.get("options")
    if not isinstance(given, str):
        return given
    # Python takes 'A. x' 'B. y' for one text: a list that lost its commas is parted by letters.
    listed = literal_list(given)
    if listed is not None and len(listed) > 1:
        row.mended.append("options are one text, read as the list that it writes")
        return listed
    text = given.strip()
    text = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    found = list(_BEGINS.finditer(text))
    if "".join(match[2] for match in found) != "ABCD" or text[: found[0].start()].strip():
        row.refuse(f"options are one text that cannot be parted at A, B, C and D: {given!r:.60}")
    ends = [match.start() for match in found[1:]] + [len(text)]
    options = []
    for match, end in zip(found, ends, strict=True):
        option = text[match.end() : end].rstrip(" \t\r\n,;|")
        options.append(f"{match[2]}. {option.removesuffix(match[1]).strip()}")
    row.mended.append("options are one text, parted at A, B, C and D")
    return options


def ask(question: Trajectory) -> str:
    """See `Style.ask`."""
    options = "\n".join((question.metadata or {})["options"])
    return (
        f"Question: {question.question}\nOptions:\n{options}\n\n"
        "Select the best answer from the options above. Directly provide the letter representing "
        "your choice (A/B/C/D) and nothing else. Leave out the option's text, and explain nothing."
    )


def extract(text: str, choices: Sequence[str]) -> Found:
    """In capitals: the letter that the reply begins with, one that is said to be the answer, the
    first of A to F that is a word, the first that is anywhere."""
    text = text.upper().strip()
    if match := _STARTS.match(text):
        return Found(match[1], "leading letter")
    if match := _SAID.search(text):
        return Found(match[1], "stated")
    for letter in _LETTERS:
        if re.search(rf"\b{letter}\b", text):
            return Found(letter, "letter that is a word")
    if match := re.search(rf"[{_LETTERS}]", text):
        return Found(match[0], "any letter")
    return NOTHING


BENCHMARK = Benchmark(
    name="lvomnibench",
    title="LVOmniBench",
    read=read,
    axes=("question_type", "audio_type", "difficulty", "video_category"),
    styles={
        "own": Style(
            ask=ask,
            extract=extract,
            clock="nominal",
            system=f"{QWEN_SYSTEM} Watch the video with care and choose the option that fits best.",
            options={"temperature": 0.0, "max_new_tokens": 100},
        ),
        "boxed": BOXED,
    },
    published={
        "Gemini-2.0-Flash": 42.9,
        "VideoLLaMA2-7B": 27.0,
        "MiniCPM-o-7B": 34.8,
        "HumanOmniV2-7B": 32.3,
        "Baichuan-Omni-1.5": 32.8,
        "Qwen2.5-Omni-7B": 32.0,
        "Qwen2.5-Omni-7B + Text CoT": 32.1,
        "Qwen2.5-Omni-7B + SFT": 33.2,
        "LatentOmni": 35.1,
    },
)
