"""`latentomni inspect`: what the model would receive, without running it or loading its weights."""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.positions import Clock
from latentomni_jax.backbone.text import make_cache
from latentomni_jax.commands.prompt import (
    Medium,
    add_prompt_arguments,
    check_prompt_arguments,
    prompt_parts,
    read_media,
)
from latentomni_jax.latent.decode import DecodeSpec
from latentomni_jax.latent.trajectory import collate
from latentomni_jax.layout import (
    AudioGroup,
    Batch,
    InputError,
    LatentSpec,
    MediaSpec,
    Role,
    TextPart,
    VisionGroup,
    VisionPart,
)
from latentomni_jax.media.text import Tokenizer, load_tokenizer
from latentomni_jax.weights.specs import read_specs

EPILOG = """\
examples:
  latentomni inspect --model models/qwen7b --video clip.mp4 --question "What is said first?"

  the arrays themselves, to compare or to plot:
    latentomni inspect --model models/qwen7b --video clip.mp4 --question "..." --out prompt.npz

prompt.npz holds token_ids i32[S], roles i8[S] (layout.Role), position_ids i32[3,S] (time, height,
width), feature_index i32[S] (row of the feature table, -1 for text), and per file frame_times
f32[T] s, grid i32[3], patches f32[P,1176], mel f32[M,128], as far as the file has them. With
several files their names begin with image_, video_ or audio_.

A model directory without weights will do: config, tokenizer and preprocessor files are enough.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show what the model would receive: frames, tokens, positions, shapes."
    parser.epilog = EPILOG
    add_prompt_arguments(parser)
    parser.add_argument("--out", metavar="X.npz", help="also write the arrays")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Describes the prompt; 0 when all went well.

    Raises:
      InputError: unusable model directory, media file, or place for --out.
    """
    check_prompt_arguments(args)
    config, latent, spec = read_specs(args.model)
    tokenizer = load_tokenizer(args.model)
    media = read_media(args, spec)
    parts = prompt_parts(args, tokenizer, media)
    batch, groups, table_rows = collate(config, [parts], clock=args.clock)
    described = {
        "media": [describe_medium(medium, spec) for medium in media],
        "prompt": describe_prompt(config, tokenizer, batch),
        "encoder_calls": describe_calls(groups),
        "feature_table": [table_rows, config.text.hidden_size],
        "cache": describe_cache(config, latent, batch),
        "clock": args.clock,
    }
    if args.out:
        write_arrays(args.out, batch, media)
    print(json.dumps(described) if args.json else render(described))
    return 0


# ---------------------------------------------------------------------------- describing


def describe_medium(medium: Medium, spec: MediaSpec) -> dict[str, Any]:
    """A file in numbers: what was sampled from it, when, and how large."""
    clip, arrays = medium.clip, medium_arrays(medium)
    fields: dict[str, Any] = {
        "kind": medium.kind,
        "path": medium.path,
        "duration_s": round(clip.duration, 3),
    }
    if clip.frames is not None:
        count, height, width, _ = clip.frames.shape
        fields |= {
            "frames": count,
            "frame_times_s": [round(float(t), 3) for t in arrays["frame_times"]],
            "frame_size": [width, height],
            "pixels_per_frame": width * height,
            "grid": arrays["grid"].tolist(),
            "patches": list(arrays["patches"].shape),
        }
    if clip.audio is not None:
        fields |= {
            "audio_s": round(len(clip.audio) / spec.sampling_rate, 3),
            "mel": list(arrays["mel"].shape),
        }
    return fields


def medium_arrays(medium: Medium) -> dict[str, np.ndarray]:
    """frame_times, grid, patches and mel, as far as the file has them."""
    part = medium.part
    arrays = {"frame_times": medium.clip.frame_times}
    if isinstance(part, VisionPart):
        arrays |= {"grid": np.array(part.grid, np.int32), "patches": part.patches}
    if not isinstance(part, TextPart):
        arrays["mel"] = part.mel
    return {name: array for name, array in arrays.items() if array is not None}


def describe_prompt(config: ThinkerConfig, tokenizer: Tokenizer, batch: Batch) -> dict[str, Any]:
    """The first row of a batch: counts by role, and runs of tokens with their positions."""
    length = int(batch.lengths[0])
    counts = Counter(Role(role).name.lower() for role in batch.roles[0, :length])
    return {
        "tokens": length,
        "bucket": batch.token_ids.shape[1],
        "roles": dict(counts),
        "next_position": int(batch.next_position[0]),
        "runs": [
            describe_run(tokenizer, batch, start, end)
            for start, end in token_runs(config, batch.token_ids[0, :length])
        ],
    }


def token_runs(config: ThinkerConfig, token_ids: np.ndarray) -> list[tuple[int, int]]:
    """Where runs begin and end: placeholders of one kind together, all between them together."""
    placeholders = [config.video_token_id, config.image_token_id, config.audio_token_id]
    kinds = np.where(np.isin(token_ids, placeholders), token_ids, -1)
    cuts = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    return list(itertools.pairwise(cuts))


def describe_run(tokenizer: Tokenizer, batch: Batch, start: int, end: int) -> dict[str, Any]:
    ids = batch.token_ids[0, start:end]
    positions = batch.position_ids[:, 0, start:end]
    is_media = batch.feature_index[0, start] >= 0
    return {
        "start": start,
        "tokens": end - start,
        "text": tokenizer.decode(ids[:1] if is_media else ids, skip_special=False),
        "role": Role(batch.roles[0, start]).name.lower(),
        **{
            axis: [int(row.min()), int(row.max())]
            for axis, row in zip("thw", positions, strict=True)
        },
    }


def describe_calls(groups: Sequence[VisionGroup | AudioGroup]) -> list[dict[str, Any]]:
    """Encoder calls of equal shape together; each shape is one compiled program."""
    calls: dict[tuple, dict[str, Any]] = {}
    for group in groups:
        if isinstance(group, AudioGroup):
            encoder, shape = "audio", group.mel.shape
        else:
            encoder, shape = "vision", group.patches.shape
        call = calls.setdefault(
            (encoder, shape), {"encoder": encoder, "input": list(shape), "calls": 0, "real": 0}
        )
        call["calls"] += 1
        call["real"] += int(np.count_nonzero(group.lengths))
    return list(calls.values())


def describe_cache(config: ThinkerConfig, latent: LatentSpec, batch: Batch) -> dict[str, Any]:
    """Size of the key-value cache for this prompt's bucket and the default answer length."""
    length = batch.token_ids.shape[1] + DecodeSpec(spec=latent).capacity
    shapes = jax.eval_shape(lambda: make_cache(config.text, 1, length, jnp.bfloat16))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return {"positions": length, "dtype": "bfloat16", "bytes": size}


def write_arrays(path: str, batch: Batch, media: Sequence[Medium]) -> None:
    """The `.npz` of --out; the epilog lists its arrays. Raises InputError."""
    length = int(batch.lengths[0])
    arrays = {
        "token_ids": batch.token_ids[0, :length],
        "roles": batch.roles[0, :length],
        "position_ids": batch.position_ids[:, 0, :length],
        "feature_index": batch.feature_index[0, :length],
    }
    for medium in media:
        prefix = f"{medium.kind}_" if len(media) > 1 else ""
        arrays |= {prefix + name: array for name, array in medium_arrays(medium).items()}
    try:
        # Through a file object, because numpy would append .npz to another name.
        with pathlib.Path(path).open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror})") from error


# ---------------------------------------------------------------------------- printing


def render(described: dict[str, Any]) -> str:
    """The description as a page of text."""
    lines = []
    for medium in described["media"]:
        lines += [*render_medium(medium), ""]
    lines += [*render_prompt(described["prompt"], described["clock"]), ""]
    for call in described["encoder_calls"]:
        unit = "2-second chunk(s)" if call["encoder"] == "audio" else "frame pair(s)"
        shape = " x ".join(map(str, call["input"]))
        lines.append(
            f"{call['encoder']:<7} {call['calls']} call(s) of {shape}, {call['real']} {unit}"
        )
    if described["encoder_calls"]:
        rows, width = described["feature_table"]
        lines.append(f"table   {rows} feature rows of width {width}")
    cache = described["cache"]
    lines.append(
        f"cache   {cache['positions']} positions (prompt bucket and a default answer), "
        f"{cache['bytes'] / 1e6:.1f} MB in {cache['dtype']}"
    )
    return "\n".join(lines)


def render_medium(medium: dict[str, Any]) -> list[str]:
    lines = [f"{medium['kind']}   {medium['path']}"]
    if medium["kind"] != "image":
        lines[0] += f", {medium['duration_s']:.2f} s"
    if "frames" in medium:
        width, height = medium["frame_size"]
        time, rows, columns = medium["grid"]
        lines.append(
            f"  frames  {medium['frames']} of {width} x {height} = {medium['pixels_per_frame']} "
            f"pixels; grid {time} x {rows} x {columns} = {medium['patches'][0]} patches"
        )
        if medium["kind"] != "image":
            lines.append(f"  times   {_shortened(medium['frame_times_s'])} s")
    if "mel" in medium:
        lines.append(f"  sound   {medium['audio_s']:.2f} s; {medium['mel'][0]} mel frames")
    elif medium["kind"] == "video":
        lines.append("  sound   none")
    return lines


def render_prompt(prompt: dict[str, Any], clock: Clock) -> list[str]:
    """A table of runs; h and w are left out where they equal t, as in text."""
    tokens, bucket = prompt["tokens"], prompt["bucket"]
    counts = ", ".join(f"{name} {count}" for name, count in prompt["roles"].items())
    lines = [
        f"prompt  {tokens} tokens ({counts}); padded to {bucket}; {clock} clock",
        f"  {'at':>6} {'tokens':>6}  {'time':<13} {'height':<13} {'width':<13} content",
    ]
    for run in prompt["runs"]:
        axes = [f"{low}-{high}" for low, high in (run["t"], run["h"], run["w"])]
        if axes[0] == axes[1] == axes[2]:
            axes[1:] = "", ""
        content = _shortened_text(run["text"])
        if run["role"] in ("prompt_video", "prompt_audio"):
            content = f"{run['text']} x{run['tokens']}"
        columns = " ".join(f"{axis:<13}" for axis in axes)
        lines.append(f"  {run['start']:>6} {run['tokens']:>6}  {columns} {content}")
    lines.append(f"  {tokens:>6}         {prompt['next_position']:<13} (the answer)")
    return lines


def _shortened(times: Sequence[float], ends: int = 4) -> str:
    texts = [f"{time:.2f}" for time in times]
    if len(texts) > 2 * ends + 1:
        texts[ends:-ends] = ["..."]
    return " ".join(texts)


def _shortened_text(text: str, size: int = 60) -> str:
    """One line with both ends of a text."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= size else f"{text[: size // 2]} ... {text[-size // 2 :]}"
