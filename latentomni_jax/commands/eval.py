"""`latentomni eval`: a model answers a benchmark's questions, and is scored as its authors do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import pathlib
import re
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import tqdm

from data_pipeline.shards import write_text
from data_pipeline.trajectories import DataProblem, Trajectory
from latentomni_jax.commands.asking import add_asking_arguments, answer_file
from latentomni_jax.commands.decoding import decoding_options, load
from latentomni_jax.evaluate import benchmarks
from latentomni_jax.evaluate.answers import Style, prompt_of, score
from latentomni_jax.evaluate.benchmarks.base import Benchmark, Reading, counts, shuffled
from latentomni_jax.evaluate.clips import FeatureStore
from latentomni_jax.evaluate.explore import explored, write_explored
from latentomni_jax.evaluate.generate import Asking, Question, digest_of_model, seed_of
from latentomni_jax.evaluate.runs import ANSWERS, COST, EXPLORE, SCORES
from latentomni_jax.evaluate.scores import scores
from latentomni_jax.layout import InputError, LatentSpec
from latentomni_jax.media.video import read_clip
from latentomni_jax.weights.specs import read_specs

_COSTS = "costs"  # of every start of a run
_COUNTED = ("seconds", "questions", "text_tokens", "latent_steps", "prompt_tokens")
_SHOWN = 5  # questions without an answer that are named at the end
EPILOG = """\
examples:
  latentomni eval --benchmark daily_omni --annotations qa.json --videos videos \\
    --model models/latentomni-7b --out runs/daily

  what a file of annotations holds, without a model:
    latentomni eval --benchmark daily_omni --annotations qa.json --list

  as the benchmark's authors ask:
    latentomni eval --benchmark daily_omni --annotations qa.json --videos videos \\
      --model models/qwen7b --out runs/daily-own --style own

  keep what the encoders make of the clips, for the next run:
    latentomni eval ... --features /data/features

  the same questions with their options in another order (position bias):
    latentomni eval ... --shuffle-options 1 --out runs/daily-shuffled

  with ten answers to look into, and both runs on a page:
    latentomni eval ... --out runs/daily --explore 10
    latentomni report runs/daily-own runs/daily

A style is a fixed way of asking: system turn, prompt, order of text and video, clock, decoding
options and the rule that finds the answer. `own` is that of the benchmark's authors, `boxed` asks
for reasoning and \\boxed{}. Options given here go before the style's, and are written down with the
run.

OUT/answers.jsonl has a line for every question, in the file's order, also for those that failed;
OUT/scores.json the accuracies, each over all questions (failed and unparsed ones are wrong) and
over the answered ones, with 95 % intervals, by every axis of the benchmark; OUT/cost.json what it
took. Killed at any moment and started again, on as many hosts as there are then, a run goes on and
ends in the same answers and scores.
Exit code: 0; 1 where it is complete, but questions failed; 2 with one line on stderr where a file
or an option is unusable; 3 where it was told to stop and can be continued.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Score a model on a benchmark."
    parser.epilog = EPILOG
    parser.add_argument(
        "--benchmark", required=True, choices=benchmarks.NAMES, metavar="NAME",
        help=", ".join(benchmarks.NAMES),
    )  # fmt: skip
    parser.add_argument(
        "--annotations", required=True, type=pathlib.Path, metavar="FILE",
        help="the benchmark's questions, as its authors publish them",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true",
        help="tell what the file holds along every axis, and every repaired or refused row; no "
        "model is needed",
    )  # fmt: skip
    parser.add_argument("--videos", type=pathlib.Path, metavar="DIR", help="folder of its videos")
    parser.add_argument(
        "--model", type=pathlib.Path, metavar="DIR",
        help="a ported model or a Hugging Face directory",
    )  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--style", default="boxed", metavar="NAME", help="own, or boxed (default %(default)s)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="ask the first N questions of the file alone"
    )
    parser.add_argument(
        "--shuffle-options", type=int, metavar="SEED",
        help="options in another order, each question in its own",
    )  # fmt: skip
    parser.add_argument(
        "--features", type=pathlib.Path, metavar="DIR",
        help="keep features of clips here, and take what is there (72 MB for a clip of 10,000 "
        "tokens of a 7B)",
    )  # fmt: skip
    parser.add_argument(
        "--explore", type=int, default=0, metavar="N",
        help="ask N of the questions once more, on one device, and keep where the model looked "
        "(default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--note", action="append", default=[], metavar="NAME=VALUE",
        help="written down with the options, such as what the model was trained with (may be given "
        "several times); a report draws sweeps over it",
    )  # fmt: skip
    media = parser.add_argument_group("clips (default: the style's, then the checkpoint's)")
    media.add_argument("--clock", choices=("true", "nominal"), help="see answer --help")
    media.add_argument("--fps", type=float, metavar="F", help="frames a second")
    media.add_argument("--max-frames", type=int, metavar="N", help="of a clip")
    media.add_argument("--video-max-pixels", type=int, metavar="N", help="of a frame")
    media.add_argument("--total-pixels", type=int, metavar="N", help="of all frames together")
    add_asking_arguments(parser, styled=True)


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    benchmark = benchmarks.get(args.benchmark)
    reading = benchmark.read(args.annotations)
    if (args.limit is not None and args.limit < 1) or args.explore < 0:
        raise InputError(
            f"expected at least one question and no negative --explore; got {args.limit} and "
            f"{args.explore}"
        )
    if args.limit is not None:
        reading = reading._replace(questions=reading.questions[: args.limit])
    if args.list:
        print(listed(benchmark, reading))
        return 0
    if missing := [name for name in ("videos", "model", "out") if getattr(args, name) is None]:
        raise InputError(f"give --{' and --'.join(missing)}, or --list to look at the questions")
    if not args.videos.is_dir():
        raise InputError(f"{args.videos}: is no folder; expected the videos of {benchmark.title}")
    notes = _notes(args.note)
    _, stored, spec = read_specs(args.model)
    options, latent = decoding_options(args, stored)
    style = _style(args, benchmark)
    questions = reading.questions
    if args.shuffle_options is not None:
        questions = [
            shuffled(q, args.shuffle_options) if isinstance(q, Trajectory) else q for q in questions
        ]
    features = None
    if args.features is not None:
        identity = {
            "model": digest_of_model(args.model), "dtype": args.dtype, "clock": style.clock,
            "media": dataclasses.asdict(dataclasses.replace(spec, **style.media)),
            "device": jax.local_devices()[0].device_kind,
        }  # fmt: skip
        features = FeatureStore(args.features.absolute(), identity)
    asking = Asking(
        root=args.videos.absolute(), view=benchmark.view, batch=args.batch, window=args.window,
        longest=args.longest, seed=args.seed, options=options, style=style,
        needs_sound=benchmark.needs_sound, features=features,
        tell=lambda question: _told(benchmark, question),
    )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    if args.overwrite and args.processes is None and not args.pod:  # else it is refused below
        for name in (_COSTS, EXPLORE):
            shutil.rmtree(args.out / name, ignore_errors=True)
    out, cost, began = args.out.absolute() / ANSWERS, Counter(), time.monotonic()
    identity = {
        "benchmark": benchmark.name, "style": args.style, "clock": style.clock, **style.media,
        "shuffle_options": args.shuffle_options, "limit": args.limit,
    }  # fmt: skip
    code = answer_file(
        args, questions, asking, latent, data=args.annotations.absolute(), out=out,
        media=dict(style.media), identity=identity, cost=cost,
    )  # fmt: skip
    if cost:
        _keep_cost(args.out / _COSTS, cost, time.monotonic() - began)
    if code is not None:
        return code
    write_text(args.out / COST, json.dumps(_total_cost(args.out / _COSTS)) + "\n")
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    asked = {
        **identity, **style.options, **options,
        "num_visual": latent.num_visual, "num_audio": latent.num_audio,
        "ospe_apply": latent.ospe_apply, **notes,
    }  # fmt: skip
    told = {
        "benchmark": benchmark.name, "title": benchmark.title, "style": args.style,
        "model": args.model.name,
        "options": {name: value for name, value in asked.items() if value is not None},
        **scores(lines, benchmark.axes),
        "published": dict(benchmark.published), "published_by": benchmark.published_by,
    }  # fmt: skip
    write_text(args.out / SCORES, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    _explore(args, questions, lines, asking, latent)
    return _tell(args.out, told, lines)


def listed(benchmark: Benchmark, reading: Reading) -> str:
    """What a file of annotations holds, as text."""
    held = counts(benchmark, reading)
    refused = [str(one) for one in reading.questions if isinstance(one, DataProblem)]
    out = [f"{benchmark.title}: {held.questions} questions, {held.videos} videos"]
    for axis, values in {**held.axes, "right answer": held.answers}.items():
        out += ["", f"{axis}:", *(f"  {count:>6}  {value}" for value, count in values.items())]
    for name, rows in (("repaired", reading.repaired), ("refused", refused)):
        out += ["", f"{name}: {len(rows)}", *(f"  {row}" for row in rows)]
    return "\n".join(out)


def _style(args: argparse.Namespace, benchmark: Benchmark) -> Style:
    if args.style not in benchmark.styles:
        known = ", ".join(benchmark.styles)
        raise InputError(f"--style {args.style}: {benchmark.title} has {known}")
    style = benchmark.styles[args.style]
    names = ("fps", "max_frames", "video_max_pixels", "total_pixels")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    media = {**style.media, **given}
    return dataclasses.replace(style, media=media, clock=args.clock or style.clock)


def _notes(given: Sequence[str]) -> dict[str, Any]:
    """What --note says; numbers as numbers. Raises InputError."""
    notes = {}
    for note in given:
        name, sign, value = note.partition("=")
        if not name or not sign:
            raise InputError(f"--note {note}: expected NAME=VALUE")
        is_number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value, re.IGNORECASE)
        notes[name] = float(value) if is_number else value
    return notes


def _explore(
    args: argparse.Namespace,
    questions: Sequence[Question],
    lines: Sequence[dict[str, Any]],
    asking: Asking,
    latent: LatentSpec,
) -> None:
    """Writes what some answers looked at: with latents where there are such, all over the file."""
    said = [place for place, line in enumerate(lines) if "error" not in line]
    reasoned = [place for place in said if lines[place]["latent_blocks"]] or said
    count = min(args.explore, len(reasoned))
    taken = [reasoned[i * len(reasoned) // count] for i in range(count)]
    folder = args.out / EXPLORE
    todo = [place for place in taken if not (folder / f"{place:05d}.json").is_file()]
    if not todo:
        return
    style = asking.style
    model = load(args, latent, style.media)
    for place in tqdm.tqdm(todo, unit="answer", desc="explore"):
        question, line = questions[place], lines[place]
        assert isinstance(question, Trajectory)
        path = asking.root / str(question.path)
        clip = read_clip(path, model.media, video=question.kind != "audio")
        prompt = prompt_of(model, question, asking.root, view=asking.view, style=style)
        generation = model.generate(
            [prompt], clock=style.clock, seeds=[seed_of(asking.seed, question.id)],
            **{**style.options, **asking.options},
        )[0]  # fmt: skip
        one = explored(model, question, prompt, generation, path, clip, clock=style.clock)
        scored = score(question, generation, style)
        one |= {"answer": scored.given, "expected": scored.expected, "right": scored.is_right}
        if generation.text != line["text"]:
            print(f"{question.id}: answered otherwise alone than in its batch", file=sys.stderr)
        write_explored(folder, place, one)


def _told(benchmark: Benchmark, question: Trajectory) -> dict[str, Any]:
    """What the line of a question tells of it."""
    metadata = question.metadata or {}
    return {
        "video": question.path,
        "question": question.question,
        "choices": list(question.choices),
        "axes": {axis: metadata[axis] for axis in benchmark.axes if axis in metadata},
    }


def _keep_cost(folder: pathlib.Path, cost: Counter[str], seconds: float) -> None:
    """Writes what this start of a run took; each has a file of its own, on whatever host."""
    device = jax.local_devices()[0]
    told = {name: round(value, 4) for name, value in {**cost, "seconds": seconds}.items()}
    told["peak_memory"] = (device.memory_stats() or {}).get("peak_bytes_in_use")
    told["device"] = f"{device.device_kind} x{jax.local_device_count()}"
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{uuid.uuid4().hex}.json", json.dumps(told) + "\n")


def _total_cost(folder: pathlib.Path) -> dict[str, Any]:
    """The sum over all starts; a start that was killed has told nothing."""
    starts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    memory = [start.pop("peak_memory") for start in starts]
    devices = sorted({start.pop("device") for start in starts})
    total = Counter(dict.fromkeys(_COUNTED, 0))
    for start in starts:
        total.update(start)
    known = [size for size in memory if size is not None]
    return {**total, "peak_memory": max(known, default=None), "device": ", ".join(devices)}


def _tell(out: pathlib.Path, told: dict[str, Any], lines: list[dict[str, Any]]) -> int:
    """Says what a complete run holds. Returns the exit code."""
    overall = told["overall"]
    print(f"{told['title']}, style {told['style']}: {_tally(overall)}")
    for axis, tallies in told["axes"].items():
        print(f"\n{axis}")
        for value, tally in tallies.items():
            print(f"  {value:<40} {_tally(tally)}")
    failed = [line for line in lines if "error" in line]
    for line in failed[:_SHOWN]:
        print(f"failed: row {line['line']} {line['id']}: {line['error']}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more that failed: {out / ANSWERS}", file=sys.stderr)
    print(f"\n{out / SCORES}; a page: latentomni report {out}")
    return 1 if failed else 0


def _tally(tally: dict[str, Any]) -> str:
    interval = tally["interval"]
    within = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    answered = tally["accuracy_answered"]
    of = f", {100 * answered:.1f} % of answered" if answered is not None else ""
    return (
        f"{100 * tally['accuracy']:.1f} %{within}{of}; {tally['right']} right, "
        f"{tally['answered']} answered, {tally['unparsed']} unparsed, {tally['failed']} failed of "
        f"{tally['total']}"
    )
