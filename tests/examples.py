"""Random training examples as parts, and batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.latent.examples import (
    AnchorSource,
    collate_examples,
    lay_out_example,
    needed_shape,
)
from latentomni_jax.layout import (
    AudioPart,
    BatchShape,
    LatentPart,
    LatentSpec,
    MediaSpec,
    Part,
    Role,
    TextPart,
    TrainBatch,
    VisionPart,
)
from tests.prompts import PATCH

SPEC = LatentSpec(num_visual=4, num_audio=2, pad_id=509, trigger_id=510, stop_id=511)
MEDIA = MediaSpec()
Prompt = Literal["text", "image", "audio", "video", "video_with_sound"]
# What a block's segment has. Few frames and many, so that anchors are pooled and interpolated.
Segment = Literal["sound_and_video", "video", "sound", "short"]


@dataclasses.dataclass
class ExampleMaker:
    """Draws examples with a seeded generator; text ids stay below the special ones."""

    seed: int

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def text(self, length: int, role: Role = Role.PROMPT_TEXT) -> TextPart:
        return TextPart(self.rng.integers(1, 400, length).astype(np.int32), role)

    def mel(self, frames: int) -> np.ndarray:
        return self.rng.normal(size=(frames, 128)).astype(np.float16)

    def vision(self, grid, *, mel_frames: int = 0, is_image: bool = False) -> VisionPart:
        """One temporal patch per second, the rate of 2 frames per second."""
        pixels = self.rng.integers(0, 256, (int(np.prod(grid)), PATCH)).astype(np.uint8)
        mel = self.mel(mel_frames) if mel_frames else None
        return VisionPart(pixels, grid, np.arange(grid[0], dtype=np.float32), mel, is_image)

    def prompt(self, kind: Prompt) -> list[Part]:
        """Text, then the media, then text, as the chat template has it."""
        media = {
            "text": lambda: [],
            "image": lambda: [self.vision((1, 10, 12), is_image=True)],
            "audio": lambda: [AudioPart(self.mel(311))],
            "video": lambda: [self.vision((4, 6, 8))],
            "video_with_sound": lambda: [self.vision((5, 8, 6), mel_frames=487)],
        }[kind]()
        return [self.text(5), *media, self.text(9)]

    def block(self, kind: Segment | None, seconds=(1.0, 3.0)) -> LatentPart:
        """A latent block with a cut segment of its own, or (None) with cited seconds only."""
        if kind is None:
            return LatentPart(seconds)
        segment = {
            "sound_and_video": lambda: self.vision((2, 6, 8), mel_frames=197),
            "video": lambda: self.vision((2, 8, 6)),
            "sound": lambda: AudioPart(self.mel(230)),
            "short": lambda: self.vision((1, 2, 4), mel_frames=7),
        }[kind]()
        return LatentPart(seconds, segment)

    def example(self, prompt: Prompt, blocks: Sequence[Segment | None] = ()) -> list[Part]:
        """Prompt, reasoning with a latent block after each stretch of text, and the answer."""
        parts = self.prompt(prompt)
        for number, kind in enumerate(blocks):
            parts.append(self.text(4 + number, Role.ASSISTANT_TEXT))
            parts.append(self.block(kind, seconds=(0.5 + number, 2.5 + number)))
        return [*parts, self.text(6, Role.ASSISTANT_TEXT), self.text(3, Role.ANSWER)]


def mixed_examples(seed: int = 0) -> list[list[Part]]:
    """Every kind of prompt, 0 to 3 blocks, segments with sound, without, short, sound alone."""
    make = ExampleMaker(seed)
    return [
        make.example("text"),
        make.example("video", ["video"]),
        make.example("video_with_sound", ["sound_and_video", "short"]),
        make.example("audio", ["sound"]),
        make.example("image", ["sound_and_video", "video", "sound_and_video"]),
    ]


def make_batch(
    config: ThinkerConfig,
    examples: Sequence[Sequence[Part] | None],
    spec: LatentSpec = SPEC,
    *,
    source: AnchorSource = "segment",
    shape: BatchShape | None = None,
) -> TrainBatch:
    """The batch of examples (None is an empty row), padded beyond what they need on every side."""
    laid_out = [p if p is None else lay_out_example(config, spec, p, source) for p in examples]
    if shape is None:
        shape = roomy_shape(needed_shape(config, e) for e in laid_out if e is not None)
    return collate_examples(config, MEDIA, spec, laid_out, shape)


def roomy_shape(needed) -> BatchShape:
    """A shape that all of `needed` fit into, none of them exactly."""
    sizes = [dataclasses.asdict(shape) for shape in needed]
    more = {"tokens": 11, "targets": 3, "visual_anchors": 2, "audio_anchors": 2}
    room = {name: max(size[name] for size in sizes) + more.get(name, 1) for name in sizes[0]}
    return BatchShape(**room | {"patches": -(-room["patches"] // 64) * 64})
