"""A model from nothing on 16 drawn clips: minutes on a laptop, every part of the method at work.

latentomni train --config configs/tiny.py --workdir runs/tiny
"""

from latentomni_jax.train.config import base


def get_config():
    c = base()
    c.batch_size = 16
    c.model.preset = "tiny"
    c.model.dtype = "float32"
    c.model.remat = "dots"  # less to carry through the layer scan: twice as fast on a CPU
    c.latent.num_visual = 8
    c.latent.num_audio = 2
    c.latent.segment_seconds = 1.0
    c.data.tiny = True
    c.shapes = (
        dict(
            tokens=320, targets=32, blocks=2, frames=4, segment_frames=6, patches=64, chunks=3,
            segment_chunks=3, visual_anchors=64, audio_anchors=100,
        ),
    )  # fmt: skip
    c.optimizer.steps = 200
    c.optimizer.learning_rate = 3e-3
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 50
    return c
