"""L_sync: audio and video states of the same moment find each other (paper Eq. 4).

Symmetric InfoNCE over the moments of a block, cosine similarity, learnable temperature. A moment
is an audio slot's window: h_a is that slot's state, h_v the mean of the visual states inside it.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from latentomni_jax.backbone.axes import batch_axes
from latentomni_jax.backbone.types import Array
from latentomni_jax.latent.anchors import gather, pool
from latentomni_jax.latent.losses import unit
from latentomni_jax.latent.options import Objective
from latentomni_jax.layout import LatentSpec, TrainBatch
from pallas_kernels.info_nce.api import info_nce

LOG_SCALE_INIT = math.log(1 / 0.07)
_MAX_SCALE = 100.0


def init_sync(options: Objective, width: int, key: Array) -> dict[str, Any]:
    """The parameters that only training has: the temperature, and the heads of the variant."""
    params: dict[str, Any] = {"log_scale": jnp.float32(LOG_SCALE_INIT)}
    if options.sync_features == "encoder":
        for name, one in zip(("visual", "audio"), jax.random.split(key), strict=True):
            params[name] = SyncHead(width).init(one, jnp.zeros((1, width)))["params"]
    return params


class SyncHead(nn.Module):
    """Projection of encoder features (the released code's variant)."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(self.width, name="fc2")(jax.nn.gelu(nn.Dense(self.width, name="fc1")(x)))


def sync_loss(
    options: Objective,
    params: Any,
    z: Float[Array, "B N num_latents D"],
    mask: Bool[Array, "B N num_latents"],
    features: Float[Array, "B R D"],
    batch: TrainBatch,
    platform: str | None = None,
) -> Float[Array, ""]:
    """L_sync summed over moments: half of both directions' cross entropies.

    Args:
      params: see `init_sync`.
      z: states before OSPE; the loss's gradient reaches the model through them.
      mask: slots that have an anchor.
      features: encoder features, for the variant `sync_features="encoder"`.
    """
    spec = options.spec
    if not spec.num_visual or not spec.num_audio or not options.weight_sync:
        return jnp.zeros((), jnp.promote_types(z.dtype, jnp.float32))
    if options.sync_features == "encoder":
        pairs = _encoder_moments(spec, params, features, batch)
    else:
        pairs = latent_moments(spec, z)
    valid = sync_mask(spec, mask)
    scale = sync_scale(params["log_scale"])
    is_global = options.sync_negatives == "global"

    def one_device(visual, audio, valid, scale):
        b, n, _, width = visual.shape
        block = jnp.zeros((b, n, 1), jnp.int32) if is_global else jnp.arange(b * n).reshape(b, n, 1)
        groups = jnp.where(valid, block, -1).reshape(-1)
        rows, columns = info_nce(
            unit(visual).reshape(-1, width),
            unit(audio).reshape(-1, width),
            groups,
            scale,
            axis_name=axes if is_global and axes else None,
            platform=platform,
        )
        loss = (jnp.sum(rows) + jnp.sum(columns)) / 2
        return jax.lax.psum(loss, axes) if axes else loss

    axes = batch_axes()
    if not axes:
        return one_device(*pairs, valid, scale)
    spread = jax.P(axes)
    run = jax.shard_map(
        one_device, in_specs=(spread, spread, spread, jax.P()), out_specs=jax.P(), check_vma=False
    )
    return run(*pairs, valid, scale)


def latent_moments(
    spec: LatentSpec, z: Float[Array, "B N num_latents D"]
) -> tuple[Float[Array, "B N num_audio D"], Float[Array, "B N num_audio D"]]:
    """h_v and h_a of every moment, from the model's own states."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    windows = jnp.asarray(sync_windows(spec), z.dtype)
    h_v = jnp.einsum("tv,bnvd->bntd", windows, z[:, :, : spec.num_visual])
    return h_v, z[:, :, spec.num_visual :]


def _encoder_moments(spec, params, features, batch):
    """Projected features of the segment, pooled to the moments; only the heads learn from them."""
    moments = []
    for name, rows in (("visual", batch.visual_rows), ("audio", batch.audio_rows)):
        taken, count = gather(jax.lax.stop_gradient(features), rows)
        head = SyncHead(features.shape[-1])
        projected = head.apply({"params": params[name]}, taken.astype(jnp.float32))
        moments.append(pool(projected, count, spec.num_audio, power=2))
    return tuple(moments)


def sync_windows(spec: LatentSpec) -> np.ndarray:
    """Weights f32[K_a, K_v] that average the visual slots inside each audio slot's window.

    A window without a visual slot (fewer visual than audio slots) is a row of zeros.
    """
    seconds = spec.slot_seconds()[: spec.num_visual]
    width = spec.segment_seconds / max(spec.num_audio, 1)
    window = np.floor(seconds / width + 1e-6).astype(int)
    inside = (np.arange(spec.num_audio)[:, None] == window).astype(np.float32)
    return inside / np.maximum(inside.sum(-1, keepdims=True), 1)


def sync_mask(
    spec: LatentSpec, mask: Bool[Array, "B N num_latents"]
) -> Bool[Array, "B N num_audio"]:
    """Moments of each block that make a pair."""
    both = jnp.any(mask[..., : spec.num_visual], -1) & jnp.any(mask[..., spec.num_visual :], -1)
    has_visual = jnp.asarray(sync_windows(spec).any(-1))
    return both[..., None] & has_visual


def sync_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The inverse temperature, at most 100."""
    return jnp.minimum(jnp.exp(log_scale.astype(jnp.float32)), _MAX_SCALE)
