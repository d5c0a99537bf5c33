"""Training examples become batches of one static shape (docs/method.md 1 and 4).

An example is a list of parts: the prompt, then reasoning, latent blocks and the answer. Its media
are laid into the row's own frames and chunks; cited segments have theirs apart, because no gradient
flows there. Anchors are lists of feature rows:

```
          prompt                                      segments
frames    [ video 1 .... | video 2 .. | padding ]     [ segment 1 . | segment 2 . | padding ]
chunks    [ sound 1 .... | sound 2 .. | padding ]     [ segment 1 . | segment 2 . | padding ]
features  [ G * F/4 of frames | C * 50 of sound ]  +  [ the same of the segments            ]
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from latentomni_jax.backbone.audio import chunk_mel, num_audio_tokens
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.vision import frame_layout
from latentomni_jax.latent.trajectory import Row, lay_out
from latentomni_jax.layout import (
    AudioPart,
    BatchShape,
    InputError,
    LatentPart,
    LatentSpec,
    MediaSpec,
    Part,
    Role,
    RowMedia,
    TrainBatch,
    VisionPart,
)

AnchorSource = Literal["segment", "prompt"]
# What the language loss predicts (docs/method.md 5); the stop token is inserted, never predicted.
_IS_TARGET = np.zeros(len(Role), bool)  # by role
_IS_TARGET[[Role.ASSISTANT_TEXT, Role.TRIGGER, Role.ANSWER]] = True


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One laid-out example before padding.

    Attributes:
      row: tokens, roles, positions.
      media: the encoded parts, prompt media first, then segments.
      sources: for every prompt part with features, its place in `media`, by part index.
      anchors: per block, (visual, audio) lists of (place in media, feature row i32[n]).
    """

    row: Row
    media: list[VisionPart | AudioPart]
    sources: dict[int, int]
    anchors: list[tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]]


def lay_out_example(
    config: ThinkerConfig,
    spec: LatentSpec,
    parts: Sequence[Part],
    anchor_source: AnchorSource = "segment",
) -> Example:
    """Lays out one example and finds the features of its anchors.

    Args:
      anchor_source: "segment" encodes each block's own cut segment, "prompt" takes the features
        of the prompt's media between the cited seconds.

    Raises:
      InputError: nothing to learn, or a block whose segment is missing or empty.
    """
    row = lay_out(config, parts, spec=spec)
    if not _IS_TARGET[row.roles].any():
        raise InputError("an example without assistant text: there is nothing to learn")
    sources = {
        i: place
        for place, i in enumerate(
            i for i, part in enumerate(parts) if isinstance(part, VisionPart | AudioPart)
        )
    }
    media = [parts[i] for i in sources]
    anchors = []
    for part in parts:
        if not isinstance(part, LatentPart):
            continue
        if anchor_source == "segment":
            if part.segment is None:
                raise InputError(f"the segment {part.seconds} s has no media to make anchors of")
            anchors.append(_all_features(config, part.segment, len(media)))
            media.append(part.segment)
        else:
            anchors.append(_prompt_features(config, media[: len(sources)], part.seconds))
    return Example(row, media, sources, anchors)


def needed_shape(config: ThinkerConfig, example: Example) -> BatchShape:
    """The smallest `BatchShape` that holds an example."""
    split = len(example.sources)
    prompt, segments = example.media[:split], example.media[split:]
    grids = [part.grid for part in example.media if isinstance(part, VisionPart)]

    def frames(media):
        return sum(part.grid[0] for part in media if isinstance(part, VisionPart))

    def chunks(media):
        size = config.audio.chunk_frames
        return sum(-(-len(part.mel) // size) for part in media if part.mel is not None)

    visual, audio = ([len(a[kind][1]) for a in example.anchors] for kind in (0, 1))
    return BatchShape(
        tokens=len(example.row.token_ids),
        targets=int(_IS_TARGET[example.row.roles].sum()),
        blocks=len(example.anchors),
        frames=frames(prompt),
        segment_frames=frames(segments),
        patches=max((grid[1] * grid[2] for grid in grids), default=0),
        chunks=chunks(prompt),
        segment_chunks=chunks(segments),
        visual_anchors=max(visual, default=0),
        audio_anchors=max(audio, default=0),
    )


def collate_examples(
    config: ThinkerConfig,
    media_spec: MediaSpec,
    spec: LatentSpec,
    examples: Sequence[Example | None],
    shape: BatchShape,
) -> TrainBatch:
    """Rows of one static shape; None becomes a row that counts for nothing.

    Raises:
      InputError: an example that does not fit the shape (the row and the sizes are named).
    """
    batch = empty_batch(config, media_spec, spec, len(examples), shape)
    for b, example in enumerate(examples):
        if example is None:
            continue
        if not shape.fits(need := needed_shape(config, example)):
            raise InputError(f"row {b} needs {need}, which does not fit {shape}")
        _fill(config, batch, b, example, shape)
    return batch


def empty_batch(
    config: ThinkerConfig, media_spec: MediaSpec, spec: LatentSpec, rows: int, shape: BatchShape
) -> TrainBatch:
    """Rows that count for nothing."""
    b, s, f, u = rows, shape.tokens, shape.patches, shape.targets
    merged, bins = f // config.vision.merge_size**2, media_spec.num_mel_bins

    def media(frames, chunks):
        return RowMedia(
            patches=np.zeros((b, frames, f, config.vision.patch_dim), np.uint8),
            rows_columns=np.zeros((b, frames, f, 2), np.int32),
            windows=np.full((b, frames, f), -1, np.int32),
            restore=np.zeros((b, frames, merged), np.int32),
            patch_lengths=np.zeros((b, frames), np.int32),
            mel=np.zeros((b, chunks, config.audio.chunk_frames, bins), np.float16),
            mel_lengths=np.zeros((b, chunks), np.int32),
        )

    return TrainBatch(
        token_ids=np.full((b, s), spec.pad_id, np.int32),
        roles=np.zeros((b, s), np.int8),
        position_ids=np.zeros((3, b, s), np.int32),
        lengths=np.zeros(b, np.int32),
        feature_index=np.full((b, s), -1, np.int32),
        prompt=media(shape.frames, shape.chunks),
        segments=media(shape.segment_frames, shape.segment_chunks),
        triggers=np.full((b, shape.blocks), -1, np.int32),
        visual_rows=np.full((b, shape.blocks, shape.visual_anchors), -1, np.int32),
        audio_rows=np.full((b, shape.blocks, shape.audio_anchors), -1, np.int32),
        target_positions=np.zeros((b, u), np.int32),
        target_ids=np.zeros((b, u), np.int32),
        target_weights=np.zeros((b, u), np.float32),
    )


def _fill(config, batch, b, example, shape):
    row, n = example.row, len(example.row.token_ids)
    batch.token_ids[b, :n], batch.roles[b, :n] = row.token_ids, row.roles
    batch.position_ids[:, b, :n], batch.lengths[b] = row.position_ids, n

    visual_tables, audio_tables = _place_media(config, batch, b, example)
    for item, place in example.sources.items():
        for role, tables in ((Role.PROMPT_VIDEO, visual_tables), (Role.PROMPT_AUDIO, audio_tables)):
            at = np.flatnonzero((row.items == item) & (row.roles == role))
            if len(at):
                batch.feature_index[b, at] = tables[place][row.feature_rows[at]]

    triggers = np.flatnonzero(row.roles == Role.TRIGGER)
    batch.triggers[b, : len(triggers)] = triggers
    for block, ((visual, visual_rows), (audio, audio_rows)) in enumerate(example.anchors):
        if len(visual_rows):
            batch.visual_rows[b, block, : len(visual_rows)] = visual_tables[visual][visual_rows]
        if len(audio_rows):
            batch.audio_rows[b, block, : len(audio_rows)] = audio_tables[audio][audio_rows]

    targets = np.flatnonzero(_IS_TARGET[row.roles])
    batch.target_positions[b, : len(targets)] = targets - 1
    batch.target_ids[b, : len(targets)] = row.token_ids[targets]
    batch.target_weights[b, : len(targets)] = 1.0


def _place_media(config, batch, b, example):
    """Writes all media into the row; for each, the feature row of its every vision, sound token."""
    numbered, split = list(enumerate(example.media)), len(example.sources)
    start = 0
    visual_tables, audio_tables = {}, {}
    for arrays, media in ((batch.prompt, numbered[:split]), (batch.segments, numbered[split:])):
        _place(config, arrays, b, media, start, visual_tables, audio_tables)
        (_, frames, patches), chunks = arrays.windows.shape, arrays.mel.shape[1]
        start += frames * patches // config.vision.merge_size**2
        start += chunks * config.audio.chunk_frames // 4
    return visual_tables, audio_tables


def _place(config, arrays, b, media, start, visual_tables, audio_tables):
    """Media behind each other in the row; the first feature of `arrays` is row `start`."""
    (_, frames, patches), merge = arrays.windows.shape, config.vision.merge_size**2
    per_frame, per_chunk = patches // merge, config.audio.chunk_frames // 4
    frame, chunk = 0, 0
    for place, part in media:
        if isinstance(part, VisionPart):
            time, height, width = part.grid
            if part.patches.dtype != np.uint8:
                raise InputError(f"training takes u8 patches, got {part.patches.dtype}")
            layout = frame_layout(config.vision, height, width, patches)
            span = slice(frame, frame + time)
            pixels = part.patches.reshape(time, height * width, -1)[:, layout.order]
            arrays.patches[b, span, : layout.length] = pixels
            arrays.rows_columns[b, span] = layout.rows_columns
            arrays.windows[b, span] = layout.windows
            arrays.restore[b, span] = layout.restore
            arrays.patch_lengths[b, span] = layout.length
            tokens = np.arange(height * width // merge)
            rows = start + (frame + np.arange(time))[:, None] * per_frame + tokens
            visual_tables[place] = rows.ravel().astype(np.int32)
            frame += time
        if part.mel is not None:
            chunks, lengths = chunk_mel(config.audio, part.mel)
            arrays.mel[b, chunk : chunk + len(chunks)] = chunks
            arrays.mel_lengths[b, chunk : chunk + len(chunks)] = lengths
            begin = start + frames * per_frame + chunk * per_chunk
            audio_tables[place] = begin + np.arange(len(chunks) * per_chunk, dtype=np.int32)
            chunk += len(chunks)


def _all_features(config, part, place):
    """Every feature of a segment that is encoded on its own."""
    visual = np.arange(0)
    if isinstance(part, VisionPart):
        visual = np.arange(np.prod(part.grid) // config.vision.merge_size**2)
    audio = np.arange(num_audio_tokens(len(part.mel)) if part.mel is not None else 0)
    if not len(visual) and not len(audio):
        raise InputError("a segment without pictures and without sound: nothing to anchor to")
    return (place, visual), (place, audio)


def _prompt_features(config, media, seconds):
    """Features of the prompt's first timed medium between two moments; at least one frame."""
    start, end = seconds
    visual, audio = (0, np.arange(0)), (0, np.arange(0))
    for place, part in enumerate(media):
        if isinstance(part, VisionPart) and not part.is_image and not len(visual[1]):
            inside = np.flatnonzero((part.seconds >= start) & (part.seconds < end))
            if not len(inside):  # shorter than the sampling: the frame that was on the screen
                inside = [max(int(np.searchsorted(part.seconds, start, side="right")) - 1, 0)]
            tokens = np.prod(part.grid[1:]) // config.vision.merge_size**2
            rows = np.asarray(inside)[:, None] * tokens + np.arange(tokens)
            visual = (place, rows.ravel())
        if part.mel is not None and not len(audio[1]):
            per_second = config.positions_per_second
            last = min(int(np.ceil(end * per_second)), num_audio_tokens(len(part.mel)))
            audio = (place, np.arange(int(start * per_second), last))
    if not len(visual[1]) and not len(audio[1]):
        raise InputError(f"the prompt has no video or sound between {start} and {end} s")
    return visual, audio
