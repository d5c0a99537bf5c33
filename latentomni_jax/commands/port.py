"""`latentomni port`: a Hugging Face checkpoint becomes a model directory, or is only checked."""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.layout import InputError
from latentomni_jax.weights import checkpoint, names, safetensors, specs

EPILOG = """\
examples:
  download and port (7B: 18 GB on disk; needs about 12 GB of memory):
    huggingface-cli download Qwen/Qwen2.5-Omni-7B --local-dir qwen7b
    latentomni port --from qwen7b --to models/qwen7b

  names, dtypes and shapes alone, no weights needed:
    latentomni port --check tensors.json --config config.json
  where tensors.json maps each tensor to {"dtype": "BF16", "shape": [3584], "file": "..."}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Turn a Hugging Face checkpoint into a self-contained model directory."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--from", dest="source", metavar="HF_DIR", help="directory with config.json, *.safetensors"
    )
    parser.add_argument("--to", dest="target", metavar="DIR", help="directory to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DIR if it is not empty, at the very end"
    )
    parser.add_argument(
        "--latent-spec",
        metavar="SPEC.json",
        help="latent counts and token ids; default: latent_spec.json of HF_DIR, else 32 + 8",
    )
    parser.add_argument(
        "--check", metavar="TENSORS.json", help="only compare this list with the thinker's table"
    )
    parser.add_argument("--config", metavar="CONFIG.json", help="dimensions for --check")


def run(args: argparse.Namespace) -> int:
    """Ports or checks; 0 when all went well.

    Raises:
      InputError: unusable arguments or files, or any difference found by --check.
    """
    if args.check:
        if not args.config or args.source or args.target:
            raise InputError("port --check needs --config, and neither --from nor --to")
        print(check_listing(args.check, args.config))
        return 0
    if not (args.source and args.target):
        raise InputError("port needs --from HF_DIR and --to DIR (or --check with --config)")
    spec = None
    if args.latent_spec:
        spec = specs.read_latent_spec(args.latent_spec)
    start = time.monotonic()
    done = checkpoint.port(
        args.source, args.target, latent_spec=spec, overwrite=args.overwrite, progress=True
    )
    print(
        f"{_coverage(done)}\n{done['bytes'] / 1e9:.2f} GB in {time.monotonic() - start:.0f} s "
        f"to {args.target}"
    )
    return 0


def check_listing(tensors: str | pathlib.Path, config: str | pathlib.Path) -> str:
    """Compares a list of tensors with what a config needs.

    Args:
      tensors: JSON file, full tensor name -> {"dtype", "shape", ...}.
      config: a checkpoint's `config.json`.

    Returns:
      One line of coverage.

    Raises:
      InputError: names what is missing, extra, misshapen or of another dtype.
    """
    listed = _read_listing(pathlib.Path(tensors))
    path = pathlib.Path(config)
    try:
        dimensions = ThinkerConfig.from_hf(specs.read_json(path))
        used = names.thinker_names(listed)
        done = safetensors.check(dimensions, {name: listed[full] for name, full in used.items()})
    except InputError as error:
        raise InputError(f"{tensors} against {config}: {error}") from None
    return _coverage(done | {"skipped": len(listed) - len(used)})


def _read_listing(path: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    listed = {}
    for name, entry in specs.read_json(path).items():
        try:
            listed[name] = (str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f'{path}: {name} is not like {{"dtype": "BF16", "shape": [2, 3]}}'
            ) from None
    return listed


def _coverage(done: dict[str, Any]) -> str:
    return (
        f"{done['tensors']} of {done['tensors']} thinker tensors used once, "
        f"{done['parameters']} parameters; {done['skipped']} talker/token2wav tensors skipped by "
        "name"
    )
