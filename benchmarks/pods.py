"""The table of docs/pods.md: what `latentomni aot` says of the configs on real topologies.

    python benchmarks/pods.py --full          # every row, optimised as for a run: 20 minutes
    python benchmarks/pods.py --full v5e:4x8  # rows that have these words in their command
    python benchmarks/pods.py                 # compiled quickly: memory is an estimate

Needs libtpu, no TPU. Certificates are kept in docs/pods.json, from which the table is written; rows
that are not run stay as they are. A test compiles some of them again and compares.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "pods.md", ROOT / "docs" / "pods.json"
BEGIN, END = "<!-- table: written by benchmarks/pods.py -->", "<!-- table ends -->"
HEADER = (
    "| program | GiB a chip | compute, ms | again | memory, ms | network, ms | bound by | verdict "
    "| compiled in |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
TIMES = ("compute", "recompute", "memory", "network")
# Rows of 8,192 positions, the config's longest on v5e, answering on one chip.
COMMANDS = (
    "qwen2_5_omni_7b.py --topology v5e:4x8 --tokens 8192",
    "qwen2_5_omni_7b.py --topology v5e:16x16 --tokens 8192 --set mesh.data=8 --set batch_size=256 "
    "--set accumulate=1",
    "qwen2_5_omni_7b.py --topology v6e:4x4 --tokens 8192 --set accumulate=3",
    "qwen2_5_omni_7b.py --topology v5p:4x4x4 --tokens 8192 --set batch_size=128 --set accumulate=2",
    "qwen2_5_omni_7b.py --topology '2*v5e:4x4' --tokens 8192 --set mesh.data=2",
    "qwen2_5_omni_7b.py --topology v5e:4x8 --program train --set mesh.tensor=2 --set accumulate=6",
    "qwen2_5_omni_3b.py --topology v5e:1x1 --program decode --prompt 4096",
    "qwen2_5_omni_7b.py --topology v5e:1x1 --program decode --prompt 4096 --weights int8",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="rows whose command has all of these")
    parser.add_argument("--full", action="store_true", help="optimise as for a run")
    args = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for command in COMMANDS:
        if all(word in command for word in args.words):
            started = time.monotonic()
            kept[command] = certificates(command, quick=not args.full)
            print(f"{time.monotonic() - started:4.0f} s  {command}", flush=True)
            KEPT.write_text(
                json.dumps({c: kept[c] for c in COMMANDS if c in kept}, indent=1) + "\n"
            )
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [line for command, found in kept.items() for line in section(command, found)]
    PAGE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def certificates(command: str, quick: bool) -> list[dict]:
    """What `latentomni aot` prints of each program."""
    words = shlex.split(f"aot --config configs/{command} --json" + " --full" * (not quick))
    done = subprocess.run(
        [sys.executable, "-m", "latentomni_jax", *words], cwd=ROOT, capture_output=True, text=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    # 1 says that something does not fit, and is also what Python ends with where it breaks off.
    if done.returncode not in (0, 1) or "Traceback" in done.stderr or not found:
        raise SystemExit(f"{command}\n{done.stderr[-2000:]}")
    return found


def section(command: str, found: list[dict]) -> list[str]:
    """A command and its programs."""
    how = "" if any(one["quick"] for one in found) else " --full"
    lines = ["", f"`latentomni aot --config configs/{command}{how}`", "", *HEADER]
    for one in found:
        axes = ", ".join(f"{name} {n}" for name, n in one["mesh"].items() if n > 1)
        what = f"{one['program']}: {one['what']}" + f"; {axes}" * bool(axes)
        seconds = [one[f"{name}_s"] for name in TIMES]
        times = ["not known" if one is None else f"{1e3 * one:.1f}" for one in seconds]
        taken = f"{one['compile_s']:.0f} s" + ", quickly" * one["quick"]
        cells = [what, f"{one['total'] / 2**30:.2f} of {one['hbm'] / 2**30:.0f}", *times,
                 one["bound"], one["verdict"], taken]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
