"""Symmetric InfoNCE (paper Eq. 4) with the positives on the diagonal.

`row_i = -log( exp(l_ii) / Σ_j exp(l_ij) )`, `column_j = -log( exp(l_jj) / Σ_i exp(l_ij) )`, where
`l = scale * q k^T` and the sums go over pairs of one group. Groups are the negatives' reach: one
per latent block for the paper's loss, a single one for negatives of the whole batch.

Across devices each holds some rows. Its queries meet the keys of all, which gives whole rows and,
for every column, the part of its own rows; one all-to-all of floats brings the parts together:

```
              keys of 0   of 1   of 2
queries of 0 [   rows  whole here   ]     parts of a column lie on the devices:
queries of 1 [                      ]     device d gets those of its own columns
queries of 2 [                      ]     and combines them
```
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from pallas_kernels.info_nce import reference, tpu
from pallas_kernels.manual_axes import vary_alike

_TERMS = {"reference": reference.terms, "tpu": tpu.terms}
# From here on "auto" takes the kernel: the logits alone would be 1 GiB. Below, XLA holds them as
# easily, and keeps what the kernel's gradient makes anew (docs/performance.md).
_LOGITS = 1 << 28


def choose(implementation: str, *, platform: str, width: int, dtype: jnp.dtype, logits: int) -> str:
    """The implementation that `info_nce` will use.

    Args:
      implementation: a name forces it; "auto" takes the kernel where it saves memory.
      platform: "cpu", "gpu" or "tpu".
      width, dtype: of q and k; the kernel takes multiples of 128, in f32 or bf16.
      logits: elements of the matrix that one device would form.

    Raises:
      ValueError: unknown implementation.
    """
    if implementation not in ("auto", *_TERMS):
        raise ValueError(f"unknown InfoNCE implementation {implementation!r}")
    if implementation != "auto":
        return implementation
    fits = platform == "tpu" and width % 128 == 0 and dtype in (jnp.float32, jnp.bfloat16)
    return "tpu" if fits and logits >= _LOGITS else "reference"


def info_nce(
    q: Float[jax.Array, "N D"],
    k: Float[jax.Array, "N D"],
    groups: Int[jax.Array, N],
    scale: Float[jax.Array, ""],
    *,
    implementation: Literal["auto", "reference", "tpu"] = "auto",
    axis_name: str | tuple[str, ...] | None = None,
    platform: str | None = None,
) -> tuple[Float[jax.Array, N], Float[jax.Array, N]]:
    """Negative log-likelihood of each row's positive among its row, and among its column.

    Differentiable (once) in q, k and scale.

    Args:
      q, k: L2-normalised rows; row i of one and row i of the other are the positive pair.
      groups: negatives come from rows of the same group. -1: the row takes no part.
      scale: of the cosines, the inverse temperature.
      implementation: see `choose`. Under a mesh of devices the kernel ("tpu") must be called
        inside `jax.shard_map`.
      axis_name: inside `jax.shard_map`, the mesh axes whose devices' rows are negatives too; group
        ids then mean the same on all of them.
      platform: where the program will run; default is JAX's backend (ahead-of-time compilation
        for a TPU on a CPU host passes "tpu").

    Returns:
      (row, column) negative log-likelihoods, 0 for rows that take no part; f32, as all sums and
      log-sum-exps are (f64 for f64 inputs, by the reference).

    Raises:
      ValueError: unknown implementation, or inputs that it cannot serve.
    """
    if q.shape != k.shape or q.dtype != k.dtype or groups.shape != q.shape[:1]:
        raise ValueError(
            f"q and k must be alike, with a group for each row; got q {jax.typeof(q)}, "
            f"k {jax.typeof(k)}, groups {jax.typeof(groups)}"
        )
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scale = jnp.asarray(scale, dtype)
    q, k, groups, scale = vary_alike(q, k, groups, scale)
    all_k, all_groups, offset = k, groups, jnp.int32(0)
    if axis_name is not None:
        all_k, all_groups = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (k, groups))
        offset = jax.lax.axis_index(axis_name) * len(k)
    terms = _TERMS[
        choose(
            implementation,
            platform=platform or jax.default_backend(),
            width=q.shape[1],
            dtype=q.dtype,
            logits=len(q) * len(all_k),
        )
    ]
    with jax.named_scope("info_nce"):
        rows, columns, positives = terms(q, all_k, groups, all_groups, offset, scale)
        if axis_name is not None:
            parts = jax.lax.all_to_all(columns.reshape(-1, len(k)), axis_name, 0, 0)
            columns = jax.nn.logsumexp(parts, axis=0)
        valid = groups >= 0
        return jnp.where(valid, rows - positives, 0), jnp.where(valid, columns - positives, 0)
