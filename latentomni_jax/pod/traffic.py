"""Bytes that programs have to move between a chip and its memory, by arithmetic."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.train.config import Run
from latentomni_jax.train.state import split

WIDTH = 2  # bytes of bf16


def bytes_on_chip(tree: Any) -> float:
    """Of abstract arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def matrix_weights(config: ThinkerConfig) -> int:
    """Weights of the decoder's matrices, which is half a position's FLOPs in them."""
    text = config.text
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    return text.num_layers * text.hidden_size * (heads + 3 * text.intermediate_size)


def attention_width(config: ThinkerConfig) -> int:
    """Of all query heads together."""
    return config.text.num_heads * config.text.head_dim


def row_share(mesh: Mesh, rows: int) -> float:
    """Rows on one chip."""
    return rows / (mesh.shape["data"] * mesh.shape["fsdp"])


def activation_bytes(config: ThinkerConfig, mesh: Mesh, width: int = WIDTH) -> float:
    """What a position's matrix products read and write in the decoder, on one chip."""
    text = config.text
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    inner = (heads + 4 * text.intermediate_size) / mesh.shape["tensor"]
    return width * text.num_layers * (4 * text.hidden_size + inner)


def step_traffic(
    config: ThinkerConfig,
    mesh: Mesh,
    run: Run,
    params: Any,
    rows: int,
    micro: int,
    tokens: int,
    passes: int,
) -> float:
    """Gathered weights and the products' operands of every pass, and the optimiser's state.

    A pass reads the weights: forward, recomputed under remat "full", once for the gradient of its
    inputs and once for that of weights that train; activations likewise. The optimiser reads
    gradient, two moments and a master, and writes three of them.

    Args:
      params: abstract ones of all towers. rows: of `tokens` positions, in each of `micro` parts.
      passes: that only make states to feed.
    """
    model = run.raw.model
    width = jnp.dtype(model.dtype).itemsize
    trained, kept = split(params, run.frozen)
    behind = kept["text"] if model.lora_rank else {}  # gradients pass through it, to adapters
    sizes = [sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in (trained, kept)]
    behind = sum(math.prod(x.shape) for x in jax.tree.leaves(behind))
    passes += 3 if model.remat == "full" else 2
    weights = (passes + 1) * sizes[0] + passes * behind + (sizes[1] - behind)
    moved = (passes + 1) * row_share(mesh, rows) * tokens * activation_bytes(config, mesh, width)
    chips = mesh.shape["fsdp"] * mesh.shape["tensor"]
    return micro * (width * weights / mesh.shape["tensor"] + moved) + 7 * 4 * sizes[0] / chips
