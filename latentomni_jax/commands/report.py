"""`latentomni report`: runs of `latentomni eval` become one page to look at."""

from __future__ import annotations

import argparse
import pathlib

from latentomni_jax.layout import InputError

EPILOG = """\
examples:
  latentomni report runs/daily_omni
  latentomni report runs/k20 runs/k30 runs/k40 runs/k50 --out sweep.html

  on a web server, beside the clips:
    latentomni report runs/daily_omni --out site/index.html --media link

RUN is the --out of `latentomni eval`. The page is one HTML file that needs no network:
  scores           of all and of answered questions, with 95 % intervals, beside published numbers;
                   by every axis of the benchmark; by rule that found the answer; by letter
  runs compared    of a benchmark, in pairs: exact McNemar test on the questions that both have
  sweeps           where runs differ in one option: slots of latents, frames, latents on or off
  cost, options    seconds, tokens, latent steps, memory; how each run was asked
  a look inside    of what `latentomni eval --explore N` kept: plays the clip, steps through text
                   and latents, and shows what each latent looks at and listens to
  questions        all of them, to filter and to search

Clips of the look inside stand in the page as long as all together are small (8 MB), else the page
links to where they are, and has to stay there; --media decides otherwise.
Exit code: 0, or 2 with one line on stderr where a run is not complete, is damaged, or lacks a clip.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write one page about runs of `latentomni eval`."
    parser.epilog = EPILOG
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out", type=pathlib.Path, default="report.html", metavar="FILE.html",
        help="page to write (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--media", choices=("embed", "link", "none"),
        help="clips inside the page, linked, or left out (default: by their size)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Writes the page. Raises InputError."""
    from latentomni_jax.evaluate.pages.run_report import write_report

    if args.out.suffix != ".html":
        raise InputError(f"--out {args.out}: a page is written; expected a name that ends in .html")
    media = write_report(args.runs, args.out, args.media)
    size = args.out.stat().st_size / 2**20
    told = {"embed": "with its clips", "link": "linked to clips", "none": "without clips"}[media]
    print(f"{args.out}: {size:.1f} MB, {told}; open it in a browser")
    return 0
