"""A model from nothing for the world of `latentomni data av-events`, in two stages on a CPU.

    latentomni train --config configs/av_events.py:base --workdir runs/base \\
      --set data.cache=events-base-cache
    latentomni train --config configs/av_events.py:latentomni --workdir runs/latentomni \\
      --set data.cache=events-cache --set model.directory=runs/base/model

"base" learns to see, to hear and to bind the two, from captions and plain answers; "latentomni"
then learns to reason with latents. Every variant of a study starts from the same base.
"""

from latentomni_jax.layout import InputError
from latentomni_jax.train.config import base

STAGES = ("base", "latentomni")


def get_config(name):
    if name not in STAGES:
        raise InputError(f"no stage {name!r}; there are {', '.join(STAGES)}")
    c = base()
    c.batch_size = 16
    c.model.preset = "tiny"
    c.model.dtype = "float32"
    c.model.remat = "dots"
    c.model.frozen = ()  # nothing has been trained yet that could be kept
    c.latent.num_visual = 8
    c.latent.num_audio = 2
    c.latent.segment_seconds = 1.0
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 500
    if name == "base":
        c.shapes = (dict(tokens=512, targets=192, blocks=0, frames=6, patches=64, chunks=4),)
        c.optimizer.steps = 1500
        c.optimizer.learning_rate = 2e-3
    else:
        c.shapes = (
            dict(
                tokens=448, targets=64, blocks=2, frames=10, patches=64, chunks=6,
                visual_anchors=24, audio_anchors=64,
            ),
        )  # fmt: skip
        c.optimizer.steps = 800
        c.optimizer.learning_rate = 1e-3
    return c
