"""The terms of InfoNCE in plain JAX; it forms the whole matrix of logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

NOTHING = -1e30  # a logit that does not count; finite, so that what is made of it is too


def terms(
    q: Float[jax.Array, "n D"],
    k: Float[jax.Array, "N D"],
    q_groups: Int[jax.Array, n],
    k_groups: Int[jax.Array, N],
    offset: Int[jax.Array, ""],
    scale: Float[jax.Array, ""],
) -> tuple[Float[jax.Array, n], Float[jax.Array, N], Float[jax.Array, n]]:
    """Log-sum-exps of the logits `scale * q k^T` along both axes, and the positives among them.

    Args:
      q_groups, k_groups: a pair counts where they are equal; rows with a negative one are in none.
      offset: row i of q has its positive in row `offset + i` of k.
      scale: of the products.

    Returns:
      (of rows, of columns, positives), f32 (f64 for f64 inputs); about `NOTHING` where no pair
      counts. They come together so that the gradients of a row, which nearly cancel where its
      positive stands out, meet before they are rounded to the inputs' type.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    q = jnp.where(q_groups[:, None] >= 0, q, 0)
    k = jnp.where(k_groups[:, None] >= 0, k, 0)
    products = jax.lax.dot_general(
        q,
        k,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,  # of f32; 16-bit products are exact anyway
        preferred_element_type=dtype,
    )
    pair = (q_groups[:, None] == k_groups) & (q_groups[:, None] >= 0)
    logits = jnp.where(pair, scale.astype(dtype) * products, NOTHING)
    diagonal = jnp.arange(len(k)) - jnp.arange(len(q))[:, None] == offset
    positives = jnp.sum(jnp.where(diagonal, logits, 0), axis=1)
    return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0), positives
