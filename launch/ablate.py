"""The paper's ablations in small: every row trained alike, compared, and written down.

    python -m launch.ablate                        the main rows, three seeds: hours on two cores
    python -m launch.ablate --rows count mode      other groups, or rows by name
    python -m launch.ablate --report-only          writes what there is to docs/results.md

A seed has a world, questions and a base of its own (`configs/av_events.py`; its folder is laid out
as the demo's, whose folder can be one); rows of a seed differ in the last stage alone
(`configs/av_events_study.py`), which has the same number of steps for each. What is finished is not
done again: stopped, it goes on where it was. The table is written after every row.

Groups:"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import jax
import tqdm

from configs.av_events import STAGES
from configs.av_events_study import GROUPS, ROWS
from data_pipeline.trajectories import Trajectory, read_jsonl
from latentomni_jax.evaluate import plots, study
from latentomni_jax.evaluate.answers import Scored, answer_all
from latentomni_jax.evaluate.states import measure_states
from latentomni_jax.layout import InputError
from latentomni_jax.model import LatentOmni
from launch import demo

__doc__ += "; ".join(f"{group} ({', '.join(rows)})" for group, rows in GROUPS.items()) + "."
REFERENCE, SILENT = "latentomni", "silent"  # what others are compared with
_RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
_FIGURES = Path("figures")  # beside the results
_BEGIN, _END = "<!-- study: written by launch/ablate.py -->", "<!-- study ends -->"
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=["main"], help="groups or rows (main)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"), help="(%(default)s)")
    parser.add_argument("--questions", type=int, default=400, help="of each row (%(default)s)")
    parser.add_argument("--clips", type=int, default=demo.FULL.clips, help="(%(default)s)")
    parser.add_argument("--dial", default="easy", help="of the world (%(default)s)")
    for stage, steps in demo.FULL.steps.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps, help="(%(default)s)")
    parser.add_argument("--device", choices=_PLATFORMS, default="cpu", help="(%(default)s)")
    parser.add_argument(
        "--report", type=Path, default=_RESULTS, help="file that the table goes into (%(default)s)"
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    rows = choose(args.rows)
    if not args.report_only:
        jax.config.update("jax_platforms", _PLATFORMS[args.device])
        steps = {stage: getattr(args, f"{stage}_steps") for stage in demo.FULL.steps}
        scale = demo.Scale(args.clips, args.questions, steps)
        run_all(args.out, scale, args.dial, args.seeds, rows, args.report)
    write_report(args.out, args.report)


def choose(names: list[str]) -> list[str]:
    """Rows of groups and names, once each; a reference before those that are compared with it."""
    rows: list[str] = []
    for name in names:
        if name not in GROUPS and name not in ROWS:
            raise InputError(
                f"no group or row {name!r}; there are {', '.join(GROUPS)}, {', '.join(ROWS)}"
            )
        for row in GROUPS.get(name, [name]):
            rows += [reference_of(row), row]
    return list(dict.fromkeys(rows))


def reference_of(row: str) -> str:
    return SILENT if row in GROUPS[SILENT] else REFERENCE


def run_all(
    out: Path, scale: demo.Scale, dial: str, seeds: list[int], rows: list[str], report: Path
) -> None:
    """Trains and asks what has no result yet, seed by seed."""
    check_same(out, scale, dial)
    left = [(s, row) for s in seeds for row in rows if not result_path(out, s, row).is_file()]
    started = time.monotonic()
    for number, (seed, row) in enumerate(left):
        minutes = (time.monotonic() - started) / max(number, 1) * (len(left) - number) / 60
        told = f", about {minutes:.0f} min left" if number else ""
        print(f"\n[{number + 1}/{len(left)}] {row}, seed {seed}{told}", flush=True)
        home, start = out / f"seed-{seed}", None
        demo.make_world(home, scale, dial, seed)
        demo.make_cache(home)
        stages = [(stage, f"av_events.py:{stage}") for stage in STAGES[:-1]]
        for stage, config in [*stages, (row, f"av_events_study.py:{row}")]:
            model = home / stage / "model"
            if not (model / "latentomni.json").is_file():
                steps = scale.steps.get(stage, scale.steps["latentomni"])
                demo.train(config, home, home / stage, steps, seed, start)
            start = model
        questions = read_jsonl(home / "events" / "test.jsonl")[0][: scale.questions]
        result = ask(LatentOmni.from_pretrained(start), row, seed, home, questions)
        result.write(result_path(out, seed, row))
        print(f"{100 * result.accuracy:.1f}% of {len(questions)} right", flush=True)
        write_report(out, report)


def check_same(out: Path, scale: demo.Scale, dial: str) -> None:
    """Refuses to mix runs of different sizes in one directory."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "study.json"
    wanted = {
        "clips": scale.clips,
        "questions": scale.questions,
        "steps": scale.steps,
        "dial": dial,
    }
    if not path.is_file():
        path.write_text(json.dumps(wanted), encoding="utf-8")
    elif (found := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        raise InputError(f"{out}: holds a study of {found}, not of {wanted}; give another --out")


def result_path(out: Path, seed: int, row: str) -> Path:
    return out / f"seed-{seed}" / row / "result.json"


def ask(
    model: LatentOmni, row: str, seed: int, home: Path, questions: list[Trajectory]
) -> study.RunResult:
    """Answers of a trained row, and what its latents are like."""
    root = home / "events"
    found: list[Scored] = list(
        tqdm.tqdm(
            answer_all(model, questions, root, batch=40, max_new_tokens=demo.MAX_NEW_TOKENS),
            total=len(questions),
            unit="question",
        )
    )
    return study.RunResult.of(
        found,
        [json.loads(line) for line in (home / row / "metrics.jsonl").open()],
        row=row,
        seed=seed,
        settings=ROWS[row],
        states=measure_states(model, found[:100], root),
    )


# ---------------------------------------------------------------------------- report


def write_report(out: Path, path: Path) -> None:
    """Puts tables and a plot of every result so far between two marks of a Markdown file."""
    files = [out / f"{home.name}/{row}/result.json" for row in ROWS for home in out.glob("seed-*")]
    results = [study.RunResult.read(file) for file in sorted(filter(Path.is_file, files))]
    if not results:
        raise InputError(f"{out}: has no result yet; leave --report-only out")
    results.sort(key=lambda result: (list(ROWS).index(result.row), result.seed))
    parts = {
        reference: study.compare(mine, reference)
        for reference in (REFERENCE, SILENT)
        if (mine := [result for result in results if reference_of(result.row) == reference])
    }
    rows = [row for part in parts.values() for row in part]
    asked, types = len(results[0].right), list(results[0].by_type)
    told = json.loads((out / "study.json").read_text(encoding="utf-8"))
    figure = path.parent / _FIGURES / "study.png"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes(plots.to_bytes(plots.study_rows(rows, demo.CHANCE)))
    lines = [
        _BEGIN,
        f"{len(results)} runs: {told['clips']} clips of the dial {told['dial']}, steps of "
        + ", ".join(f"{stage} {steps}" for stage, steps in told["steps"].items())
        + f"; {asked} unseen questions a seed, chance {100 * demo.CHANCE:.0f} %. "
        "Right: mean over seeds ± their standard deviation. Against the reference: difference in "
        "points over shared seeds; p: exact McNemar test of these models' answers, two-sided. "
        "FLOPs and seconds are those of the last stage, which alone differs.",
        "",
        *(study.table(part, types, reference) for reference, part in parts.items()),
        f"![right answers of every row]({_FIGURES / figure.name})",
        "",
        "What the latents are like (100 questions each; see `latentomni probe --help`):",
        "",
        study.states_table(rows),
        _END,
    ]
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{_BEGIN}\n{_END}\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise InputError(f"{path}: lacks the lines {_BEGIN!r} and {_END!r} for the table")
    path.write_text(before + "\n".join(lines) + after, encoding="utf-8")
    print(f"{len(results)} results are in {path}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"ablate: error: {error}")
