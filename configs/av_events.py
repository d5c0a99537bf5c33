"""A model from nothing for the world of `latentomni data av-events`, in three stages on a CPU.

    latentomni data av-events --out events
    for NAME in base train; do
      latentomni data cache --data events/$NAME.jsonl --out events-cache/$NAME \\
        --fps 4 --video-min-pixels 3136 --video-max-pixels 3136
    done
    latentomni train --config configs/av_events.py:pictures --workdir runs/pictures \\
      --set data.cache=events-cache/base --set model.tokenizer=events/tokenizer
    latentomni train --config configs/av_events.py:base --workdir runs/base \\
      --set data.cache=events-cache/base --set model.directory=runs/pictures/model
    latentomni train --config configs/av_events.py:latentomni --workdir runs/latentomni \\
      --set data.cache=events-cache/train --set model.directory=runs/base/model

"pictures" learns to see, from those samples of the base that are of one silent thing (no other
fits its shape): beside sounds, which have more tokens, seeing would come last. "base" then learns
to find names again, to hear, and what goes with what, all at once: taught one after the other,
each is forgotten while the next is learned. "latentomni" learns to reason with latents. Written
for the easy dial: clips of three seconds.
"""

from configs.tiny import get_config as tiny
from latentomni_jax.layout import InputError

STAGES = ("pictures", "base", "latentomni")
_PICTURE = dict(tokens=40, targets=8, blocks=0, frames=2, patches=16)


def get_config(name):
    if name not in STAGES:
        raise InputError(f"no stage {name!r}; there are {', '.join(STAGES)}")
    c = tiny()
    c.model.preset = "small"
    c.data.tiny = False
    c.model.frozen = ()
    c.checkpoint.every = 500
    c.optimizer.learning_rate = 1e-3
    if name == "pictures":
        c.shapes = (_PICTURE,)
        c.optimizer.steps = 500
    elif name == "base":
        c.shapes = (
            _PICTURE,
            dict(tokens=80, targets=32, blocks=0),
            dict(tokens=120, targets=40, blocks=0, frames=3, patches=16, chunks=1),
            dict(tokens=200, targets=72, blocks=0, frames=6, patches=16, chunks=2),
        )
        c.optimizer.steps = 2500
        c.objective.weight_bind = 1.0
    else:
        c.model.frozen = ("vision/",)
        # Fed anchors, even every other one, the words learn to read what the model cannot write;
        # fed states of a few Jacobi passes, they meet others when it answers.
        c.objective.mode = "rollout"
        c.shapes = (
            dict(
                tokens=208, targets=32, blocks=1, frames=6, segment_frames=2, patches=16, chunks=2,
                segment_chunks=1, visual_anchors=8, audio_anchors=12,
            ),
            dict(
                tokens=256, targets=48, blocks=2, frames=6, segment_frames=4, patches=16, chunks=2,
                segment_chunks=2, visual_anchors=8, audio_anchors=12,
            ),
        )  # fmt: skip
        c.optimizer.steps = 500
    return c
