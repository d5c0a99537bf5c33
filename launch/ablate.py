"""The paper's ablations in small: rows trained with one budget, compared, and written down.

    python -m launch.ablate                        the main rows, three seeds: hours on two cores
    python -m launch.ablate --rows silent_main     other groups, or rows by name
    python -m launch.ablate --report-only          writes what there is to docs/results.md

A seed has a world, questions and a base of its own (`configs/av_events.py`; the demo's are smaller
and trained otherwise); rows of a seed differ in the last stage alone
(`configs/av_events_study.py`), which has the same number of steps for each. Rows "silent_X" and
"bottleneck_X" have another stage behind it, for --further-steps from the model of X; X is trained
where it is missing.
What is finished is not done again: stopped, it goes on where it was. Results are files of their own
(docs/study for the default --out, else OUT/results), small enough to be kept and shared: rows of
one study may be run on several machines. The table is made of them after every row.

Groups:"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import jax
import tqdm

from configs.av_events import STAGES
from configs.av_events_study import FURTHER_STEPS, GROUPS, ROWS, STEPS, earlier
from data_pipeline.av_events.samples import World
from data_pipeline.av_events.world import DIALS
from data_pipeline.shards import write_text
from data_pipeline.trajectories import Trajectory, read_jsonl
from latentomni_jax.evaluate import study
from latentomni_jax.evaluate.answers import Scored, answer_all
from latentomni_jax.evaluate.pages import plots
from latentomni_jax.evaluate.states import ATTENDED, measure_states
from latentomni_jax.layout import InputError
from latentomni_jax.model import LatentOmni
from latentomni_jax.train.host import keep_freed_memory
from launch import demo

__doc__ += " " + "; ".join(f"{group} ({', '.join(rows)})" for group, rows in GROUPS.items()) + "."
REFERENCE = "latentomni"  # what others are compared with
# The demo has smaller worlds and shorter stages, to be done sooner.
_CLIPS = 3000
_STEPS = {
    **{"senses": 600, "base": 1300, "order": 700},
    **{STAGES[-1]: STEPS, "further": FURTHER_STEPS},
}
_STEPS_OF = {STAGES[-1]: "of a row", "further": "of a row that goes on from another"}
_OUT = Path("runs/ablate")
_SIZES = "study.json"
_MEASURED = 100  # answers whose latents are looked at
_DOCS = Path(__file__).parents[1] / "docs"
_FIGURES = Path("figures")  # beside the results
_BEGIN, _END = "<!-- study: written by launch/ablate.py -->", "<!-- study ends -->"
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["main"],
        help="groups, or rows by name (main)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--out", type=Path, default=_OUT, help="(%(default)s)")
    parser.add_argument("--questions", type=int, default=400, help="asked each row (%(default)s)")
    parser.add_argument("--clips", type=int, default=_CLIPS, help="of each world (%(default)s)")
    for stage, steps in _STEPS.items():
        told = f"{_STEPS_OF.get(stage, 'of the stage before rows')} (%(default)s)"
        parser.add_argument(f"--{stage}-steps", type=int, default=steps, help=told)
    parser.add_argument("--device", choices=_PLATFORMS, default="cpu", help="(%(default)s)")
    parser.add_argument(
        "--report",
        type=Path,
        help="file for the tables (docs/results.md for the default --out, else OUT/results.md)",
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    rows = choose(args.rows)
    report = args.report or (_DOCS / "results.md" if args.out == _OUT else args.out / "results.md")
    results = _DOCS / "study" if args.out == _OUT else args.out / "results"
    _around(report)  # what is missing is told before hours of work
    if not args.report_only:
        jax.config.update("jax_platforms", _PLATFORMS[args.device])
        keep_freed_memory()
        steps = {stage: getattr(args, f"{stage}_steps") for stage in _STEPS}
        scale = demo.Scale(args.clips, args.questions, steps)
        run_all(args.out, results, scale, args.seeds, rows, report)
    write_report(results, report)


def choose(names: list[str]) -> list[str]:
    """Rows of groups and names, once each, behind what they go on from and are compared with."""
    rows: list[str | None] = []
    for name in names:
        if name not in GROUPS and name not in ROWS:
            raise InputError(
                f"no group or row {name!r}; there are {', '.join(GROUPS)}, {', '.join(ROWS)}"
            )
        for row in GROUPS.get(name, [name]):
            reference = reference_of(row)
            rows += [earlier(reference), reference, earlier(row), row]
    return list(dict.fromkeys(filter(None, rows)))


def reference_of(row: str) -> str:
    """What a row is compared with: "latentomni", "silent_latentomni" for "silent_text_cot"."""
    prefix = row.removesuffix(earlier(row) or row)
    return prefix + REFERENCE


def run_all(
    out: Path, results: Path, scale: demo.Scale, seeds: list[int], rows: list[str], report: Path
) -> None:
    """Trains in `out` and asks what has no result yet, seed by seed."""
    for seed in seeds:
        World.of(scale.clips, seed, DIALS[demo.DIAL])  # refuses what is unusable
    _check_same(results, scale)
    _read_results(results)  # refuses what is of other settings, before hours of work
    left = {s: [row for row in rows if not result_path(results, s, row).is_file()] for s in seeds}
    count = sum(map(len, left.values()))
    done, started = 0, time.monotonic()
    for seed in filter(left.get, seeds):
        home = out / f"seed-{seed}"
        demo.make_world(home, scale, demo.DIAL, seed)  # what is there already is looked at
        demo.make_cache(home)
        start = None
        for stage in STAGES[:-1]:  # a finished one is compared with its config now, and left
            steps = scale.steps[stage]
            start = demo.train(f"av_events.py:{stage}", home, home / stage, steps, seed, start)
        questions = read_jsonl(home / "events" / "test.jsonl")[0][: scale.questions]
        assert start is not None
        models: dict[str | None, Path] = {None: start}
        for row in left[seed]:
            minutes = (time.monotonic() - started) / max(done, 1) * (count - done) / 60
            told = f", about {minutes:.0f} min left" if done else ""
            print(f"\n[{done + 1}/{count}] {row}, seed {seed}{told}", flush=True)
            model = _trained(row, models, home, scale, seed)
            result = ask(model, row, seed, home / "events", questions)
            result.write(result_path(results, seed, row))
            print(f"{100 * result.accuracy:.1f}% of {len(questions)} right", flush=True)
            write_report(results, report)
            done += 1


def _trained(
    row: str | None, models: dict[str | None, Path], home: Path, scale: demo.Scale, seed: int
) -> Path:
    """The model of a row: of `models`, which has the base for None, or trained and put there.

    What the row goes on from is trained first; it may have a result already and no model here.
    """
    if row is not None and row not in models:
        before = earlier(row)
        start = _trained(before, models, home, scale, seed)
        steps = scale.steps["further" if before else STAGES[-1]]
        workdir = home / "rows" / row
        models[row] = demo.train(f"av_events_study.py:{row}", home, workdir, steps, seed, start)
    return models[row]


def _check_same(results: Path, scale: demo.Scale) -> None:
    """Refuses to mix runs of different sizes in one directory."""
    wanted = {"clips": scale.clips, "questions": scale.questions, "steps": scale.steps}
    if not (results / _SIZES).is_file():
        results.mkdir(parents=True, exist_ok=True)
        write_text(results / _SIZES, json.dumps(wanted) + "\n")
    elif (found := _sizes(results)) != wanted:
        raise InputError(
            f"{results}: holds a study of {found}, not of {wanted}; give another --out"
        )


def _sizes(results: Path) -> dict[str, Any]:
    path = results / _SIZES
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); is {results} a study?") from error


def result_path(results: Path, seed: int, row: str) -> Path:
    return results / f"seed-{seed}" / f"{row}.json"


def ask(
    directory: Path, row: str, seed: int, root: Path, questions: list[Trajectory]
) -> study.RunResult:
    """Answers of a row's trained model in `directory`, and what its latents are like."""
    model = LatentOmni.from_pretrained(directory)
    found: list[Scored] = list(
        tqdm.tqdm(
            answer_all(model, questions, root, batch=40, max_new_tokens=demo.MAX_NEW_TOKENS),
            total=len(questions),
            unit="question",
        )
    )
    return study.RunResult.of(
        found,
        [json.loads(line) for line in (directory.parent / "metrics.jsonl").open()],
        row=row,
        seed=seed,
        settings=ROWS[row],
        states=measure_states(model, found[:_MEASURED], root),
    )


# ---------------------------------------------------------------------------- report


def write_report(directory: Path, path: Path) -> None:
    """Puts tables and a plot of every result so far between two marks of a Markdown file."""
    results = _read_results(directory)
    if not results:
        raise InputError(f"{directory}: has no result yet; leave --report-only out")
    parts = {
        reference: study.compare(mine, reference)
        for reference in dict.fromkeys(reference_of(row) for row in ROWS)
        if (mine := [result for result in results if reference_of(result.row) == reference])
    }
    rows = [row for part in parts.values() for row in part]
    asked, types, sizes = len(results[0].right), list(results[0].by_type), _sizes(directory)
    figure = path.parent / _FIGURES / "study.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(plots.to_bytes(plots.study_rows(rows, demo.CHANCE)))
    lines = [
        _BEGIN,
        f"{len(results)} runs: {sizes['clips']} clips of the dial {demo.DIAL}, steps of "
        + ", ".join(f"{stage} {steps}" for stage, steps in sizes["steps"].items())
        + f"; {asked} unseen questions a seed, chance {100 * demo.CHANCE:.0f} %. "
        "Right: mean over seeds ± their standard deviation. Against the reference: difference in "
        "points over shared seeds; p: exact McNemar test of these models' answers, two-sided. "
        "FLOPs and seconds are those of a row's last stage; compiling left out.",
        "",
        *(study.table(part, types, reference) for reference, part in parts.items()),
        f"![right answers of every row]({_FIGURES / figure.name})",
        "",
        f"What the latents are like: losses at the end of training, and measures of {_MEASURED} "
        f"answers a run (attention: {ATTENDED}), see `evaluate/states.py`. L_latent is a mean over "
        "slots of both kinds, and chance of retrieval is one over their number: compare them where "
        "slots are the same.",
        "",
        study.states_table(rows),
        _END,
    ]
    before, after = _around(path)
    write_text(path, before + "\n".join(lines) + after)
    print(f"{len(results)} results are in {path}")


def _read_results(directory: Path) -> list[study.RunResult]:
    """In the order of rows. Raises InputError where one is of other settings than its row."""
    results = []
    for file in sorted(directory.glob("seed-*/*.json")):
        result = study.RunResult.read(file)
        if result.settings != ROWS.get(result.row):
            raise InputError(f"{file}: is of other settings than {result.row} has now; delete it")
        results.append(result)
    return sorted(results, key=lambda result: (list(ROWS).index(result.row), result.seed))


def _around(path: Path) -> tuple[str, str]:
    """What stands before and behind the tables in a file; nothing where there is no file.

    Raises:
      InputError: a file without the marks.
    """
    if not path.is_file():
        return "", "\n"
    before, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise InputError(f"{path}: lacks the lines {_BEGIN!r} and {_END!r} for the table")
    return before, after


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"ablate: error: {error}")
