"""Shardings of parameters and caches on a mesh, as the table in `axes` has them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from latentomni_jax.backbone.axes import CACHE_SPEC, ENCODER_RULES, RULES
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Weights
from latentomni_jax.layout import InputError


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


def param_shardings(
    config: ThinkerConfig, mesh: Mesh, *, lora_rank: int = 0, weights: Weights = None
) -> dict[str, Any]:
    """A `NamedSharding` for every parameter (stacked layout) on a (data, fsdp, tensor) mesh.

    Args:
      lora_rank, weights: of the thinker whose parameters they are.

    Raises:
      InputError: see `validate_mesh`.
    """
    validate_mesh(config, mesh)
    thinker = Thinker(config, lora_rank=lora_rank, weights=weights)
    boxed = jax.eval_shape(thinker.init, jax.random.key(0))["params"]
    logical = nn.get_partition_spec(boxed)
    return {
        tower: nn.logical_to_mesh_sharding(specs, mesh, RULES if tower == "text" else ENCODER_RULES)
        for tower, specs in logical.items()
    }


def cache_sharding(mesh: Mesh, *, scan_layers: bool = True) -> NamedSharding:
    """Sharding of the decode cache: batch over data and fsdp, kv heads over tensor.

    Args:
      scan_layers: of the stacked cache; otherwise of every layer's own, see `text.make_cache`.
    """
    return NamedSharding(mesh, CACHE_SPEC if scan_layers else P(*CACHE_SPEC[1:]))


def row_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Sharding of arrays whose `axis` counts the rows of a batch: over data and fsdp."""
    return NamedSharding(mesh, P(*(None,) * axis, CACHE_SPEC[1]))
