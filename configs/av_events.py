"""A model from nothing for the world of `latentomni data av-events`, in five stages on a CPU.

    latentomni data av-events --out events
    for NAME in words pictures glimpses lists train; do
      latentomni data cache --data events/$NAME.jsonl --out events-cache/$NAME \\
        --video-min-pixels 3136 --video-max-pixels 3136
    done
    latentomni train --config configs/av_events.py:words --workdir runs/words \\
      --set data.cache=events-cache/words --set model.tokenizer=events/tokenizer
    latentomni train --config configs/av_events.py:pictures --workdir runs/pictures \\
      --set data.cache=events-cache/pictures --set model.directory=runs/words/model
    latentomni train --config configs/av_events.py:glimpses --workdir runs/glimpses \\
      --set data.cache=events-cache/glimpses --set model.directory=runs/pictures/model
    latentomni train --config configs/av_events.py:lists --workdir runs/lists \\
      --set data.cache=events-cache/lists --set model.directory=runs/glimpses/model
    latentomni train --config configs/av_events.py:latentomni --workdir runs/latentomni \\
      --set data.cache=events-cache/train --set model.directory=runs/lists/model

"words" learns to copy and to look up, "pictures" to see, "glimpses" to hear and what goes with what
in clips of two or three moments, "lists" the same in whole clips; "latentomni" then learns to
reason with latents. Written for the easy dial: clips of six seconds.
"""

from configs.tiny import get_config as tiny
from latentomni_jax.layout import InputError

STAGES = ("words", "pictures", "glimpses", "lists", "latentomni")


def get_config(name):
    if name not in STAGES:
        raise InputError(f"no stage {name!r}; there are {', '.join(STAGES)}")
    c = tiny()
    c.model.preset = "small"
    c.data.tiny = False
    c.model.frozen = ()
    c.checkpoint.every = 500
    c.optimizer.learning_rate = 1e-3
    if name == "words":
        c.shapes = (dict(tokens=80, targets=32, blocks=0),)
        c.optimizer.steps = 600
    elif name == "pictures":
        c.shapes = (dict(tokens=40, targets=8, blocks=0, frames=2, patches=64),)
        c.optimizer.steps = 500
    elif name == "glimpses":
        c.shapes = (
            dict(tokens=112, targets=24, blocks=0, frames=2, patches=64, chunks=2),
            dict(tokens=152, targets=40, blocks=0, frames=3, patches=64, chunks=2),
        )
        c.optimizer.steps = 600
        c.objective.weight_bind = 1.0
    elif name == "lists":
        c.shapes = (dict(tokens=272, targets=72, blocks=0, frames=6, patches=64, chunks=4),)
        c.optimizer.steps = 600
        c.objective.weight_bind = 1.0
    else:
        c.model.frozen = ("vision/",)
        # Anchors are as long as the encoders made them, and states of this width are short: with
        # the paper's 0.005 they hardly move in so few steps. Fed anchors alone, the words would
        # learn to read what the model cannot yet write.
        c.objective.weight_latent = 0.02
        c.objective.mode = "mixed"
        c.shapes = (
            dict(
                tokens=320, targets=40, blocks=2, frames=6, segment_frames=4, patches=64, chunks=4,
                segment_chunks=2, visual_anchors=8, audio_anchors=25,
            ),
        )  # fmt: skip
        c.optimizer.steps = 600
    return c
