# %% [markdown]
# # See it work
#
# LatentOmni in small, from an empty folder: a world of sights and sounds is drawn, a million
# parameters learn it from nothing, and the model answers questions about clips that it has not
# seen, partly in words and partly in latent states. It is `bash launch/demo.sh` in pieces.
#
# Run it from a checkout with `pip install -e '.[data,report]'` (on a TPU: `.[tpu,data,report]`). In
# Colab, clone the repository and install it first. `FULL = True` takes 14 to 17 minutes on two
# cores of a Zen 4; else it is a few, two of four stages are trained, and little is learned.

# %%
import json
import os
from pathlib import Path

import jax
from IPython.display import HTML, Image, display

from data_pipeline.trajectories import read_jsonl
from latentomni_jax.evaluate.pages import plots, report
from latentomni_jax.evaluate.pages.report import Shown
from latentomni_jax.model import LatentOmni

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "launch").is_dir())
os.chdir(ROOT)  # a notebook starts in its own folder
from launch import demo

FULL = False
scale = demo.FULL if FULL else demo.QUICK
out = Path(os.environ.get("LATENTOMNI_OUT", "runs/see-it-work"))
print(f"{jax.device_count()} x {jax.devices()[0].device_kind}; {scale.clips} clips")

# %% [markdown]
# ## A world
#
# Each clip has six moments. At each a thing is seen (a shape, a colour, a place, a motion) and a
# sound is heard (a voice, a pitch, a rhythm). Questions need both: what one modality alone allows
# is measured here, before anything is trained.

# %%
world, alone = demo.make_world(out, scale, demo.DIAL, seed=0)
questions = read_jsonl(out / "events" / "test.jsonl")[0][: scale.questions]
question = next(q for q in questions if len(q.segments) == 2)
print(question.question, *question.choices, sep="\n  ")
print(f"\nreasoning to learn:\n{question.reasoning}{question.answer}")

# %% [markdown]
# ## From nothing to latents
#
# Clips become features once, then up to four stages are trained: to see and to hear, what goes with
# what, what comes after what, and reasoning with latents.

# %%
demo.make_cache(out)
model_directory = None
for stage, steps in scale.steps.items():
    print(f"\n{demo.TITLES[stage]}")
    model_directory = demo.train_stage(stage, scale, steps, out, 0, model_directory)
curves = {
    stage: [json.loads(line) for line in (out / stage / "metrics.jsonl").open()]
    for stage in scale.steps
}
display(Image(plots.to_bytes(plots.loss_curves(curves))))

# %% [markdown]
# ## An unseen clip
#
# What the model says, with its latent blocks in place, and where each latent looks: over the
# frames, and over the sound.

# %%
model = LatentOmni.from_pretrained(model_directory)
shown = Shown.ask(model, question, out / "events", max_new_tokens=demo.MAX_NEW_TOKENS)
for section in (report.clip_section, report.answer_section, report.attention_section):
    display(HTML(section(shown, model)))

# %% [markdown]
# ## How often is it right?
#
# Of four options, so a guess is right in 25 %. The same model is asked with one modality taken
# away: what it still gets right then, it did not need both for.

# %%
scores = demo.evaluate(model, questions, out / "events")
display(Image(plots.to_bytes(plots.accuracies(scores, demo.CHANCE))))

# %% [markdown]
# ## Your turn
#
# Another question about any clip of this world (paths are in `events/test.jsonl`).

# %%
mine = questions[-1]
answer = model.answer(
    mine.question, video=out / "events" / mine.path, choices=mine.choices, max_new_tokens=64
)
print(f"{mine.question}\n{answer.text}\nexpected {mine.answer}; {answer.latent_blocks} blocks")
