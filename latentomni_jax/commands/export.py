"""`latentomni export`: a model directory becomes safetensors that the reference loads."""

from __future__ import annotations

import argparse

from latentomni_jax.weights import checkpoint

EPILOG = """\
examples:
  latentomni export --from models/latentomni-3b --to hf/latentomni-3b
    names as published ("thinker.model...")

  latentomni export --from models/latentomni-3b --to hf/thinker-3b --thinker-only
    names as the thinker class saves itself ("model...")

Both load with transformers' Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained.
Weights keep their dtype, bit for bit. latent_spec.json says which tokens open a latent block.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a model as Hugging Face safetensors, index and config."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--from", dest="source", required=True, metavar="DIR", help="a ported or trained model"
    )
    parser.add_argument(
        "--to", dest="target", required=True, metavar="HF_DIR", help="directory to write"
    )
    parser.add_argument(
        "--thinker-only",
        action="store_true",
        help='tensor names and config.json of the thinker alone, without "thinker."',
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace HF_DIR if it is not empty"
    )


def run(args: argparse.Namespace) -> int:
    """Exports; 0 when all went well.

    Raises:
      InputError: no model at --from, or a target that is in the way.
    """
    written = checkpoint.export(
        args.source, args.target, thinker_only=args.thinker_only, overwrite=args.overwrite
    )
    print(f"{len(written)} tensors to {args.target}")
    return 0
