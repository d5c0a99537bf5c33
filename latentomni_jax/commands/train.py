"""`latentomni train`: a config and a work directory become a trained model."""

from __future__ import annotations

import argparse
import contextlib
import logging
import pathlib
import sys

_LOG = logging.getLogger(__name__)
EPILOG = """\
examples:
  latentomni train --config configs/tiny.py --workdir runs/tiny

  that was a tiny model from nothing, on clips drawn for it, minutes on a laptop;
  now a checkpoint, on a feature cache of your own (see `latentomni data cache --help`)
    latentomni train --config configs/qwen2_5_omni_7b.py --workdir runs/7b \\
      --set model.directory=Qwen2.5-Omni-7B --set data.cache=cache/train

  an ablation, with another learning rate
    latentomni train --config configs/ablations.py:without_ospe --workdir runs/no_ospe \\
      --set model.directory=Qwen2.5-Omni-7B --set data.cache=cache/train \\
      --set optimizer.learning_rate=3e-5

  on every host of a TPU pod, at once; elsewhere hosts are told of each other
    latentomni train --pod --config configs/qwen2_5_omni_7b.py --workdir /shared/7b ...
    latentomni train --coordinator 10.0.0.2:8476 --processes 4 --process 0 ...

  what a config would do, without doing it
    latentomni train --config configs/tiny.py --workdir runs/tiny --print-config

The work directory gets metrics.jsonl, tensorboard/, checkpoints/ and, at the end, model/, which
`latentomni answer --model` takes. Started again with the same config, a run that was stopped or
killed goes on from its last checkpoint, exactly as if nothing had happened; on another number
of hosts too, to rounding. Ctrl-C and SIGTERM save a checkpoint first.
Exit code: 0; 2 with one line on stderr where config, data or checkpoint are unusable; 3 where the
run was interrupted and can be continued; 70 where another host hung.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train LatentOmni."
    parser.epilog = EPILOG
    parser.add_argument(
        "--config", required=True, help="experiment file, or FILE:NAME where it has several"
    )
    parser.add_argument(
        "--workdir", required=True, type=pathlib.Path, help="checkpoints, metrics and model"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="change a field of the config, such as optimizer.steps=100; repeatable",
    )  # fmt: skip
    hosts = parser.add_argument_group("several hosts, which share the work directory")
    hosts.add_argument("--pod", action="store_true", help="the platform tells hosts of each other")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    hosts.add_argument("--processes", type=int, help="how many there are")
    hosts.add_argument("--process", type=int, help="which this one is, from 0")
    hosts.add_argument(
        "--hung-after", type=float, default=600, metavar="SECONDS",
        help="without a step, until a process ends and names who hangs (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole config and stop"
    )


def run(args: argparse.Namespace) -> int:
    from latentomni_jax.train.config import load

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    config = load(args.config, args.settings)
    if args.print_config:
        print(config)
        return 0
    from latentomni_jax.train.host import keep_freed_memory
    from latentomni_jax.train.loop import Trainer

    keep_freed_memory()
    workdir = args.workdir.absolute()
    told = (args.coordinator, args.processes, args.process)
    with contextlib.ExitStack() as stack:
        on_step = _ignored
        if args.pod or any(one is not None for one in told):
            from latentomni_jax.pod.hosts import Watchdog, join

            join(*told)
            on_step = stack.enter_context(
                Watchdog(workdir / "hosts", args.hung_after, say=_LOG.error)
            )
        trainer = Trainer(config, workdir)
        print(trainer.describe(), file=sys.stderr)
        result = trainer.train(on_step)
    if summary := trainer.feed.summary():
        print(f"left out of training\n{summary}", file=sys.stderr)
    if result.model is None:
        print(f"stopped after step {result.step}; start it again to continue", file=sys.stderr)
        return 3
    losses = ", ".join(
        f"{name.removeprefix('loss/')} {result.last[name]:.4g}"
        for name in ("loss/total", "loss/text", "loss/latent", "loss/sync")
        if name in result.last
    )
    print(f"{result.step} steps; {losses or 'nothing left to do'}\nmodel: {result.model}")
    return 0


def _ignored(_step: int) -> None:
    """Where nobody watches."""
