"""`latentomni data`: training data is checked, decoded and cached before training begins."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time

from latentomni_jax.commands import instruct
from latentomni_jax.layout import InputError

EPILOG = """\
examples:
  latentomni data tiny --out tiny

  a world in which answers need eyes and ears, with its truth:
    latentomni data av-events --out events --clips 1000

  the feature cache of that tiny set, its pictures as small as they are:
    latentomni data cache --data tiny/trajectories.jsonl --out tiny-cache \\
      --video-min-pixels 3136 --video-max-pixels 12544

  trajectories out of captioned videos, with a model server:
    latentomni data instruct --captions captions.jsonl --videos clips --out instruct \\
      --llm http://127.0.0.1:8000/v1

  your own data; latentomni data cache --help says what a file of trajectories looks like:
    latentomni data cache --data train.jsonl --out cache/train
"""
CACHE_EPILOG = r"""
A file of trajectories has one JSON object a line:
  {"id": "a1", "video": "clips/a1.mp4", "question": "Which shape is seen at the highest tone?",
   "choices": ["disc", "square"],
   "reasoning": "I listen.<Unified_Latent></Unified_Latent>It is the second shape.",
   "segments": [[1.0, 2.5]], "answer": "\\boxed{B}"}

  id, question, answer   required
  video, audio, image    at most one, a path; none for text alone
  reasoning              each empty pair of latent tokens becomes a latent block
  segments               [start, end] seconds of the clip that each pair cites, in order
  choices, system        options of a multiple-choice question; a system message
  metadata               an object of your own, kept; training reads nothing of it, and scores are
                         told apart by its "type"; other keys are errors

examples:
  latentomni data cache --data train.jsonl --out cache/train

  clips are elsewhere, more processes, and any mistake in the data ends the run:
    latentomni data cache --data train.jsonl --media-root /data/clips --out cache/train \
      --workers 8 --on-error fail

An interrupted run goes on where it was when it is started again. What is left out is listed at the
end by reason, and in DIR/problems.jsonl.
Exit code: 0, or 2 with one line on stderr where a file or an option is unusable.
"""

MESSAGES_EPILOG = """\
A row has "messages" (user, assistant), the files that placeholders name ("videos", "audios",
"images"), and what the layout has no place for, which loaders pass over: "segments", "choices",
"answer", "metadata". A row of others that cannot be a trajectory is listed and left out.

examples:
  latentomni data messages --export instruct/trajectories.jsonl --out sft.jsonl
  latentomni data messages --import theirs.jsonl --out trajectories.jsonl
"""

AV_EVENTS_EPILOG = """\
What is written:
  clips/*.mp4             H.264 and AAC; splits train, test and novel share no clip, and novel has
                          things and sounds that the others never have
  train.jsonl, test.jsonl, novel.jsonl
                          questions, options, reasoning with latent blocks, answers
  base.jsonl              for a model from nothing: exercises in words, clips of one thing and of
                          one sound, lists of all that is in training clips, and their trajectories,
                          also with reasoning that does not say what it found
  tokenizer               for a model from nothing, trained on these texts
  av_events/1.0.0         the truth as a TFDS dataset: timelines, timed captions, questions

examples:
  latentomni data av-events --out events --clips 1000

  harder, and another world:
    latentomni data av-events --out hard --dial hard --seed 1

  is every clip still as it was made?
    latentomni data av-events --out events --check

The same options make the same bytes. An interrupted run goes on where it was.
Exit code: 0, or 2 where an option is unusable or --check finds something.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prepare training data."
    parser.epilog = EPILOG
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="cache|instruct|av-events|tiny"
    )
    raw = argparse.RawDescriptionHelpFormatter

    cache = verbs.add_parser(
        "cache",
        help="decode every clip of a file of trajectories once, into a feature cache",
        description="Decode every clip of a file of trajectories once, into a feature cache.",
        epilog=CACHE_EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    cache.add_argument("--data", required=True, metavar="FILE.jsonl", help="the trajectories")
    cache.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    cache.add_argument(
        "--media-root", metavar="DIR", help="what paths are relative to; default is FILE's folder"
    )
    cache.add_argument(
        "--on-error",
        choices=("skip", "fail"),
        default="skip",
        help="leave unusable trajectories out (default), or end at the first",
    )
    cache.add_argument(
        "--workers",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 2),
        metavar="N",
        help="processes that decode (default here %(default)s)",
    )
    cache.add_argument(
        "--max-blocks",
        type=int,
        default=3,
        metavar="N",
        help="latent blocks that a trajectory may have (default %(default)s)",
    )
    cache.add_argument(
        "--shard-files",
        type=int,
        default=16,
        metavar="N",
        help="clips per file of the cache; what an interrupted run loses (default %(default)s)",
    )
    cache.add_argument(
        "--overwrite", action="store_true", help="replace the feature cache that is in DIR"
    )
    sampling = cache.add_argument_group("sampling and sizes (the defaults are the paper's)")
    for name, (unit, text) in _SPEC_OPTIONS.items():
        sampling.add_argument(
            f"--{name.replace('_', '-')}",
            type=float if name == "fps" else int,
            metavar=unit,
            help=text,
        )

    made = verbs.add_parser(
        "instruct",
        help="make trajectories of captioned videos by asking models",
        description=instruct.DESCRIPTION,
        epilog=instruct.EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    instruct.add_arguments(made)

    messages = verbs.add_parser(
        "messages",
        help="trajectories to and from the layout of messages that SFT frameworks read",
        description="Trajectories to the layout of messages that SFT frameworks read, and back.",
        epilog=MESSAGES_EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    direction = messages.add_mutually_exclusive_group(required=True)
    direction.add_argument("--export", metavar="FILE.jsonl", help="trajectories to write as rows")
    direction.add_argument(
        "--import",
        dest="imported",
        metavar="FILE",
        help="rows (JSON lines, or one JSON list) to read",
    )
    messages.add_argument("--out", required=True, metavar="FILE.jsonl", help="file to write")

    tiny = verbs.add_parser(
        "tiny",
        help="draw a tiny training set, clips and trajectories",
        description="Draw a tiny training set: clips of moving shapes and tones, and trajectories.",
        epilog="example:\n  latentomni data tiny --out tiny\n",
        formatter_class=raw,
        allow_abbrev=False,
    )
    tiny.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    tiny.add_argument(
        "--samples", type=int, default=16, metavar="N", help="trajectories (default %(default)s)"
    )
    tiny.add_argument("--seed", type=int, default=0, help="of what is drawn (default %(default)s)")

    events = verbs.add_parser(
        "av-events",
        help="draw and play a world whose questions need pictures and sound",
        description="Draw and play clips of things that are seen and sounds that are heard, with "
        "their truth, questions of six types and reasoning that cites the clip.",
        epilog=AV_EVENTS_EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    events.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    events.add_argument(
        "--clips", type=int, default=1000, metavar="N",
        help="whole clips, of all splits; single things and sounds come on top (%(default)s)",
    )  # fmt: skip
    events.add_argument("--seed", type=int, default=0, help="of the world (default %(default)s)")
    events.add_argument(
        "--dial", choices=("easy", "medium", "hard"), default="easy", help="how hard (default easy)"
    )
    for name, (unit, text) in _DIAL_OPTIONS.items():
        kind = int if unit == "N" else float
        events.add_argument(f"--{name}", type=kind, metavar=unit, help=text)
    events.add_argument(
        "--alike",
        action=argparse.BooleanOptionalAction,
        help="things of a clip may share colours, and sounds voices",
    )
    events.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that render (default here %(default)s)",
    )
    events.add_argument(
        "--check", action="store_true", help="look whether the set in DIR is whole; write nothing"
    )


_DIAL_OPTIONS = {
    "moments": ("N", "with a thing and a sound, 6 to 9"),
    "alone": ("N", "further moments with one of the two, 0 to 4"),
    "seconds": ("S", "length of a moment"),
    "jitter": ("S", "that a sound may begin earlier or later than its thing"),
    "overlap": ("S", "that a sound goes on into the next moment"),
    "distractors": ("N", "marks in the picture, and hum, that mean nothing"),
}
_SPEC_OPTIONS = {
    "fps": ("N", "frames per second that are sampled (default 2)"),
    "min_frames": ("N", "frames of a video at least (default 4)"),
    "max_frames": ("N", "frames of a video at most (default 256)"),
    "video_min_pixels": ("N", "pixels of a frame at least (default 100352)"),
    "video_max_pixels": ("N", "pixels of a frame at most (default 105369)"),
    "total_pixels": ("N", "pixels of all frames at most, pairs counted once (default 90316800)"),
    "image_min_pixels": ("N", "pixels of an image at least (default 3136)"),
    "image_max_pixels": ("N", "pixels of an image at most (default 12845056)"),
}


def run(args: argparse.Namespace) -> int:
    """Runs the verb; 0 when all went well. Raises InputError."""
    verbs = {
        "cache": _cache,
        "instruct": instruct.run,
        "messages": _messages,
        "tiny": _tiny,
        "av-events": _av_events,
    }
    return verbs[args.verb](args)


def _cache(args: argparse.Namespace) -> int:
    from data_pipeline.cache import TRAINING_SPEC, build_cache

    given = {name: getattr(args, name) for name in _SPEC_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} should be more than 0, got {value}")
    spec = dataclasses.replace(TRAINING_SPEC, **given)
    for kind in ("video", "image"):
        low, high = getattr(spec, f"{kind}_min_pixels"), getattr(spec, f"{kind}_max_pixels")
        if low > high:
            raise InputError(f"--{kind}-min-pixels {low} is more than --{kind}-max-pixels {high}")
    if spec.min_frames > spec.max_frames:
        raise InputError(f"--min-frames {spec.min_frames} is more than {spec.max_frames}")
    started = time.monotonic()
    summary = build_cache(
        args.data,
        args.out,
        spec,
        media_root=args.media_root,
        on_error=args.on_error,
        workers=args.workers,
        max_blocks=args.max_blocks,
        shard_files=args.shard_files,
        overwrite=args.overwrite,
    )
    print(f"{summary}\nin {time.monotonic() - started:.1f} s to {args.out}")
    return 0


def _messages(args: argparse.Namespace) -> int:
    from data_pipeline.instruct.messages import export_messages, import_messages

    if args.export:
        count, problems = export_messages(args.export, args.out)
    else:
        count, problems = import_messages(args.imported, args.out)
    for problem in problems:
        print(problem)
    print(f"{count} rows to {args.out}, {len(problems)} left out")
    return 0


def _tiny(args: argparse.Namespace) -> int:
    from data_pipeline.av_events.tiny import CACHE_OPTIONS, make_tiny_set

    path = make_tiny_set(args.out, args.samples, args.seed)
    options = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in CACHE_OPTIONS.items())
    print(
        f"{args.samples} trajectories in {path}; next:\n"
        f"  latentomni data cache --data {path} --out {args.out}-cache {options}"
    )
    return 0


def _av_events(args: argparse.Namespace) -> int:
    from data_pipeline.av_events import build, samples
    from data_pipeline.av_events.render import CACHE_OPTIONS
    from data_pipeline.av_events.world import DIALS

    if args.check:
        problems = build.check_set(args.out)
        print("\n".join(problems) or f"{args.out}: every clip is as it was made")
        return 2 if problems else 0
    if args.workers < 1:
        raise InputError(f"--workers should be at least 1, got {args.workers}")
    given = {name: getattr(args, name) for name in (*_DIAL_OPTIONS, "alike")}
    given = {name: value for name, value in given.items() if value is not None}
    dial = dataclasses.replace(DIALS[args.dial], **given)
    started = time.monotonic()
    world = samples.World.of(args.clips, args.seed, dial)
    alone = build.make_set(args.out, world, workers=args.workers)
    counts = ", ".join(f"{n} {s}" for s, n in zip(samples.SPLITS, world.clips, strict=True))
    options = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in CACHE_OPTIONS.items())
    print(f"{counts} clips in {time.monotonic() - started:.0f} s to {args.out}; next:")
    print(f"  latentomni data cache --data {args.out}/base.jsonl --out {args.out}-cache {options}")
    print(f"a learned guess from one modality (chance 25%): {alone}")
    return 0
