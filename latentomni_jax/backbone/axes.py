"""The one table from logical axes to mesh axes, for parameters, caches and activations.

Mesh axes: `data` (batch only), `fsdp` (batch, and parameters split), `tensor` (heads, feed-forward
and vocabulary split). The encoders hold 15 % of the parameters and have head counts that few
tensor sizes divide, so they are split over `fsdp` only.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from latentomni_jax.backbone.types import Array

RULES = (
    ("layers", None),
    ("norm", None),
    ("patch", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("lora", None),
)
ENCODER_RULES = tuple((name, None if axis == "tensor" else axis) for name, axis in RULES)
BATCH_AXES = ("data", "fsdp")  # over which rows are split
CACHE_SPEC = P(None, BATCH_AXES, "tensor", None, None)  # [L,B,K,S,H]

# Shardings that activations pass through, in this order. XLA finds those of the layers by itself:
# constraints on residuals, heads or feed-forward change nothing in the compiled step.
ACTIVATIONS = {
    # Embeddings [B,T,D] looked up in a table split over D: columns first, then rows. Backwards,
    # each chip so adds up its own columns of the table's gradient; left alone, XLA gives every chip
    # the whole table in f32 (2 GiB at 7B) as soon as `data` > 1.
    "embedding": (P("data", None, "fsdp"), P(BATCH_AXES, None, None)),
    # Chunks of sound [C,T,D]. Left alone, XLA cuts their width over fsdp, as the weights are, and
    # adds up the products of all chips' chunks in every layer: 70 times the bytes of the weights.
    "chunks": (P(BATCH_AXES, None, None),),
}


def batch_axes() -> tuple[str, ...]:
    """The axes of the mesh that is set, if it has several devices, over which rows are split."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape) if mesh.size > 1 else ()


def constrain(point: str, x: Array) -> Array:
    """`x` with the shardings of a named point of `ACTIVATIONS`.

    Only under `jax.set_mesh` with automatic axes `data` and `fsdp` that split the batch evenly;
    anything else (no mesh, one chip per row, a decode step's [B,D]) comes back as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(kinds.get(axis) != AxisType.Auto for axis in ("data", "fsdp")):
        return x
    specs, rows = ACTIVATIONS[point], mesh.shape["data"] * mesh.shape["fsdp"]
    if rows == 1 or x.shape[0] % rows or any(len(spec) != x.ndim for spec in specs):
        return x
    for spec in specs:
        x = jax.lax.with_sharding_constraint(x, spec)
    return x
