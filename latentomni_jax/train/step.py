"""One training step: gradients of the objective over micro-batches, one optimiser update.

Losses are sums divided by counts of the whole step, so micro-batches and devices simply add up and
the result does not depend on how a batch is cut.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from latentomni_jax.backbone.axes import BATCH_AXES
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Array
from latentomni_jax.latent.examples import empty_batch
from latentomni_jax.latent.objective import Counts, count, objective
from latentomni_jax.latent.options import Objective
from latentomni_jax.layout import BatchShape, InputError, RowMedia, TrainBatch
from latentomni_jax.train.host import wait_for_all
from latentomni_jax.train.state import TrainState, merge

Metrics = dict[str, Array]


def make_step(
    thinker: Thinker,
    options: Objective,
    optimizer: optax.GradientTransformation,
    shardings: Any = None,
) -> Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]:
    """The step as a pure function, to be jitted with the state donated.

    Args:
      shardings: of `TrainState.params`; gradients are pinned to them (left to itself XLA gathers
        them over fsdp).

    Returns:
      step(state, batch) -> state, metrics. The batch's leaves have a leading axis of micro-batches.
    """

    def cast(params):
        # Once, while still sharded, so that what is gathered is of the computation's width.
        towers = {name: tree for name, tree in params.items() if name != "sync"}
        cast = jax.tree.map(lambda x: x.astype(thinker.dtype), towers)
        return {**params, **cast}

    def gradients(state: TrainState, counts: Counts, batch: TrainBatch, key: Array):
        def loss(trained):
            params = cast(merge(trained, state.frozen))
            return objective(thinker, options, params, batch, counts, key)

        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        if shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, shardings)
        return grads, metrics

    def step(state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
        micro = batch.token_ids.shape[0]
        counts = jax.tree.map(jnp.sum, jax.vmap(lambda one: count(options.spec, one))(batch))
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), micro)
        if micro == 1:
            one = jax.tree.map(lambda x: x[0], batch)
            grads, metrics = gradients(state, counts, one, keys[0])
        else:

            def add(total, xs):
                return jax.tree.map(jnp.add, total, gradients(state, counts, *xs)), None

            first = jax.tree.map(lambda x: x[0], (batch, keys))
            shapes = jax.eval_shape(lambda: gradients(state, counts, *first))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (grads, metrics), _ = jax.lax.scan(add, zeros, (batch, keys))

        norm = optax.global_norm(grads)
        is_finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss/total"])
        updates, new_optimizer = optimizer.update(grads, state.optimizer, state.params)
        new_params = optax.apply_updates(state.params, updates)

        def unless_broken(new, old):
            return jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, old)

        skipped = state.skipped + ~is_finite
        metrics = metrics | {
            "gradient_norm": norm,
            "temperature": jnp.exp(-merge(state.params, state.frozen)["sync"]["log_scale"]),
            "skipped_steps": skipped,
            "tokens": jnp.sum(batch.lengths),
            "targets": counts.targets,
            "blocks": counts.blocks,
        }
        return state._replace(
            step=state.step + 1,
            params=unless_broken(new_params, state.params),
            optimizer=unless_broken(new_optimizer, state.optimizer),
            skipped=skipped,
        ), metrics

    return step


class Programs:
    """The jitted step compiled for every batch shape of a run, each before it is needed.

    XLA compiles outside of Python's lock: other cores compile while the first shape's steps run.
    """

    def __init__(self, step: Any, state: TrainState, batches: Mapping[str, TrainBatch]):
        """Traces the step for all batches (abstract ones) and begins to compile.

        Args:
          batches: with names for people, in the order in which they are needed.
        """
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "compile")
        self._names = {_shapes(batch): name for name, batch in batches.items()}
        self._begun: set[Any] = set()
        self._compiled = {
            _shapes(batch): self._pool.submit(step.lower(state, batch).compile)
            for batch in batches.values()
        }

    def check(
        self, limit: int, smaller: Callable[[list[str]], Iterable[tuple[str, list[Any]]]]
    ) -> None:
        """Waits for all programs.

        Args:
          limit: bytes that a device has.
          smaller: of the names of batches that are too large: settings with which less is on a
            device, and the steps of those batches, lowered. Asked only where something is.

        Raises:
          InputError: one needs more; it names the batch, what it needs and the first of `smaller`
            that fits.
        """
        needs = {shapes: _need(future.result) for shapes, future in self._compiled.items()}
        large = {shapes: need for shapes, need in needs.items() if need > limit}
        if not large:
            return
        largest = max(large, key=large.__getitem__)
        need = large[largest]
        told = (
            f"needs {need / 2**30:.2f} GiB of a device that has {limit / 2**30:.2f}"
            if math.isfinite(need)
            else f"does not fit a device of {limit / 2**30:.2f} GiB"
        )
        fitting = (
            settings
            for settings, steps in smaller([self._names[shapes] for shapes in large])
            if all(_need(step.compile) <= limit for step in steps)
        )
        hint = next(fitting, None)
        hint = f"what fits: {hint}" if hint else "take more devices, or a tensor axis (mesh.tensor)"
        raise InputError(f"a step of {self._names[largest]} {told}; {hint}")

    def __call__(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
        """Waits for the batch's program, on all processes, where it is not ready."""
        shapes = _shapes(batch)
        program = self._compiled[shapes].result()
        if shapes not in self._begun:
            wait_for_all(f"compiled: {self._names[shapes]}")
            self._begun.add(shapes)
        return program(state, batch)

    def close(self) -> None:
        """Begins no further program."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _need(compile: Callable[[], Any]) -> float:
    """Bytes on a device of what is compiled; infinite where the compiler refuses for memory."""
    try:
        return compile().memory_analysis().peak_memory_in_bytes
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def _shapes(batch: TrainBatch) -> tuple[tuple[int, ...], ...]:
    return tuple(x.shape for x in jax.tree.leaves(batch))


def abstract_batch(
    config: ThinkerConfig,
    options: Objective,
    mesh: Mesh,
    *,
    micro: int,
    rows: int,
    shape: BatchShape,
) -> TrainBatch:
    """Shapes, dtypes and shardings of `micro` times `rows` rows, over all processes."""
    one = empty_batch(config, options.media, options.spec, 1, shape)

    def many(x, axis):
        return jax.ShapeDtypeStruct((micro, *x.shape[:axis], rows, *x.shape[axis + 1 :]), x.dtype)

    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        one.map_rows(many),
        batch_shardings(mesh),
    )


def batch_shardings(mesh: Mesh) -> TrainBatch:
    """Rows over data and fsdp; the leading axis is micro-batches, `position_ids` has its own."""
    rows = NamedSharding(mesh, jax.P(None, BATCH_AXES))
    media = RowMedia(*(rows for _ in RowMedia._fields))
    batch = TrainBatch(*(rows for _ in TrainBatch._fields))._replace(prompt=media, segments=media)
    return batch._replace(position_ids=NamedSharding(mesh, jax.P(None, None, BATCH_AXES)))


def jit_step(
    thinker: Thinker,
    options: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
) -> Any:
    """The compiled step on a mesh; call and lower it under `jax.set_mesh(mesh)`."""
    return jax.jit(
        make_step(thinker, options, optimizer, shardings.params),
        in_shardings=(shardings, batch_shardings(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, jax.P())),
        donate_argnums=0,
    )
