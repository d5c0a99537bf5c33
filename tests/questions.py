"""Files of questions: clips good and broken, lines that are no questions, texts of two lengths."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.av_events.clips import make_clip

_LONG = "Which shape is on the screen while the tone is high, and which one before it? "
_MEDIA = ({}, {}, {"video": "a.mp4"}, {}, {"video": "mute-a.mp4"}, {}, {"audio": "a.mp4"})
BROKEN = {1: "text.mp4", 3: "gone.mp4", 6: "is not a JSON object", 8: "first used at"}


def make_questions(directory: Path, count: int, *, broken: bool = True) -> Path:
    """Writes `questions.jsonl` with `count` lines that are not blank, and its clips.

    Every fourth question is long, three of seven have a clip. With `broken`, the places in `BROKEN`
    get no answer, for a reason that names what stands there: a clip that is text, one that is
    missing, a line that is no JSON, an id that was used before.
    """
    make_clip(directory / "a.mp4", 2.0, size=(112, 112))
    make_clip(directory / "mute-a.mp4", 2.0, size=(112, 112), sound=False)
    (directory / "text.mp4").write_text("This is no video.\n" * 100)
    lines = []
    for number in range(count):
        question = {
            "id": f"q{number}",
            "question": _LONG * (3 if number % 4 == 3 else 1) + f"Tell of moment {number}.",
            "choices": ["the disc", "the square", "the triangle"],
            "answer": f"\\boxed{{{'ABC'[number % 3]}}}",
            **_MEDIA[number % len(_MEDIA)],
        }
        if broken and number in (1, 3):
            question["video"] = BROKEN[number]
        if broken and number == 8:
            question["id"] = "q0"
        lines.append("not JSON" if broken and number == 6 else json.dumps(question))
    path = directory / "questions.jsonl"
    path.write_text("\n\n".join(lines) + "\n")  # blank lines are no questions
    return path
