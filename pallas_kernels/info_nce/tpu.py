"""The terms of InfoNCE as Mosaic kernels: the logits exist a tile at a time, in VMEM.

One pass over tiles (i, j) of `l = scale * q k^T` serves rows and columns. The running maxima and
sums of a row live while its tiles pass by, those of all columns during the whole pass:

```
            j = 0    1    2
    i = 0     [ ] -> [ ] -> [ ]   a row is complete at the last j
    i = 1     [ ] -> [ ] -> [ ]
    i = 2     [ ] -> [ ] -> [ ]   a column is complete at the last i
```

The gradient makes the tiles anew. With g, c, p the cotangents of the rows' results r, the columns'
results s and the positives, `W_ij = g_i exp(l_ij - r_i) + c_j exp(l_ij - s_j)`, plus p_i where the
positive is. One kernel forms `dq = scale * W k`, and the same kernel with the roles of q and k
exchanged `dk = scale * W^T q`. The gradient of `scale` is the sum of `q * (W k)`.

Row tile i meets only the column tiles `low[i]..high[i]`, those whose groups can equal its own. The
others are neither computed nor fetched: with groups in order little more than the diagonal is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Int

from pallas_kernels.info_nce.reference import NOTHING
from pallas_kernels.manual_axes import shape_like

_TILE_BYTES = 4 << 20  # of a tile of q or k
# A core of v5p has 64 MB of VMEM, of v5e and v6e 128. At D = 3584 the gradient holds 30 MB of tiles
# (two each of q, k and dq, and a sum in f32) and its temporaries.
_VMEM = 56 << 20


@jax.custom_vjp
def terms(
    q: Float[jax.Array, "n D"],
    k: Float[jax.Array, "N D"],
    q_groups: Int[jax.Array, n],
    k_groups: Int[jax.Array, N],
    offset: Int[jax.Array, ""],
    scale: Float[jax.Array, ""],
) -> tuple[Float[jax.Array, n], Float[jax.Array, N], Float[jax.Array, n]]:
    """As `reference.terms`.

    Raises:
      ValueError: D is not a multiple of 128, the lanes of a vector register, or the inputs are not
        f32 or bf16.
    """
    (n, width), (n_all, _) = q.shape, k.shape
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"the InfoNCE kernel needs float32 or bfloat16, got {q.dtype}")
    if width % 128:
        raise ValueError(f"the InfoNCE kernel needs a width that is a multiple of 128, got {width}")
    (size_i, count_i), (size_j, count_j) = _tiling(q), _tiling(k)
    row_vector = pl.BlockSpec((1, 1, size_i), lambda i, j, *_: (i, 0, 0))
    rows, columns, positives = _over_tiles(
        _terms_kernel,
        (q, q_groups),
        (k, k_groups),
        offset,
        scale,
        out_specs=[
            row_vector,
            # Complete, and so written, in the last row of tiles only.
            pl.BlockSpec((1, 1, size_j), lambda i, j, *_: (jnp.where(i < count_i - 1, 0, j), 0, 0)),
            row_vector,
        ],
        out_shape=[
            shape_like(q, (count_i, 1, size_i), jnp.float32),
            shape_like(q, (count_j, 1, size_j), jnp.float32),
            shape_like(q, (count_i, 1, size_i), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((size_i, 1), jnp.float32)] * 3
        + [pltpu.VMEM((count_j, 1, size_j), jnp.float32)] * 2,
        semantics=("arbitrary", "arbitrary"),  # columns go on from one row of tiles to the next
        products=1,
    )
    return rows.reshape(-1)[:n], columns.reshape(-1)[:n_all], positives.reshape(-1)[:n]


def _forward(*inputs):
    outputs = terms(*inputs)
    return outputs, (inputs, outputs)


def _backward(saved, cotangents):
    (q, k, q_groups, k_groups, offset, scale), (rows, columns, _) = saved
    of_rows, of_columns, of_positives = cotangents
    q_side, k_side = (q, q_groups, rows, of_rows), (k, k_groups, columns, of_columns)
    dq, dscale = _gradient(q_side, k_side, of_positives, offset, scale)
    along_k = jax.lax.dynamic_update_slice(jnp.zeros_like(of_columns), of_positives, (offset,))
    dk, _ = _gradient(k_side, q_side, along_k, -offset, scale)
    return dq, dk, None, None, None, dscale


terms.defvjp(_forward, _backward)


def _gradient(left, right, of_positives, offset, scale):
    """Gradients of left's matrix and of scale.

    Args:
      left, right: (matrix, groups, log-sum-exps, their cotangents); the positive of row i of left
        is row `offset + i` of right.
      of_positives: cotangents of the positives, along the rows of left.
    """
    x, groups = left[:2]
    size, count = _tiling(x)
    dx, dots = _over_tiles(
        _gradient_kernel,
        (*left, of_positives),
        right,
        offset,
        scale,
        out_specs=[
            pl.BlockSpec((size, x.shape[1]), lambda i, j, *_: (i, 0)),
            pl.BlockSpec((1, 1, size), lambda i, j, *_: (i, 0, 0)),
        ],
        out_shape=[shape_like(x, x.shape, x.dtype), shape_like(x, (count, 1, size), jnp.float32)],
        scratch_shapes=[pltpu.VMEM((size, x.shape[1]), jnp.float32)],
        semantics=("parallel", "arbitrary"),
        products=2,
    )
    return dx, jnp.sum(jnp.where(groups >= 0, dots.reshape(-1)[: len(x)], 0))


def _over_tiles(
    kernel, left, right, offset, scale, *, out_specs, out_shape, scratch_shapes, semantics, products
):
    """Runs a kernel over all tiles; a side is a matrix and vectors along its rows, groups first."""
    (q, *q_vectors), (k, *k_vectors) = left, right
    width = q.shape[1]
    (size_i, count_i), (size_j, count_j) = _tiling(q), _tiling(k)
    q_vectors = [_row_per_tile(v, size_i, count_i) for v in q_vectors]
    k_vectors = [_row_per_tile(v, size_j, count_j) for v in k_vectors]
    low, high = _reach(q_vectors[0], k_vectors[0])

    def near(i, j, low, high, *_):
        """The column tile to hold: beyond the reach the nearest one stays, and none is fetched."""
        return jnp.maximum(low[i], jnp.minimum(j, high[i]))

    bytes_q, bytes_k = (x.size * x.dtype.itemsize for x in (q, k))
    out_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(out_shape))
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(count_i, count_j),
            in_specs=[
                pl.BlockSpec((size_i, width), lambda i, j, *_: (i, 0)),
                *[pl.BlockSpec((1, 1, size_i), lambda i, j, *_: (i, 0, 0)) for _ in q_vectors],
                pl.BlockSpec((size_j, width), lambda *at: (near(*at), 0)),
                *[pl.BlockSpec((1, 1, size_j), lambda *at: (near(*at), 0, 0)) for _ in k_vectors],
            ],
            out_specs=out_specs,
            scratch_shapes=scratch_shapes,
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_VMEM),
        cost_estimate=pl.CostEstimate(  # of a single group; keys pass by once per row of tiles
            flops=2 * products * len(q) * len(k) * width,
            transcendentals=2 * len(q) * len(k),
            bytes_accessed=bytes_q + count_i * bytes_k + out_bytes,
        ),
        name=kernel.__name__.strip("_"),
    )(low, high, offset[None], scale[None], q, *q_vectors, k, *k_vectors)


def _tiling(x):
    """Rows of a tile, and number of tiles."""
    fitting = _TILE_BYTES // (x.shape[1] * x.dtype.itemsize) // 128 * 128
    size = min(512, max(fitting, 128), pl.cdiv(x.shape[0], 128) * 128)
    return size, pl.cdiv(x.shape[0], size)


def _row_per_tile(vector, size, count):
    """[n] -> [tiles, 1, size]; as a column [n, 1] it would be padded to 128 lanes in HBM."""
    fill = -1 if jnp.issubdtype(vector.dtype, jnp.integer) else 0
    padded = jnp.pad(vector, (0, size * count - vector.shape[0]), constant_values=fill)
    return padded.reshape(count, 1, size)


def _reach(q_groups, k_groups):
    """First and last column tile that row tile i can meet, i32; (0, -1) where there is none."""

    def span(groups):
        first = jnp.where(groups >= 0, groups, jnp.iinfo(jnp.int32).max).min(axis=(1, 2))
        return first, groups.max(axis=(1, 2))

    (q_first, q_last), (k_first, k_last) = span(q_groups), span(k_groups)
    meet = (q_first[:, None] <= k_last) & (k_first <= q_last[:, None])
    low = jnp.argmax(meet, axis=1).astype(jnp.int32)
    high = meet.shape[1] - 1 - jnp.argmax(meet[:, ::-1], axis=1).astype(jnp.int32)
    return low, jnp.where(jnp.any(meet, axis=1), high, -1)


def _column(row_ref):
    return row_ref[0].reshape(-1, 1)


def _product(a, b, contracting):
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (contracting, ((), ())), precision=exact, preferred_element_type=jnp.float32
    )


def _logits(offset, scale, q_ref, q_groups, k_ref, k_groups):
    """A tile of logits, which of them count (none beyond the end of q or k), and the positives."""
    q_ids, k_ids = _column(q_groups), k_groups[0]
    pair = (q_ids == k_ids) & (q_ids >= 0)
    logits = scale[0] * _product(q_ref[...], k_ref[...], ((1,), (1,)))
    row, column = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1))
    ahead = pl.program_id(1) * logits.shape[1] - pl.program_id(0) * logits.shape[0]
    return jnp.where(pair, logits, NOTHING), pair, pair & (column - row == offset[0] - ahead)


def _terms_kernel(*refs):
    low, high, offset, scale, q_ref, q_groups, k_ref, k_groups = refs[:8]
    rows, columns, positives, r_max, r_sum, positive, c_max, c_sum = refs[8:]
    i, j = pl.program_id(0), pl.program_id(1)

    @pl.when(j == 0)
    def _():
        r_max[...] = jnp.full_like(r_max, NOTHING)
        r_sum[...] = jnp.zeros_like(r_sum)
        positive[...] = jnp.zeros_like(positive)

    @pl.when(i == 0)
    def _():
        c_max[j] = jnp.full_like(c_max[j], NOTHING)
        c_sum[j] = jnp.zeros_like(c_sum[j])

    @pl.when((low[i] <= j) & (j <= high[i]))
    def _():
        logits, pair, is_positive = _logits(offset, scale, q_ref, q_groups, k_ref, k_groups)
        positive[...] += jnp.sum(jnp.where(is_positive, logits, 0), axis=1, keepdims=True)
        r_max[...], r_sum[...] = _extended(r_max[...], r_sum[...], logits, pair, axis=1)
        c_max[j], c_sum[j] = _extended(c_max[j], c_sum[j], logits, pair, axis=0)

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        rows[0] = _lse(r_max[...], r_sum[...]).reshape(1, -1)
        positives[0] = positive[...].reshape(1, -1)

    @pl.when(i == pl.num_programs(0) - 1)
    def _():
        columns[0] = _lse(c_max[j], c_sum[j])


def _extended(old_max, old_sum, logits, pair, axis):
    """Running maximum, and sum of exponentials relative to it, extended by a tile."""
    new_max = jnp.maximum(old_max, jnp.max(logits, axis=axis, keepdims=True))
    terms = jnp.where(pair, jnp.exp(logits - new_max), 0)  # without a pair yet, exp would be 1
    new_sum = old_sum * jnp.exp(old_max - new_max) + jnp.sum(terms, axis=axis, keepdims=True)
    return new_max, new_sum


def _lse(maximum, total):
    return jnp.where(total > 0, maximum + jnp.log(total), NOTHING)


def _gradient_kernel(*refs):
    low, high, offset, scale, q_ref, q_groups, q_lse, of_q_lse, of_positives = refs[:9]
    k_ref, k_groups, k_lse, of_k_lse, dq, dots, total = refs[9:]
    i, j = pl.program_id(0), pl.program_id(1)

    @pl.when(j == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when((low[i] <= j) & (j <= high[i]))
    def _():
        logits, pair, is_positive = _logits(offset, scale, q_ref, q_groups, k_ref, k_groups)
        weights = _column(of_q_lse) * jnp.exp(logits - _column(q_lse))
        weights += of_k_lse[0] * jnp.exp(logits - k_lse[0])
        weights += jnp.where(is_positive, _column(of_positives), 0)
        weights = jnp.where(pair, weights, 0)
        # Rows beyond the end hold anything, and 0 * NaN is NaN.
        k = jnp.where(_column(k_groups) >= 0, k_ref[...], 0)
        total[...] += _product(weights.astype(k.dtype), k, ((1,), (0,)))

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        dq[...] = (scale[0] * total[...]).astype(dq.dtype)
        q = q_ref[...].astype(jnp.float32)
        dots[0] = jnp.sum(q * total[...], axis=1, keepdims=True).reshape(1, -1)
