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
from latentomni_jax.pod.traffic import (
    WIDTH,
    activation_bytes,
    attention_width,
    bytes_on_chip,
    matrix_weights,
    row_share,
    step_traffic,
)
from latentomni_jax.train.config import Run
from latentomni_jax.train.flops import audio_flops, step_flops, vision_flops
from latentomni_jax.train.state import new_state, state_shardings
from latentomni_jax.train.step import BATCH_AXES, abstract_batch, jit_step

_FRAMES, _PATCHES, _CHUNKS = 8, 640, 8  # of a call of the encoders, see latent.trajectory


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
        step_traffic(config, mesh, t.run, params, t.rows, t.micro, t.shape.tokens, passes),
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
    flops = rows * (
        2 * s * matrix_weights(config) + 2 * text.num_layers * attention_width(config) * s**2
    )
    return Traced(
        lowered,
        flops + 2 * rows * text.hidden_size * text.vocab_size,
        bytes_on_chip(params) + s * row_share(mesh, rows) * activation_bytes(config, mesh),
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
    row = 2 * (matrix_weights(config) + text.hidden_size * text.vocab_size)
    row += 4 * text.num_layers * attention_width(config) * seen
    table = math.prod((text.vocab_size, text.hidden_size)) * WIDTH / mesh.shape["tensor"]
    return Traced(
        lowered,
        serving.rows * row,
        # A row of the embedding table is read, not the table, unless it is the head too.
        bytes_on_chip(params) - (0 if text.tie_embeddings else table) + bytes_on_chip(cache),
        f"{serving.rows} rows, {seen} positions of cache",
        beside=_beside(config, mesh, serving, params),
        open_loops=1,
    )


def trace_encode(config: ThinkerConfig, mesh: Mesh, serving: Serving) -> Traced:
    """Both encoders, over a group of frames and one of chunks of sound."""
    thinker = Thinker(config, dtype=jnp.bfloat16, platform="tpu")
    params = _params(config, mesh, serving.weights, ("vision", "audio"))
    vision, audio = config.vision, config.audio
    everywhere = NamedSharding(mesh, jax.P())

    def given(*shape, dtype: Any = jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    frames = (
        given(_FRAMES, _PATCHES, vision.patch_dim, dtype=jnp.bfloat16),
        given(_FRAMES, _PATCHES, 2),
        given(_FRAMES, _PATCHES),
        given(_FRAMES, _PATCHES // vision.merge_size**2),
        given(_FRAMES),
    )
    sound = (
        given(_CHUNKS, audio.chunk_frames, audio.num_mel_bins, dtype=jnp.float32),
        given(_CHUNKS),
    )

    def encode(params, frames, sound):
        seen = thinker.apply({"params": params}, *frames, method="encode_vision")
        return seen, thinker.apply({"params": params}, *sound, method="encode_audio")

    with jax.set_mesh(mesh):
        lowered = jax.jit(encode).lower(params, frames, sound)
    return Traced(
        lowered,
        vision_flops(vision, np.full(_FRAMES, _PATCHES))
        + audio_flops(audio, np.full(_CHUNKS, audio.chunk_frames)),
        bytes_on_chip(params),
        f"{_FRAMES} frames of {_PATCHES} patches, {_CHUNKS} chunks of sound",
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


def _beside(config: ThinkerConfig, mesh: Mesh, serving: Serving, params: Any) -> float:
    """Bytes on a chip of the towers that are not among the parameters of a program."""
    towers = ("text", "vision", "audio")
    return bytes_on_chip(_params(config, mesh, serving.weights, towers)) - bytes_on_chip(params)
