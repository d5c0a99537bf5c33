"""TMRoPE position ids and the audio-video interleave, computed on the host (docs/method.md 8).

Every token has three ids (time, height, width), equal for text and audio. 25 temporal ids are one
second. A video with sound interleaves 2-second chunks, pictures first:

```
tokens   vision_bos audio_bos | video 0-2 s | audio 0-2 s | video 2-4 s | audio 2-4 s | eos eos
time id       s         s       s+1 + 25 t     s+1 + k ...                               e   e
```

Clocks: `true` takes the real timestamp of each temporal patch; `nominal` is the reference's rule
(fixed seconds per patch, and a chunk walk that advances one chunk per token). They agree at 2 fps.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Literal

import numpy as np

from latentomni_jax.backbone.config import ThinkerConfig

Clock = Literal["true", "nominal"]


class Kind(enum.IntEnum):
    """What a token of a media span is."""

    VISION_START = 0
    VISION_END = 1
    AUDIO_START = 2
    AUDIO_END = 3
    VISION = 4
    AUDIO = 5


@dataclasses.dataclass(frozen=True)
class Span:
    """The tokens of one media item, in prompt order.

    Attributes:
      kinds: i8[n] of `Kind`.
      rows: i32[n] row of the item's vision or audio features; -1 for start and end tokens.
      position_ids: i32[3,n].
    """

    kinds: np.ndarray
    rows: np.ndarray
    position_ids: np.ndarray

    @property
    def next_start(self) -> int:
        """Where the following token continues: one after the span's last token."""
        return int(self.position_ids[:, -1].max()) + 1


def text_positions(start: int, length: int) -> np.ndarray:
    """Sequential ids i32[3,length] from `start`."""
    return np.broadcast_to(np.arange(start, start + length, dtype=np.int32), (3, length))


def audio_span(start: int, num_tokens: int) -> Span:
    """A recording on its own: start token, one id per token, end token."""
    kinds = np.full(num_tokens + 2, Kind.AUDIO, np.int8)
    kinds[0], kinds[-1] = Kind.AUDIO_START, Kind.AUDIO_END
    rows = np.arange(-1, num_tokens + 1, dtype=np.int32)
    rows[-1] = -1
    return Span(kinds, rows, text_positions(start, num_tokens + 2))


def vision_span(
    config: ThinkerConfig,
    start: int,
    grid: tuple[int, int, int],
    seconds: np.ndarray,
    *,
    num_audio_tokens: int | None = None,
    clock: Clock = "true",
) -> Span:
    """An image, a video, or a video with its sound.

    Args:
      start: position id of the start token.
      grid: patches (time, height, width) before merging.
      seconds: f32[time], when each temporal patch begins. For the nominal clock, multiples of the
        fixed seconds per patch. For an image [0].
      num_audio_tokens: of the video's own sound; None lays the pictures out alone.
      clock: see the module.
    """
    times = np.asarray(seconds, np.float32).tobytes()
    span = _span_at_zero(config, tuple(grid), times, num_audio_tokens, clock)
    return dataclasses.replace(span, position_ids=span.position_ids + np.int32(start))


# A clip has several questions, and many clips one length.
@functools.lru_cache(maxsize=64)
def _span_at_zero(
    config: ThinkerConfig,
    grid: tuple[int, int, int],
    seconds: bytes,
    num_audio_tokens: int | None,
    clock: Clock,
) -> Span:
    """`vision_span` from position id 0; its arrays are shared, and read-only."""
    merge = config.vision.merge_size
    time, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
    temporal = temporal_ids(config, np.frombuffer(seconds, np.float32), clock)
    pictures = np.stack(
        [
            np.repeat(temporal, rows * columns),
            np.tile(np.repeat(np.arange(rows), columns), time),
            np.tile(np.arange(columns), time * rows),
        ]
    ).astype(np.int32)
    picture_rows = np.arange(pictures.shape[1], dtype=np.int32)
    if num_audio_tokens is None:
        content, kinds, feature_rows = pictures, [Kind.VISION] * len(picture_rows), picture_rows
        starts, ends = [Kind.VISION_START], [Kind.VISION_END]
    else:
        content, kinds, feature_rows = _interleave(config, pictures, num_audio_tokens, clock)
        starts = [Kind.VISION_START, Kind.AUDIO_START]
        ends = [Kind.AUDIO_END, Kind.VISION_END]
    content = content + 1
    # The reference continues after the last *chunk*, not after the largest id of the item.
    tail = content[:, _last_chunk_start(kinds) :] if content.size else np.zeros((3, 1), np.int32)
    end = int(tail.max()) + 1
    outside = np.full(len(starts), -1, np.int32)
    span = Span(
        np.concatenate([starts, kinds, ends]).astype(np.int8),
        np.concatenate([outside, feature_rows, outside]).astype(np.int32),
        np.concatenate(
            [np.zeros((3, len(starts)), np.int32), content, np.full((3, len(ends)), end)], axis=1
        ).astype(np.int32),
    )
    for array in (span.kinds, span.rows, span.position_ids):
        array.setflags(write=False)
    return span


def temporal_ids(config: ThinkerConfig, seconds: np.ndarray, clock: Clock) -> np.ndarray:
    """Temporal id of each patch relative to the item's first: ⌊25 t⌋, i32.

    Times are float32 (so is the reference's arithmetic); a thousandth of an id absorbs the
    rounding of true times such as 0.04 s, which is no exact multiple of anything.
    """
    scaled = np.asarray(seconds, np.float32) * np.float32(config.positions_per_second)
    return np.floor(scaled + (1e-3 if clock == "true" else 0.0)).astype(np.int32)


def _interleave(config, pictures, num_audio_tokens, clock):
    """Chunks of pictures and sound in turn -> ids, kinds, rows."""
    per_chunk = int(config.positions_per_second * config.seconds_per_chunk)
    sound = np.broadcast_to(np.arange(num_audio_tokens, dtype=np.int32), (3, num_audio_tokens))
    number = _chunk_walk if clock == "nominal" else lambda ids, size: ids // size
    chunk = np.concatenate([number(pictures[0], per_chunk), number(sound[0], per_chunk)])
    is_sound = np.repeat([False, True], [pictures.shape[1], num_audio_tokens])
    order = np.lexsort((is_sound, chunk))  # by chunk, pictures first; stable inside
    ids = np.concatenate([pictures, sound], axis=1)[:, order]
    rows = np.concatenate([np.arange(pictures.shape[1]), np.arange(num_audio_tokens)])[order]
    kinds = np.where(is_sound, Kind.AUDIO, Kind.VISION)[order]
    return ids, kinds, rows


def _chunk_walk(ids: np.ndarray, per_chunk: int) -> np.ndarray:
    """The reference's chunk number of each token: it opens at most one chunk per token."""
    chunks = np.zeros(len(ids), np.int64)
    current = 0
    for place, value in enumerate(ids):
        if value >= (current + 1) * per_chunk:
            current += 1
        chunks[place] = current
    return chunks


def _last_chunk_start(kinds) -> int:
    """Index where the last run of equal kinds begins."""
    kinds = np.asarray(kinds)
    changes = np.flatnonzero(np.diff(kinds))
    return int(changes[-1]) + 1 if len(changes) else 0
