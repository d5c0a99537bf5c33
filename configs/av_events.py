"""A model from nothing for the world of `latentomni data av-events`, in two stages on a CPU.

    latentomni data av-events --out events
    latentomni data cache --data events/base.jsonl --out events-base-cache \\
      --video-min-pixels 7056 --video-max-pixels 7056
    latentomni data cache --data events/train.jsonl --out events-train-cache \\
      --video-min-pixels 7056 --video-max-pixels 7056
    latentomni train --config configs/av_events.py:base --workdir runs/base \\
      --set data.cache=events-base-cache
    latentomni train --config configs/av_events.py:latentomni --workdir runs/latentomni \\
      --set data.cache=events-train-cache --set model.directory=runs/base/model

"base" learns to see, to hear and to bind the two, from captions and plain answers; "latentomni"
then learns to reason with latents. Written for the easy dial: clips of six seconds.
"""

from configs.tiny import get_config as tiny
from latentomni_jax.layout import InputError

STAGES = ("base", "latentomni")


def get_config(name):
    if name not in STAGES:
        raise InputError(f"no stage {name!r}; there are {', '.join(STAGES)}")
    c = tiny()
    c.data.tiny = False
    c.model.frozen = ()  # nothing has been trained yet that could be kept
    c.checkpoint.every = 500
    if name == "base":
        c.shapes = (dict(tokens=512, targets=192, blocks=0, frames=6, patches=64, chunks=4),)
        c.optimizer.steps = 1500
        c.optimizer.learning_rate = 2e-3
    else:
        c.shapes = (
            dict(
                tokens=576, targets=96, blocks=2, frames=10, patches=64, chunks=6,
                visual_anchors=24, audio_anchors=64,
            ),
        )  # fmt: skip
        c.optimizer.steps = 800
        c.optimizer.learning_rate = 1e-3
    return c
