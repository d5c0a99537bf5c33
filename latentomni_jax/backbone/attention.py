"""Attention, and the one place that chooses its backend.

`attend` serves whole sequences (training, prefill, encoders), `attend_cached` the few queries of a
decode step against a cache. Shapes: B batch, T query, S key, N query heads, K kv heads, H head
dim; N is a multiple of K (grouped-query attention) and kv heads are never repeated in memory.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone.types import Array

Implementation = Literal["auto", "xla", "splash", "cudnn"]

# Scores of one query chunk stay below this many elements (f32: 4 bytes each), so that an 18k-token
# prompt needs a few hundred MB of scores and not 36 GB.
_SCORE_BUDGET = 1 << 26
_NEGATIVE = -1e30  # finite: a row whose keys are all masked gives a mean, not NaN


def choose(
    implementation: Implementation, *, platform: str, dtype: jnp.dtype, query_length: int
) -> Literal["xla", "splash", "cudnn"]:
    """The backend that `attend` will use.

    Args:
      implementation: a name forces that backend; "auto" picks by platform.
      platform: "cpu", "gpu" or "tpu".
      dtype: of the queries; cuDNN takes only 16-bit ones.
      query_length: splash wants multiples of 128.

    Raises:
      ValueError: the forced backend cannot serve these inputs (never a silent fallback).
    """
    splash_fits = query_length % 128 == 0
    cudnn_fits = dtype in (jnp.bfloat16, jnp.float16)
    if implementation == "auto":
        if platform == "tpu" and splash_fits:
            return "splash"
        if platform == "gpu" and cudnn_fits:
            return "cudnn"
        return "xla"
    if implementation == "splash" and not splash_fits:
        raise ValueError(f"splash attention needs a multiple of 128 queries, got {query_length}")
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
    implementation: Implementation = "auto",
    platform: str | None = None,
) -> Float[Array, "B T N H"]:
    """Self-attention over a whole sequence, softmax in f32.

    Args:
      q_btnh, k_bskh, v_bskh: queries, keys, values; already rotated, not scaled.
      causal: query t sees keys 0..t, otherwise all.
      lengths: keys at or beyond it are invisible. Outputs of queries beyond it are unspecified.
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
    )
    with jax.named_scope(f"attention_{backend}"):
        if backend == "splash":
            return _splash(q_btnh, k_bskh, v_bskh, causal, lengths)
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
        return _xla(q_btnh, k_bskh, v_bskh, causal, lengths)


def attend_cached(
    q_btnh: Float[Array, "B T N H"],
    k_bksh: Float[Array, "B K S H"],
    v_bksh: Float[Array, "B K S H"],
    visible_bts: Bool[
        Array,
        (
            B  # T S
        ),
    ],
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
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h) * h**-0.5
    scores = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32)
    if visible_bkgts is not None:
        scores = jnp.where(visible_bkgts, scores, _NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_bskh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_bskh).reshape(b, t, n, h)


def _xla(q_btnh, k_bskh, v_bskh, causal, lengths):
    """Dense attention, a chunk of queries at a time when the scores would be large."""
    b, t, n, h = q_btnh.shape
    s = k_bskh.shape[1]

    def visible(start, size):
        mask = jnp.ones((1, 1, 1, size, s), bool)
        if causal:
            mask = (jnp.arange(s) <= start + jnp.arange(size)[:, None])[None, None, None]
        if lengths is not None:
            mask = mask & (jnp.arange(s) < lengths[:, None])[:, None, None, None]
        return mask if causal or lengths is not None else None

    chunk = max(16, _SCORE_BUDGET // (b * n * s))
    if chunk >= t:
        return _dense(q_btnh, k_bskh, v_bskh, visible(0, t))
    chunk = 1 << (chunk.bit_length() - 1)
    padded = -(-t // chunk) * chunk
    q_chunks = jnp.pad(q_btnh, ((0, 0), (0, padded - t), (0, 0), (0, 0)))
    q_chunks = q_chunks.reshape(b, padded // chunk, chunk, n, h).swapaxes(0, 1)

    @jax.checkpoint  # the backward pass recomputes a chunk's scores instead of keeping them all
    def one(args):
        start, q = args
        return _dense(q, k_bskh, v_bskh, visible(start, chunk))

    out = jax.lax.map(one, (jnp.arange(padded // chunk) * chunk, q_chunks))
    return out.swapaxes(0, 1).reshape(b, padded, n, h)[:, :t]


def _splash(q_btnh, k_bskh, v_bskh, causal, lengths):
    """The TPU flash kernel of JAX; lengths become segment ids (padding is its own segment).

    Under a mesh every device runs the kernel on its own rows and heads: a Pallas call is opaque to
    the partitioner, which would otherwise gather everything everywhere.
    """
    h = q_btnh.shape[-1]
    args = [x.swapaxes(1, 2) for x in (q_btnh * h**-0.5, k_bskh, v_bskh)]
    if lengths is not None:
        args.append((jnp.arange(q_btnh.shape[1]) < lengths[:, None]).astype(jnp.int32))
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(_splash_shard, causal=causal)
    if mesh.size > 1:
        rows = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
        if q_btnh.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
            rows = ()
        heads = "tensor" if k_bskh.shape[2] % mesh.shape.get("tensor", 1) == 0 else None
        spec = jax.P(rows or None, heads)
        in_specs = (spec, spec, spec, jax.P(rows or None))[: len(args)]
        run = jax.shard_map(run, in_specs=in_specs, out_specs=spec, check_vma=False)
    return run(*args).swapaxes(1, 2).astype(q_btnh.dtype)


def _splash_shard(q_bnth, k_bkth, v_bkth, ids_bt=None, *, causal):
    """The kernel on one device's rows and heads."""
    kernel = splash_kernel(q_bnth.shape[1], q_bnth.shape[2], causal)
    if ids_bt is None:
        return jax.vmap(kernel)(q_bnth, k_bkth, v_bkth)
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids(ids)))(
        q_bnth, k_bkth, v_bkth, ids_bt
    )


def segment_ids(ids_t: Int[Array, T]) -> Any:
    """The same segments for queries and keys, in the kernel's own type."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel.SegmentIds(q=ids_t, kv=ids_t)


def splash_kernel(heads: int, length: int, causal: bool) -> Any:
    """JAX's splash kernel for one row: q [N,T,H] (scaled), k and v [K,T,H] -> [N,T,H]."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    mask_class = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
    mask = splash_attention_mask.MultiHeadMask([mask_class((length,) * 2) for _ in range(heads)])
    size = next(c for c in (512, 256, 128) if length % c == 0)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    return splash_attention_kernel.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, block_sizes=blocks
    )
