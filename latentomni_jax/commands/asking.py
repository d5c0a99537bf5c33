"""What `generate` and `eval` share: a model answers questions, on several devices and hosts."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from latentomni_jax.commands.decoding import add_decoding_arguments, load
from latentomni_jax.evaluate import generate
from latentomni_jax.evaluate.generate import Asking, Question
from latentomni_jax.evaluate.parts import Parts
from latentomni_jax.layout import InputError, LatentSpec
from latentomni_jax.pod.hosts import join
from latentomni_jax.train.host import StopSignal
from latentomni_jax.train.mesh import make_mesh


def add_asking_arguments(parser: argparse.ArgumentParser, *, styled: bool = False) -> None:
    """How many questions at a time, how the model decodes, and on which devices and hosts.

    `styled` as in `add_decoding_arguments`.
    """
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
    add_decoding_arguments(parser, styled=styled)
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


def answer_file(
    args: argparse.Namespace,
    questions: Sequence[Question],
    asking: Asking,
    latent: LatentSpec,
    *,
    data: pathlib.Path,
    out: pathlib.Path,
    media: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    cost: Counter[str] | None = None,
) -> int | None:
    """Answers all questions that are not answered in `out`.

    Args:
      latent: whose slot counts the model decodes with.
      data: the file that the questions are of.
      media: fields of the model's `MediaSpec` that are others.
      identity: what answers depend on beside what `generate.identity` tells.
      cost: see `generate.generate`.

    Returns:
      None where `out` is complete, else the exit code.

    Raises:
      InputError: an unusable option, model, or an `out` of another run.
    """
    windows = generate.windows_of(questions, asking)
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
    more = {"dtype": args.dtype, "weights": args.weights, **slots, **shape, **(identity or {})}
    whole = generate.identity(data, args.model, asking, **more)
    parts = Parts(out, [len(window) for window in windows], whole, overwrite=args.overwrite)
    mine = range(process, len(windows), processes)
    done = all(map(parts.is_done, mine))
    if args.pod or not done:  # hosts of a pod load together
        model = load(args, latent, media or {}, mesh)
        if args.pod:
            jax.distributed.shutdown()  # or JAX would end all hosts where one dies
        with StopSignal("finishing the questions in hand", alone=True) as stop:
            done = generate.generate(
                model, windows, asking, parts, mine, stop=stop.is_asked, cost=cost
            )
    if parts.finish():
        return None
    count = f"{parts.missing()} of {len(windows)} windows are not done"
    if not done:
        print(f"stopped: {count}; start it again to continue", file=sys.stderr)
        return 3
    print(f"all of process {process} is done; {count}, which are of others", file=sys.stderr)
    return 0


def _place(args: argparse.Namespace) -> tuple[int, int]:
    """Which process this is, of how many. Raises InputError for numbers that do not fit."""
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
