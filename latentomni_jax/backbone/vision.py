"""The vision encoder. Its unit is the frame (a temporal patch of two video frames).

Attention never leaves a frame: windows of 4x4 merged patches in most layers, the whole frame in
the others. So a video is a batch of frames `[G,F,...]`, encoded a few at a time by one program per
frame size, and an image is a batch of one. Patches of a frame stand in window order, so that a
window is contiguous; the merged features leave in raster order, the order of the prompt's tokens.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from latentomni_jax.backbone import attention
from latentomni_jax.backbone.config import VisionConfig
from latentomni_jax.backbone.layers import RMSNorm, SwiGLU, dense, remat, rotate
from latentomni_jax.backbone.types import Array

_THETA = 10_000.0


class FrameLayout(NamedTuple):
    """Host-side indices of one frame of h x w patches, padded to F patches.

    Attributes:
      order: i32[h*w] patch (in the processor's order) at each place of the window order.
      rows_columns: i32[F,2] patch coordinates for the rotary embedding.
      windows: i32[F] window id, -1 for padding.
      restore: i32[F/4] for each merged token in raster order, its place in window order.
      length: h*w, the patches that are real.
    """

    order: np.ndarray
    rows_columns: np.ndarray
    windows: np.ndarray
    restore: np.ndarray
    length: int


@functools.lru_cache(maxsize=256)
def frame_layout(config: VisionConfig, height: int, width: int, padded: int) -> FrameLayout:
    """Indices for a frame of `height` x `width` patches padded to `padded` patches.

    The processor emits patches grouped by 2x2 merge cells, cells in raster order; here cells are
    regrouped by windows (the last row and column of windows may be smaller).
    """
    merge = config.merge_size
    rows, columns = height // merge, width // merge
    side = config.window_size // (config.patch_size * merge)
    cell_row, cell_column = (c.ravel() for c in np.mgrid[:rows, :columns])
    window = (cell_row // side) * -(-columns // side) + cell_column // side
    cells = np.argsort(window, kind="stable")  # cell at each place of the window order
    order = (cells[:, None] * merge**2 + np.arange(merge**2)).ravel()

    inner_row, inner_column = (c.ravel() for c in np.mgrid[:merge, :merge])
    coordinates = np.zeros((padded, 2), np.int32)
    coordinates[: height * width] = np.stack(
        [
            (cell_row[cells][:, None] * merge + inner_row).ravel(),
            (cell_column[cells][:, None] * merge + inner_column).ravel(),
        ],
        axis=-1,
    )
    windows = np.full(padded, -1, np.int32)
    windows[: height * width] = np.repeat(window[cells], merge**2)
    restore = np.zeros(padded // merge**2, np.int32)
    restore[: rows * columns] = np.argsort(cells)
    return FrameLayout(order, coordinates, windows, restore, height * width)


class VisionBlock(nn.Module):
    """One encoder layer; `is_full` picks whole-frame attention over windows."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any
    implementation: attention.Implementation
    platform: str | None

    @nn.compact
    def __call__(self, x_gfd, is_full, rope, windows, lengths):
        config = self.config
        frames, patches, width = x_gfd.shape
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        y = RMSNorm(name="norm1", **types)(x_gfd)
        q, k, v = (
            dense(width, ("embed", "heads"), name, bias=True, **types)(y).reshape(
                frames, patches, config.num_heads, -1
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        out = jax.lax.cond(
            is_full,
            lambda: attention.attend(
                q,
                k,
                v,
                causal=False,
                lengths=lengths,
                implementation=self.implementation,
                platform=self.platform,
            ),
            lambda: attention.local_attend(
                q,
                k,
                v,
                windows,
                block=(config.window_size // config.patch_size) ** 2,
                platform=self.platform,
            ),
        ).astype(x_gfd.dtype)
        out = out.reshape(frames, patches, width)
        x_gfd = x_gfd + dense(width, ("heads", "embed"), "o_proj", bias=True, **types)(out)
        y = RMSNorm(name="norm2", **types)(x_gfd)
        x_gfd = x_gfd + SwiGLU(config.intermediate_size, bias=True, name="mlp", **types)(y)
        return x_gfd, None


class PatchMerger(nn.Module):
    """2x2 neighbouring patches become one token of the language model's width."""

    config: VisionConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x_gfd: Float[Array, "G F D"]) -> Float[Array, "G merged out"]:
        config = self.config
        types = {"bias": True, "dtype": self.dtype, "param_dtype": self.param_dtype}
        wide = config.hidden_size * config.merge_size**2
        x = RMSNorm(name="norm", dtype=self.dtype, param_dtype=self.param_dtype)(x_gfd)
        x = x.reshape(x.shape[0], -1, wide)
        x = jax.nn.gelu(dense(wide, ("embed", "mlp"), "fc1", **types)(x), approximate=False)
        return dense(config.out_hidden_size, ("mlp", "embed"), "fc2", **types)(x)


class VisionEncoder(nn.Module):
    """Frames of patches to tokens of the language model."""

    config: VisionConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    implementation: attention.Implementation = "auto"
    platform: str | None = None
    remat_policy: str = "none"

    @nn.compact
    def __call__(
        self,
        patches: Float[Array, "G F patch"],
        rows_columns: Int[Array, "G F 2"],
        windows: Int[Array, "G F"],
        restore: Int[Array, "G merged"],
        lengths: Int[Array, G],
    ) -> Float[Array, "G merged D"]:
        """Encodes G frames of up to F patches; inputs as in `FrameLayout`.

        Args:
          patches: normalised pixels in window order, `patch` = 3*2*14*14.

        Returns:
          Features in raster order; rows of padding are unspecified.
        """
        config = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x_gfd = dense(config.hidden_size, ("patch", "embed"), "patch_embed", bias=False, **types)(
            patches.astype(self.dtype)
        )
        rope = _axial_rope(config, rows_columns)
        is_full = np.isin(np.arange(config.depth), config.full_attention_layers)
        x_gfd, _ = nn.scan(
            remat(VisionBlock, self.remat_policy),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            config, self.dtype, self.param_dtype, self.implementation, self.platform, name="layers"
        )(x_gfd, jnp.asarray(is_full), rope, windows, lengths)
        merged = PatchMerger(config, name="merger", **types)(x_gfd)
        return jnp.take_along_axis(merged, restore[..., None], axis=1)


def _axial_rope(config: VisionConfig, rows_columns: Int[Array, "G F 2"]):
    """Cosines and sines: the first half of the frequencies turns with the row, then the column."""
    spatial = config.hidden_size // config.num_heads // 2
    frequencies = 1.0 / (_THETA ** (jnp.arange(0, spatial, 2, dtype=jnp.float32) / spatial))
    angles = rows_columns[..., None].astype(jnp.float32) * frequencies
    angles = angles.reshape(*angles.shape[:2], -1)
    return jnp.cos(angles), jnp.sin(angles)
