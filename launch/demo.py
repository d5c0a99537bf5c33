"""The method in small, from an empty folder: clips, training, latent answers, scores, a page.

    python -m launch.demo                14 to 17 minutes on two cores of a Zen 4, older ones longer
    python -m launch.demo --quick        3 minutes: everything smaller, and little is learned

A million parameters learn a drawn world of sights and sounds from nothing, through every part of
the real system: mp4 files, feature cache, four stages of training, decoding with latent blocks.
Run it from the repository's root; `bash launch/demo.sh` also installs what it needs. Interrupted,
it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tqdm

from data_pipeline.av_events import build, samples
from data_pipeline.av_events.render import CACHE_OPTIONS
from data_pipeline.av_events.world import DIALS, Dial
from data_pipeline.cache import TRAINING_SPEC, build_cache
from data_pipeline.trajectories import Trajectory, read_jsonl
from latentomni_jax.evaluate.answers import Score, Scored, View, answer_all, by_type
from latentomni_jax.evaluate.pages import plots, report
from latentomni_jax.evaluate.pages.report import Shown
from latentomni_jax.layout import InputError
from latentomni_jax.model import LatentOmni
from latentomni_jax.train.config import load
from latentomni_jax.train.host import keep_freed_memory
from latentomni_jax.train.loop import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
VIEWS: dict[View, str] = {
    "both": "whole clip",
    "video": "pictures only",
    "audio": "sound only",
    "question": "question only",
}
CHANCE, DIAL = 0.25, "easy"
MAX_NEW_TOKENS = 64  # the longest trajectory has 46


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
      steps: of every stage that is trained (a study's has its own beside them).
      one_shape: a stage's batches all have one shape, for which one program is compiled; made for
        few steps, of which each takes longer.
    """

    clips: int
    questions: int
    steps: dict[str, int]
    one_shape: bool = False

    @property
    def seconds(self) -> dict[str, float]:
        """About how long every part takes on two cores of a Zen 4."""
        begun, slower = (25, 2) if self.one_shape else (40, 1)
        stages = {
            stage: begun + slower * _STEP_SECONDS[stage] * n for stage, n in self.steps.items()
        }
        return {
            "set": 5 + 0.027 * self.clips,
            "cache": 3 + 0.025 * self.clips,
            **stages,
            "answers": 25 + 0.05 * self.questions,
        }


_STEP_SECONDS = {"senses": 0.12, "base": 0.18, "order": 0.18, "latentomni": 0.31}
FULL = Scale(2200, 400, {"senses": 800, "base": 1200, "order": 700, "latentomni": 450})
QUICK = Scale(160, 120, {"base": 120, "latentomni": 30}, one_shape=True)


class Agenda:
    """Says which part begins, and about how long the rest will take on this machine."""

    def __init__(self, seconds: dict[str, float]):
        self.left, self.planned, self.taken, self.count = dict(seconds), 0.0, 0.0, len(seconds)

    @contextlib.contextmanager
    def part(self, name: str, title: str) -> Iterator[None]:
        pace = self.taken / self.planned if self.planned else 1.0
        minutes = sum(self.left.values()) * pace / 60
        number = self.count - len(self.left) + 1
        line = f"[{number}/{self.count}] {title}"
        print(f"\n{line}   (about {minutes:.0f} min left)\n{'-' * len(line)}", flush=True)
        started = time.monotonic()
        yield
        planned, taken = self.left.pop(name), time.monotonic() - started
        if taken > planned / 20:  # else it was done before, and says nothing about this machine
            self.taken, self.planned = self.taken + taken, self.planned + planned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller set, fewer steps")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the training")
    parser.add_argument("--out", type=Path, help="default is runs/demo, or runs/demo-quick")
    args = parser.parse_args()
    keep_freed_memory()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    out = args.out or Path("runs/demo-quick" if args.quick else "runs/demo")
    scale = QUICK if args.quick else FULL
    agenda, started = Agenda(scale.seconds), time.monotonic()
    with agenda.part("set", "A world is drawn and played"):
        world, alone = make_world(out, scale, DIAL, args.seed)
    with agenda.part("cache", "Its clips become features"):
        make_cache(out)
    model_directory = None
    for stage, steps in scale.steps.items():
        with agenda.part(stage, TITLES[stage]):
            model_directory = train_stage(stage, scale, steps, out, args.seed, model_directory)
    with agenda.part("answers", "Unseen clips are asked about"):
        model = LatentOmni.from_pretrained(model_directory)
        questions = read_jsonl(out / "events" / "test.jsonl")[0][: scale.questions]
        scores = evaluate(model, questions, out / "events")
        shown = show_one(model, questions, out / "events")
        path = write_report(out, scale, model, shown, scores, world, alone)
    minutes = (time.monotonic() - started) / 60
    print(
        f"\n{path} has it all to look at ({minutes:.1f} min). Ask it about any clip of its world:"
    )
    question = shown.question
    choices = " ".join(f'"{choice}"' for choice in question.choices)
    # Of an environment that demo.sh has not activated in the user's shell.
    program = Path(sys.executable).with_name("latentomni")
    print(
        f"  {os.path.relpath(program)} answer --model {model_directory} --video {shown.path} \\\n"
        f'    --question "{question.question}" --choices {choices}'
    )


TITLES = {
    "senses": "From nothing: to see, to hear, to copy words",
    "base": "What goes with what",
    "order": "What comes after what",
    "latentomni": "Reasoning with latents",
}


# ---------------------------------------------------------------------------- making


def make_world(out: Path, scale: Scale, dial: str, seed: int):
    """Clips, their truth and their questions; and how far one modality alone would get."""
    world = samples.World.of(scale.clips, seed, DIALS[dial])
    alone = build.make_set(out / "events", world, workers=os.cpu_count() or 1)
    counts = ", ".join(f"{n} {name}" for name, n in zip(samples.SPLITS, world.clips, strict=True))
    print(f"clips     {counts}")
    print(f"dial      {dial}: {settings_of(world.dial)}")
    print(f"alone     best learned guess {alone} (chance 25%)")
    return world, alone


def settings_of(dial: Dial) -> str:
    return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(dial).items())


def make_cache(out: Path) -> None:
    spec = dataclasses.replace(TRAINING_SPEC, **CACHE_OPTIONS)
    if not (out / "cache" / "meta.json").is_file():
        data = out / "events" / "base.jsonl"
        print(build_cache(data, out / "cache", spec, workers=os.cpu_count() or 1))


def train_stage(
    stage: str, scale: Scale, steps: int, out: Path, seed: int, start: Path | None
) -> Path:
    """`train` for one of the demo's stages, with what makes it shorter than its config alone."""
    settings = []
    if stage == "latentomni":  # of its config's lists those by thing and by sound are left out
        settings.append(r"data.only=^train-[0-9]+-(?!by-|\w+-silent)|-(tell|compare)$")
    if start:  # the first stage has taught the encoders to tell apart what there is
        settings.append("model.frozen=('vision/', 'audio/')")
    if scale.one_shape:
        shapes = load(f"{CONFIGS}/av_events.py:{stage}").shapes
        settings.append(f"shapes=({_holding_all(shapes)},)")
    return train(f"av_events.py:{stage}", out, out / stage, steps, seed, start, settings)


def train(
    config: str,
    out: Path,
    workdir: Path,
    steps: int,
    seed: int,
    start: Path | None,
    more: Sequence[str] = (),
) -> Path:
    """Trains from an earlier stage's model, or from nothing; returns the model's directory.

    Args:
      config: `FILE:NAME` in `configs/`. out: has `events` and `cache`. more: settings.
    """
    settings = [
        f"seed={seed}",
        f"optimizer.steps={steps}",
        f"data.cache={(out / 'cache').absolute()}",
        "log.tensorboard=False",
        f"model.directory={start}" if start else f"model.tokenizer={out / 'events' / 'tokenizer'}",
        *more,
    ]
    trainer = Trainer(load(f"{CONFIGS / config}", settings), workdir.absolute())
    print(trainer.describe())
    if left_out := trainer.feed.summary():
        print(f"left out: {left_out}")
    result = trainer.train()
    if result.model is None:
        sys.exit("stopped; start it again to continue")
    seen = steps * trainer.config.batch_size
    ended = f"loss {result.last['loss/total']:.3f}" if result.last else "finished before"
    print(f"{seen} samples seen; {ended}")
    return result.model


def _holding_all(shapes: Iterable[dict[str, int]]) -> dict[str, int]:
    """Of every field the largest."""
    shapes = list(shapes)
    names = dict.fromkeys(name for shape in shapes for name in shape)
    return {name: max(shape.get(name, 0) for shape in shapes) for name in names}


# ---------------------------------------------------------------------------- showing


def evaluate(
    model: LatentOmni, questions: list[Trajectory], root: Path
) -> dict[str, dict[str, Score]]:
    """Scores by type of question, for every view of the clip."""
    scores = {}
    for view, name in VIEWS.items():
        # Half of the questions say enough about the views that leave something out.
        asked = questions if view == "both" else questions[: len(questions) // 2]
        answers = answer_all(model, asked, root, view=view, batch=40, max_new_tokens=MAX_NEW_TOKENS)
        bar = tqdm.tqdm(answers, total=len(asked), unit="question", desc=f"{name:<13}")
        found: list[Scored] = list(bar)
        scores[name] = by_type(found)
        total = scores[name]["all"]
        print(
            f"{name:<13} {total.right:>4} of {total.asked} right, {100 * total.accuracy:.1f}% "
            f"(chance 25%, p = {total.p_value:.1e}), "
            f"{sum(one.well_formed for one in found)} well formed"
        )
    for type, score in scores[VIEWS["both"]].items():
        print(f"  {type:<12} {score.right:>4} of {score.asked:<4} {100 * score.accuracy:.0f}%")
    return scores


def show_one(model: LatentOmni, questions: list[Trajectory], root: Path) -> Shown:
    """The first question whose data cite two moments, asked and printed."""
    question = next(q for q in questions if len(q.segments) == 2)
    shown = Shown.ask(model, question, root, max_new_tokens=MAX_NEW_TOKENS)
    print(f"\n{question.question}  ({question.path})")
    for letter, choice in zip("ABCD", question.choices, strict=False):
        print(f"  {letter}. {choice}")
    block = f" [{model.latent.num_visual} visual + {model.latent.num_audio} audio states] "
    said = block.join(report.pieces(shown.generation, model))
    print(textwrap.fill(said, 92, initial_indent="> ", subsequent_indent="> "))
    print(f"expected {question.answer}")
    return shown


def write_report(out, scale, model, shown, scores, world, alone) -> Path:
    curves = {
        stage: [json.loads(line) for line in (out / stage / "metrics.jsonl").open()]
        for stage in scale.steps
    }
    whole = scores[VIEWS["both"]]["all"]
    facts = {
        "right": f"{whole.right} of {whole.asked} unseen questions, {100 * whole.accuracy:.1f} % "
        f"(chance 25 %, p = {whole.p_value:.1e})",
        "one modality alone": f"best learned guess {alone}",
        "world": f"seed {world.seed}; {settings_of(world.dial)}",
        "training": ", ".join(f"{len(lines)} steps of {name}" for name, lines in curves.items()),
        "latents": f"{model.latent.num_visual} visual + {model.latent.num_audio} audio a block",
    }
    path = out / "report.html"
    report.write_page(
        path,
        "LatentOmni in small",
        [
            ("In short", report.summary_table(facts)),
            ("An unseen clip", report.clip_section(shown, model)),
            ("What the model says", report.answer_section(shown, model)),
            ("Where its latents look", report.attention_section(shown, model)),
            ("Right answers", report.score_section(scores, CHANCE)),
            ("Training", report.picture(plots.loss_curves(curves), "losses of every stage")),
        ],
    )
    return path


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"demo: error: {error}")
