"""`latentomni generate`: a file of questions becomes a file of answers, a line for a line."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import sys
from typing import Any

from latentomni_jax.commands.decoding import add_decoding_arguments, decoding_options
from latentomni_jax.layout import InputError

_SHOWN = 5  # questions without an answer that are named at the end
EPILOG = """\
examples:
  latentomni generate --model models/qwen7b --data test.jsonl --out answers.jsonl

  larger batches, no latents, and the clips elsewhere:
    latentomni generate --model models/qwen7b --data test.jsonl --media-root /data/clips \\
      --out answers.jsonl --batch 32 --latents off

  weights over 4 chips of a host, questions over the rest of its chips:
    latentomni generate --model models/qwen7b --data test.jsonl --out answers.jsonl --tensor 4

  on several hosts that share a disk, each with its own number (Slurm has it so):
    latentomni generate --model models/qwen7b --data test.jsonl --out /shared/answers.jsonl \\
      --processes $SLURM_NTASKS --process $SLURM_PROCID

Questions are trajectories (see `latentomni data cache --help`); what they hold of reasoning is not
shown to the model. OUT has a line for every line of them, in order:
  line, id                     where the question stands, and what it is called
  text, answer                 what the model said; the letter, or the answer to an open question
  expected, right              the right answer, and whether it was given (null: not known)
  finished                     false where --max-new-tokens cut it off
  tokens, latent_blocks, latent_steps, prompt_tokens   counts
or, where a line is no question or its clip cannot be read, line, id and error. That stops nothing.

Windows of questions are answered one after the other and kept in OUT.parts. Killed at any moment
and started again, on as many hosts as there are then, a run goes on, and OUT is to the byte what it
would have been. OUT.run.json says what OUT depends on: another model, file or option is refused
beside it. Ctrl-C and SIGTERM end after the window in hand.
Exit code: 0; 1 where OUT is complete, but questions in it have no answer; 2 with one line on stderr
where a file or an option is unusable; 3 where the run was told to stop and can be continued.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Answer a file of questions."
    parser.epilog = EPILOG
    parser.add_argument(
        "--model", required=True, type=pathlib.Path, metavar="DIR",
        help="a ported model or a Hugging Face directory",
    )  # fmt: skip
    parser.add_argument(
        "--data", required=True, type=pathlib.Path, metavar="FILE", help="questions as JSON lines"
    )
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, metavar="OUT", help="file of answers to write"
    )
    parser.add_argument(
        "--media-root", type=pathlib.Path, metavar="DIR",
        help="what paths of clips are relative to; default is FILE's folder",
    )  # fmt: skip
    parser.add_argument(
        "--view", choices=("both", "video", "audio", "question"), default="both",
        help="what the model is given of a clip (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, default=16, metavar="N",
        help="questions at a time, on all devices of a host together (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=int, default=4, metavar="N",
        help="batches whose clips are in memory at once, twice, and that are lost when a run is "
        "killed (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--longest", type=int, metavar="N",
        help="tokens that a prompt may have; longer ones get no answer (default: no limit, and a "
        "prompt that does not fit into memory ends the run)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true",
        help="begin anew, whatever is there; leave it out to continue",
    )  # fmt: skip
    add_decoding_arguments(parser)
    hosts = parser.add_argument_group("devices, and hosts that share a disk")
    hosts.add_argument(
        "--tensor", type=int, default=1, metavar="N",
        help="devices over which weights are split; questions are, over the others of a host "
        "(default %(default)s)",
    )  # fmt: skip
    hosts.add_argument("--processes", type=int, metavar="N", help="how many hosts there are")
    hosts.add_argument("--process", type=int, metavar="I", help="which this one is, from 0")
    hosts.add_argument(
        "--pod", action="store_true",
        help="the platform tells both; hosts then start together, and all again where one died",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    import jax
    import jax.numpy as jnp

    from latentomni_jax.evaluate import generate
    from latentomni_jax.evaluate.parts import Parts
    from latentomni_jax.model import LatentOmni
    from latentomni_jax.train.host import StopSignal
    from latentomni_jax.train.mesh import make_mesh
    from latentomni_jax.weights.specs import read_specs

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    data, out = args.data.absolute(), args.out.absolute()
    _, stored, _ = read_specs(args.model)
    options, latent = decoding_options(args, stored)
    asking = generate.Asking(
        root=(args.media_root or data.parent).absolute(),
        view=args.view,
        batch=args.batch,
        window=args.window,
        longest=args.longest,
        seed=args.seed,
        options=options,
    )
    windows = generate.windows_of(generate.read_questions(data), asking)
    process, processes = _place(args)
    # Of this host's devices alone: no host waits for another.
    mesh = make_mesh(data=-1, fsdp=1, tensor=args.tensor, devices=jax.local_devices())
    if args.batch % mesh.shape["data"]:
        raise InputError(
            f"--batch {args.batch} does not divide over {mesh.shape['data']} devices "
            f"({mesh.size} with --tensor {args.tensor})"
        )
    slots = {"num_visual": latent.num_visual, "num_audio": latent.num_audio}
    shape = {"mesh": f"data {mesh.shape['data']}, tensor {mesh.shape['tensor']}"}
    widths = {"dtype": args.dtype, "weights": args.weights}
    identity = generate.identity(data, args.model, asking, **widths, **slots, **shape)
    parts = Parts(out, [len(window) for window in windows], identity, overwrite=args.overwrite)
    mine = range(process, len(windows), processes)
    done = all(map(parts.is_done, mine))
    if args.pod or not done:  # hosts of a pod load together
        model = LatentOmni.from_pretrained(
            args.model,
            dtype=args.dtype and jnp.dtype(args.dtype),
            weights=args.weights,
            mesh=mesh if mesh.size > 1 else None,
        ).with_latent(**slots)
        if args.pod:
            jax.distributed.shutdown()  # or JAX would end all hosts where one dies
        with StopSignal("finishing the questions in hand", alone=True) as stop:
            done = generate.generate(model, windows, asking, parts, mine, stop=stop.is_asked)
    if parts.finish():
        return _tell(out)
    count = f"{parts.missing()} of {len(windows)} windows are not done"
    if not done:
        print(f"stopped: {count}; start it again to continue", file=sys.stderr)
        return 3
    print(f"all of process {process} is done; {count}, which are of others", file=sys.stderr)
    return 0


def _place(args: argparse.Namespace) -> tuple[int, int]:
    """Which process this is, of how many. Raises InputError for numbers that do not fit."""
    import jax

    from latentomni_jax.pod.hosts import join

    if args.pod:
        if args.processes is not None or args.process is not None:
            raise InputError("--pod tells --processes and --process; give it alone")
        join(None, None, None)
        place = jax.process_index(), jax.process_count()
    elif args.processes is None and args.process is None:
        return 0, 1
    elif args.processes is None or args.process is None:
        raise InputError("--processes and --process go together")
    else:
        place = args.process, args.processes
    if not 0 <= place[0] < place[1]:
        raise InputError(f"process {place[0]} of {place[1]}: they are numbered from 0")
    if args.overwrite and place[1] > 1:
        raise InputError(
            "--overwrite with several processes: each would remove what the others write; remove "
            "OUT, OUT.run.json and OUT.parts yourself, or name another file"
        )
    return place


def _tell(out: pathlib.Path) -> int:
    """Says what a complete file of answers holds. Returns the exit code."""
    with out.open(encoding="utf-8") as file:
        lines: list[dict[str, Any]] = [json.loads(line) for line in file]
    known = [line["right"] for line in lines if line.get("right") is not None]
    failed = [line for line in lines if "error" in line]
    share = f" ({100 * sum(known) / len(known):.1f} %)" if known else ""
    print(
        f"{out}: {len(lines)} questions, {len(lines) - len(failed)} answered, "
        f"{sum(known)} of {len(known)} right{share}"
    )
    for line in failed[:_SHOWN]:
        named = "" if line["id"] is None else f" {line['id']!r}"
        print(f"no answer: line {line['line']}{named}: {line['error']}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"and {len(failed) - _SHOWN} more without an answer", file=sys.stderr)
    return 1 if failed else 0
