"""One table from logical axes to mesh axes, and the shardings that follow from it.

Mesh axes: `data` (batch only), `fsdp` (batch, and parameters split), `tensor` (heads, feed-forward
and vocabulary split). The encoders hold 15 % of the parameters and have head counts that few
tensor sizes divide, so they are split over `fsdp` only.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.layout import InputError

RULES = (
    ("layers", None),
    ("norm", None),
    ("patch", None),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)
ENCODER_RULES = tuple((name, None if axis == "tensor" else axis) for name, axis in RULES)
CACHE_SPEC = P(None, ("data", "fsdp"), "tensor", None, None)  # [L,B,K,S,H]


def validate_mesh(config: ThinkerConfig, mesh: Mesh) -> None:
    """Refuses a mesh that the model's dimensions do not divide into.

    Raises:
      InputError: names the dimension and the legal values.
    """
    text, tensor, fsdp = config.text, mesh.shape["tensor"], mesh.shape["fsdp"]
    for name, size, parts in (
        ("key/value heads", text.num_kv_heads, tensor),
        ("vocabulary", text.vocab_size, tensor),
        ("feed-forward width", text.intermediate_size, tensor),
        ("hidden width", text.hidden_size, fsdp),
        ("vision width", config.vision.hidden_size, fsdp),
        ("audio width", config.audio.hidden_size, fsdp),
    ):
        if size % parts:
            axis = "tensor" if parts == tensor else "fsdp"
            legal = [n for n in range(1, 257) if size % n == 0]
            raise InputError(f"{name} {size} does not divide over {axis}={parts}; legal: {legal}")


def param_shardings(config: ThinkerConfig, mesh: Mesh) -> dict[str, Any]:
    """A `NamedSharding` for every parameter (stacked layout) on a (data, fsdp, tensor) mesh."""
    validate_mesh(config, mesh)
    boxed = jax.eval_shape(Thinker(config).init, jax.random.key(0))["params"]
    logical = nn.get_partition_spec(boxed)
    return {
        tower: nn.logical_to_mesh_sharding(specs, mesh, RULES if tower == "text" else ENCODER_RULES)
        for tower, specs in logical.items()
    }


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of the stacked decode cache: batch over data and fsdp, kv heads over tensor."""
    return NamedSharding(mesh, CACHE_SPEC)
