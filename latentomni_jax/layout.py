"""The leaf every room shares: token roles, the latent and media specs, clips, static buckets.

Imports only numpy, so that data workers can use it without starting an accelerator.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np


class InputError(ValueError):
    """Something the user gave is unusable: names the thing, says what was expected.

    The command line prints it as one line and exits with code 2.
    """


class Role(enum.IntEnum):
    """What a position of the sequence is (docs/method.md 1). Masks and losses read only this."""

    PAD = 0
    PROMPT_TEXT = 1
    PROMPT_VIDEO = 2  # video or image tokens
    PROMPT_AUDIO = 3
    ASSISTANT_TEXT = 4
    LATENT_VISUAL = 5
    LATENT_AUDIO = 6
    TRIGGER = 7
    STOP = 8
    ANSWER = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The shape of a latent block; saved in every checkpoint and validated on load.

    Attributes:
      num_visual, num_audio: latent slots per block, K = num_visual + num_audio; either may be 0.
      segment_seconds: D, the length of the clock that a block's slots share, in seconds.
      pad_id: marks latent slots in id arrays; never fed to the model.
      trigger_id: `<Unified_Latent>`; opens a block.
      stop_id: `</Unified_Latent>`; inserted by the decoder after the K-th slot.
      ospe_base: base of the OSPE frequencies (the backbone's rope theta).
      ospe_apply: where the timestamps act, docs/method.md 3.
      flow: "open" is causal; with "bottleneck", from a row's first trigger on, only triggers and
        latent slots look at the prompt's video and audio (docs/method.md 7).
      is_trained: the rows of trigger and stop have been trained; further training keeps them.
    """

    num_visual: int = 32
    num_audio: int = 8
    segment_seconds: float = 5.0
    pad_id: int = 151665
    trigger_id: int = 151666
    stop_id: int = 151667
    ospe_base: float = 1e6
    ospe_apply: Literal["feature", "position", "both", "none"] = "feature"
    flow: Literal["open", "bottleneck"] = "open"
    is_trained: bool = False

    def __post_init__(self):
        if self.num_visual < 0 or self.num_audio < 0:
            raise InputError(
                f"latent counts must be >= 0, got {self.num_visual} + {self.num_audio}"
            )
        if self.segment_seconds <= 0:
            raise InputError(f"segment_seconds must be > 0, got {self.segment_seconds}")
        if self.ospe_apply not in ("feature", "position", "both", "none"):
            raise InputError(f"ospe_apply must be feature|position|both|none: {self.ospe_apply!r}")
        if self.flow not in ("open", "bottleneck"):
            raise InputError(f"flow must be open or bottleneck: {self.flow!r}")
        if len({self.pad_id, self.trigger_id, self.stop_id}) != 3:
            raise InputError("pad_id, trigger_id and stop_id must differ")

    @property
    def num_latents(self) -> int:
        """K, the number of slots of one block."""
        return self.num_visual + self.num_audio

    def slot_seconds(self) -> np.ndarray:
        """Timestamps f32[K] in seconds from the start of the cited segment: visual, then audio.

        Slot i of a modality with n slots sits at the middle of its share, (i + 1/2) * D / n, so
        that visual slots 4j..4j+3 of the default 32 + 8 share the window of audio slot j.
        """
        halves = [
            (np.arange(n) + 0.5) * self.segment_seconds / max(n, 1)
            for n in (self.num_visual, self.num_audio)
        ]
        return np.concatenate(halves).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaSpec:
    """How files become arrays: sampling, pixel budgets and spectrogram of a checkpoint.

    Pixel counts are of resized frames. `total_pixels` bounds the sum over the frames of one video
    (a temporal patch of 2 frames counts once), the rule of the checkpoint's own tooling.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 256
    video_min_pixels: int = 128 * 28 * 28
    video_max_pixels: int = 768 * 28 * 28
    total_pixels: int = int(128_000 * 28 * 28 * 0.9)
    image_min_pixels: int = 3136
    image_max_pixels: int = 12_845_056
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    sampling_rate: int = 16_000
    num_mel_bins: int = 128
    n_fft: int = 400
    hop_length: int = 160

    @property
    def factor(self) -> int:
        """Height and width of a resized frame are multiples of this (28)."""
        return self.patch_size * self.merge_size

    def normalisation(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, shift), f32[3*temporal*14*14] each: a patch's pixels u8 * scale + shift are the
        vision encoder's input."""
        mean, std = np.array(self.image_mean), np.array(self.image_std)
        area = self.temporal_patch_size * self.patch_size**2
        scale = np.repeat(1 / (255 * std), area).astype(np.float32)
        return scale, np.repeat(-mean / std, area).astype(np.float32)

    @classmethod
    def from_hf(cls, config: dict[str, Any], **overrides) -> MediaSpec:
        """From a checkpoint's `preprocessor_config.json` (images and audio; video is ours)."""
        renamed = {
            "min_pixels": "image_min_pixels",
            "max_pixels": "image_max_pixels",
            "feature_size": "num_mel_bins",
        }
        known = {f.name for f in dataclasses.fields(cls)}
        taken = {}
        for key, value in config.items():
            key = renamed.get(key, key)
            if key in known:
                taken[key] = tuple(value) if isinstance(value, list) else value
        return cls(**(taken | overrides))


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A media file as arrays on one clock that starts at 0 s.

    Attributes:
      frames: u8[T,H,W,3] RGB, already resized; None without pictures.
      frame_times: f32[T] true seconds of each frame.
      audio: f32[N] mono at the spec's sampling rate; None where there is no sound (not zeros).
      duration: seconds.
      is_image: one still picture (resized by the image rule, no clock).
    """

    frames: np.ndarray | None
    frame_times: np.ndarray | None
    audio: np.ndarray | None
    duration: float
    is_image: bool = False


MediaKind = Literal["image", "video", "audio"]


@dataclasses.dataclass(frozen=True, eq=False)
class TextPart:
    """A stretch of tokens of the prompt, i32[n]."""

    token_ids: np.ndarray
    role: Role = Role.PROMPT_TEXT


@dataclasses.dataclass(frozen=True, eq=False)
class VisionPart:
    """An image, or a video with or without its sound, as the encoders take it.

    Attributes:
      patches: [P, 3*2*14*14] in the processor's order: f32 normalised, or u8 as the pixels are (the
        feature cache keeps those; the training step normalises them on the device).
      grid: patches (time, height, width); their product is P.
      seconds: f32[time] when each temporal patch begins.
      mel: f32 or f16 [M,bins] spectrogram of the video's sound, None without.
      is_image: placeholder tokens are the image's, not the video's.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds: np.ndarray
    mel: np.ndarray | None = None
    is_image: bool = False

    @property
    def kind(self) -> MediaKind:
        return "image" if self.is_image else "video"


@dataclasses.dataclass(frozen=True, eq=False)
class AudioPart:
    """A recording on its own: f32[M,bins] log-mel frames."""

    mel: np.ndarray

    @property
    def kind(self) -> MediaKind:
        return "audio"


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPart:
    """What the encoders made of a `VisionPart` or an `AudioPart`, so that they need not run again.

    Attributes:
      kind: of the part that was encoded.
      video: [tokens,D] features of pictures in order of their positions; None for a recording.
      audio: [tokens,D] of the sound; None without.
      grid, seconds: as in `VisionPart`; (0, 0, 0) and empty for a recording.
    """

    kind: MediaKind
    video: np.ndarray | None
    audio: np.ndarray | None
    grid: tuple[int, int, int]
    seconds: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LatentPart:
    """One latent block of a training example: trigger, K slots, stop.

    Attributes:
      seconds: (start, end) of the cited segment on the prompt media's clock.
      segment: the cut segment, encoded on its own for the anchors (its times start at 0). None
        takes the anchors from the prompt's media between `seconds`.
    """

    seconds: tuple[float, float]
    segment: VisionPart | AudioPart | None = None


Part = TextPart | VisionPart | AudioPart | EncodedPart | LatentPart


class Batch(NamedTuple):
    """Token rows of one static shape, B x S, padded on the right.

    Attributes:
      token_ids: i32[B,S].
      roles: i8[B,S] of `Role`; PAD beyond a row's length.
      position_ids: i32[3,B,S] TMRoPE ids.
      feature_index: i32[B,S] row of the batch's feature table that is the position's input
        embedding, -1 where it is the token's own.
      lengths: i32[B].
      next_position: i32[B] TMRoPE id of the first generated token.
    """

    token_ids: np.ndarray
    roles: np.ndarray
    position_ids: np.ndarray
    feature_index: np.ndarray
    lengths: np.ndarray
    next_position: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class BatchShape:
    """The static shape of a training batch's row; a run has a short table of them.

    Attributes:
      tokens: S. targets: U, predicted tokens. blocks: N, latent blocks.
      frames: G, temporal patches of the prompt. segment_frames: of all cited segments together.
      patches: F, patches of a frame (a multiple of 64, for splash of 128).
      chunks: C, 2-second chunks of sound of the prompt. segment_chunks: of all cited segments.
      visual_anchors, audio_anchors: features that one segment's anchors are pooled from.
    """

    tokens: int
    targets: int
    blocks: int = 3
    frames: int = 0
    segment_frames: int = 0
    patches: int = 64
    chunks: int = 0
    segment_chunks: int = 0
    visual_anchors: int = 1
    audio_anchors: int = 1

    def fits(self, other: BatchShape) -> bool:
        """Whether a row that needs `other` goes into this shape."""
        return all(
            getattr(other, f.name) <= getattr(self, f.name) for f in dataclasses.fields(self)
        )


class RowMedia(NamedTuple):
    """Media of every row: G frames of F patches, C chunks of sound; letters as in `BatchShape`.

    Attributes:
      patches: u8[B,G,F,3*2*14*14] pixels in window order.
      rows_columns, windows, restore, patch_lengths: per frame, see `backbone.vision.FrameLayout`.
      mel: f16[B,C,200,bins]; mel_lengths: i32[B,C].
    """

    patches: np.ndarray
    rows_columns: np.ndarray
    windows: np.ndarray
    restore: np.ndarray
    patch_lengths: np.ndarray
    mel: np.ndarray
    mel_lengths: np.ndarray


class TrainBatch(NamedTuple):
    """Examples of one `BatchShape`, as host arrays; every row has media and a feature table of its
    own, so that rows can be split over devices. The table has G*F/4 rows of the prompt's frames and
    C*50 of its sound, then the segments' frames and sound.

    Attributes:
      token_ids: i32[B,S]; latent slots hold the pad id.
      roles: i8[B,S] of `Role`; PAD beyond a row's length.
      position_ids: i32[3,B,S] TMRoPE ids.
      lengths: i32[B]; 0 for a row that only fills the batch.
      feature_index: i32[B,S] row of the example's feature table, -1 where there is none.
      prompt, segments: what the model reads, and what only anchors are made of.
      triggers: i32[B,N] position of each block's trigger, -1 where a row has fewer blocks.
      visual_rows: i32[B,N,Nv] feature rows of a block's segment in order of time, -1 beyond them.
      audio_rows: i32[B,N,Na] the same of its sound; all -1 for a segment without.
      target_positions: i32[B,U] position whose hidden state predicts the target.
      target_ids: i32[B,U]. target_weights: f32[B,U], 0 where there is no target.
    """

    token_ids: np.ndarray
    roles: np.ndarray
    position_ids: np.ndarray
    lengths: np.ndarray
    feature_index: np.ndarray
    prompt: RowMedia
    segments: RowMedia
    triggers: np.ndarray
    visual_rows: np.ndarray
    audio_rows: np.ndarray
    target_positions: np.ndarray
    target_ids: np.ndarray
    target_weights: np.ndarray

    def map_rows(self, function: Callable[[Any, int], Any]) -> TrainBatch:
        """The batch of `function(array, axis that counts its rows)`."""
        media = {
            name: RowMedia(*(function(x, 0) for x in getattr(self, name)))
            for name in ("prompt", "segments")
        }
        plain = {
            name: function(x, int(name == "position_ids"))
            for name, x in self._asdict().items()
            if name not in media
        }
        return TrainBatch(**plain, **media)


class VisionGroup(NamedTuple):
    """Frames encoded by one call; arrays as in `backbone.vision`, `offset` into the table."""

    patches: np.ndarray
    rows_columns: np.ndarray
    windows: np.ndarray
    restore: np.ndarray
    lengths: np.ndarray
    offset: int


class AudioGroup(NamedTuple):
    """Chunks encoded by one call; `offset` into the feature table."""

    mel: np.ndarray
    lengths: np.ndarray
    offset: int


class FeatureGroup(NamedTuple):
    """Features that are known, [n,D] padded; `offset` into the feature table."""

    features: np.ndarray
    offset: int


def bucket(size: int, sizes: tuple[int, ...]) -> int:
    """The smallest table entry >= size; beyond the table, multiples of its last entry.

    Static shapes come from here, so that a program compiles once per bucket and not per input.

    >>> bucket(300, (256, 512)), bucket(1100, (256, 512))
    (512, 1536)
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    return -(-size // sizes[-1]) * sizes[-1]
