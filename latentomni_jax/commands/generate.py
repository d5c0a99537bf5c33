"""`latentomni generate`: a file of questions becomes a file of answers, a line for a line."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import sys
from typing import Any

from latentomni_jax.commands.asking import add_asking_arguments, answer_file
from latentomni_jax.commands.decoding import decoding_options
from latentomni_jax.evaluate.generate import Asking, read_questions
from latentomni_jax.weights.specs import read_specs

_SHOWN = 5  # questions without an answer that are named at the end
EPILOG = """\
examples:
  latentomni generate --model models/qwen7b --data test.jsonl --out answers.jsonl

  larger batches, no latents, and the clips elsewhere:
    latentomni generate --model models/qwen7b --data test.jsonl --media-root /data/clips \\
      --out answers.jsonl --batch 32 --latents off

  weights over 4 chips of a host, questions over the rest of its chips:
    latentomni generate --model models/qwen7b --data test.jsonl --out answers.jsonl --tensor 4

  on several hosts that share a disk, each with its own number (Slurm has it so):
    latentomni generate --model models/qwen7b --data test.jsonl --out /shared/answers.jsonl \\
      --processes $SLURM_NTASKS --process $SLURM_PROCID

Questions are trajectories (see `latentomni data cache --help`); what they hold of reasoning is not
shown to the model. OUT has a line for every line of them, in order:
  line, id                     where the question stands, and what it is called
  text, answer                 what the model said; the letter, or the answer to an open question
  rule                         what found the answer in the text
  expected, right              the right answer, and whether it was given (null: not known)
  finished                     false where --max-new-tokens cut it off
  tokens, latent_blocks, latent_steps, prompt_tokens   counts
or, where a line is no question or its clip cannot be read, line, id and error. That stops nothing.

Windows of questions are answered one after the other and kept in OUT.parts. Killed at any moment
and started again, on as many hosts as there are then, a run goes on, and OUT is to the byte what it
would have been. OUT.run.json says what OUT depends on: another model, file or option is refused
beside it. Ctrl-C and SIGTERM end after the window in hand.
Exit code: 0; 1 where OUT is complete, but questions in it have no answer; 2 with one line on stderr
where a file or an option is unusable; 3 where the run was told to stop and can be continued.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Answer a file of questions."
    parser.epilog = EPILOG
    parser.add_argument(
        "--model", required=True, type=pathlib.Path, metavar="DIR",
        help="a ported model or a Hugging Face directory",
    )  # fmt: skip
    parser.add_argument(
        "--data", required=True, type=pathlib.Path, metavar="FILE", help="questions as JSON lines"
    )
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="OUT", help="file of answers to write"
    )
    parser.add_argument(
        "--media-root", type=pathlib.Path, metavar="DIR",
        help="what paths of clips are relative to; default is FILE's folder",
    )  # fmt: skip
    parser.add_argument(
        "--view", choices=("both", "video", "audio", "question"), default="both",
        help="what the model is given of a clip (default %(default)s)",
    )  # fmt: skip
    add_asking_arguments(parser)


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    data, out = args.data.absolute(), args.out.absolute()
    options, latent = decoding_options(args, read_specs(args.model)[1])
    asking = Asking(
        root=(args.media_root or data.parent).absolute(),
        view=args.view,
        batch=args.batch,
        window=args.window,
        longest=args.longest,
        seed=args.seed,
        options=options,
    )
    code = answer_file(args, read_questions(data), asking, latent, data=data, out=out)
    return _tell(out) if code is None else code


def _tell(out: pathlib.Path) -> int:
    """Says what a complete file of answers holds. Returns the exit code."""
    with out.open(encoding="utf-8") as file:
        lines: list[dict[str, Any]] = [json.loads(line) for line in file]
    known = [line["right"] for line in lines if line.get("right") is not None]
    failed = [line for line in lines if "error" in line]
    share = f" ({100 * sum(known) / len(known):.1f} %)" if known else ""
    print(
        f"{out}: {len(lines)} questions, {len(lines) - len(failed)} answered, "
        f"{sum(known)} of {len(known)} right{share}"
    )
    for line in failed[:_SHOWN]:
        named = "" if line["id"] is None else f" {line['id']!r}"
        print(f"no answer: line {line['line']}{named}: {line['error']}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more without an answer", file=sys.stderr)
    return 1 if failed else 0
