"""`latentomni attention`: where a model looked while it answered, in numbers and drawn."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from data_pipeline.trajectories import Trajectory
from latentomni_jax.commands.decoding import add_decoding_arguments, decoding_options, load
from latentomni_jax.commands.prompt import (
    add_prompt_arguments,
    check_prompt_arguments,
    prompt_parts,
    read_media,
)
from latentomni_jax.evaluate.attention import KINDS, Looks, Shares
from latentomni_jax.evaluate.explore import explored_row, slot_names, write_explored
from latentomni_jax.evaluate.overlay import chosen, write_film, write_still
from latentomni_jax.evaluate.replay import replay
from latentomni_jax.layout import Clip, InputError
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.weights.specs import read_specs

EPILOG = """\
examples:
  latentomni attention --model models/latentomni-7b --video clip.mp4 \\
    --question "Who speaks first?" --choices "the woman" "the man" --out looked

  shares of every layer, and stills and films of two latents besides those of the whole block:
    latentomni attention --model DIR --video clip.mp4 --question "..." --out looked \\
      --layers --slots v1 a3

  beside the same model without latents (text alone):
    latentomni attention --model DIR --video clip.mp4 --question "..." --out looked --compare

Printed is the answer, and for each of its pieces (runs of text and latent blocks, in order) where
the attention of the positions that made it goes: on the clip's pictures and sound, on latents, on
all other text; the four add up to 1. "through" is besides: what reaches the clip by way of latents,
the weight on each times its own weight on the clip. Means over heads, and over layers but with
--layers.

  OUT/00000.json            the answer and its maps, as eval --explore writes them
  OUT/block0.png, .mp4      where the block looks: heat over the frames (mean of its visual
                            latents), below the sound (mean of its audio latents) with a line at
                            the moment
  OUT/block0-v1.png, .mp4   the same of one latent

The still is of the moment with the highest weight. Files of these names in OUT are replaced.
Exit code: 0, or 2 with one line on stderr where a file or an option is unusable.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Answer a question about a clip, and show where the model looked."
    parser.epilog = EPILOG
    add_prompt_arguments(parser)
    add_decoding_arguments(parser)
    shown = parser.add_argument_group("what is shown")
    shown.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="DIR", help="folder for what is written"
    )
    shown.add_argument(
        "--slots",
        nargs="+",
        default=[],
        metavar="NAME",
        help="latents with a still and a film of their own: v1, v2, ..., a1, a2, ...",
    )
    shown.add_argument("--layers", action="store_true", help="print the shares of every layer")
    shown.add_argument(
        "--compare",
        action="store_true",
        help="answer once more without latents, and compare the direct share on the clip",
    )


def run(args: argparse.Namespace) -> int:
    """Answers, prints the shares and writes the files; 0 when all went well.

    Raises:
      InputError: unusable model directory, media file or option; mistakes that can be seen without
        loading the weights are found before.
    """
    check_prompt_arguments(args)
    _, stored, media_spec = read_specs(args.model)
    options, latent = decoding_options(args, stored)
    names = slot_names(latent)
    if unknown := [name for name in args.slots if name not in names]:
        raise InputError(
            f"--slots {unknown[0]}: there is no such latent; they are {' '.join(names)}"
        )
    if args.compare and args.latents == "off":
        raise InputError("--compare sets latents beside none: expected --latents auto or force")
    media = read_media(args, media_spec)
    if len(media) != 1:
        raise InputError(f"expected one of --video, --audio and --image, got {len(media)}")
    tokenizer = load_tokenizer(args.model)
    parts = prompt_parts(args, tokenizer, media)
    kind, path, clip, _ = media[0]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.out}: cannot be written to: {error.strerror}") from error
    question = Trajectory(
        id="asked", question=args.question, answer="", kind=kind, path=path,
        choices=tuple(args.choices),
    )  # fmt: skip
    model = load(args, latent)

    def answer(**changes) -> tuple[dict[str, Any], Looks]:
        how = {"clock": args.clock, "seeds": [args.seed], **options, **changes}
        generation = model.generate([parts], **how)[0]
        row = replay(model, parts, generation, clock=args.clock)
        return explored_row(model, question, row, generation, pathlib.Path(path), clip)

    one, looks = answer()
    print(f"{_text_of(one)}\nanswer {one['answer']!r}\n\n{_table(one, looks, args.layers)}")
    if args.compare:
        own, without = (_direct(x) for x in (looks, answer(latents="off")[1]))
        print(
            f"\ndirect share on the clip: {own:.4f}, without latents {without:.4f} "
            f"({100 * (own - without):+.1f} points)"
        )
    write_explored(args.out, 0, one)
    for number in range(len(one["blocks"])):
        for slot in (None, *args.slots):
            _write_overlay(args.out, one, clip, number, slot)
    if not one["blocks"]:
        print("no latent block to draw; --latents force opens the answer with one", file=sys.stderr)
    return 0


def _text_of(one: dict[str, Any]) -> str:
    pieces = (piece.get("text", f" [block {piece.get('block')}] ") for piece in one["pieces"])
    return "".join(pieces).strip()


def _table(one: dict[str, Any], looks: Looks, layers: bool) -> str:
    rows = []
    for piece in one["pieces"]:
        name = f"block {piece['block']}" if piece["kind"] == "latent" else "text"
        # Spelled out: what a model says may hold what a terminal obeys.
        rows.append((name, Shares(**piece["shares"]), repr(piece.get("text", ""))[1:-1]))
    rows.append(("all", looks.shares(), ""))
    if layers:
        rows += [(f"layer {i}", shares, "") for i, shares in enumerate(looks.by_layer())]
    head = "".join(f"{name:>9}" for name in (*KINDS, "through"))
    lines = [
        f"{name:<9}{''.join(f'{x:>9.4f}' for x in shares)}  {text[:40]}".rstrip()
        for name, shares, text in rows
    ]
    return "\n".join([f"{'':<9}{head}", *lines])


def _direct(looks: Looks) -> float:
    shares = looks.shares()
    return shares.video + shares.audio


def _write_overlay(out: pathlib.Path, one, clip: Clip, block: int, slot: str | None) -> None:
    seen, heard = chosen(one, block, slot)
    path = out / "-".join(filter(None, (f"block{block}", slot)))
    write_still(path.with_suffix(".png"), clip, seen, heard)
    if not clip.is_image:
        write_film(path.with_suffix(".mp4"), clip, seen, heard)
