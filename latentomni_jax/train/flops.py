"""Model FLOPs of a training step, and the share of the machine's peak that they are (MFU).

Counted: every matrix product of the forward pass and twice that for the backward pass of what
trains (1x + 2x; frozen towers, and segments, which only make anchors, 1x), the passes that make
the states to feed (1x), attention with its causal half only, the head for predicted positions only.
Not counted: recomputation, padding, element-wise work.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from latentomni_jax.backbone.config import AudioConfig, ThinkerConfig, VisionConfig
from latentomni_jax.backbone.types import Array
from latentomni_jax.layout import TrainBatch

# Dense bf16 peak of a device in FLOP/s, by a piece of its `device_kind`; vendors' data sheets.
PEAKS = {
    "v5 lite": 197e12,
    "v5e": 197e12,
    "v6 lite": 918e12,
    "v6e": 918e12,
    "v5p": 459e12,
    "v5": 459e12,
    "v4": 275e12,
    "h200": 989e12,
    "h100": 989e12,
}


def peak(device_kind: str) -> float | None:
    """FLOP/s of one device, None where it is not known (CPUs)."""
    kind = device_kind.lower()
    return next((value for name, value in PEAKS.items() if name in kind), None)


def step_flops(
    config: ThinkerConfig,
    batch: TrainBatch,
    frozen: tuple[str, ...] = ("vision",),
    extra_passes: int = 0,
    adapters: bool = False,
) -> float:
    """FLOPs of one step over a host batch (any leading axes).

    Args:
      adapters: LoRA: the decoder's matrices get no gradient of their own. (What adapters
        themselves compute, some tenths of a per cent, is left out.)
      extra_passes: through the decoder without its head, see `Objective.extra_passes`.
    """
    text = config.text
    lengths = np.asarray(batch.lengths, np.float64)
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    layer = text.hidden_size * (heads + 3 * text.intermediate_size)
    products = 2 * text.num_layers * layer * lengths.sum()
    # Scores and values: 4 N H S a query, of which causality needs half.
    scores = 2 * text.num_layers * text.num_heads * text.head_dim * (lengths**2).sum()
    targets = float(np.sum(np.asarray(batch.target_weights) > 0))
    head = 2 * text.hidden_size * text.vocab_size * targets

    total = (2 if adapters else 3) * products + 3 * (scores + head)
    total += extra_passes * (products + scores)
    for rows, times in ((batch.prompt, 3), (batch.segments, 1)):  # segments get no gradient
        total += (1 if "vision" in frozen else times) * vision_flops(
            config.vision, rows.patch_lengths
        )
        total += (1 if "audio" in frozen else times) * audio_flops(config.audio, rows.mel_lengths)
    return total


def vision_flops(vision: VisionConfig, patch_lengths: Int[Array, "*G"]) -> float:
    """Forward pass of the vision encoder over frames of so many patches."""
    patches = np.asarray(patch_lengths, np.float64)
    width = vision.hidden_size
    per_patch = vision.patch_dim * width
    per_patch += vision.depth * width * (4 * width + 3 * vision.intermediate_size)
    wide = width * vision.merge_size**2
    per_patch += wide * (wide + vision.out_hidden_size) / vision.merge_size**2
    full = len(vision.full_attention_layers)
    window = (vision.window_size // vision.patch_size) ** 2
    return 2 * per_patch * patches.sum() + 4 * width * (
        full * (patches**2).sum() + (vision.depth - full) * window * patches.sum()
    )


def audio_flops(audio: AudioConfig, mel_lengths: Int[Array, "*C"]) -> float:
    """Forward pass of the audio encoder over chunks of so many mel frames."""
    width, steps = audio.hidden_size, np.asarray(mel_lengths, np.float64) / 2
    per_step = audio.num_layers * width * (4 * width + 2 * audio.intermediate_size)
    per_step += 6 * audio.num_mel_bins * width + 3 * width**2 + width * audio.out_hidden_size / 2
    return 2 * per_step * steps.sum() + 4 * audio.num_layers * width * (steps**2).sum()
