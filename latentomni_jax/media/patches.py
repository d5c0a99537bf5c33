"""The size of pictures and their patches: the checkpoint's own rules, on arrays alone."""

from __future__ import annotations

import math

import numpy as np

from latentomni_jax.layout import InputError, MediaSpec


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Qwen's size rule: multiples of `factor`, pixel count in range, aspect ratio nearly kept.

    Args:
      height, width: of the picture, pixels.
      factor: what both results are multiples of.
      min_pixels, max_pixels: range for height * width of the result.

    Raises:
      InputError: where the picture is empty or one side is more than 200 times the other.

    >>> smart_resize(360, 640, factor=28, min_pixels=100352, max_pixels=602112)
    (364, 644)
    """
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise InputError(f"a picture's sides may differ at most 200 times, got {width}x{height}")
    new_h = max(factor, round(height / factor) * factor)
    new_w = max(factor, round(width / factor) * factor)
    if new_h * new_w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        new_h = max(factor, math.floor(height / beta / factor) * factor)
        new_w = max(factor, math.floor(width / beta / factor) * factor)
    elif new_h * new_w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        new_h = math.ceil(height * beta / factor) * factor
        new_w = math.ceil(width * beta / factor) * factor
    return new_h, new_w


def frame_size(height: int, width: int, num_frames: int, spec: MediaSpec) -> tuple[int, int]:
    """Height and width of the frames of a video that is sampled `num_frames` times.

    The more frames, the smaller each: all share `spec.total_pixels`. Errors as `smart_resize`.
    """
    share = spec.total_pixels / num_frames * spec.temporal_patch_size
    max_pixels = max(min(spec.video_max_pixels, share), int(spec.video_min_pixels * 1.05))
    return smart_resize(
        height,
        width,
        factor=spec.factor,
        min_pixels=spec.video_min_pixels,
        max_pixels=max_pixels,
    )


def patchify(frames: np.ndarray, spec: MediaSpec) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Normalised patches in the order of the reference's image processor.

        frames [2t, h*14, w*14, 3]  ->  row of patch (t, h, w) = [channel, frame, row, column]

    Rows run over time, then over 2x2 groups of patches that the model merges into one token,
    then over the patches within a group.

    Args:
      frames: u8[T,H,W,3] RGB, H and W multiples of `spec.factor`; T a multiple of
        `temporal_patch_size`, otherwise the last frame is repeated (so an image becomes a pair).

    Returns:
      patches f32[P, 3*temporal*14*14] normalised by `image_mean` and `image_std`, P = t*h*w;
      and the grid (t, h, w) in patches.

    Raises:
      InputError: where shape or dtype are not as above.
    """
    split, grid = _split(frames, spec)
    scale, shift = spec.normalisation()
    patches = np.empty((grid[0], grid[1] * grid[2], scale.size), np.float32)
    for rows, part in zip(patches, split, strict=True):  # one pair of frames fits in the cache
        rows[...] = part.reshape(rows.shape)
        rows *= scale
        rows += shift
    return patches.reshape(-1, scale.size), grid


def pixel_patches(frames: np.ndarray, spec: MediaSpec) -> tuple[np.ndarray, tuple[int, int, int]]:
    """`patchify` without normalising: u8[P, 3*temporal*14*14] pixels as they are, and the grid."""
    split, grid = _split(frames, spec)
    return split.reshape(math.prod(grid), -1), grid


def _split(frames: np.ndarray, spec: MediaSpec) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A view of the frames with the axes of patches in their final order, and the grid."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise InputError(f"patchify wants frames u8[T,H,W,3], got {frames.dtype}{frames.shape}")
    num_frames, height, width, _ = frames.shape
    if height % spec.factor or width % spec.factor:
        raise InputError(f"frame sides must be multiples of {spec.factor}: {width}x{height}")
    size, time, merge = spec.patch_size, spec.temporal_patch_size, spec.merge_size
    if missing := -num_frames % time:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    t, h, w = len(frames) // time, height // size, width // size
    split = frames.reshape(t, time, h // merge, merge, size, w // merge, merge, size, 3)
    #                       t  h  w  mh mw ch tm row col
    split = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return split, (t, h, w)
