"""`latentomni doctor`: checks this machine and says what to do about what is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json

from latentomni_jax.pod.doctor import Finding, examine

EPILOG = """\
examples:
  latentomni doctor
  latentomni doctor --json | python -m json.tool

Marks: "ok"; "--" an optional thing that is absent; "NO" a required one that is absent or broken.
Lines about a TPU accelerator type before the first heading are libtpu's own, on machines that have
it installed and no TPU; JAX_PLATFORMS=cpu (or cuda) silences them.
Exit code: 0, or 1 where anything is marked NO.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check versions, devices, memory and codecs of this machine."
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 1 where something required is absent or broken, else 0."""
    findings = examine()
    healthy = all(finding.ok for finding in findings if finding.required)
    if args.json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"ok": healthy, "findings": listed}))
    else:
        print(render(findings))
    return 0 if healthy else 1


def render(findings: list[Finding]) -> str:
    """The findings under their headings, advice beside what is not ok, and a last line."""
    lines = []
    order = list(dict.fromkeys(finding.group for finding in findings))
    by_group = sorted(findings, key=lambda finding: order.index(finding.group))
    for group, members in itertools.groupby(by_group, key=lambda finding: finding.group):
        lines.append(group)
        for finding in members:
            mark = "ok" if finding.ok else "NO" if finding.required else "--"
            advice = "" if finding.ok or not finding.advice else f"  ({finding.advice})"
            lines.append(f"  {mark} {finding.name:<20} {finding.value}{advice}")
    broken = [finding.name for finding in findings if finding.required and not finding.ok]
    lines.append(f"not usable yet: {', '.join(broken)}" if broken else "all that is required works")
    return "\n".join(lines)
