"""The whole path from a video file to an answer with a latent block, printed step by step.

    python -m launch.demo                          a clip and a small random model, made on the spot
    python -m launch.demo --video FILE --question "..."
    python -m launch.demo --model DIR              a real model

Run it from the repository's root; `bash launch/demo.sh` also installs what it needs.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np

from data_pipeline.av_events.clips import make_clip
from latentomni_jax.backbone.thinker import init_params
from latentomni_jax.commands.inspect import (
    describe_calls,
    describe_medium,
    describe_prompt,
    render_medium,
    render_prompt,
)
from latentomni_jax.commands.prompt import Medium
from latentomni_jax.latent.trajectory import collate
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec, Role
from latentomni_jax.media.processor import build_prompt, clip_part
from latentomni_jax.media.text import train_sentencepiece
from latentomni_jax.media.video import read_clip
from latentomni_jax.model import Generation, LatentOmni
from latentomni_jax.train.start import tiny_model
from latentomni_jax.weights.checkpoint import save_model

RUNS = Path("runs/demo")
QUESTION = "Which shape is on the screen when the highest tone sounds?"
# What the demo's tokenizer learns its pieces from.
TEXT = """
A red disc, a green square and a blue triangle move across the screen, one after the other.
Each shape has a tone of its own: the disc is low, the square is higher, the triangle highest.
Which shape is on the screen when the tone changes? What is heard while the square is seen?
First the disc moves from left to right, then the square, and in the end the triangle.
The answer is the triangle. The sound fades within a second and starts again with the next shape.
Question, answer, video, audio, picture, sound, second, before, after, left, right, high, low.
You are a helpful assistant. system user assistant
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", type=Path, help="your own file instead of the drawn clip")
    parser.add_argument("--model", type=Path, help="a model directory instead of a random model")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    args = parser.parse_args()

    heading("1  Files")
    video, directory = prepare_files(args.video, args.model)
    heading("2  Model")
    model = LatentOmni.from_pretrained(directory)
    show_model(model, is_random=args.model is None)
    heading("3  The video becomes a prompt")
    parts = show_prompt(model, video, args.question)
    heading("4  Encode, prefill, decode")
    timings: dict[str, float] = {}
    print("text   ", end="", flush=True)
    generation = model.generate(
        [parts],
        latents="force",
        max_blocks=2,
        max_new_tokens=args.max_new_tokens,
        # Greedy for a real model; a random one would only repeat its likeliest token.
        temperature=1.0 if args.model is None else 0.0,
        timings=timings,
        on_text=lambda row, text: print(text.replace("\n", " "), end="", flush=True),
    )[0]
    print()
    show_timings(generation, timings)
    heading("5  Latent blocks")
    show_latents(model, generation)
    heading("6  The answer")
    show_answer(generation, is_random=args.model is None)


# ---------------------------------------------------------------------------- making


def prepare_files(video: Path | None, model: Path | None) -> tuple[Path, Path]:
    """The given files, or drawn and random ones in `runs/demo`."""
    RUNS.mkdir(parents=True, exist_ok=True)
    if video is None:
        video = RUNS / "clip.mp4"
        make_clip(video)
        print(f"clip   {video}, drawn: a disc, a square, a triangle, each with a tone")
    else:
        print(f"clip   {video}")
    if model is None:
        model = RUNS / "model"
        make_model(model)
        print(f"model  {model}, made: random weights, tokenizer trained on a few sentences")
    else:
        print(f"model  {model}")
    return video, model


def make_model(directory: Path, seed: int = 0) -> None:
    """Writes a small random model with a tokenizer of its own; replaces what is there."""
    tokenizer_dir = directory.with_name(directory.name + "-tokenizer")
    train_sentencepiece(TEXT.strip().splitlines(), tokenizer_dir, vocab_size=400)
    config, latent = tiny_model(tokenizer_dir)
    params = init_params(config, jax.random.key(seed))
    save_model(params, config, latent, MediaSpec(), tokenizer_dir, directory, overwrite=True)


# ---------------------------------------------------------------------------- showing


def heading(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


def show_model(model: LatentOmni, *, is_random: bool) -> None:
    text, latent = model.config.text, model.latent
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    print(
        f"thinker  {count / 1e6:.2f} M parameters, {text.num_layers} layers of {text.hidden_size}"
    )
    print(
        f"latents  K = {latent.num_visual} visual + {latent.num_audio} audio slots, which share "
        f"a clock of {latent.segment_seconds:g} s"
    )
    print(f"runs on  {jax.device_count()} x {jax.devices()[0].device_kind} in {model.dtype}")
    if is_random:
        note = (
            "This model is random and has learned nothing. What follows shows that every part "
            "runs and what it does; the text it writes means nothing. `latentomni train --config "
            "configs/tiny.py --workdir runs/tiny` trains one in a minute or two; a trained or a "
            "ported model is used with --model DIR."
        )
        print(textwrap.fill(note, 92, initial_indent="note     ", subsequent_indent=" " * 9))


def show_prompt(model: LatentOmni, video: Path, question: str) -> list:
    """Reads the video, lays out the prompt, and prints both. Returns the prompt's parts."""
    clip = read_clip(video, model.media)
    medium = Medium("video", str(video), clip, clip_part(clip, model.media))
    parts = build_prompt(model.tokenizer, question, [medium.part])
    batch, groups, table_rows = collate(model.config, [parts])
    print("\n".join(render_medium(describe_medium(medium, model.media))))
    if clip.audio is not None:
        tokens = int(np.sum(batch.roles[0] == Role.PROMPT_AUDIO))
        rate = tokens / (len(clip.audio) / model.media.sampling_rate)
        print(f"          become {tokens} tokens, {rate:.0f} per second")
    print()
    print("\n".join(render_prompt(describe_prompt(model.config, model.tokenizer, batch), "true")))
    print()
    for call in describe_calls(groups):
        unit = "2-second chunk(s)" if call["encoder"] == "audio" else "frame pair(s)"
        shape = " x ".join(map(str, call["input"]))
        print(
            f"{call['encoder']} encoder: {call['calls']} call(s) of {shape}; {call['real']} {unit}"
        )
    print(f"their features fill a table of {table_rows} rows that the prompt takes its rows from")
    return parts


def show_timings(generation: Generation, timings: dict[str, float]) -> None:
    steps = len(generation.token_ids)
    print(
        f"time   encode {timings['encode_s']:.1f} s, prefill {timings['prefill_s']:.1f} s, decode "
        f"{timings['decode_s']:.1f} s for {steps} positions (compiling included, each shape once)"
    )


def show_latents(model: LatentOmni, generation: Generation) -> None:
    """Per block: its slots with timestamps, norms, and how fast the state moves."""
    spec = model.latent
    if not len(generation.latents):
        print("none")
    for number, block in enumerate(generation.latents, start=1):
        place = int(np.flatnonzero(generation.token_ids == spec.trigger_id)[number - 1])
        print(
            f"block {number} at generated position {place}: trigger, {len(block)} states fed back, "
            "stop"
        )
        print(f"  {'slot':<12}{'time':>8}{'norm':>9}{'cosine to the state before':>30}")
        norms = np.linalg.norm(block, axis=-1)
        cosines = np.sum(block[1:] * block[:-1], axis=-1) / np.maximum(norms[1:] * norms[:-1], 1e-9)
        seconds = spec.slot_seconds()
        for slot in shown_slots(spec):
            is_visual = slot < spec.num_visual
            name = f"visual {slot}" if is_visual else f"audio {slot - spec.num_visual}"
            cosine = f"{cosines[slot - 1]:+.4f}" if slot else "-"
            print(f"  {name:<12}{seconds[slot]:>6.2f} s{norms[slot]:>9.3f}{cosine:>30}")
        if len(cosines):
            print(f"  all {len(block)} slots: mean cosine {cosines.mean():+.4f}")


def shown_slots(spec: LatentSpec) -> list[int]:
    """Every fourth visual slot, the first of each audio slot's window; and every audio slot."""
    step = max(1, spec.num_visual // max(spec.num_audio, 1))
    return [*range(0, spec.num_visual, step), *range(spec.num_visual, spec.num_latents)]


def show_answer(generation: Generation, *, is_random: bool) -> None:
    print(textwrap.fill(generation.text, 92) or "(no text)")
    if is_random:
        print("\nGibberish, as announced: a random model knows no answers.")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"demo: error: {error}")
