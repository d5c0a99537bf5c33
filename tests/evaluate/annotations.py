"""Annotation files of benchmarks that are not here, made by hand to their documented schemas.

No row is a real one. The schemas' dirt is: letters printed in four ways, options lettered A, B, A,
B, misspelt keys, texts that contradict the letter, lists written as text, commas too many.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OMNIVIDEOBENCH = {  # questions by value, as the benchmark's documentation counts them
    "audio_type": {"Speech": 762, "Sound": 147, "Music": 91},
    "duration": {"(1,5]": 340, "(10,30]": 262, "(5,10]": 227, "(0,1]": 171},
    "question_type": {
        "counting": 156,
        "causal reasoning": 138,
        "temporal understanding": 137,
        "reference reasoning": 99,
        "fine-grained perception": 91,
        "sentiment analysis": 81,
        "ego reasoning": 71,
        "spatial understanding": 62,
        "summarization": 49,
        "background&music understanding": 47,
        "relationship reasoning": 24,
        "hypothetical reasoning": 24,
        "attribute comparison": 21,
    },
}
OMNIVIDEOBENCH_ANSWERS = {"A": 246, "B": 269, "C": 269, "D": 216}
# Clips of each bucket: how many, and what they say they last.
_CLIPS = {
    "(10,30]": (164, ("10:01", "30:00", "12:30")),
    "(0,1]": (107, ("00:01", "01:00")),
    "(1,5]": (214, ("01:01", "05:00")),
    "(5,10]": (143, ("05:01", "10:00")),
}
_LONGEST = {"video_89": "30:03", "video_95": "32:35"}
_MARKS = (". ", ".", " ", ": ")
_STEPS: list[Any] = [
    [{"modality": "vision", "evidence": "a sign at 1:42", "inference": "it is read"}],
    [{"modality": "aduio", "evidece": "a voice", "infefence": "someone speaks"}],
    [{"nmodality": "vison", "evience": "x", "Inference": "y"}, {"nModality": "vsion"}],
    [{"modality": "audio,", "evodence": "x"}, {"modality": "vision.", "nevidence": "y"}, {}],
    [{"modality": "auido."}, {"modality": "aodio"}, {"modality": "viison"}],  # codespell:ignore
    "",
    [],
]


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def omnivideobench() -> list[dict[str, Any]]:
    """All of it: 628 videos, 1,000 questions with the documented counts, 63 texts of `answer` that
    are not the right option's, three questions of video_81 lettered A, B, A, B."""
    audio, kind, letters = (
        [value for value, count in counts.items() for _ in range(count)]
        for counts in (
            OMNIVIDEOBENCH["audio_type"],
            OMNIVIDEOBENCH["question_type"],
            OMNIVIDEOBENCH_ANSWERS,
        )
    )
    videos, number = [], 0
    for bucket, (clips, lengths) in _CLIPS.items():
        first = len(videos)
        for clip in range(clips):
            name = f"video_{first + clip + 1}"
            length = _LONGEST.get(name, lengths[clip % len(lengths)])
            videos.append({"video": name, "video_type": "Vlog", "duration": length})
        for place in range(OMNIVIDEOBENCH["duration"][bucket]):
            # Questions of video_81 are three, those above 30 minutes five.
            names = {0: 81, 1: 81, 2: 81, 3: 89, 4: 89, 5: 89, 6: 95, 7: 95} if not first else {}
            rest = [i for i in range(first, first + clips) if i + 1 not in names.values()]
            index = names[place] - 1 if place in names else rest[(place - len(names)) % len(rest)]
            question = _omnivideobench_question(number)
            letter = letters[-1 - number * 9 % 1000]  # of the first ones D
            right = "ABCD".index(letter)
            question |= {
                "audio_type": audio[number * 7 % 1000],
                "question_type": kind[number * 3 % 1000],
                "correct_option": letter,
                "answer": f"thing {right + 1}" if 10 <= number < 949 else "other",
            }
            if number in (10, 11):  # the text is another option's
                question["answer"] = f"thing {(right + 1) % 4 + 1}"
            if number in (0, 1, 2):
                question["options"] = [f"{x}. thing {i}" for i, x in enumerate("ABAB", start=1)]
            videos[index].setdefault("questions", []).append(question)
            number += 1
    return videos


def _omnivideobench_question(number: int) -> dict[str, Any]:
    mark = _MARKS[number % len(_MARKS)]
    return {
        "question": f" What is number {number}?\n",
        "reasoning_steps": _STEPS[number % len(_STEPS)],
        "options": [f"{x}{mark}thing {i}" for i, x in enumerate("ABCD", start=1)],
    }


def worldsense() -> dict[str, Any]:
    """Two videos with three questions, of four options and of three."""

    def task(domain: str, kind: str, answer: str, count: int = 4) -> dict[str, Any]:
        return {
            "task_domain": domain,
            "task_type": kind,
            "question": f"Where is the {kind}?",
            "answer": answer,
            "candidates": [f"{x}. It's place '{x}'." for x in "ABCD"[:count]],
        }

    return {
        "dvOk": {
            "video_id": "dvOk",
            "video_duration": "45s",
            "duration": "<1min",
            "domain": "Music",
            "sub_category": "Covers",
            "audio_class": ["Music", "Speech"],
            "video_caption": 'A "caption"\twith a tab\nand a line.',
            "task0": task("Understanding", "Spatial Relation", "B"),
            "task1": task("Recognition", "Audio Change", "C", 3),
        },
        "-x_9": {
            "video_id": "-x_9",
            "video_duration": "500s",
            "duration": ">8min",
            "domain": "Games",
            "sub_category": "FPS Game",
            "audio_class": ["Music"],
            "video_caption": "",
            "task0": task("Recognition", "Audio Change", "D"),
        },
    }


def lvomnibench() -> list[dict[str, Any]]:
    """Five questions about two videos: a list of options, and four texts."""
    options = [
        ["A. red", "B. green", "C. it's blue", "D. none"],
        "['A. red', 'B. green', \"C. it's blue\", 'D. none']",
        "['A. red' 'B. green'\n \"C. it's blue\" 'D. none']",
        "A. red\nB. green\nC. it's blue\nD. none",
        "A) red, B) green, C) it's blue, D) none",
    ]
    return [
        {
            "question_id": number if number else "q0",
            "video_id": f"video_{number % 2}",
            "video_category": "Sports",
            "sub_category": "Football",
            "duration": ("17:30", "01:20:05")[number % 2],
            "question": f"What is number {number}?",
            "options": given,
            ("correct_option", "answer")[number % 2]: "C",
            "question_type": "Counting",
            "audio_type": ("Speech", "Music")[number % 2],
            "difficulty": ("Low", "Medium", "High", "high", "Low")[number],
        }
        for number, given in enumerate(options)
    ]


def video_mme() -> list[dict[str, Any]]:
    """All of it, as rows of the dataset: 900 videos, three questions each."""
    return [
        {
            "video_id": f"{video + 1:03}",
            "duration": ("short", "medium", "long")[video // 300],
            "domain": ("Knowledge", "Life Record")[video % 2],
            "sub_category": "Law",
            "url": f"https://example.org/{video}",
            "videoID": f"yt-{video}",
            "question_id": f"{video + 1:03}-{number}",
            "task_type": ("Counting Problem", "OCR Problems", "Object Reasoning")[number - 1],
            "question": f"What, ] is number {number}?",
            "options": ["A. Apples,", "B. Candles.", "C. Berries.", "D. All of them."],
            "answer": "ABCD"[(video + number) % 4],
        }
        for video in range(900)
        for number in (1, 2, 3)
    ]


def video_mme_template(rows: list[dict[str, Any]]) -> str:
    """Rows as the authors' template for results, which is no strict JSON."""
    videos: dict[str, dict[str, Any]] = {}
    of_video = ("video_id", "duration", "domain", "sub_category")
    for row in rows:
        video = videos.setdefault(row["video_id"], {key: row[key] for key in of_video})
        inner = {key: row[key] for key in ("question_id", "task_type", "question", "options")}
        video.setdefault("questions", []).append(inner | {"answer": row["answer"], "response": "C"})
    text = json.dumps(list(videos.values()), indent=4)
    return text.replace('"response": "C"\n', '"response": "C",\n')
