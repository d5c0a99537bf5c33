"""`latentomni answer`: one question about a video, a recording or a picture."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

import jax.numpy as jnp

from latentomni_jax.commands.prompt import (
    add_prompt_arguments,
    check_prompt_arguments,
    prompt_parts,
    read_media,
)
from latentomni_jax.latent.decode import DecodeSpec
from latentomni_jax.layout import LatentSpec
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.model import Answer, LatentOmni
from latentomni_jax.weights.checkpoint import load_model
from latentomni_jax.weights.specs import read_specs

EPILOG = """\
examples:
  latentomni answer --model models/qwen7b --video clip.mp4 --question "What happens after the bell?"

  multiple choice; "answer" in the result is the letter:
    latentomni answer --model models/qwen7b --video clip.mp4 --json \\
      --question "Who speaks first?" --choices "the woman" "the man" "nobody"

  sound only, drawn at random instead of greedily:
    latentomni answer --model models/qwen7b --audio talk.wav --question "Summarise this." \\
      --temperature 0.7 --top-p 0.9 --seed 1

  open the answer with a latent block, of half the checkpoint's slots:
    latentomni answer --model models/latentomni-7b --video clip.mp4 --question "..." \\
      --latents force --k-visual 16 --k-audio 4

  half the memory for the decoder, so that a 7B answers on a device of 16 GB:
    latentomni answer --model models/qwen7b --weights int8 --video clip.mp4 --question "..."

The text goes to stdout as it is decoded, a summary to stderr. With --json stdout is one JSON object
and nothing else: text, answer, token_ids, latent_blocks, latent_steps, prompt_tokens, timings
(seconds; the first question of a process includes compiling), device.
Exit code: 0, or 2 with one line on stderr where a file or an option is unusable.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(DecodeSpec)}
    parser.description = "Answer a question about a video, a recording or a picture."
    parser.epilog = EPILOG
    add_prompt_arguments(parser)
    latents = parser.add_argument_group("latent reasoning")
    latents.add_argument(
        "--latents",
        choices=("auto", "force", "off"),
        default=defaults["latents"],
        help="auto: the model opens latent blocks when it wants to (default); force: the answer "
        "begins with one; off: text only",
    )
    latents.add_argument(
        "--max-blocks",
        type=int,
        default=defaults["max_blocks"],
        metavar="N",
        help="latent blocks the answer may have (default %(default)s)",
    )
    for modality in ("visual", "audio"):
        latents.add_argument(
            f"--k-{modality}",
            type=int,
            metavar="N",
            help=f"{modality} slots of a block; default is what the checkpoint was trained with",
        )
    sampling = parser.add_argument_group("decoding")
    sampling.add_argument(
        "--max-new-tokens",
        type=int,
        default=defaults["max_new_tokens"],
        metavar="N",
        help="text tokens at most; latent slots do not count (default %(default)s)",
    )
    sampling.add_argument(
        "--temperature",
        type=float,
        default=defaults["temperature"],
        metavar="T",
        help="0 takes the likeliest token (default); larger draws more freely",
    )
    sampling.add_argument(
        "--top-k",
        type=int,
        default=defaults["top_k"],
        metavar="N",
        help="draw from the N likeliest",
    )
    sampling.add_argument(
        "--top-p",
        type=float,
        default=defaults["top_p"],
        metavar="P",
        help="draw from the likeliest tokens that together have probability P",
    )
    sampling.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of weights and computation; default is the checkpoint's",
    )
    parser.add_argument(
        "--weights",
        choices=("int8",),
        help="hold the matrices of decoder layers and head in 8 bits, with a scale for each output",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Answers; 0 when all went well.

    Raises:
      InputError: unusable model directory, media file or option; mistakes that can be seen without
        loading the weights are found before.
    """
    check_prompt_arguments(args)
    _, stored, media = read_specs(args.model)
    latent = override_slots(stored, args.k_visual, args.k_audio)
    options = {
        "latents": args.latents,
        "max_blocks": args.max_blocks,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
    }
    DecodeSpec(spec=latent, **options)  # complains about bad options now
    tokenizer = load_tokenizer(args.model)
    if latent != stored:
        print(f"K overridden: {_slots(stored)} -> {_slots(latent)}", file=sys.stderr)

    # Before the weights: a broken file should not cost the minutes that loading a 7B takes.
    started = time.perf_counter()
    parts = prompt_parts(args, tokenizer, read_media(args, media))
    media_s = time.perf_counter() - started
    dtype = args.dtype and jnp.dtype(args.dtype)
    loaded = load_model(args.model, dtype=dtype, weights=args.weights)
    model = LatentOmni(loaded.params, loaded.config, latent, loaded.media, tokenizer)
    printer = _Printer()
    answer = model.answer_prompt(
        parts,
        choices=args.choices,
        clock=args.clock,
        seed=args.seed,
        on_text=None if args.json else printer,
        media_s=media_s,
        **options,
    )
    if args.json:
        print(json.dumps(answer.to_dict()))
    else:
        printer.finish(answer.text)
        print(summary(answer), file=sys.stderr)
    return 0


def override_slots(spec: LatentSpec, num_visual: int | None, num_audio: int | None) -> LatentSpec:
    """The spec with other slot counts where they are given. Raises InputError on bad ones."""
    counts = {"num_visual": num_visual, "num_audio": num_audio}
    return dataclasses.replace(spec, **{k: v for k, v in counts.items() if v is not None})


def summary(answer: Answer) -> str:
    """What an answer took, in three lines."""
    prompt, seconds = answer.prompt_tokens, answer.timings
    return (
        f"answer {answer.answer!r}, {len(answer.token_ids) - answer.latent_steps} tokens, "
        f"{answer.latent_blocks} latent blocks with {answer.latent_steps} steps\n"
        f"prompt {prompt['text']} text + {prompt['video']} video + {prompt['audio']} audio tokens\n"
        f"time   media {seconds['media_s']:.2f} s, encode {seconds['encode_s']:.2f} s, "
        f"prefill {seconds['prefill_s']:.2f} s, decode {seconds['decode_s']:.2f} s "
        f"({seconds['tokens_per_s']:.1f} positions/s) on {answer.device}; includes compiling"
    )


def _slots(spec: LatentSpec) -> str:
    return f"{spec.num_visual}+{spec.num_audio}"


class _Printer:
    """Prints text as it comes, and at the end what was still held back."""

    def __init__(self):
        self.printed = ""

    def __call__(self, text: str) -> None:
        print(text, end="", flush=True)
        self.printed += text

    def finish(self, text: str) -> None:
        print(text.removeprefix(self.printed), flush=True)
