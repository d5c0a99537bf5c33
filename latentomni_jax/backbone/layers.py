"""The pieces all three towers share: linear layers, norms, rotary rotation, remat policies."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from latentomni_jax.backbone.types import Array

# Named remat policies of the layer scans: what a layer keeps for its backward pass.
REMAT_POLICIES = {
    "none": None,  # keep everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matmul results
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input only
}


def remat(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """`module` under the named policy; inside a scan, so common-subexpression guards are off."""
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat policy {policy!r} is not one of {sorted(REMAT_POLICIES)}")
    if policy == "none":
        return module
    return nn.remat(module, policy=REMAT_POLICIES[policy], prevent_cse=False)


def dense(
    features: int,
    axes: tuple[str, str],
    name: str | None,
    *,
    bias: bool,
    dtype: Any,
    param_dtype: Any,
) -> nn.Dense:
    """A linear layer whose kernel [in, out] carries logical axis names for sharding."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.normal(0.02), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axes[1],)),
        name=name,
    )


class RMSNorm(nn.Module):
    """Root-mean-square norm: statistics in f32, result back in `dtype`, then the scale."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            (x.shape[-1],),
            self.param_dtype,
        )
        x_f32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x_f32 * x_f32, axis=-1, keepdims=True) + self.epsilon)
        return (x_f32 * inverse).astype(self.dtype) * scale.astype(self.dtype)


class SwiGLU(nn.Module):
    """Gated feed-forward: down(silu(gate(x)) * up(x))."""

    intermediate_size: int
    bias: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        types = {"bias": self.bias, "dtype": self.dtype, "param_dtype": self.param_dtype}
        with jax.named_scope("mlp"):
            gate = dense(self.intermediate_size, ("embed", "mlp"), "gate_proj", **types)(x)
            up = dense(self.intermediate_size, ("embed", "mlp"), "up_proj", **types)(x)
            down = dense(x.shape[-1], ("mlp", "embed"), "down_proj", **types)
            return down(jax.nn.silu(gate) * up)


def rotate(
    x_btnh: Float[Array, "B T N H"],
    cos: Float[Array, "B T half"],
    sin: Float[Array, "B T half"],
) -> Float[Array, "B T N H"]:
    """Rotary embedding of pairs (i, i + H/2), computed in f32, result in the dtype of `x`."""
    first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_btnh.dtype)
