"""The pieces the towers share: linear layers (with adapters, in int8), norms, rotation, remat."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from latentomni_jax.backbone.plain import SAVED
from latentomni_jax.backbone.types import Array, Weights
from latentomni_jax.layout import InputError

_products = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(SAVED),
)


def _products_and_attention(primitive, *args, **kwargs):
    # What cuDNN computes has no name to give: it is one operation to JAX.
    is_cudnn = primitive.name.startswith("dot_product_attention_fwd")
    return is_cudnn or _products(primitive, *args, **kwargs)


# Named remat policies of the layer scans: what a layer keeps for its backward pass.
REMAT_POLICIES = {
    "none": None,  # keep everything
    "dots": _products_and_attention,
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the layer's input only
}

_LORA_A, _LORA_B = nn.initializers.normal(0.02), nn.initializers.zeros
# Keeps a signal at its scale whatever the width: small models trained from nothing need that.
_KERNEL_INIT = nn.initializers.lecun_normal()


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
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    weights: Weights = None,
) -> nn.Module:
    """A linear layer whose kernel [in, out] carries logical axis names for sharding.

    With `lora_rank` > 0 it is a `LoraDense`, with `weights="int8"` an `Int8Dense`.

    Raises:
      InputError: adapters on int8 kernels, or int8 kernels under a computation in float16.
    """
    if weights == "int8":
        if lora_rank:
            raise InputError("int8 weights take no adapters: merge_lora first, then quantise")
        if jnp.dtype(dtype) == jnp.float16:
            raise InputError("int8 weights leave float16's range: compute in bfloat16 or float32")
        return Int8Dense(features, axes, bias, dtype, param_dtype, name=name)
    lora = {"axes": axes, "rank": lora_rank, "alpha": lora_alpha} if lora_rank else {}
    return (LoraDense if lora else nn.Dense)(
        features,
        **lora,
        dot_general=_rows_times_kernel,
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nn.with_logical_partitioning(_KERNEL_INIT, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axes[1],)),
        name=name,
    )


def _rows_times_kernel(x, kernel, dimension_numbers, precision=None):
    """`lax.dot_general` of [..., in] with [in, out]; on one device as one matrix of rows.

    The gradient of a kernel contracts every other axis of `x`. Where there are two, XLA on CPU
    first transposes what comes from above, and forms it again to do so (docs/performance.md). On a
    mesh the axes stay apart, because TPU programs were only measured so (docs/design.md).
    """
    if jax.sharding.get_abstract_mesh().size > 1:
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), precision=precision)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


class Int8Dense(nn.Module):
    """A linear layer whose weights alone are int8: y = (x Q) s + b.

    Parameters `kernel_int8` Q i8[in, out] and `scale` s f32[out] (of each output: W is about Q s)
    stand in place of `kernel`, whose name would let a layer that knows of no scale take Q for W;
    `weights.quantize` makes them. The product is formed in `dtype`, as of any other kernel;
    integers up to 127 are exact in bf16.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool
    dtype: Any
    param_dtype: Any  # of the bias

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        def param(name, init, axes, shape, dtype) -> Any:
            return self.param(name, nn.with_logical_partitioning(init, axes), shape, dtype)

        outputs = self.axes[1]
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        kernel = param("kernel_int8", zeros, self.axes, (x.shape[-1], self.features), jnp.int8)
        scale = param("scale", ones, (outputs,), (self.features,), jnp.float32)
        rows = (((x.ndim - 1,), (0,)), ((), ()))
        y = _rows_times_kernel(x.astype(self.dtype), kernel.astype(self.dtype), rows)
        y = (y.astype(jnp.float32) * scale).astype(self.dtype)
        if self.use_bias:
            bias = param("bias", zeros, (outputs,), (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        return y


class LoraDense(nn.Dense):
    """A linear layer with a low-rank adapter (LoRA): y = x W + b + (alpha / rank) (x A) B.

    Parameters `lora_a` [in, rank] (normal) and `lora_b` [rank, out] (zeros: a fresh adapter changes
    nothing) stand beside `kernel` and `bias`.
    """

    axes: tuple[str, str] = ("embed", "embed")
    rank: int = 0
    alpha: float = 16.0
    promote_dtype: Any = nn.Dense.promote_dtype  # the inherited type cannot be checked in tests

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = super().__call__(x)
        a, b = (
            self.param(
                name, nn.with_logical_partitioning(init, axes), shape, self.param_dtype
            ).astype(self.dtype)
            for name, init, axes, shape in (
                ("lora_a", _LORA_A, (self.axes[0], "lora"), (x.shape[-1], self.rank)),
                ("lora_b", _LORA_B, ("lora", self.axes[1]), (self.rank, self.features)),
            )
        )
        return y + (x.astype(self.dtype) @ a) @ b * (self.alpha / self.rank)


def add_lora(
    params: dict[str, Any], rank: int, key: jax.Array, dtype: Any = jnp.float32
) -> dict[str, Any]:
    """`params` with a fresh adapter beside every kernel of the decoder layers.

    Args:
      params: ordinary parameters of a thinker (any towers, "text" among them), stacked or not.
      rank, dtype: of the adapters. Kernels keep theirs, so 16-bit ones can have f32 adapters.
    """
    count = itertools.count()

    def add(tree, within_layers):
        if not isinstance(tree, dict):
            return tree
        tree = {
            name: add(child, within_layers or name.startswith("layers"))
            for name, child in tree.items()
        }
        if within_layers and "kernel" in tree:
            *layers, inputs, outputs = tree["kernel"].shape
            a_key = jax.random.fold_in(key, next(count))
            tree["lora_a"] = _LORA_A(a_key, (*layers, inputs, rank), dtype)
            tree["lora_b"] = _LORA_B(a_key, (*layers, rank, outputs), dtype)
        return tree

    return params | {"text": add(params["text"], False)}


def merge_lora(params: dict[str, Any], alpha: float) -> dict[str, Any]:
    """`params` with every adapter folded into its kernel: the ordinary tree, for any layout.

    Args:
      params: a tree of `LoraDense` and other layers; trees without adapters come back as they are.
      alpha: the `lora_alpha` of training; the rank is the adapters' own.

    Returns:
      Kernels W + (alpha / rank) A B, added in f32 and rounded once to the kernel's dtype.
    """
    if "lora_a" in params:
        a, b = (params[name].astype(jnp.float32) for name in ("lora_a", "lora_b"))
        change = jnp.matmul(a, b, precision="highest") * (alpha / a.shape[-1])
        kernel = params["kernel"]
        rest = {name: x for name, x in params.items() if not name.startswith("lora_")}
        return rest | {"kernel": (kernel.astype(jnp.float32) + change).astype(kernel.dtype)}
    return {
        name: merge_lora(child, alpha) if isinstance(child, dict) else child
        for name, child in params.items()
    }


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
    lora_rank: int = 0
    lora_alpha: float = 16.0
    weights: Weights = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        types = {
            "bias": self.bias,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "weights": self.weights,
        }
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
