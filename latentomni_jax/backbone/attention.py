"""Attention, and the one place that chooses its backend.

`attend` serves whole sequences (training, prefill, encoders), `attend_cached` the few queries of a
decode step against a cache. Shapes: B batch, T query, S key, N query heads, K kv heads, H head
dim; N is a multiple of K (grouped-query attention) and kv heads are never repeated in memory.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone import splash
from latentomni_jax.backbone.types import Array

Implementation = Literal["auto", "xla", "splash", "cudnn"]
# Queries marked in the first do not see keys marked in the second (both also obey the rest).
Hidden = tuple[Bool[Array, "B T"], Bool[Array, "B S"]]

# Scores of one query chunk stay below this many elements (f32: 4 bytes each), so that an 18k-token
# prompt needs a few hundred MB of scores and not 36 GB.
_SCORE_BUDGET = 1 << 26
_NEGATIVE = -1e30  # finite: a row whose keys are all masked gives a mean, not NaN


def choose(
    implementation: Implementation,
    *,
    platform: str,
    dtype: jnp.dtype,
    query_length: int,
    hidden: bool = False,
) -> Literal["xla", "splash", "cudnn"]:
    """The backend that `attend` will use.

    Args:
      implementation: a name forces that backend; "auto" picks by platform.
      platform: "cpu", "gpu" or "tpu".
      dtype: of the queries; cuDNN takes only 16-bit ones.
      query_length: splash wants multiples of 128.
      hidden: some queries do not see some keys, which cuDNN has no linear-memory mask for.

    Raises:
      ValueError: the forced backend cannot serve these inputs (never a silent fallback).
    """
    splash_fits = query_length % 128 == 0
    cudnn_fits = dtype in (jnp.bfloat16, jnp.float16) and not hidden
    if implementation == "auto":
        if platform == "tpu" and splash_fits:
            return "splash"
        if platform == "gpu" and cudnn_fits:
            return "cudnn"
        return "xla"
    if implementation == "splash" and not splash_fits:
        raise ValueError(f"splash attention needs a multiple of 128 queries, got {query_length}")
    if implementation == "cudnn" and hidden:
        raise ValueError(
            "cuDNN attention cannot hide media from later text (flow 'bottleneck'): take "
            "implementation='auto' or 'xla', or flow 'open'"
        )
    if implementation == "cudnn" and not cudnn_fits:
        raise ValueError(f"cuDNN attention needs bfloat16 or float16, got {dtype}")
    if implementation not in ("xla", "splash", "cudnn"):
        raise ValueError(f"unknown attention implementation {implementation!r}")
    return implementation


def attend(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B T K H"],
    v_bskh: Float[Array, "B T K H"],
    *,
    causal: bool,
    lengths: Int[Array, B] | None = None,
    hidden: Hidden | None = None,
    implementation: Implementation = "auto",
    platform: str | None = None,
) -> Float[Array, "B T N H"]:
    """Self-attention over a whole sequence, softmax in f32.

    Args:
      q_btnh, k_bskh, v_bskh: queries, keys, values; already rotated, not scaled.
      causal: query t sees keys 0..t, otherwise all.
      lengths: keys at or beyond it are invisible. Outputs of queries beyond it are unspecified.
      hidden: (bool[B,T], bool[B,T]): queries marked in the first do not see keys marked in the
        second. The output of a query that then sees no key is unspecified.
      implementation: see `choose`.
      platform: where the program will run; default is JAX's backend (ahead-of-time compilation
        for a TPU on a CPU host passes "tpu").

    Returns:
      Attention output in the dtype of the queries.
    """
    backend = choose(
        implementation,
        platform=platform or _platform(),
        dtype=q_btnh.dtype,
        query_length=q_btnh.shape[1],
        hidden=hidden is not None,
    )
    with jax.named_scope(f"attention_{backend}"):
        if backend == "splash":
            return splash.attend(
                q_btnh, k_bskh, v_bskh, causal=causal, lengths=lengths, hidden=hidden
            )
        if backend == "cudnn":
            return jax.nn.dot_product_attention(
                q_btnh,
                k_bskh,
                v_bskh,
                is_causal=causal,
                key_value_seq_lengths=lengths,
                query_seq_lengths=lengths,
                implementation="cudnn",
            )
        return _xla(q_btnh, k_bskh, v_bskh, causal, lengths, hidden)


def attend_cached(
    q_btnh: Float[Array, "B T N H"],
    k_bksh: Float[Array, "B K S H"],
    v_bksh: Float[Array, "B K S H"],
    visible_bts: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Attention of a few queries to a cache, near the bandwidth bound: two einsums.

    Args:
      k_bksh, v_bksh: the cache, heads outside positions: the keys of a head are one contiguous
        matrix, which on CPU takes a third off this function and on TPU changes nothing.
      visible_bts: True where query t may look at cache slot s.
    """
    b, t, n, h = q_btnh.shape
    k = k_bksh.shape[1]
    groups = (n // k) * t
    heads_outside = ((0, 1), (0, 1))
    with jax.named_scope("attention_cached"):
        # Written as dot_general with the few queries on the left: an einsum lets the cache be the
        # left operand, which on CPU costs twice the time in transposes.
        q_bkth = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
        q_bkth = q_bkth.reshape(b, k, groups, h) * h**-0.5
        scores = jax.lax.dot_general(
            q_bkth, k_bksh, (((3,), (3,)), heads_outside), preferred_element_type=jnp.float32
        ).reshape(b, k, n // k, t, -1)
        scores = jnp.where(visible_bts[:, None, None], scores, _NEGATIVE)
        weights = jax.nn.softmax(scores, axis=-1).astype(v_bksh.dtype).reshape(b, k, groups, -1)
        out = jax.lax.dot_general(weights, v_bksh, (((3,), (2,)), heads_outside))
        out = out.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4)
        return out.reshape(b, t, n, h)


def local_attend(
    q_btnh: Float[Array, "B T N H"],
    k_btnh: Float[Array, "B T N H"],
    v_btnh: Float[Array, "B T N H"],
    segments_bt: Int[Array, "B T"],
    *,
    block: int,
) -> Float[Array, "B T N H"]:
    """Attention inside contiguous segments of at most `block` positions.

    A segment touches at most two neighbouring blocks, so a query block looks at its own block and
    the ones beside it, masked by equality of segment ids: static shapes whatever the windows are,
    and no gather into padded windows.

    ```
    segments  0 0 0 1 1 1 | 1 1 2 2 2 3 | 3 3 . . . .      block = 6
    block 1 reads keys of blocks 0, 1, 2 and keeps those with its own id
    ```

    Args:
      segments_bt: segment id of each position; T is a multiple of `block`.
    """
    b, t, n, h = q_btnh.shape
    blocks = t // block
    if blocks == 1:
        visible = segments_bt[:, :, None] == segments_bt[:, None, :]
        return _dense(q_btnh, k_btnh, v_btnh, visible[:, None, None])

    def neighbours(x, fill):
        """[B, blocks, block, ...] -> [B, blocks, 3 * block, ...]: previous, own, next block."""
        pad = [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad, constant_values=fill)
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    def blocked(x):
        return x.reshape(b, blocks, block, *x.shape[2:])

    ids = blocked(segments_bt)
    visible = ids[:, :, :, None] == neighbours(ids, -2)[:, :, None, :]
    out = _dense(
        blocked(q_btnh).reshape(b * blocks, block, n, h),
        neighbours(blocked(k_btnh), 0).reshape(b * blocks, 3 * block, n, h),
        neighbours(blocked(v_btnh), 0).reshape(b * blocks, 3 * block, n, h),
        visible.reshape(b * blocks, 1, 1, block, 3 * block),
    )
    return out.reshape(b, t, n, h)


def _platform() -> str:
    backend = jax.default_backend()
    return "gpu" if backend in ("cuda", "rocm") else backend


def _dense(q_btnh, k_bskh, v_bskh, visible_bkgts):
    """Reference attention: scores [B,K,G,T,S] in f32, masked, softmax, values."""
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    # As in `attend_cached`: einsums over inner heads take half as long again on CPU.
    q_bkgth = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4) * h**-0.5
    out = _softmax_values(q_bkgth, k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2), visible_bkgts)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


@jax.custom_vjp
def _softmax_values(q_bkgth, k_bksh, v_bksh, visible_bkgts):
    """softmax(q k^T) v with its gradient written out.

    The backward pass recomputes the weights from one log-sum-exp per query: nothing of size T x S
    is kept, and it takes half the passes over the scores that differentiating the softmax takes.
    """
    return _softmax_values_forward(q_bkgth, k_bksh, v_bksh, visible_bkgts)[0]


_HEADS_OUTSIDE = ((0, 1), (0, 1))


def _scores(q_bkgth, k_bksh, visible_bkgts):
    b, k, g, t, h = q_bkgth.shape
    contract = (((3,), (3,)), _HEADS_OUTSIDE)
    scores = jax.lax.dot_general(
        q_bkgth.reshape(b, k, g * t, h), k_bksh, contract, preferred_element_type=jnp.float32
    ).reshape(b, k, g, t, -1)
    return scores if visible_bkgts is None else jnp.where(visible_bkgts, scores, _NEGATIVE)


def _softmax_values_forward(q_bkgth, k_bksh, v_bksh, visible_bkgts):
    b, k, g, t, h = q_bkgth.shape
    scores = _scores(q_bkgth, k_bksh, visible_bkgts)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jax.lax.dot_general(
        weights.astype(v_bksh.dtype).reshape(b, k, g * t, -1),
        v_bksh,
        (((3,), (2,)), _HEADS_OUTSIDE),
        preferred_element_type=scores.dtype,
    )
    out = (out.reshape(b, k, g, t, h) / total).astype(v_bksh.dtype)
    return out, (q_bkgth, k_bksh, v_bksh, visible_bkgts, out, top + jnp.log(total))


def _softmax_values_backward(saved, d_out):
    q_bkgth, k_bksh, v_bksh, visible_bkgts, out, log_total = saved
    b, k, g, t, h = q_bkgth.shape
    rows = (b, k, g * t)

    def dot(x, y, x_axis, y_axis):
        contract = (((x_axis,), (y_axis,)), _HEADS_OUTSIDE)
        return jax.lax.dot_general(x, y, contract, preferred_element_type=log_total.dtype)

    weights = jnp.exp(_scores(q_bkgth, k_bksh, visible_bkgts) - log_total)
    delta = jnp.sum(d_out.astype(weights.dtype) * out, axis=-1, keepdims=True)
    d_out = d_out.astype(v_bksh.dtype).reshape(*rows, h)
    d_weights = dot(d_out, v_bksh, 3, 3).reshape(weights.shape)
    d_scores = (weights * (d_weights - delta)).astype(q_bkgth.dtype).reshape(*rows, -1)
    d_q = dot(d_scores, k_bksh, 3, 2).reshape(q_bkgth.shape)
    d_k = dot(d_scores, q_bkgth.reshape(*rows, h), 2, 2)
    d_v = dot(weights.astype(v_bksh.dtype).reshape(*rows, -1), d_out, 2, 2)
    d_q, d_k, d_v = (d.astype(x.dtype) for d, x in ((d_q, q_bkgth), (d_k, k_bksh), (d_v, v_bksh)))
    return d_q, d_k, d_v, None


_softmax_values.defvjp(_softmax_values_forward, _softmax_values_backward)


def _xla(q_btnh, k_bskh, v_bskh, causal, lengths, hidden):
    """Dense attention, a chunk of queries at a time when the scores would be large."""
    b, t, n, h = q_btnh.shape
    s = k_bskh.shape[1]

    def visible(start, size, blocked_bt):
        mask = jnp.ones((1, 1, 1, size, s), bool)
        if causal:
            mask = (jnp.arange(s) <= start + jnp.arange(size)[:, None])[None, None, None]
        if lengths is not None:
            mask = mask & (jnp.arange(s) < lengths[:, None])[:, None, None, None]
        if hidden is not None:
            mask = mask & ~(blocked_bt[:, :, None] & hidden[1][:, None])[:, None, None]
        return mask if causal or lengths is not None or hidden is not None else None

    chunk = max(16, _SCORE_BUDGET // (b * n * s))
    if chunk >= t:
        return _dense(q_btnh, k_bskh, v_bskh, visible(0, t, hidden and hidden[0]))
    chunk = 1 << (chunk.bit_length() - 1)
    padded = -(-t // chunk) * chunk

    def chunks(x):
        x = jnp.pad(x, ((0, 0), (0, padded - t)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(b, padded // chunk, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint  # the backward pass recomputes a chunk's scores instead of keeping them all
    def one(args):
        start, q, blocked_bt = args
        return _dense(q, k_bskh, v_bskh, visible(start, chunk, blocked_bt))

    starts = jnp.arange(padded // chunk) * chunk
    out = jax.lax.map(one, (starts, chunks(q_btnh), hidden and chunks(hidden[0])))
    return out.swapaxes(0, 1).reshape(b, padded, n, h)[:, :t]
