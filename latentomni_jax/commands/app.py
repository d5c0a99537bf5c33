"""`latentomni app`: ask about clips of one's own, in a browser on this machine."""

from __future__ import annotations

import argparse
import pathlib

from latentomni_jax.commands.decoding import add_decoding_arguments, decoding_options, load

EPILOG = """\
examples:
  latentomni app --model runs/demo/latentomni/model

  and look at a run of `latentomni eval`, on a port of choice:
    latentomni app --model models/latentomni-7b --run runs/daily_omni --port 7861

  from another machine, through SSH:
    ssh -L 7860:127.0.0.1:7860 HOST latentomni app --model models/latentomni-7b

Prints an address to open in a browser. A clip is uploaded to this machine only (512 MB at most,
gone when the app ends), and a question about it answered; the answer can be stepped through: its
text and latents, what each latent looks at and listens to. Questions are answered one after the
other; the first about a clip of its size takes longer, because it compiles.

The address is 127.0.0.1, which no other machine reaches; nothing is fetched from the network, and
nobody is told.
Needs the app extra: pip install 'latentomni_jax[app]'.
Exit code: 130 when it is ended with Ctrl-C; 2 with one line on stderr where an option is unusable.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Ask about clips of your own, in a browser on this machine."
    parser.epilog = EPILOG
    parser.add_argument(
        "--model", required=True, type=pathlib.Path, metavar="DIR",
        help="a ported model or a Hugging Face directory",
    )  # fmt: skip
    parser.add_argument(
        "--run", type=pathlib.Path, metavar="RUN", help="a run of `latentomni eval` to look at"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=7860,
        metavar="N",
        help="default %(default)s; 0 takes a free one",
    )
    add_decoding_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until it is interrupted. Raises InputError."""
    from latentomni_jax.evaluate.pages.app import Ask, asker, serve
    from latentomni_jax.weights.specs import read_specs

    _, stored, _ = read_specs(args.model)
    options, latent = decoding_options(args, stored)

    def loaded() -> Ask:
        return asker(load(args, latent), **options, seeds=[args.seed])

    title = f"LatentOmni: {args.model.resolve().name}"
    serve(loaded, title, run=args.run, port=args.port, latents=args.latents)
    return 0
