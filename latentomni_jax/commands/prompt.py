"""What `answer` and `inspect` share: the arguments of a question, and its files as prompt parts."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from latentomni_jax.layout import Clip, InputError, MediaSpec, Part
from latentomni_jax.media.processor import LETTERS, build_prompt, clip_part
from latentomni_jax.media.text import Tokenizer
from latentomni_jax.media.video import read_clip


class Medium(NamedTuple):
    """One file of a prompt, as it was read and as the encoders take it."""

    kind: str  # image, video or audio: the option that named it
    path: str
    clip: Clip
    part: Part


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, the media, the question, and how they are laid out."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a ported model or a Hugging Face directory"
    )
    parser.add_argument("--question", required=True, metavar="TEXT", help="what to ask")
    media = parser.add_argument_group("media (any of them, or none)")
    media.add_argument("--video", metavar="FILE", help="a video; its sound is heard, if it has any")
    media.add_argument("--audio", metavar="FILE", help="a recording, or the sound of a video")
    media.add_argument("--image", metavar="FILE", help="a picture")
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument(
        "--choices",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="options of a multiple-choice question, without letters: they become A, B, C, ...",
    )
    prompt.add_argument(
        "--system", metavar="TEXT", help="system message; default is the chat template's own"
    )
    prompt.add_argument(
        "--clock",
        choices=("true", "nominal"),
        default="true",
        help="date frames by their own timestamps (default), or by the sampling rate as the "
        "reference implementation does",
    )


def check_prompt_arguments(args: argparse.Namespace) -> None:
    """Finds cheap mistakes before anything large is loaded. Raises InputError."""
    if len(args.choices) > len(LETTERS):
        raise InputError(f"{len(args.choices)} choices; there are letters for {len(LETTERS)}")
    for path in (args.image, args.video, args.audio):
        if path is not None and not pathlib.Path(path).exists():
            raise InputError(f"{path}: no such file; expected a video, sound or image file")


def read_media(args: argparse.Namespace, spec: MediaSpec) -> list[Medium]:
    """Reads the files that the arguments name, in prompt order. Raises InputError."""
    media = []
    for kind in ("image", "video", "audio"):
        if (path := getattr(args, kind)) is not None:
            clip = read_clip(path, spec, video=kind != "audio")
            part = clip_part(clip, spec, nominal_clock=args.clock == "nominal")
            media.append(Medium(kind, path, clip, part))
    return media


def prompt_parts(
    args: argparse.Namespace, tokenizer: Tokenizer, media: Sequence[Medium]
) -> list[Part]:
    """The prompt that the arguments describe. Raises InputError."""
    return build_prompt(
        tokenizer,
        args.question,
        [medium.part for medium in media],
        system=args.system,
        choices=args.choices,
    )
