"""The three losses (paper Eq. 4-7, docs/method.md 5), as sums with the counts they are means over.

Sums, because a mean over the global batch is a sum divided by a count that all devices and all
accumulated micro-batches share. Everything accumulates in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone.axes import batch_axes
from latentomni_jax.backbone.types import Array


def text_loss(
    logits: Callable[[Any, Array], Array],
    head: Any,
    hidden: Float[Array, "B U D"],
    target_ids: Int[Array, "B U"],
    weights: Float[Array, "B U"],
    chunk: int = 256,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropy summed over targets (Eq. 6), and the summed weight of those predicted right.

    Targets are read in chunks and a chunk's logits are recomputed in the backward pass, so that no
    [B,U,V] array ever exists. Under a mesh each device reads its own rows' targets with a head
    gathered once (left alone, XLA gathers it twice and adds its gradient up for every chunk).

    Args:
      logits: (head, [B,chunk,D]) -> f32 [B,chunk,V].
      head: parameters of the language head.
      hidden: states that predict the targets.
      weights: 0 where there is no target.
      chunk: targets of a row per chunk.
    """
    length = hidden.shape[1]
    chunk = min(chunk, length)
    missing = -length % chunk
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    axes = batch_axes()

    def chunked(x):
        x = jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def one_device(head, *rows):
        @jax.checkpoint
        def one(carry, xs):
            h, ids, w = xs
            scores = logits(head, h)
            top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
            log_sum = jnp.log(jnp.sum(jnp.exp(scores - top), axis=-1)) + top[..., 0]
            # A masked sum and not a gather: it stays local where the vocabulary is sharded.
            is_target = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2) == ids[..., None]
            score = jnp.sum(jnp.where(is_target, scores, 0), axis=-1)
            right = (score >= top[..., 0]).astype(scores.dtype)
            return (carry[0] + jnp.sum(w * (log_sum - score)), carry[1] + jnp.sum(w * right)), None

        zero = jnp.zeros((), dtype)
        sums, _ = jax.lax.scan(one, (zero, zero), tuple(map(chunked, rows)))
        return jax.lax.psum(sums, axes) if axes else sums

    rows = (hidden, target_ids, weights.astype(dtype))
    if not axes:
        return one_device(head, *rows)
    spread = jax.P(axes)
    run = jax.shard_map(
        one_device,
        in_specs=(jax.P(), spread, spread, spread),
        out_specs=jax.P(),
        axis_names=set(axes),
        check_vma=False,
    )
    return run(head, *rows)


def latent_loss(
    z: Float[Array, "B N num_latents D"],
    anchors: Float[Array, "B N num_latents D"],
    mask: Bool[Array, "B N num_latents"],
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Array, ""]:
    """L_latent (Eq. 5) summed over blocks: the mean over a block's anchored slots of ‖z - a‖².

    Args:
      mask: slots that have an anchor.
      reduction: over the width d; "sum" is the paper's, "mean" the released code's.
    """
    dtype = jnp.promote_types(z.dtype, jnp.float32)
    square = jnp.square(z.astype(dtype) - anchors.astype(dtype))
    distance = jnp.sum(square, axis=-1) if reduction == "sum" else jnp.mean(square, axis=-1)
    per_block = jnp.sum(jnp.where(mask, distance, 0), axis=-1)
    return jnp.sum(per_block / jnp.maximum(jnp.sum(mask, axis=-1), 1))


def unit(x):
    """Rows of length one in f32; the root is kept off zero so that its gradient exists."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def diversity(
    z: Float[Array, "B N num_latents D"], mask: Bool[Array, "B N"]
) -> dict[str, Float[Array, ""]]:
    """How different the states of a block are, summed over blocks.

    `cosine` is the mean over pairs of different slots; `rank` the effective rank as participation
    ratio (tr G)² / ‖G‖² of the Gram matrix of unit states: 1 if all agree, K if orthogonal.
    """
    states = unit(z)
    gram = jnp.einsum("bnkd,bnld->bnkl", states, states)
    k = gram.shape[-1]
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    cosine = (jnp.sum(gram, axis=(-2, -1)) - trace) / max(k * (k - 1), 1)
    rank = trace**2 / jnp.maximum(jnp.sum(gram**2, axis=(-2, -1)), 1e-12)
    return {
        "cosine": jnp.sum(jnp.where(mask, cosine, 0)),
        "rank": jnp.sum(jnp.where(mask, rank, 0)),
    }


def retrieval(
    z: Float[Array, "B N num_latents D"],
    anchors: Float[Array, "B N num_latents D"],
    mask: Bool[Array, "B N num_latents"],
) -> Float[Array, ""]:
    """Share of a block's slots whose nearest anchor of the block, by cosine, is their own; summed
    over blocks."""
    scores = jnp.einsum("bnkd,bnld->bnkl", unit(z), unit(anchors))
    scores = jnp.where(mask[:, :, None, :], scores, -jnp.inf)
    own = jnp.argmax(scores, axis=-1) == jnp.arange(scores.shape[-1])
    share = jnp.sum(own & mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return jnp.sum(share)
