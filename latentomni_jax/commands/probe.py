"""`latentomni probe`: what becomes of a model's answers when its latents are others."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys

EPILOG = """\
examples:
  latentomni probe --model runs/demo/latentomni/model --data runs/demo/events/test.jsonl

  more questions, and other slot counts:
    latentomni probe --model DIR --data FILE --questions 400 --slots 10 30

Every row answers the same questions; what changes are the latent states alone:
  own                what the model makes itself; all other rows are compared with it
  zeros, noise       nothing, or random states of the same norm
  other, permuted    the states of an answer about another clip, to a question of the same type
                     where there is one; its own in another order of slots
  markers            trigger and stop alone, no slots between them
  off                no latent blocks at all
  K = n              n slots, shared out between the modalities as in training; n = 0 is
                     "markers", and the model's own K is "own"

If these rows are as good as "own", the latents are decoration. gained and lost are questions that
only this row, or only "own", has right; p is that of an exact McNemar test.
Exit code: 0, or 2 with one line on stderr where a file or an option is unusable.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Replace, remove and resize latents, and see what becomes of the answers."
    parser.epilog = EPILOG
    parser.add_argument("--model", required=True, metavar="DIR", help="trained model directory")
    parser.add_argument(
        "--data", required=True, type=pathlib.Path, metavar="FILE",
        help="trajectories with choices, as JSON lines",
    )  # fmt: skip
    parser.add_argument(
        "--questions", type=int, default=96, metavar="N", help="of the file (default %(default)s)"
    )
    parser.add_argument(
        "--slots", type=int, nargs="*", default=[5, 20, 40, 64], metavar="K",
        help="slots to try at inference (default 5 20 40 64)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=48, metavar="N", help="questions at a time")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of noise and permutations")
    parser.add_argument(
        "--weights", choices=("int8",), help="hold the decoder's matrices so; see answer --help"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    from data_pipeline.trajectories import read_jsonl
    from latentomni_jax.evaluate.probes import run_probes
    from latentomni_jax.evaluate.states import measure_states
    from latentomni_jax.layout import InputError
    from latentomni_jax.model import LatentOmni

    if args.questions < 2 or args.batch < 1 or min(args.slots, default=0) < 0:
        raise InputError("probe needs --questions >= 2, --batch >= 1 and no negative --slots")
    questions, problems = read_jsonl(args.data)
    for problem in problems[:3]:
        print(f"left out: {problem}", file=sys.stderr)
    questions = [q for q in questions if q.choices][: args.questions]
    model = LatentOmni.from_pretrained(args.model, weights=args.weights)
    probes, own = [], []
    root = args.data.parent
    if not args.json:
        print(
            f"{'latents':<10} right     %  well formed  blocks  gained  lost        p", flush=True
        )
    for probe, answers in run_probes(
        model, questions, root, slot_counts=args.slots, batch=args.batch, seed=args.seed,
        max_new_tokens=args.max_new_tokens,
    ):  # fmt: skip
        probes.append(probe)
        own = own or answers
        if not args.json:
            print(
                f"{probe.name:<10} {probe.right:>5} {100 * probe.right / probe.asked:>5.1f}"
                f"{probe.well_formed:>13}{probe.blocks:>8.2f}{probe.gained:>8}{probe.lost:>6}"
                f"{probe.p_value:>9.1e}",
                flush=True,
            )
    measures = measure_states(model, own, root)
    if args.json:
        rows = [dataclasses.asdict(probe) for probe in probes]
        print(json.dumps({"probes": rows, "states": measures}))
        return 0
    print()
    for name, value in measures.items():
        print(f"{name:<20}{value:>8.3f}")
    return 0
