"""Folders as `latentomni eval` leaves them, of made-up answers, for tests of what reads them."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.av_events.clips import make_clip

KINDS, LENGTHS = ("Event Sequence", "Inference", "Comparative"), ("30s", "60s")
RULES = ("boxed", "statement", "letter")
OUTCOMES = ("right", "right", "wrong", "right", "unparsed", "failed", "wrong")
PUBLISHED = {"LatentOmni": 67.4, "Qwen2.5-Omni-7B": 62.9}
PUBLISHED_BY = {"length": {"LatentOmni": {"30s": 68.2, "120s": 60.0}}}


def make_line(number: int, kind: str, text: str = "I look. It is so.") -> dict[str, Any]:
    """A line of answers.jsonl. kind: right, wrong, unparsed or failed."""
    line = {"line": number, "id": f"q{number}", "video": f"clip{number % 7}.mp4"}
    axes = {"type": KINDS[number % 3], "length": LENGTHS[number % 2]}
    if kind == "failed":
        return line | {"axes": axes, "error": "clip is broken"}
    expected = "ABCD"[number % 4]
    answer = {"right": expected, "wrong": "ABCD"[(number + 1) % 4], "unparsed": None}[kind]
    return line | {
        "question": f"What happens after event {number}?",
        "choices": ["a bell", "a dog", "a horn", "a door"],
        "axes": axes,
        "text": text,
        "answer": answer,
        "rule": "none" if answer is None else RULES[number % 3],
        "expected": expected,
        "right": kind == "right",
        "finished": True,
        "tokens": 50 + number,
        "latent_blocks": 1,
        "latent_steps": 40,
        "prompt_tokens": {"text": 60, "video": 400, "audio": 750},
    }


def make_lines(count: int, step: int = 1) -> list[dict[str, Any]]:
    """Lines of every kind; another step gives other ones of the same questions."""
    return [make_line(i, OUTCOMES[i * step % len(OUTCOMES)]) for i in range(count)]


def tally(lines: list[dict[str, Any]]) -> dict[str, Any]:
    failed = sum("error" in line for line in lines)
    answered = sum(line.get("answer") is not None for line in lines)
    right = sum(line.get("right", False) for line in lines)
    total = len(lines)
    return {
        "total": total, "answered": answered, "unparsed": total - failed - answered,
        "failed": failed, "right": right, "accuracy": right / total,
        "interval": _about(right / total),
        "accuracy_answered": right / answered if answered else None,
        "interval_answered": _about(right / answered) if answered else None,
    }  # fmt: skip


def _about(share: float) -> list[float]:
    return [max(share - 0.1, 0.0), min(share + 0.05, 1.0)]


def make_run(
    folder: Path,
    lines: list[dict[str, Any]],
    *,
    options: dict[str, Any] | None = None,
    explored: list[dict[str, Any]] = (),
    model: str = "tiny",
    **changes: Any,
) -> Path:
    """Writes a run of these lines. changes: of scores.json."""
    folder.mkdir(parents=True)
    answered = [line for line in lines if "error" not in line]
    axes = {
        axis: {
            value: tally([line for line in lines if line["axes"][axis] == value])
            for value in dict.fromkeys(line["axes"][axis] for line in lines)
        }
        for axis in lines[0]["axes"]
    }
    scores = {
        "benchmark": "daily_omni", "title": "Daily-Omni", "style": "own", "model": model,
        "options": {"latents": "auto", "num_visual": 32, "num_audio": 8} | (options or {}),
        "overall": tally(lines), "axes": axes,
        "rules": dict(Counter(line["rule"] for line in answered)),
        "positions": {
            letter: {name: sum(line[of] == letter for line in answered)
                     for name, of in (("given", "answer"), ("expected", "expected"))}
            for letter in "ABCD"
        },
        "published": PUBLISHED, "published_by": PUBLISHED_BY,
    } | changes  # fmt: skip
    cost = {
        "seconds": 12.5, "questions": len(lines), "text_tokens": 5000, "latent_steps": 1600,
        "prompt_tokens": 48400, "peak_memory": 3 << 30, "device": "cpu",
    }  # fmt: skip
    for name, value in [("scores.json", scores), ("cost.json", cost)]:
        (folder / name).write_text(json.dumps(value))
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "explore").mkdir()
    for i, one in enumerate(explored):
        (folder / "explore" / f"{i:05d}.json").write_text(json.dumps(one))
    return folder


def make_two(root: Path) -> tuple[Path, Path]:
    """Two runs that differ in their slots; the first has two questions of one clip to look into."""
    clip = root / "a clip #1.mp4"
    make_clip(clip, seconds=4.0, size=(96, 64))
    explored = [make_explored(clip, "q1"), make_explored(clip, "q4")]
    one = make_run(root / "one", make_lines(140), explored=explored)
    two = make_run(root / "two", make_lines(140, 3), options={"num_visual": 16, "num_audio": 4})
    return one, two


def make_explored(clip: Path, id: str, seconds: float = 4.0) -> dict[str, Any]:
    """A question with two latent blocks of 2 + 1 slots, over 4 temporal patches of 2 x 3 tokens.

    Slot k of block b looks at one place of one moment only: token (k + b) % 6 of patch k + b; it
    listens to cell 2 * k + b of 8.
    """
    blocks = []
    for b in range(2):
        seen, heard = np.zeros((3, 4, 2, 3), np.uint8), np.zeros((3, 8), np.uint8)
        for k in range(3):
            seen[k, k + b].flat[(k + b) % 6] = 255
            heard[k, 2 * k + b] = 255
        blocks.append(
            {
                "slots": ["v1", "v2", "a1"],
                "clock": [1.25, 3.75, 2.5],
                "seen": base64.b64encode(seen.tobytes()).decode(),
                "seen_max": 0.25,
                "heard": base64.b64encode(heard.tobytes()).decode(),
                "heard_max": 0.125,
            }
        )
    shares = [
        dict(zip(("video", "audio", "latent", "text", "through_latents"), row, strict=True))
        for row in [(0.1, 0.1, 0.0, 0.8, 0.0), (0.5, 0.25, 0.05, 0.2, 0.02)]
    ]
    return {
        "id": id, "video": str(clip), "question": "What is heard last?", "duration": seconds,
        "choices": ["a bell", "a dog"], "expected": "B", "answer": "B", "right": True,
        "frames": {"seconds": [i * seconds / 4 for i in range(4)], "grid": [4, 2, 3]}, "cells": 8,
        "pieces": [
            {"kind": "text", "text": "I look. ", "shares": shares[0]},
            {"kind": "latent", "block": 0, "shares": shares[1]},
            {"kind": "text", "text": "Again. ", "shares": shares[0]},
            {"kind": "latent", "block": 1, "shares": shares[1]},
            {"kind": "text", "text": "\\boxed{B}", "shares": shares[0]},
        ],
        "blocks": blocks, "layers": [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]],
    }  # fmt: skip
