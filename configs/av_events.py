"""A model from nothing for the world of `latentomni data av-events`, in four stages on a CPU.

    latentomni data av-events --out events --clips 3000
    latentomni data cache --data events/base.jsonl --out events-cache \\
      --fps 4 --video-min-pixels 3136 --video-max-pixels 3136
    latentomni train --config configs/av_events.py:senses --workdir runs/senses \\
      --set data.cache=events-cache --set model.tokenizer=events/tokenizer
    latentomni train --config configs/av_events.py:base --workdir runs/base \\
      --set data.cache=events-cache --set model.directory=runs/senses/model
    latentomni train --config configs/av_events.py:order --workdir runs/order \\
      --set data.cache=events-cache --set model.directory=runs/base/model
    latentomni train --config configs/av_events.py:latentomni --workdir runs/latentomni \\
      --set data.cache=events-cache --set model.directory=runs/order/model

"senses" learns to see and to hear, one thing or one sound at a time, and to find a word again.
"base" learns what goes with what, "order" what comes after what, "latentomni" to reason with
latents. Each keeps in its mix what the later ones need: what is not practised is forgotten.
Written for the easy dial: clips of three seconds.
"""

from configs.tiny import get_config as tiny
from latentomni_jax.layout import InputError

STAGES = ("senses", "base", "order", "latentomni")
_PICTURE = dict(tokens=40, targets=8, blocks=0, frames=2, patches=16)
_SOUND = _PICTURE | dict(tokens=56, chunks=1)
_WORDS = dict(tokens=80, targets=32, blocks=0)
_LIST = dict(tokens=200, targets=72, blocks=0, frames=6, patches=16, chunks=2)


def get_config(name):
    if name not in STAGES:
        raise InputError(f"no stage {name!r}; there are {', '.join(STAGES)}")
    c = tiny()
    c.model.preset = "small"
    c.data.tiny = False
    c.model.frozen = ()
    c.checkpoint.every = 500
    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.b2 = 0.95
    if name == "senses":
        c.data.only = "^(words|pictures|sounds)-"
        c.shapes = (_PICTURE, _SOUND, _WORDS)
        c.optimizer.steps = 600
    elif name in ("base", "order"):
        c.data.only = "^(words|pictures)-|^train-[0-9]+-(by-|after-|twins)"
        c.shapes = (_PICTURE, _WORDS, _LIST)
        c.optimizer.steps = 1300
        c.objective.weight_bind = 1.0
        if name == "order":
            c.data.only = "-(recall|compare|tell|by-thing|by-sound|after-thing|after-sound|twins)$"
            c.optimizer.steps = 700
            c.objective.bind_before = True
    else:
        c.data.only = r"^train-[0-9]+-(?!by-time|\w+-silent)|-(tell|compare)$"
        c.model.frozen = ("vision/",)
        # Fed anchors, even every other one, the words learn to read what the model cannot write;
        # fed states of a few Jacobi passes, they meet others when it answers.
        c.objective.mode = "rollout"
        c.objective.weight_bind = 1.0
        c.objective.bind_before = True
        c.shapes = (
            _WORDS,
            _LIST,
            dict(
                tokens=208, targets=32, blocks=1, frames=6, segment_frames=2, patches=16, chunks=2,
                segment_chunks=1, visual_anchors=8, audio_anchors=12,
            ),
            dict(
                tokens=256, targets=48, blocks=2, frames=6, segment_frames=4, patches=16, chunks=2,
                segment_chunks=2, visual_anchors=8, audio_anchors=12,
            ),
        )  # fmt: skip
        c.optimizer.steps = 600
    return c
