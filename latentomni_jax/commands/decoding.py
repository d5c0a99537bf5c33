"""What commands that ask a model share: how it decodes, as arguments, and loading it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from latentomni_jax.latent.decode import DecodeSpec
from latentomni_jax.layout import LatentSpec
from latentomni_jax.model import LatentOmni

_OPTIONS = ("latents", "max_blocks", "max_new_tokens", "temperature", "top_k", "top_p")


def add_decoding_arguments(parser: argparse.ArgumentParser, *, styled: bool = False) -> None:
    """Latent reasoning, decoding, dtype and width of the weights.

    Args:
      styled: what is not given is left to a style of asking, None here.
    """
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(DecodeSpec)}
    told = {name: "the style's" if styled else default for name, default in defaults.items()}
    if styled:
        defaults = dict.fromkeys(defaults)
    latents = parser.add_argument_group("latent reasoning")
    latents.add_argument(
        "--latents",
        choices=("auto", "force", "off"),
        default=defaults["latents"],
        help="auto: the model opens latent blocks when it wants to; force: the answer begins with "
        f"one; off: text only (default {told['latents']})",
    )
    latents.add_argument(
        "--max-blocks",
        type=int,
        default=defaults["max_blocks"],
        metavar="N",
        help=f"latent blocks the answer may have (default {told['max_blocks']})",
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
        help=f"text tokens at most; latent slots do not count (default {told['max_new_tokens']})",
    )
    sampling.add_argument(
        "--temperature",
        type=float,
        default=defaults["temperature"],
        metavar="T",
        help="0 takes the likeliest token; larger draws more freely "
        f"(default {told['temperature']})",
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


def decoding_options(
    args: argparse.Namespace, stored: LatentSpec
) -> tuple[dict[str, Any], LatentSpec]:
    """Options of `LatentOmni.generate` that were given, and the checkpoint's spec with the slots
    asked for.

    Raises:
      InputError: values that cannot be.
    """
    slots = {"num_visual": args.k_visual, "num_audio": args.k_audio}
    latent = dataclasses.replace(stored, **{k: v for k, v in slots.items() if v is not None})
    given = {name: getattr(args, name) for name in _OPTIONS}
    options = {name: value for name, value in given.items() if value is not None}
    DecodeSpec(spec=latent, **options)
    if latent != stored:
        print(f"K overridden: {_slots(stored)} -> {_slots(latent)}", file=sys.stderr)
    return options, latent


def load(
    args: argparse.Namespace,
    latent: LatentSpec,
    media: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> LatentOmni:
    """The model that the arguments name, with the slots asked for and other fields of its
    `MediaSpec`. Raises InputError."""
    model = LatentOmni.from_pretrained(
        args.model,
        dtype=args.dtype and jnp.dtype(args.dtype),
        weights=args.weights,
        mesh=mesh if mesh is not None and mesh.size > 1 else None,
    )
    slots = {"num_visual": latent.num_visual, "num_audio": latent.num_audio}
    return model.with_latent(**slots).with_media(**(media or {}))


def _slots(spec: LatentSpec) -> str:
    return f"{spec.num_visual}+{spec.num_audio}"
