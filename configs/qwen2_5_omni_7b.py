"""The paper's recipe on Qwen2.5-Omni-7B: 35K trajectories, 2 epochs of 96 rows are 750 steps.

    latentomni data cache --data latentomni_instruct.jsonl --out cache/train
    latentomni train --config configs/qwen2_5_omni_7b.py --workdir runs/7b \\
      --set model.directory=Qwen2.5-Omni-7B --set data.cache=cache/train

AdamW at 1e-5 with 5 % warm-up, bf16 with float32 masters, vision tower frozen, K = 32 + 8,
λ1 = 0.005, λ2 = 1 are the defaults of `base()`. Written for 32 chips; on n chips choose
`accumulate` so that 96 / accumulate is a multiple of n.
"""

from latentomni_jax.train.config import base

# At 2 frames a second a second of video is one frame pair of at most 537 patches (134 tokens), and
# 25 tokens of sound; a row cites up to three segments of 5 s.
SEGMENTS = dict(
    blocks=3, patches=640, segment_frames=16, segment_chunks=10, visual_anchors=1408,
    audio_anchors=256,
)  # fmt: skip
SHAPES = (
    dict(tokens=4096, targets=1024, frames=24, chunks=14, **SEGMENTS),
    dict(tokens=8192, targets=1024, frames=48, chunks=30, **SEGMENTS),
    dict(tokens=16_384, targets=1024, frames=96, chunks=54, **SEGMENTS),
    dict(tokens=24_576, targets=1024, frames=128, chunks=86, **SEGMENTS),  # 256 video frames
)


def get_config():
    c = base()
    c.batch_size = 96
    c.model.preset = "qwen2_5_omni_7b"
    c.accumulate = 3
    c.shapes = SHAPES
    c.optimizer.steps = 750
    return c
