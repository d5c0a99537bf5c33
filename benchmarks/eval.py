"""What `latentomni eval` adds to decoding: questions a second beside the bare decode, same prompts.

    python benchmarks/eval.py --model runs/demo/latentomni/model --benchmark av_events \\
      --annotations runs/demo/events/test.jsonl --videos runs/demo/events --questions 160

Features of all clips are made and kept first. Then, in turns: `eval`'s own run (reads features from
disk, lays prompts out, decodes, finds answers, writes lines), and `LatentOmni.generate` on the same
batches, whose features and prompts are in memory. The first round of each compiles and is not
counted.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time

from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate import benchmarks, generate
from latentomni_jax.evaluate.answers import prompt_of
from latentomni_jax.evaluate.clips import Clips, FeatureStore, readers
from latentomni_jax.evaluate.generate import Asking
from latentomni_jax.evaluate.parts import Parts
from latentomni_jax.model import LatentOmni


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--benchmark", required=True, choices=benchmarks.NAMES)
    parser.add_argument("--annotations", required=True, type=pathlib.Path)
    parser.add_argument("--videos", required=True, type=pathlib.Path)
    parser.add_argument("--questions", type=int, default=160, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args, pathlib.Path(folder))


def run(args: argparse.Namespace, folder: pathlib.Path) -> None:
    benchmark = benchmarks.get(args.benchmark)
    read = benchmark.read(args.annotations).questions[: args.questions]
    questions = [question for question in read if isinstance(question, Trajectory)]
    model = LatentOmni.from_pretrained(args.model)
    store = FeatureStore(folder / "features", {"model": args.model})
    asking = Asking(
        root=args.videos, view=benchmark.view, batch=args.batch, style=benchmark.styles["boxed"],
        options={"max_new_tokens": args.max_new_tokens}, features=store,
    )  # fmt: skip
    wanted = [(args.videos / str(q.path), str(q.kind)) for q in questions]
    with readers() as pool:
        clips = Clips(model, wanted, pool, store=store)
        prompts = [
            prompt_of(model, q, args.videos, view=asking.view, style=asking.style, read=clips)
            for q in questions
        ]
    windows = generate.windows_of(questions, asking)
    size, batches = args.batch * asking.window, []
    for start in range(0, len(prompts), size):
        window = dict(enumerate(prompts[start : start + size]))
        lengths = {i: sum(model.prompt_tokens(prompt).values()) for i, prompt in window.items()}
        batches += [[window[i] for i in places] for places in generate.batches(lengths, args.batch)]
    seconds: dict[str, list[float]] = {"eval": [], "decode": []}
    options = {**asking.style.options, **asking.options}
    for round in range(args.rounds + 1):
        began = time.perf_counter()
        parts = Parts(folder / f"{round}.jsonl", [len(window) for window in windows], {})
        generate.generate(model, windows, asking, parts, range(len(windows)), progress=False)
        parts.finish()
        seconds["eval"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for batch in batches:
            model.generate(batch, **options)
        seconds["decode"].append(time.perf_counter() - began)
    for name, taken in seconds.items():
        rates = [len(questions) / one for one in taken[1:]]
        print(
            f"{name:<7} {statistics.median(rates):.2f} questions/s "
            f"({min(rates):.2f} to {max(rates):.2f}), {len(questions)} questions, "
            f"{len(set(wanted))} clips, batch {args.batch}"
        )
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)][1:]
    print(f"eval / decode {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
