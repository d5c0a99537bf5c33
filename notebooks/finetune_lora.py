# %% [markdown]
# # Fine-tune with LoRA on your own clips
#
# Adapters on the decoder's matrices, and the embedding and head that hold the latent tokens, learn
# from trajectories about your clips; everything else stays frozen. What comes out is an ordinary
# model directory with the adapters folded in.
#
# Run it from a checkout with `pip install -e '.[data]'` (on a TPU `.[tpu,data]`; in Colab, clone
# the repository first). **It has been run on CPU with a small stand-in; on a TPU not yet.**

# %%
import os
from pathlib import Path

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "launch").is_dir())
os.chdir(ROOT)  # a notebook starts in its own folder

MODEL = os.environ.get("LATENTOMNI_CHECKPOINT", "models/qwen-3b")  # ported, or from Hugging Face
CONFIG = os.environ.get("LATENTOMNI_CONFIG", "configs/qwen2_5_omni_3b.py")
STEPS = int(os.environ.get("LATENTOMNI_STEPS", 200))
OUT = Path(os.environ.get("LATENTOMNI_OUT", "runs/finetune-lora")).absolute()

# %% [markdown]
# ## Your data
#
# One JSON object a line; each empty pair of latent tokens in `reasoning` is a latent block and
# cites one of `segments`, in seconds. Here 16 clips are drawn, to see the format; put your own file
# in `DATA`. A line or a clip that cannot be used is told with its reason and left out.

# %%
from data_pipeline.av_events.tiny import make_tiny_set

DATA = None  # "my/trajectories.jsonl"
data = Path(DATA) if DATA else OUT / "clips" / "trajectories.jsonl"
if not data.is_file():
    make_tiny_set(OUT / "clips")
print(data.read_text().splitlines()[0])

# %% [markdown]
# Clips are decoded once, into a cache of what the encoders take.

# %%
import dataclasses

from data_pipeline.av_events.tiny import CACHE_OPTIONS
from data_pipeline.cache import TRAINING_SPEC, build_cache

cache = OUT / "cache"
if not (cache / "meta.json").is_file():
    # Drawn clips are small, and change fast. Your own are read as the paper has it.
    spec = TRAINING_SPEC if DATA else dataclasses.replace(TRAINING_SPEC, **CACHE_OPTIONS)
    print(build_cache(data, cache, spec))

# %% [markdown]
# ## Train
#
# One row a micro-batch and the shortest shape (4,096 positions). A chip of 16 GB is too small
# for the 3B all the same: embedding and head train too, and the compiler asks for 21.7 GiB. Whether
# one of 32 GB is enough, ask before it is rented (this was not compiled to its end yet):
#
#     latentomni aot --config configs/qwen2_5_omni_3b.py --topology v6e:1x1 --program train \
#       --tokens 4096 --set model.lora_rank=16 --set batch_size=8 --set accumulate=8
#
# Interrupted, this cell goes on from the last checkpoint.

# %%
from latentomni_jax.train.config import load
from latentomni_jax.train.loop import Trainer

settings = [
    f"model.directory={MODEL}",
    "model.lora_rank=16",
    f"data.cache={cache}",
    "batch_size=8",
    "accumulate=8",
    f"optimizer.steps={STEPS}",
    "optimizer.learning_rate=1e-4",
    "log.tensorboard=False",
]
config = load(CONFIG, settings)
config.shapes = config.shapes[:1]
trainer = Trainer(config, OUT / "run")
print(trainer.describe())
result = trainer.train()
assert result.model, "interrupted; run this cell again to go on"
print(result.model, {name: round(value, 4) for name, value in result.last.items()})

# %% [markdown]
# ## Ask it

# %%
import json

from latentomni_jax.model import LatentOmni

row = json.loads(data.read_text().splitlines()[0])
model = LatentOmni.from_pretrained(result.model)
answer = model.answer(
    row["question"], video=data.parent / row["video"], choices=row["choices"],
    max_new_tokens=int(os.environ.get("LATENTOMNI_TOKENS", 128)),
)  # fmt: skip
print(answer.text)
print(f"{answer.latent_blocks} latent blocks; expected {row['answer']}")
