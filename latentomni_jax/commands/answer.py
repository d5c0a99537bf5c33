"""`latentomni answer`: one question about a video, a recording or a picture."""

from __future__ import annotations

import argparse
import json
import sys
import time

from latentomni_jax.commands.decoding import add_decoding_arguments, decoding_options, load
from latentomni_jax.commands.prompt import (
    add_prompt_arguments,
    check_prompt_arguments,
    prompt_parts,
    read_media,
)
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.model import Answer
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
    parser.description = "Answer a question about a video, a recording or a picture."
    parser.epilog = EPILOG
    add_prompt_arguments(parser)
    add_decoding_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Answers; 0 when all went well.

    Raises:
      InputError: unusable model directory, media file or option; mistakes that can be seen without
        loading the weights are found before.
    """
    check_prompt_arguments(args)
    _, stored, media = read_specs(args.model)
    options, latent = decoding_options(args, stored)
    tokenizer = load_tokenizer(args.model)

    # Before the weights: a broken file should not cost the minutes that loading a 7B takes.
    started = time.perf_counter()
    parts = prompt_parts(args, tokenizer, read_media(args, media))
    media_s = time.perf_counter() - started
    model = load(args, latent)
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


class _Printer:
    """Prints text as it comes, and at the end what was still held back."""

    def __init__(self):
        self.printed = ""

    def __call__(self, text: str) -> None:
        print(text, end="", flush=True)
        self.printed += text

    def finish(self, text: str) -> None:
        print(text.removeprefix(self.printed), flush=True)
