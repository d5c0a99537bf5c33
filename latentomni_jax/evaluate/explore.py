"""One answer to look at: its text and latent blocks in order, and where each of them looked.

A JSON object, which a page can show without a model. What a piece of the answer looks at is the
attention of the positions that made it: of the last token of the prompt for the first token, of the
trigger for a block's first state. So a block's maps, over the slots, add up to its share.

    {"id", "video", "question", "choices", "expected", "answer", "right", "duration",
     "frames": {"seconds": [T starts], "grid": [T, h, w]}, "cells": C,
     "pieces": [{"kind": "text", "text", "shares"} or {"kind": "latent", "block", "shares"}, ...],
     "blocks": [{"slots": ["v1", ..., "a1", ...], "clock": [seconds or null, ...],
                 "seen": base64 of u8[K,T,h,w], "seen_max", "heard": u8[K,C], "heard_max"}, ...],
     "layers": [[video, audio, latent, text], ...]}

A weight of a map is u8/255 * max. Shares are an object with the names of `attention.Shares`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipeline.shards import write_text
from data_pipeline.trajectories import Trajectory
from latentomni_jax.backbone.positions import Clock
from latentomni_jax.evaluate.answers import score
from latentomni_jax.evaluate.attention import (
    KINDS,
    SLOTS,
    Looks,
    Shares,
    clip_maps,
    look,
    picture_grid,
)
from latentomni_jax.evaluate.replay import Replay, replay
from latentomni_jax.layout import AudioPart, Clip, InputError, LatentSpec, Part, Role
from latentomni_jax.model import Generation, LatentOmni

_DIGITS = 6  # of shares
_CELLS_PER_SECOND, _MOST_CELLS = 2, 240
# What a file holds: a tuple is one of several, a list any number, float a weight (0 or more).
_SHARES = dict.fromkeys(Shares._fields, float)
_TEXT = {"kind": str, "text": str, "shares": _SHARES}
_LATENT = {"kind": str, "block": int, "shares": _SHARES}
_MAPS = {"seen": str, "seen_max": float, "heard": str, "heard_max": float}
_FIELDS = {
    "id": str,
    "video": str,
    "question": str,
    "choices": [str],
    "expected": (str, None),
    "answer": (str, None),
    "right": (bool, None),
    "duration": float,
    "frames": {"seconds": [float], "grid": [int]},
    "cells": int,
    "pieces": [(_TEXT, _LATENT)],
    "blocks": [_MAPS | {"slots": [str], "clock": [(float, None)]}],
    "layers": [[float]],
}


def explored(
    model: LatentOmni,
    question: Trajectory,
    prompt: Sequence[Part],
    generation: Generation,
    path: Path,
    clip: Clip,
    *,
    clock: Clock = "true",
) -> dict[str, Any]:
    """The object of an answer; see the module.

    Args:
      prompt: what was asked, with one clip or none. generation: the model's answer.
      path: of the clip. clip: as the model was given it.
      clock: of the prompt, as in `LatentOmni.generate`.

    Returns:
      `expected`, `answer` and `right` are by `answers.score` (a benchmark's own rule replaces
      them), None where the question has no answer. `layers` are means over heads and over all
      positions that made one of the answer.

    Raises:
      InputError: several clips, no tokenizer, or weights that are not numbers.
    """
    return explored_row(
        model, question, replay(model, prompt, generation, clock=clock), generation, path, clip
    )[0]


def explored_row(
    model: LatentOmni,
    question: Trajectory,
    row: Replay,
    generation: Generation,
    path: Path,
    clip: Clip,
) -> tuple[dict[str, Any], Looks]:
    """`explored` of a replayed row, and the looks that it is made of: a query for each generated
    position, of the position that made it."""
    if model.tokenizer is None:
        raise InputError("this model was made without a tokenizer")
    grid = picture_grid(model, row)
    looks = look(model, row, range(row.prompt_length - 1, row.length - 1))
    if not np.isfinite(looks.direct).all():
        raise InputError(f"{path}: the model's attention is not finite; its weights are damaged")
    cells = 0
    if Role.PROMPT_AUDIO in row.roles:
        cells = min(max(round(_CELLS_PER_SECOND * clip.duration), 1), _MOST_CELLS)
    pieces, blocks = [], []
    for is_latent, places in _pieces(row):
        makers = places - row.prompt_length
        shares = {name: round(x, _DIGITS) for name, x in looks.shares(makers)._asdict().items()}
        if is_latent:
            pieces.append({"kind": "latent", "block": len(blocks), "shares": shares})
            maps = clip_maps(model, row, looks.keys[makers], clip.duration, cells)
            blocks.append(_block(model.latent, *maps))
        elif text := model.tokenizer.decode(row.token_ids[places].tolist()):
            pieces.append({"kind": "text", "text": text, "shares": shares})
    pictures = [part for part in row.media if not isinstance(part, AudioPart)]
    scored = score(question, generation)
    expected = scored.expected or None
    one = {
        "id": question.id,
        "video": str(path.absolute()),
        "question": question.question,
        "choices": list(question.choices),
        "expected": expected,
        "answer": scored.given,
        "right": None if expected is None else scored.is_right,
        "duration": float(clip.duration),
        "frames": {
            "seconds": [round(float(x), 3) for part in pictures for x in part.seconds],
            "grid": list(grid),
        },
        "cells": cells,
        "pieces": pieces,
        "blocks": blocks,
        "layers": [
            [round(getattr(layer, kind), _DIGITS) for kind in KINDS] for layer in looks.by_layer()
        ],
    }
    return one, looks


def _pieces(row: Replay) -> Iterator[tuple[bool, np.ndarray]]:
    """Runs of text and of slots in the generated positions: which it is, and where it lies."""
    generated = np.arange(row.prompt_length, row.length)
    roles = row.roles[generated]
    kinds = np.where(np.isin(roles, SLOTS), 2, roles == Role.ASSISTANT_TEXT)
    for run in np.split(generated, np.flatnonzero(np.diff(kinds)) + 1):
        if kind := kinds[run[0] - row.prompt_length]:  # else trigger or stop
            yield kind == 2, run


def _block(spec: LatentSpec, seen: np.ndarray, heard: np.ndarray) -> dict[str, Any]:
    clock = [round(float(x), 3) for x in spec.slot_seconds()]
    block = {
        "slots": slot_names(spec),
        "clock": [None] * spec.num_latents if spec.ospe_apply == "none" else clock,
    }
    for name, weights in (("seen", seen), ("heard", heard)):
        most = float(weights.max(initial=0.0))
        levels = np.round(weights / (most or 1.0) * 255).astype(np.uint8)
        block[name] = base64.b64encode(levels.tobytes()).decode()
        block[f"{name}_max"] = most
    return block


def slot_names(spec: LatentSpec) -> list[str]:
    """Of a block's slots in order: v1, v2, ... for visual ones, then a1, a2, ... for sound."""
    counts = (("v", spec.num_visual), ("a", spec.num_audio))
    return [f"{letter}{i + 1}" for letter, count in counts for i in range(count)]


def maps_of(
    one: dict[str, Any], block: int
) -> tuple[Float[np.ndarray, "K T h w"], Float[np.ndarray, "K C"]]:
    """Weights f32 of a block's slots over the pictures' tokens and over the sound."""
    of, shapes = one["blocks"][block], (one["frames"]["grid"], [one["cells"]])
    seen, heard = (
        np.frombuffer(base64.b64decode(of[name], validate=True), np.uint8).reshape(
            len(of["slots"]), *shape
        )
        * np.float32(of[f"{name}_max"] / 255)
        for name, shape in zip(("seen", "heard"), shapes, strict=True)
    )
    return seen, heard


# ------------------------------------------------------------------------- files


def write_explored(folder: Path, number: int, one: dict[str, Any]) -> Path:
    """Writes FOLDER/NNNNN.json, whole or not at all; makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:05d}.json"
    write_text(path, json.dumps(one, allow_nan=False) + "\n")
    return path


def read_explored(path: Path) -> dict[str, Any]:
    """The object of a file, checked: what its parts are, and that they fit each other.

    Raises:
      InputError: no such file, or a damaged one; names it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected one that eval --explore writes")
    try:
        one = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {' '.join(str(error).split())}") from None
    if problem := _problem(one):
        raise InputError(f"{path}: is damaged: {problem}; make it again")
    return one


def _problem(one: Any) -> str | None:
    """What is wrong with an object, None where it is as `explored` makes it."""
    for name, shape in _FIELDS.items():
        if not isinstance(one, dict) or not _fits(one.get(name), shape):
            return f"{name} is missing, or not what it should be"
    grid, seconds = one["frames"]["grid"], one["frames"]["seconds"]
    if len(grid) != 3 or grid[0] != len(seconds):
        return f"there are {len(seconds)} times of frames for a grid of {grid}"
    shares = [[piece["shares"][kind] for kind in KINDS] for piece in one["pieces"]]
    if not all(
        len(one) == len(KINDS) and abs(sum(one) - 1) < 1e-4 for one in shares + one["layers"]
    ):
        return "shares do not add up to 1"
    for piece in one["pieces"]:
        if piece["kind"] != ("latent" if "block" in piece else "text"):
            return f"a piece is of kind {piece['kind']!r:.60}"
        if piece.get("block", -1) >= len(one["blocks"]):
            return "a piece is of a block that is not there"
    for number, block in enumerate(one["blocks"]):
        try:
            maps_of(one, number)
        except ValueError:
            return f"the maps of block {number} are not of the clip's size"
        if len(block["clock"]) != len(block["slots"]):
            return f"the clock of block {number} is not of its slots"
    return None


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value is of a shape, see `_FIELDS`; objects may hold more than it names."""
    if isinstance(shape, tuple):
        return any(_fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(x, shape[0]) for x in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_fits(value.get(k), x) for k, x in shape.items())
    if shape is None:
        return value is None
    if shape in (int, float):
        is_number = type(value) in (int, shape)
        return is_number and math.isfinite(value) and value >= 0
    return type(value) is shape
