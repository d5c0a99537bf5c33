"""Random prompts as parts of ours and as inputs of the PyTorch reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from latentomni_jax.layout import AudioPart, Part, TextPart, VisionPart

PATCH = 3 * 2 * 14 * 14


@dataclasses.dataclass
class PromptMaker:
    """Draws parts with a seeded generator; text ids stay below the special ones."""

    seed: int

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def text(self, length: int) -> TextPart:
        return TextPart(self.rng.integers(1, 400, length).astype(np.int32))

    def audio(self, frames: int) -> AudioPart:
        return AudioPart(self.rng.normal(size=(frames, 128)).astype(np.float32))

    def vision(self, grid, *, frames=None, is_image=False) -> VisionPart:
        patches = self.rng.normal(size=(int(np.prod(grid)), PATCH)).astype(np.float32)
        mel = None if frames is None else self.audio(frames).mel
        seconds = np.arange(grid[0], dtype=np.float32)
        return VisionPart(patches, grid, seconds, mel, is_image)


def reference_inputs(batch, prompts: list[list[Part]], *, audio_in_video: bool) -> dict:
    """The keyword arguments of the reference's forward pass for the same prompts."""
    flat = [part for parts in prompts for part in parts]
    images = [p for p in flat if isinstance(p, VisionPart) and p.is_image]
    videos = [p for p in flat if isinstance(p, VisionPart) and not p.is_image]
    mels = [p.mel for p in flat if not isinstance(p, TextPart) and p.mel is not None]
    mask = np.arange(batch.token_ids.shape[1]) < batch.lengths[:, None]
    inputs = {
        "input_ids": torch.tensor(batch.token_ids).long(),
        "attention_mask": torch.tensor(mask).long(),
        "use_audio_in_video": audio_in_video,
    }
    if mels:
        longest = max(map(len, mels))
        padded = np.stack([np.pad(mel, ((0, longest - len(mel)), (0, 0))) for mel in mels])
        inputs["input_features"] = torch.tensor(padded.transpose(0, 2, 1))
        inputs["feature_attention_mask"] = torch.tensor(
            np.arange(longest) < np.array([len(mel) for mel in mels])[:, None]
        ).long()
    if images:
        inputs["pixel_values"] = torch.tensor(np.concatenate([p.patches for p in images]))
        inputs["image_grid_thw"] = torch.tensor([p.grid for p in images])
    if videos:
        inputs["pixel_values_videos"] = torch.tensor(np.concatenate([p.patches for p in videos]))
        inputs["video_grid_thw"] = torch.tensor([p.grid for p in videos])
        inputs["video_second_per_grid"] = torch.ones(len(videos))
    return inputs
