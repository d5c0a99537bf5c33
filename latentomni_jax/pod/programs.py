"""The real programs of a run, traced for a topology that is not there.

Nothing is allocated: parameters, batches and caches are shapes. Each program comes with what it
does by arithmetic, since a compiler's own counts take a loop's body once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.sharding import cache_sharding, param_shardings
from latentomni_jax.backbone.thinker import Thinker, abstract_params
from latentomni_jax.backbone.types import Weights
from latentomni_jax.latent import decode as decoding
from latentomni_jax.latent.decode import DecodeSpec
from latentomni_jax.latent.examples import empty_batch
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.sync import init_sync
from latentomni_jax.layout import BatchShape, InputError, TrainBatch
from latentomni_jax.train.config import Run
from latentomni_jax.train.flops import step_flops
from latentomni_jax.train.state import new_state, split, state_shardings
from latentomni_jax.train.step import BATCH_AXES, abstract_batch, jit_step

_WIDTH = 2  # bytes of bf16
_FRAMES, _PATCHES = 8, 640  # of a call of the vision encoder, see latent.trajectory


class Traced(NamedTuple):
    """A program for the compiler.

    Attributes:
      lowered: to be compiled. flops: of a call, all chips together. traffic: bytes that a call
        moves between one chip and its memory, at least. what: its sizes, in words.
      recomputed: flops that are computed twice, to keep less; not among `flops`.
      beside: bytes on a chip of what stays there while it runs and is none of its arguments: the
        weights of the towers that it does not use.
      open_loops: see `collectives.read_collectives`.
    """

    lowered: Any
    flops: float
    traffic: float
    what: str
    recomputed: float = 0.0
    beside: float = 0.0
    open_loops: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What a training step is compiled for. Attributes: rows: of a micro-batch, `micro` times."""

    run: Run
    options: Objective
    shape: BatchShape
    rows: int
    micro: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """What answering is compiled for.

    Attributes:
      rows: prompts at a time. prompt: positions. weights: see `Thinker`.
    """

    spec: DecodeSpec
    rows: int
    prompt: int
    weights: Weights = None


def trace_step(config: ThinkerConfig, mesh: Mesh, training: Training) -> Traced:
    """The whole training step, as `latentomni train` runs it."""
    t, rank = training, training.run.raw.model.lora_rank
    thinker = t.run.thinker(config, platform="tpu")
    transformation = t.run.optimizer.transformation()

    def make(params):
        sync = init_sync(t.options, config.text.hidden_size, jax.random.key(0))
        return new_state({**params, "sync": sync}, t.run.frozen, transformation, seed=0)

    params = abstract_params(config, thinker.dtype, lora_rank=rank)
    abstract = jax.eval_shape(make, params)
    shardings = state_shardings(abstract, param_shardings(config, mesh, lora_rank=rank), mesh)
    state = jax.tree.map(_shaped, abstract, shardings)
    batch = abstract_batch(config, t.options, mesh, micro=t.micro, rows=t.rows, shape=t.shape)
    with jax.set_mesh(mesh):
        lowered = jit_step(thinker, t.options, transformation, mesh, shardings).lower(state, batch)
    passes = t.options.extra_passes(t.shape.blocks)
    count = functools.partial(
        step_flops, config, _full_row(config, t.options, t.shape), t.options.frozen
    )
    row, again = (count(passes + n, adapters=rank > 0) for n in (0, 1))
    rows = t.rows * t.micro
    return Traced(
        lowered,
        row * rows,
        _step_traffic(config, mesh, t, params, passes),
        f"{t.micro} x {t.rows} rows of {t.shape.tokens}",
        recomputed=(again - row) * rows if t.run.raw.model.remat == "full" else 0.0,
    )


def trace_prefill(config: ThinkerConfig, mesh: Mesh, serving: Serving) -> Traced:
    """A prompt's pass through the decoder, which fills the cache."""
    thinker, params, inputs = _serving(config, mesh, serving)
    with jax.set_mesh(mesh):
        step = jax.jit(functools.partial(decoding.prefill, thinker, serving.spec))
        lowered = step.lower(params, *inputs)
    text, rows, s = config.text, serving.rows, serving.prompt
    flops = rows * (2 * s * _layers(config) + 2 * text.num_layers * _attention_width(config) * s**2)
    return Traced(
        lowered,
        flops + 2 * rows * text.hidden_size * text.vocab_size,
        _bytes_on_chip(params) + s * _row_share(mesh, rows) * _activation_bytes(config, mesh),
        f"{rows} prompts of {s}",
        beside=_beside(config, mesh, serving, params),
    )


def trace_decode(config: ThinkerConfig, mesh: Mesh, serving: Serving) -> Traced:
    """The loop of an answer; flops and traffic are those of one position of all rows."""
    thinker, params, inputs = _serving(config, mesh, serving)
    with jax.set_mesh(mesh):
        made = functools.partial(decoding.prefill, thinker, serving.spec)
        state = jax.eval_shape(made, params, *inputs)
        by_rows, everywhere = (NamedSharding(mesh, jax.P(*axes)) for axes in ((BATCH_AXES,), ()))
        state = jax.tree.map(lambda x: _shaped(x, by_rows if x.ndim else everywhere), state)
        cache = jax.tree.map(lambda x: _shaped(x, cache_sharding(mesh)), state.cache)
        lengths = jax.ShapeDtypeStruct((serving.rows,), jnp.int32, sharding=by_rows)
        limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        step = jax.jit(functools.partial(decoding.decode, thinker, serving.spec), donate_argnums=2)
        lowered = step.lower(params, lengths, state._replace(cache=cache), limit)
    text = config.text
    seen = serving.prompt + serving.spec.capacity
    row = 2 * (_layers(config) + text.hidden_size * text.vocab_size)
    row += 4 * text.num_layers * _attention_width(config) * seen
    table = math.prod((text.vocab_size, text.hidden_size)) * _WIDTH / mesh.shape["tensor"]
    return Traced(
        lowered,
        serving.rows * row,
        # A row of the embedding table is read, not the table, unless it is the head too.
        _bytes_on_chip(params) - (0 if text.tie_embeddings else table) + _bytes_on_chip(cache),
        f"{serving.rows} rows, {seen} positions of cache",
        beside=_beside(config, mesh, serving, params),
        open_loops=1,
    )


def trace_encode(config: ThinkerConfig, mesh: Mesh, serving: Serving) -> Traced:
    """The vision encoder over one group of frames."""
    thinker = Thinker(config, dtype=jnp.bfloat16, platform="tpu")
    params = _params(config, mesh, serving.weights, ("vision",))
    everywhere = NamedSharding(mesh, jax.P())
    merged = _PATCHES // config.vision.merge_size**2
    shapes = (
        ((_FRAMES, _PATCHES, config.vision.patch_dim), jnp.bfloat16),
        ((_FRAMES, _PATCHES, 2), jnp.int32),
        ((_FRAMES, _PATCHES), jnp.int32),
        ((_FRAMES, merged), jnp.int32),
        ((_FRAMES,), jnp.int32),
    )
    group = [jax.ShapeDtypeStruct(*one, sharding=everywhere) for one in shapes]
    with jax.set_mesh(mesh):
        encode = jax.jit(lambda p, *xs: thinker.apply({"params": p}, *xs, method="encode_vision"))
        lowered = encode.lower(params, *group)
    vision = config.vision
    width, tokens = vision.hidden_size, _FRAMES * _PATCHES
    flops = 2 * tokens * vision.depth * width * (4 * width + 3 * vision.intermediate_size)
    return Traced(
        lowered,
        flops,
        _bytes_on_chip(params),
        f"{_FRAMES} frames of {_PATCHES} patches",
        beside=_beside(config, mesh, serving, params),
    )


SERVING: dict[str, Callable[..., Traced]] = {
    "prefill": trace_prefill,
    "decode": trace_decode,
    "encode": trace_encode,
}


# ---------------------------------------------------------------------------- shapes


def _shaped(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _params(config, mesh, weights, towers):
    shapes = abstract_params(config, weights=weights)
    shardings = param_shardings(config, mesh, weights=weights)
    return {name: jax.tree.map(_shaped, shapes[name], shardings[name]) for name in towers}


def _serving(config: ThinkerConfig, mesh: Mesh, serving: Serving):
    """The thinker, abstract parameters and the inputs of prefill."""
    over = mesh.shape["data"] * mesh.shape["fsdp"]
    if serving.rows % over:
        raise InputError(f"{serving.rows} rows do not divide over data x fsdp = {over} chips")
    rows, s = serving.rows, serving.prompt
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    by_rows = NamedSharding(mesh, jax.P(BATCH_AXES))
    inputs = (
        jax.ShapeDtypeStruct((rows, s, config.text.hidden_size), jnp.bfloat16, sharding=by_rows),
        jax.ShapeDtypeStruct(
            (3, rows, s), jnp.int32, sharding=NamedSharding(mesh, jax.P(None, BATCH_AXES))
        ),
        jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_rows),
        jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_rows),
        _shaped(keys, by_rows),
    )
    thinker = Thinker(config, dtype=jnp.bfloat16, platform="tpu", weights=serving.weights)
    return thinker, _params(config, mesh, serving.weights, ("text",)), inputs


def _full_row(config: ThinkerConfig, options: Objective, shape: BatchShape) -> TrainBatch:
    """A row that fills its shape."""
    row = empty_batch(config, options.media, options.spec, 1, shape)

    def full(media):
        return media._replace(
            patch_lengths=np.full_like(media.patch_lengths, shape.patches),
            mel_lengths=np.full_like(media.mel_lengths, config.audio.chunk_frames),
        )

    return row._replace(
        lengths=np.full_like(row.lengths, shape.tokens),
        target_weights=np.ones_like(row.target_weights),
        prompt=full(row.prompt),
        segments=full(row.segments),
    )


# ---------------------------------------------------------------------------- arithmetic


def _bytes_on_chip(tree: Any) -> float:
    """Of abstract arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _beside(config: ThinkerConfig, mesh: Mesh, serving: Serving, params: Any) -> float:
    """Bytes on a chip of the towers that are not among the parameters of a program."""
    towers = ("text", "vision", "audio")
    return _bytes_on_chip(_params(config, mesh, serving.weights, towers)) - _bytes_on_chip(params)


def _layers(config: ThinkerConfig) -> int:
    """Weights of the decoder's matrices, which is half a position's FLOPs in them."""
    text = config.text
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    return text.num_layers * text.hidden_size * (heads + 3 * text.intermediate_size)


def _attention_width(config: ThinkerConfig) -> int:
    return config.text.num_heads * config.text.head_dim


def _row_share(mesh: Mesh, rows: int) -> float:
    return rows / (mesh.shape["data"] * mesh.shape["fsdp"])


def _activation_bytes(config: ThinkerConfig, mesh: Mesh, width: int = _WIDTH) -> float:
    """What a position's matrix products read and write in the decoder, on one chip."""
    text = config.text
    heads = (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    inner = (heads + 4 * text.intermediate_size) / mesh.shape["tensor"]
    return width * text.num_layers * (4 * text.hidden_size + inner)


def _step_traffic(
    config: ThinkerConfig, mesh: Mesh, t: Training, params: Any, passes: int
) -> float:
    """Gathered weights and the products' operands of every pass, and the optimiser's state.

    A pass reads the weights: forward, recomputed under remat "full", once for the gradient of its
    inputs and once for that of weights that train; activations likewise. The optimiser reads
    gradient, two moments and a master, and writes three of them.
    """
    model = t.run.raw.model
    width = jnp.dtype(model.dtype).itemsize
    trained, kept = split(params, t.run.frozen)
    behind = kept["text"] if model.lora_rank else {}  # gradients pass through it, to adapters
    sizes = [sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in (trained, kept)]
    behind = sum(math.prod(x.shape) for x in jax.tree.leaves(behind))
    passes += 3 if model.remat == "full" else 2
    weights = (passes + 1) * sizes[0] + passes * behind + (sizes[1] - behind)
    rows = _row_share(mesh, t.rows)
    moved = (passes + 1) * rows * t.shape.tokens * _activation_bytes(config, mesh, width)
    chips = mesh.shape["fsdp"] * mesh.shape["tensor"]
    return t.micro * (width * weights / mesh.shape["tensor"] + moved) + 7 * 4 * sizes[0] / chips
