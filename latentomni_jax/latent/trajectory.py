"""From parts (text, media) to rows of the static batch: ids, roles, positions, feature rows.

Roles and rows are written here once, while the structure is known; nothing downstream scans token
ids to find it again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from latentomni_jax.backbone.audio import chunk_mel, num_audio_tokens
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.positions import (
    Clock,
    Kind,
    audio_span,
    text_positions,
    vision_span,
)
from latentomni_jax.backbone.vision import frame_layout
from latentomni_jax.layout import (
    AudioGroup,
    AudioPart,
    Batch,
    EncodedPart,
    FeatureGroup,
    InputError,
    LatentPart,
    LatentSpec,
    MediaSpec,
    Part,
    Role,
    TextPart,
    VisionGroup,
    VisionPart,
    bucket,
)

# Static shapes. A program is compiled once per entry that occurs.
PROMPT_BUCKETS = (128, 256, 512, 1024, 2048, 4096, 6144, 8192, 12_288, 16_384, 20_480, 24_576)
TABLE_BUCKETS = (256, 1024, 2048, 4096, 8192, 16_384, 32_768)
FRAME_BUCKETS = (
    *(256, 512, 768, 1024, 1280, 1536, 2048, 2560, 3072),
    *(4096, 6144, 8192, 12_288, 16_384),
)
MediaGroup = VisionGroup | AudioGroup | FeatureGroup
_GROUP_SIZES = (1, 2, 4, 8, 16)
_MAX_PATCHES = 16_384  # of one encoder call: bounds its activations, whatever the video's length
_MAX_CHUNKS = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """One sequence before padding.

    Attributes:
      token_ids: i32[S]. roles: i8[S]. position_ids: i32[3,S].
      items, feature_rows: i32[S] which media part (index into the row's parts) and which of its
        feature rows a position takes, -1 for text. Audio rows of a video count from 0 too; the
        role tells them apart.
      next_position: where generation continues.
    """

    token_ids: np.ndarray
    roles: np.ndarray
    position_ids: np.ndarray
    items: np.ndarray
    feature_rows: np.ndarray
    next_position: int

    def count(self, *roles: Role) -> int:
        """Positions with one of these roles."""
        return int(np.isin(self.roles, roles).sum())


def lay_out(
    config: ThinkerConfig,
    parts: Sequence[Part],
    clock: Clock = "true",
    spec: LatentSpec | None = None,
) -> Row:
    """Token ids, roles and positions of a sequence of parts.

    Args:
      spec: needed where the parts hold latent blocks (training examples).

    Raises:
      InputError: no parts, an audio too short to make one token, or a block without a `spec`.
    """
    columns: list[tuple] = []
    start = 0
    in_prompt = True
    for item, part in enumerate(parts):
        if in_prompt and _is_answer(part):
            # The assistant's turn begins where decoding would: after the largest id of the prompt.
            start = max((int(positions.max()) + 1 for _, _, positions, *_ in columns), default=0)
            in_prompt = False
        if isinstance(part, TextPart):
            size = len(part.token_ids)
            none = np.full(size, -1, np.int32)
            roles = np.full(size, part.role, np.int8)
            positions = text_positions(start, size)
            columns.append((part.token_ids, roles, positions, none, none))
            start += size
            continue
        if isinstance(part, LatentPart):
            if spec is None:
                raise InputError("the parts hold a latent block, but no LatentSpec is given")
            token_ids, roles, positions = _block(spec, start, config.positions_per_second)
            none = np.full(len(token_ids), -1, np.int32)
            columns.append((token_ids, roles, positions, none, none))
            start = int(positions[0, -1]) + 1
            continue
        num_audio = _audio_tokens(part)
        if part.kind == "audio":
            assert num_audio is not None  # a recording is its sound
            span = audio_span(start, num_audio)
        else:
            span = vision_span(
                config, start, part.grid, part.seconds, num_audio_tokens=num_audio, clock=clock
            )
        ids = np.empty(len(Kind), np.int32)
        ids[[Kind.VISION_START, Kind.VISION_END]] = config.vision_start_id, config.vision_end_id
        ids[[Kind.AUDIO_START, Kind.AUDIO_END]] = config.audio_start_id, config.audio_end_id
        ids[Kind.VISION] = config.image_token_id if part.kind == "image" else config.video_token_id
        ids[Kind.AUDIO] = config.audio_token_id
        roles = np.full(len(Kind), Role.PROMPT_TEXT, np.int8)
        roles[[Kind.VISION, Kind.AUDIO]] = Role.PROMPT_VIDEO, Role.PROMPT_AUDIO
        items = np.where(span.rows >= 0, item, -1).astype(np.int32)
        columns.append((ids[span.kinds], roles[span.kinds], span.position_ids, items, span.rows))
        start = span.next_start
    if not columns:
        raise InputError("an empty prompt: give a question, a media file, or both")
    token_ids, roles, positions, items, rows = (
        np.concatenate(parts, axis=-1) for parts in zip(*columns, strict=True)
    )
    # The reference continues after the largest id, which a video's last patch may hold.
    return Row(token_ids, roles, positions, items, rows, int(positions.max()) + 1)


def collate(
    config: ThinkerConfig,
    prompts: Sequence[Sequence[Part]],
    *,
    clock: Clock = "true",
    length: int | None = None,
    media: MediaSpec | None = None,
) -> tuple[Batch, list[MediaGroup], int]:
    """Rows of one batch, the encoder calls they need, and the size of the feature table.

    Args:
      length: S; default is the bucket of the longest row.
      media: how pixels become patches; needed where parts hold them as they are (u8).

    Returns:
      The batch, the groups with their offsets into the table, and the table's static row count.
    """
    rows = [lay_out(config, parts, clock) for parts in prompts]
    size = length or bucket(max(len(row.token_ids) for row in rows), PROMPT_BUCKETS)
    batch = Batch(
        token_ids=np.zeros((len(rows), size), np.int32),
        roles=np.zeros((len(rows), size), np.int8),
        position_ids=np.zeros((3, len(rows), size), np.int32),
        feature_index=np.full((len(rows), size), -1, np.int32),
        lengths=np.array([len(row.token_ids) for row in rows], np.int32),
        next_position=np.array([row.next_position for row in rows], np.int32),
    )
    groups: list[MediaGroup] = []
    offset = 0
    for b, (row, parts) in enumerate(zip(rows, prompts, strict=True)):
        n = len(row.token_ids)
        if n > size:
            raise InputError(f"row {b} has {n} tokens, more than the batch's length {size}")
        batch.token_ids[b, :n], batch.roles[b, :n] = row.token_ids, row.roles
        batch.position_ids[:, b, :n] = row.position_ids
        for item, part in enumerate(parts):
            mine = row.items == item
            makers = (functools.partial(_vision_groups, media=media), _audio_groups)
            if isinstance(part, EncodedPart):
                makers = (
                    functools.partial(_feature_groups, features=part.video),
                    functools.partial(_feature_groups, features=part.audio),
                )
            for role, make in zip((Role.PROMPT_VIDEO, Role.PROMPT_AUDIO), makers, strict=True):
                places = np.flatnonzero(mine & (row.roles == role))
                if len(places):
                    made, table_rows, offset = make(config, part, offset)
                    groups += made
                    batch.feature_index[b, places] = table_rows[row.feature_rows[places]]
    return batch, groups, bucket(offset, TABLE_BUCKETS)


def _is_answer(part: Part) -> bool:
    """Whether a part is the assistant's, and not the prompt's."""
    return isinstance(part, LatentPart) or (
        isinstance(part, TextPart) and part.role in (Role.ASSISTANT_TEXT, Role.ANSWER)
    )


def slot_positions(spec: LatentSpec, per_second: int) -> tuple[np.ndarray, int]:
    """TMRoPE offsets i32[K] of a block's slots from its first id, and how many ids it takes.

    Sequential, or for `ospe_apply` "position" and "both" `per_second` ids for each second of the
    block's clock.
    """
    if spec.ospe_apply in ("position", "both"):
        offsets = np.floor(spec.slot_seconds() * per_second + 1e-3).astype(np.int32)
    else:
        offsets = np.arange(spec.num_latents, dtype=np.int32)
    return offsets, int(offsets.max()) + 1 if len(offsets) else 0


def _block(spec: LatentSpec, start: int, per_second: int):
    """Token ids, roles and positions [3,K+2] of a latent block, as the decoder lays it out."""
    offsets, extent = slot_positions(spec, per_second)
    token_ids = np.full(spec.num_latents + 2, spec.pad_id, np.int32)
    token_ids[0], token_ids[-1] = spec.trigger_id, spec.stop_id
    roles = np.repeat(
        np.array([Role.TRIGGER, Role.LATENT_VISUAL, Role.LATENT_AUDIO, Role.STOP], np.int8),
        (1, spec.num_visual, spec.num_audio, 1),
    )
    ids = np.concatenate([[start], start + 1 + offsets, [start + 1 + extent]]).astype(np.int32)
    return token_ids, roles, np.broadcast_to(ids, (3, len(ids)))


def _audio_tokens(part: VisionPart | AudioPart | EncodedPart) -> int | None:
    """Of a part's sound; None without."""
    if isinstance(part, EncodedPart):
        return None if part.audio is None else len(part.audio)
    if part.mel is None:
        return None
    count = num_audio_tokens(len(part.mel))
    if count < 1:
        raise InputError(f"sound of {len(part.mel)} spectrogram frames (10 ms each) is too short")
    return count


def _vision_groups(config, part, offset, media):
    """Frames of one item in encoder calls of one shape; table row of each merged token."""
    time, height, width = part.grid
    vision = config.vision
    padded = bucket(height * width, FRAME_BUCKETS)
    layout = frame_layout(vision, height, width, padded)
    fitting = 1 << (max(1, _MAX_PATCHES // padded).bit_length() - 1)
    size = min(bucket(time, _GROUP_SIZES), fitting, 8)
    per_frame = padded // vision.merge_size**2
    by_frame = part.patches.reshape(time, height * width, -1)[:, layout.order]
    scale = shift = None
    if by_frame.dtype == np.uint8:
        if media is None:
            raise InputError("the parts hold pixels (u8), but no MediaSpec is given")
        scale, shift = media.normalisation()
    groups = []
    for start in range(0, time, size):
        real = by_frame[start : start + size]
        patches = np.zeros((size, padded, by_frame.shape[-1]), np.float32)
        inside = patches[: len(real), : layout.length]
        inside[...] = real
        if scale is not None:  # here, so that a clip's floats never exist all at once
            inside *= scale
            inside += shift
        lengths = np.zeros(size, np.int32)
        lengths[: len(real)] = layout.length
        repeated = (
            np.broadcast_to(x, (size, *x.shape))
            for x in (layout.rows_columns, layout.windows, layout.restore)
        )
        groups.append(VisionGroup(patches, *repeated, lengths, offset + start * per_frame))
    tokens = height * width // vision.merge_size**2
    table_rows = offset + (np.arange(time)[:, None] * per_frame + np.arange(tokens)).ravel()
    return groups, table_rows.astype(np.int32), offset + len(groups) * size * per_frame


def _audio_groups(config, part, offset):
    """Chunks of one recording in encoder calls of one shape; table row of each token."""
    chunks, lengths = chunk_mel(config.audio, part.mel)
    size = bucket(min(len(chunks), _MAX_CHUNKS), _GROUP_SIZES)
    per_chunk = config.audio.chunk_frames // 4
    groups = []
    for start in range(0, len(chunks), size):
        missing = size - len(chunks[start : start + size])
        groups.append(
            AudioGroup(
                np.pad(chunks[start : start + size], ((0, missing), (0, 0), (0, 0))),
                np.pad(lengths[start : start + size], (0, missing)),
                offset + start * per_chunk,
            )
        )
    table_rows = offset + np.arange(len(chunks) * per_chunk, dtype=np.int32)
    return groups, table_rows, offset + len(groups) * size * per_chunk


def _feature_groups(config, part, offset, features):
    """Features that are there, with the table row of each."""
    size = bucket(len(features), PROMPT_BUCKETS)
    padded = np.zeros((size, features.shape[-1]), features.dtype)
    padded[: len(features)] = features
    table_rows = offset + np.arange(len(features), dtype=np.int32)
    return [FeatureGroup(padded, offset)], table_rows, offset + size
