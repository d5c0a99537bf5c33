"""Attention in plain XLA, a tile of scores at a time, with its gradient written out.

Scores [B,K,G,T,S] (K kv heads of G query heads each) exist for some rows and some queries at once,
so that memory is linear in S, and on CPU a tile stays in a core's cache, which is worth a factor of
two to three. The backward pass recomputes the weights from one log-sum-exp per query.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from latentomni_jax.backbone.types import Array

# Elements (4 bytes each) of the scores that exist at once.
_TILE = {"cpu": 1 << 20}
_TILE_ELSEWHERE = 1 << 26
NEGATIVE = -1e30  # finite: a query whose keys are all masked gives a mean, not NaN
# Name of what a remat policy may keep: queries, keys, values, outputs and log-sum-exps.
SAVED = "attention"
_BANDS, _MIN_BAND = 4, 96  # at most so many, of at least so many queries
_HEADS_OUTSIDE = ((0, 1), (0, 1))


class Mask(NamedTuple):
    """Who sees whom; every part may be None.

    Attributes:
      lengths: i32[B], keys at or beyond it are invisible.
      media, key_ids, key_places: of keys, [B,S]; blocked, query_ids, query_places: of queries,
        [B,T]. A query that is blocked does not see media; a query sees keys of its own id only,
        and keys up to its own place only.
    """

    lengths: Array | None = None
    media: Array | None = None
    key_ids: Array | None = None
    key_places: Array | None = None
    blocked: Array | None = None
    query_ids: Array | None = None
    query_places: Array | None = None

    def of_queries(self) -> tuple[Array | None, ...]:
        return self.blocked, self.query_ids, self.query_places

    def part(self, queries: slice, keys: slice) -> Mask:
        """The mask of some queries and some keys."""
        of_keys = (self.media, self.key_ids, self.key_places)
        return Mask(
            self.lengths,
            *(x if x is None else x[:, keys] for x in of_keys),
            *(x if x is None else x[:, queries] for x in self.of_queries()),
        )


def attend(
    q_btnh: Array, k_bskh: Array, v_bskh: Array, *, causal: bool, mask: Mask, platform: str
) -> Array:
    """softmax(q k^T / sqrt(H)) v in f32, under the mask; [B,T,N,H] in the dtype of v.

    Causal queries are cut into bands that read the keys up to their own end only, which leaves out
    most of what causality hides (3 of 8 scores where there are 4 bands).
    """
    b, t, n, h = q_btnh.shape
    s, k = k_bskh.shape[1:3]
    tile = _TILE.get(platform, _TILE_ELSEWHERE)
    # Heads outside positions: einsums over inner heads take half as long again on CPU.
    q_bkgth = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4) * h**-0.5
    args = (q_bkgth, k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2))
    if causal:
        places = jnp.broadcast_to(jnp.arange(t), (b, t))
        mask = mask._replace(query_places=places, key_places=places)
    # What depends on the mask alone is the same in every layer: JAX would compute it before the
    # scan over layers, and keep it as large as the scores. Tied to the queries it stays small.
    args, mask = jax.lax.optimization_barrier((args, mask))
    args = (*(checkpoint_name(x, SAVED) for x in args), mask)

    rows = max((r for r in range(1, b + 1) if b % r == 0 and r * n * t * s <= tile), default=1)
    if jax.sharding.get_abstract_mesh().size > 1:
        rows = b  # they lie on different devices: all at once
    bands = max(min(_BANDS, t // _MIN_BAND), 1) if causal else 1
    ends = [t * (i + 1) // bands for i in range(bands)]

    def run(q_bkgth, k_bksh, v_bksh, mask):
        outs = []
        for start, end in itertools.pairwise([0, *ends]):
            seen = end if causal else s
            queries = end - start
            if rows * n * queries * seen > tile:
                queries = max(tile // (rows * n * seen), 16)
                queries = 1 << (queries.bit_length() - 1)
            outs.append(
                _attend(
                    min(queries, end - start),
                    q_bkgth[:, :, :, start:end],
                    k_bksh[:, :, :seen],
                    v_bksh[:, :, :seen],
                    mask.part(slice(start, end), slice(seen)),
                )
            )
        return jnp.concatenate(outs, axis=3)

    if rows == b:
        out = run(*args)
    else:
        groups = jax.tree.map(lambda x: x.reshape(b // rows, rows, *x.shape[1:]), args)
        out = jax.lax.map(lambda xs: run(*xs), groups)
        out = out.reshape(b, *out.shape[2:])
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(queries, q_bkgth, k_bksh, v_bksh, mask):
    return _forward(queries, q_bkgth, k_bksh, v_bksh, mask)[0]


def _forward(queries, q_bkgth, k_bksh, v_bksh, mask):
    def one(xs):
        (q,), mask = xs
        b, k, g, t, h = q.shape
        scores = _scores(q, k_bksh, mask)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _dot(weights.astype(v_bksh.dtype).reshape(b, k, g * t, -1), v_bksh, 3, 2)
        out = (out.reshape(b, k, g, t, h) / total).astype(v_bksh.dtype)
        return out, top + jnp.log(total)

    out, log_total = _over_queries(one, queries, q_bkgth.shape[3], (q_bkgth,), mask)
    out, log_total = (checkpoint_name(x, SAVED) for x in (out, log_total))
    return out, (q_bkgth, k_bksh, v_bksh, mask, out, log_total)


def _backward(queries, saved, d_out):
    q_bkgth, k_bksh, v_bksh, mask, out, log_total = saved
    exact = log_total.dtype
    delta = jnp.sum(d_out.astype(exact) * out.astype(exact), axis=-1, keepdims=True)

    def one(xs):
        (q, d_out, log_total, delta), mask = xs
        b, k, g, t, h = q.shape
        weights = jnp.exp(_scores(q, k_bksh, mask) - log_total)
        d_out = d_out.astype(v_bksh.dtype).reshape(b, k, g * t, h)
        d_weights = _dot(d_out, v_bksh, 3, 3).reshape(weights.shape)
        d_scores = (weights * (d_weights - delta)).astype(q.dtype).reshape(b, k, g * t, -1)
        d_q = _dot(d_scores, k_bksh, 3, 2).reshape(q.shape)
        d_k = _dot(d_scores, q.reshape(b, k, g * t, h), 2, 2)
        d_v = _dot(weights.astype(v_bksh.dtype).reshape(b, k, g * t, -1), d_out, 2, 2)
        return d_q, (d_k, d_v)

    split = (q_bkgth, d_out, log_total, delta)
    zeros = tuple(jnp.zeros(x.shape, exact) for x in (k_bksh, v_bksh))
    d_q, (d_k, d_v) = _over_queries(one, queries, q_bkgth.shape[3], split, mask, zeros)
    grads = zip((d_q, d_k, d_v), (q_bkgth, k_bksh, v_bksh), strict=True)
    return *(d.astype(x.dtype) for d, x in grads), None


_attend.defvjp(_forward, _backward)


def _over_queries(one, queries, length, split, mask, zeros=None):
    """`one((split, mask))` over tiles of queries (axis 3 of `split`, axis 1 of masks).

    Results are put together again along queries; with `zeros`, the second is added up from there.
    """
    if queries >= length:
        return one((split, mask))
    count = -(-length // queries)

    def tiles(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, count * queries - length)
        x = jnp.pad(x, widths)
        x = x.reshape(*x.shape[:axis], count, queries, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def joined(x):
        x = jnp.moveaxis(x, 0, 3)
        return x.reshape(*x.shape[:3], count * queries, *x.shape[5:])[:, :, :, :length]

    def step(total, xs):
        part, (blocked, query_ids, query_places) = xs
        here = mask._replace(blocked=blocked, query_ids=query_ids, query_places=query_places)
        first, second = one((part, here))
        if zeros is None:
            return None, (first, second)
        return jax.tree.map(jnp.add, total, second), first

    parts = jax.tree.map(lambda x: tiles(x, 3), split)
    masks = jax.tree.map(lambda x: tiles(x, 1), mask.of_queries())
    total, results = jax.lax.scan(step, zeros, (parts, masks))
    results = jax.tree.map(joined, results)
    return results if zeros is None else (results, total)


def _scores(q_bkgth, k_bksh, mask):
    b, k, g, t, h = q_bkgth.shape
    s = k_bksh.shape[2]
    scores = _dot(q_bkgth.reshape(b, k, g * t, h), k_bksh, 3, 3).reshape(b, k, g, t, s)
    visible = []
    if mask.query_places is not None:
        visible.append(mask.key_places[:, None] <= mask.query_places[:, :, None])
    if mask.lengths is not None:
        visible.append((jnp.arange(s) < mask.lengths[:, None])[:, None])
    if mask.blocked is not None:
        visible.append(~(mask.blocked[:, :, None] & mask.media[:, None]))
    if mask.query_ids is not None:
        visible.append(mask.query_ids[:, :, None] == mask.key_ids[:, None])
    if not visible:
        return scores
    bias = jnp.where(functools.reduce(jnp.logical_and, visible), 0, NEGATIVE)
    return scores + bias.astype(scores.dtype)[:, None, None]


def _dot(x, y, x_axis, y_axis):
    """A product per row and head, in f32 at least."""
    contract = (((x_axis,), (y_axis,)), _HEADS_OUTSIDE)
    exact = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.dot_general(x, y, contract, preferred_element_type=exact)
