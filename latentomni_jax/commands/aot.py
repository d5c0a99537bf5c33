"""`latentomni aot`: what a pod would do with a config's programs, without a pod."""

from __future__ import annotations

import argparse
import json
import sys

from latentomni_jax.layout import InputError

EPILOG = """\
examples:
  latentomni aot --config configs/qwen2_5_omni_7b.py --topology v5e:4x8

  that was whether the paper's recipe fits 32 chips of v5e; now
  its longest rows, each on two chips, 16 at a time
    latentomni aot --config configs/qwen2_5_omni_7b.py --topology v5e:4x8 --program train \\
      --set mesh.tensor=2 --set accumulate=6

  which mesh, remat policy and number of micro-batches suit it
    latentomni aot --config configs/qwen2_5_omni_7b.py --topology v6e:4x4 --tokens 8192 --search

  two slices; answering alone; one JSON object a program
    latentomni aot --config configs/qwen2_5_omni_7b.py --topology '2*v5e:4x4' \\
      --set mesh.data=2
    latentomni aot --config configs/qwen2_5_omni_3b.py --topology v5e:1x1 --program decode --json

  the 7B with int8 weights on one chip of 16 GiB
    latentomni aot --config configs/qwen2_5_omni_7b.py --topology v5e:1x1 --program decode \
      --prompt 4096 --weights int8

Needs libtpu (pip install 'latentomni_jax[tpu]') and no TPU: programs are compiled by the compiler
that a pod runs, for the pod's own topology. Memory is the compiler's. Times are lower bounds from
published figures: FLOPs over peak, bytes over bandwidth of memory, and bytes that chips receive
from each other over their links, as if nothing overlapped. Answering has the weights cut over
`tensor` alone, as many chips as key/value heads allow. A program of answering does not use every
tower; the others' weights stay on the chip all the same, and the verdict counts them ("beside").
Programs are compiled with little optimisation, from which memory differs by up to 13 % on what was
compared; a verdict within a fifth of the chip's memory says so, and `--full` settles it.
Exit code: 0 where everything fits, 1 where something does not, 2 for unusable input.
"""
PROGRAMS = ("train", "prefill", "decode", "encode")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compile a config's programs for a TPU topology: memory, traffic, verdict."
    parser.epilog = EPILOG
    parser.add_argument("--config", required=True, help="experiment file, or FILE:NAME")
    parser.add_argument(
        "--topology", required=True, help="CHIP:LAYOUT or SLICES*CHIP:LAYOUT, such as v5e:4x8"
    )
    parser.add_argument(
        "--program", choices=(*PROGRAMS, "all"), default="all", help="(%(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="change a field of the config; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=int, help="which of the config's shapes to train on (the longest)"
    )
    parser.add_argument(
        "--rows", type=int, default=1, help="of each replica that answers (%(default)s)"
    )
    parser.add_argument(
        "--prompt", type=int, default=8192, help="positions of a prompt (%(default)s)"
    )
    parser.add_argument(
        "--search", action="store_true",
        help="try meshes, remat policies and micro-batches of the training step",
    )  # fmt: skip
    parser.add_argument(
        "--full", action="store_true",
        help="compile as for a run, several times longer: without, memory is an estimate",
    )  # fmt: skip
    parser.add_argument(
        "--weights", choices=("int8",),
        help="how decoder layers and head are held while answering; default is bfloat16",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON object a program")


def run(args: argparse.Namespace) -> int:
    from latentomni_jax.pod.certify import certify
    from latentomni_jax.pod.chips import Topology
    from latentomni_jax.pod.plans import Plans

    plans = Plans.load(args.config, args.settings, Topology.parse(args.topology))
    names = PROGRAMS if args.program == "all" else (args.program,)
    if not args.json:
        print(plans.describe())
    if args.search:
        if args.program not in ("all", "train") or args.weights:
            raise InputError("--search is for training: leave --program and --weights out")
        return _search(plans, args)
    fit = True
    for name in names:
        mesh, trace = plans.program(
            name, tokens=args.tokens, rows=args.rows, prompt=args.prompt, weights=args.weights
        )
        _note(f"compiling {name} ...", args)
        found = certify(name, trace(), mesh, plans.topology, quick=not args.full)
        print(json.dumps(found.to_json()) if args.json else render(found))
        fit = fit and found.fits
    return 0 if fit else 1


def _search(plans, args: argparse.Namespace) -> int:
    from latentomni_jax.pod.search import search

    best = None
    _note("each candidate takes a minute or more to compile", args)
    for one in search(plans, args.tokens):
        found, settings = one.certificate, " ".join(f"--set {s}" for s in one.settings)
        if args.json:
            seconds = one.seconds if found.network_s is not None else None
            print(json.dumps({"settings": one.settings, "seconds": seconds, **found.to_json()}))
        else:
            size = f"{found.peak / (1 << 30):.2f} GiB"
            known = found.network_s is not None
            speed = f"at best {one.seconds:.3g} s a step  " if known else ""
            print(f"{found.verdict:<13}{size:>10}  {speed}{settings}")
        if found.fits and (best is None or one.seconds < best.seconds):
            best = one
    if best is None:
        print("nothing fits: take more chips, or shorter shapes", file=sys.stderr)
        return 1
    settings = " ".join(f"--set {s}" for s in best.settings)
    _note(f"fastest by arithmetic: {settings}", args)
    return 0


def _note(text: str, args: argparse.Namespace) -> None:
    if not args.json:
        print(text, file=sys.stderr)


def render(found) -> str:
    """A certificate for reading."""
    gib, mesh = 1 << 30, ", ".join(f"{k} {n}" for k, n in found.mesh.items())
    lines = [f"\n{found.program}: {found.what}; {found.topology} as {mesh}"]
    if found.memory:
        m, left = found.memory, found.hbm - found.total
        spare = f"{left / gib:.2f} left" if left >= 0 else f"{-left / gib:.2f} too much"
        lines.append(
            f"  memory    {m.peak / gib:.2f} GiB of {found.hbm / gib:.0f} a chip "
            f"({m.arguments / gib:.2f} arguments, {m.temporaries / gib:.2f} temporaries; {spare})"
        )
    else:
        needed = f"{found.needed / gib:.2f} GiB" if found.needed else "more than there is"
        lines.append(f"  memory    {needed} wanted, {found.hbm / gib:.0f} a chip")
    if found.beside:
        lines.append(
            f"  beside    {found.beside / gib:.2f} GiB of other towers' weights; "
            f"{found.total / gib:.2f} with them"
        )
    again = f" (+ {1e3 * found.recompute_s:.1f} again)" if found.recompute_s else ""
    lines.append(
        f"  at least  compute {1e3 * found.compute_s:.1f} ms{again}, "
        f"memory {1e3 * found.memory_s:.1f} ms, "
        + (
            f"network not known ({found.unread})"
            if found.network_s is None
            else f"network {1e3 * found.network_s:.1f} ms: bound by {found.bound}"
        )
    )
    for row in found.by_kind():
        lines.append(
            f"    {row['kind']:<19}over {row['axes']:<12}{row['count']:>6} runs "
            f"{row['received'] / 1e9:>9.3f} GB received  {1e3 * row['seconds']:>8.2f} ms"
        )
    how = "compiled quickly, memory is an estimate" if found.quick else "compiled"
    how += "" if found.is_clear else " and close: --full tells for sure"
    lines.append(f"  verdict   {found.verdict} ({how}, in {found.compile_s:.0f} s)")
    return "\n".join(lines)
