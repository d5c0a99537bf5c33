"""Splash, JAX's flash attention kernel for TPU: sharded, with lengths and with hidden media.

The kernel's mask is static (causal or full) and its segment ids are traced; a traced mask is not
to be had. A rule "these queries do not see those keys" is therefore written into the scores: one
more coordinate of the heads, `HIDE` in marked queries and 1 in marked keys, adds `HIDE` to the
score of exactly those pairs, whose weight is then exactly zero, as is their gradient:

```
q' = [q, HIDE * blocked]     k' = [k, media]     q'.k' = q.k + HIDE * blocked * media
```
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone.plain import SAVED
from latentomni_jax.backbone.types import Array

# Far below any score, exactly representable in bfloat16 (a power of two, about -1.1e9), and far
# above the kernel's own mask value, so that sums of it stay finite in the backward pass.
HIDE = -(2.0**30)


def attend(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B T K H"],
    v_bskh: Float[Array, "B T K H"],
    *,
    causal: bool,
    lengths: Int[Array, B] | None = None,
    hidden: tuple[Bool[Array, "B T"], Bool[Array, "B T"]] | None = None,
) -> Float[Array, "B T N H"]:
    """`attention.attend` by the kernel; lengths become segment ids (padding is its own segment).

    Under a mesh every device runs the kernel on its own rows and heads: a Pallas call is opaque to
    the partitioner, which would otherwise gather everything everywhere.
    """
    h = q_btnh.shape[-1]
    dtype = q_btnh.dtype
    q_btnh = q_btnh * h**-0.5
    if hidden is not None:
        q_btnh, k_bskh = hide(q_btnh, k_bskh, *hidden)
    args = [checkpoint_name(x.swapaxes(1, 2), SAVED) for x in (q_btnh, k_bskh, v_bskh)]
    if lengths is not None:
        args.append((jnp.arange(q_btnh.shape[1]) < lengths[:, None]).astype(jnp.int32))
    mesh = jax.sharding.get_abstract_mesh()
    run = functools.partial(_shard, causal=causal)
    if mesh.size > 1:
        rows = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
        if q_btnh.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
            rows = ()
        heads = "tensor" if k_bskh.shape[2] % mesh.shape.get("tensor", 1) == 0 else None
        spec = jax.P(rows or None, heads)
        in_specs = (spec, spec, spec, jax.P(rows or None))[: len(args)]
        run = jax.shard_map(run, in_specs=in_specs, out_specs=spec, check_vma=False)
    return run(*args).swapaxes(1, 2).astype(dtype)


def hide(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B S K H"],
    blocked_bt: Bool[Array, "B T"],
    media_bs: Bool[Array, "B S"],
) -> tuple[Float[Array, "B T N H+1"], Float[Array, "B S K H+1"]]:
    """Scaled queries and keys with the coordinate that hides marked keys from marked queries.

    Values keep their H. A query all of whose keys are hidden has an unspecified output.
    """

    def append(x, column):
        column = jnp.broadcast_to(column[:, :, None, None], (*x.shape[:3], 1))
        return jnp.concatenate([x, column.astype(x.dtype)], axis=-1)

    return append(q_btnh, jnp.where(blocked_bt, HIDE, 0.0)), append(k_bskh, media_bs)


def _shard(q_bnth, k_bkth, v_bkth, ids_bt=None, *, causal):
    """The kernel on one device's rows and heads."""
    row = kernel(q_bnth.shape[1], q_bnth.shape[2], causal)
    if ids_bt is None:
        return jax.vmap(row)(q_bnth, k_bkth, v_bkth)
    return jax.vmap(lambda q, k, v, ids: row(q, k, v, segment_ids(ids)))(
        q_bnth, k_bkth, v_bkth, ids_bt
    )


def segment_ids(ids_t: Int[Array, T]) -> Any:
    """The same segments for queries and keys, in the kernel's own type."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel.SegmentIds(q=ids_t, kv=ids_t)


def kernel(heads: int, length: int, causal: bool) -> Any:
    """JAX's splash kernel for one row: q [N,T,J] (scaled), k [K,T,J], v [K,T,H] -> [N,T,H]."""
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
        mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        residual_checkpoint_name=SAVED,
    )
