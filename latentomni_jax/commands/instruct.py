"""`latentomni data instruct`: captioned videos become audited trajectories."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import shlex
import shutil
import time
from pathlib import Path

from latentomni_jax.layout import InputError

DESCRIPTION = """\
Make trajectories of captioned videos, with any OpenAI-compatible model server: questions that need
eyes and ears, descriptions of every segment, reasoning that cites segments, audited by a second
model."""
EPILOG = """\
A file of captions has one JSON object a line; layouts of published sets are read too:
  {"video": "a1.mp4", "caption": "A man in a red coat ...",
   "timed": [{"start": 0, "end": 4.5, "text": "A bell rings.", "sense": "audio"}]}

  video, caption   required; paths are relative to --videos
  timed            what --captioner text shares out over the segments; sense is video or audio
  shots            [start, end] seconds to cut by, instead of every 5 seconds
  id, licence and other short values are kept

What is written:
  trajectories.jsonl, cache    what `latentomni train --set data.cache=DIR/cache` reads
  samples.jsonl, browse.html   everything that led to them, and a page to look through
  ledger.jsonl, README.md      how every item ended, and the data card
  replies                      what models replied: started again, a run asks for no usable reply
                               twice, and after a change of a prompt only what depends on it
  segments                     clips, sound and frames that captioners were sent

examples:
  latentomni data instruct --captions captions.jsonl --videos clips --out instruct \\
    --llm http://127.0.0.1:8000/v1

  a model for each job, see the file; keys are read from the environment ($OPENAI_API_KEY, or
  what a role names):
    latentomni data instruct --captions captions.jsonl --videos clips --out instruct \\
      --config configs/instruct.py --llm https://example.org/v1 --token-budget 100000000

  no model that sees and hears: captions with times are shared out instead
    latentomni data instruct --captions captions.jsonl --videos clips --out instruct \\
      --llm http://127.0.0.1:8000/v1 --captioner text

  on Dataflow, with directories that all workers see:
    latentomni data instruct --captions captions.jsonl --videos /mnt/clips --out /mnt/instruct \\
      --llm http://10.0.0.2:8000/v1 --beam-options="--runner=DataflowRunner --project=p \\
      --region=us-central1 --temp_location=gs://b/tmp"

Exit code: 0; 3 where a budget was spent or the server stopped answering, and items wait for the
next run; 2 with one line on stderr where a file or an option is unusable.
"""
WAITING = 3  # exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--captions", required=True, nargs="+", metavar="FILE.jsonl", help="captions of videos"
    )
    parser.add_argument("--videos", required=True, metavar="DIR", help="folder of the clips")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--llm", default="", metavar="URL", help="the model server, up to and with /v1"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="for all jobs; default is the server's first"
    )
    parser.add_argument(
        "--captioner",
        choices=("model", "text"),
        help="who describes segments: a model that sees and hears (default), or the captions' text",
    )
    parser.add_argument(
        "--questions",
        choices=("choice", "open", "both"),
        help="what is made of each caption: multiple choice (default), open-ended, one of each",
    )
    parser.add_argument(
        "--leak-filter",
        action="store_true",
        default=None,
        help="drop questions that a judge says one modality answers",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is drawn (default 0)")
    parser.add_argument(
        "--concurrency", type=int, metavar="N", help="calls under way at a time (default 64)"
    )
    parser.add_argument(
        "--token-budget", type=int, metavar="N", help="of this start; then no further call is made"
    )
    parser.add_argument(
        "--cost-budget", type=float, metavar="X", help="the same, by the prices in --config"
    )
    parser.add_argument(
        "--config", metavar="FILE.py", help="models and settings, see configs/instruct.py"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more setting: threshold=12, roles.judge.model=NAME, segment_seconds=4.0",
    )
    parser.add_argument(
        "--beam-options",
        default="",
        metavar="OPTIONS",
        help="of Apache Beam: runner and whatever it takes (default: this process)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="leave the feature cache for training out"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the pipeline. Raises InputError."""
    settings = _settings(args)
    try:
        from data_pipeline.instruct import pipeline, prompts, replies
    except ImportError as error:
        raise InputError(
            f"{error.name} is missing: pip install 'latentomni_jax[instruct]'"
        ) from error
    videos, out = Path(args.videos), Path(args.out)
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder (--videos)")
    for path in map(Path, args.captions):
        if not path.is_file():
            raise InputError(f"{path}: no such file (--captions)")
    if len({Path(path).resolve() for path in args.captions}) < len(args.captions):
        raise InputError("--captions: a file is named twice")
    try:
        beam_options = shlex.split(args.beam_options)
    except ValueError as error:
        raise InputError(f"--beam-options: {error}") from error
    if out.is_dir() and any(out.iterdir()) and not (out / pipeline.REPLIES).is_dir():
        raise InputError(f"{out}: holds something else than a run of this; name another --out")
    prompts.check()
    settings = asyncio.run(replies.resolve_models(settings, os.environ))
    (out / pipeline.REPLIES).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcome = pipeline.run(args.captions, videos.resolve(), out.resolve(), settings, beam_options)
    print(_usage(outcome.usage, time.monotonic() - started))
    if outcome.halted:
        why, count = outcome.halted.most_common(1)[0]
        print(
            f"{outcome.halted.total()} items wait ({count}: {why}); nothing is lost, "
            "start the same command again to go on"
        )
        return WAITING
    return _finish(args, settings, out, videos)


def _settings(args: argparse.Namespace):
    import ml_collections

    from data_pipeline.instruct.settings import Settings, from_config
    from latentomni_jax.train.config import apply, load

    if args.config:
        config = load(args.config)
    else:
        config = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
    given = {
        "url": args.llm or None,
        "captioner": args.captioner,
        "kinds": {"both": ("open", "choice"), None: None}.get(args.questions, (args.questions,)),
        "leak_filter": args.leak_filter,
        "seed": args.seed,
        "concurrency": args.concurrency,
        "token_budget": args.token_budget,
        "cost_budget": args.cost_budget,
    }
    config.update({name: value for name, value in given.items() if value is not None})
    if args.model:
        for role in config.roles.values():
            role.model = args.model
    return from_config(apply(config, args.set).to_dict())


def _finish(args: argparse.Namespace, settings, out: Path, videos: Path) -> int:
    """Writes the data set of what was kept."""
    from data_pipeline.cache import TRAINING_SPEC, build_cache
    from data_pipeline.instruct import browse, dataset, pipeline

    shutil.rmtree(out / "cache", ignore_errors=True)  # of a run before
    expected = pipeline.expected(args.captions, settings)
    counts = dataset.write_dataset(out, pipeline.kept(out), pipeline.ended(out), expected)
    page = browse.write_page(out, videos)
    fates = counts["items"]
    print(f"{sum(fates.values())} items: " + ", ".join(f"{n} {fate}" for fate, n in fates.items()))
    for fate, stage, reason, n in counts["ends"]:
        if fate != "kept":
            print(f"  {n:>7} {fate} at {stage}: {reason}")
    if not args.no_cache and fates["kept"]:
        summary = build_cache(
            out / dataset.TRAJECTORIES, out / "cache", TRAINING_SPEC,
            media_root=videos, workers=os.cpu_count() or 1, overwrite=True,
        )  # fmt: skip
        print(summary)
    print(f"{page} has them all to look at; {out / dataset.CARD} is the data card")
    return 0


def _usage(usage: dict[str, int], seconds: float) -> str:
    from data_pipeline.instruct.replies import COST

    calls, stored = usage.get("calls", 0), usage.get("stored", 0)
    told = [
        f"{calls} calls in {seconds:.0f} s ({usage.get('tries', 0) - calls} tried again), "
        f"{stored} replies from the store",
        f"{usage.get('input_tokens', 0):,} tokens in, {usage.get('output_tokens', 0):,} out",
    ]
    if cost := usage.get(COST):
        told.append(f"cost {cost / 1e6:.2f}")
    return "; ".join(told)
