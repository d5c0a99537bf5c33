"""The training run: model, data, mesh and checkpoints put together, and the loop over steps."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import ml_collections

from data_pipeline.av_events.tiny import CACHE_OPTIONS, make_tiny_set
from data_pipeline.cache import TRAINING_SPEC, build_cache
from data_pipeline.records import Records
from latentomni_jax.backbone.layers import merge_lora
from latentomni_jax.backbone.sharding import param_shardings, validate_mesh
from latentomni_jax.latent.options import Objective
from latentomni_jax.layout import BatchShape, InputError, TrainBatch
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.train import metrics as writing
from latentomni_jax.train.checkpoints import Checkpoints
from latentomni_jax.train.config import Run, resolve, to_json
from latentomni_jax.train.data import Collator, Feed
from latentomni_jax.train.flops import peak, step_flops
from latentomni_jax.train.host import StopSignal, first_process_first, run_together
from latentomni_jax.train.mesh import make_mesh
from latentomni_jax.train.start import Start, abstract_start, find_start, load_params
from latentomni_jax.train.state import TrainState, merge, new_state, state_shardings
from latentomni_jax.train.step import Programs, abstract_batch, jit_step
from latentomni_jax.weights.checkpoint import save_model

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: steps taken. model: directory of the trained model, None if the run was interrupted.
      last: metrics of the last step.
    """

    step: int
    model: pathlib.Path | None
    last: dict[str, float]


class Trainer:
    """Everything of a run that is made once.

    Args:
      config: see `train.config.base`.
      workdir: checkpoints, metrics and the trained model go here.

    Raises:
      InputError: a config, model, data or mesh that do not fit together; before anything compiles.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path):
        self.run: Run = resolve(config)
        self.config, self.workdir = config, workdir
        workdir.mkdir(parents=True, exist_ok=True)
        cache = first_process_first("cache", lambda: _cache(config, workdir))
        self.records = Records(cache)
        model = config.model
        self.start: Start = first_process_first(
            "tokenizer",
            lambda: find_start(
                model.directory, model.preset, model.tokenizer, workdir, self._texts
            ),
        )
        self.spec = self.run.latent(self.start.latent)
        self.media = self.records.media_spec
        self.options: Objective = self.run.objective(self.spec, self.media)
        self.mesh = make_mesh(**config.mesh.to_dict())
        validate_mesh(self.start.config, self.mesh)
        rows = config.batch_size // config.accumulate
        over = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if rows % over:
            raise InputError(
                f"{rows} rows of a micro-batch do not divide over data x fsdp = {over} devices; "
                "change batch_size, accumulate or the mesh"
            )
        self.feed = Feed(
            self.run,
            Collator(self.start.config, self.media, self.spec, self.options.anchor_source),
            self.records,
            load_tokenizer(self.start.tokenizer_dir),
            self.mesh,
            workdir / "hosts" / f"{jax.process_index()}.rows.jsonl"
            if config.data.log_rows
            else None,
        )
        self.thinker = self.run.thinker(self.start.config)
        self.optimizer = self.run.optimizer.transformation()
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", self._identity(), **config.checkpoint.to_dict()
        )

    def train(self, on_step: Callable[[int], None] = lambda step: None) -> Result:
        """Runs or continues the run. SIGTERM and Ctrl-C save a checkpoint and end it.

        Args:
          on_step: called with the number of steps taken, after each.
        """
        steps, stop = self.run.optimizer.steps, StopSignal()
        with jax.set_mesh(self.mesh), stop:
            state, shardings, begin = self._state()
            step_fn = self._step(self.run, shardings)
            parts = self.config.accumulate
            named = f"{parts} x {self.config.batch_size // parts} rows of"  # for people
            shapes = {f"{named} {s}": s for s in self.feed.plan.shapes_of(begin, steps)}
            batches = {name: self._abstract(self.run, shape) for name, shape in shapes.items()}
            programs = Programs(step_fn, state, batches)
            late = writing.Late(self._writers(begin))
            kind = jax.devices()[0].device_kind
            per_second = peak(kind) and peak(kind) * self.mesh.size
            loss, step = None, begin
            try:
                memory = jax.local_devices()[0].memory_stats()  # None on CPU
                if memory and "bytes_limit" in memory:
                    programs.check(
                        memory["bytes_limit"],
                        lambda names: self._smaller(state, shardings, [shapes[n] for n in names]),
                    )
                for host, batch in self.feed.batches(begin, steps):
                    state, values = programs(state, batch)
                    rates = functools.partial(self._rates, host, per_second)
                    if done := late.push(step, values, rates):
                        loss = done["loss/total"]
                    self.checkpoints.save(state, step + 1, loss)
                    step += 1
                    on_step(step)
                    if stop.is_asked(step):
                        break
                last = late.flush() or {}
                self.checkpoints.save(state, step, last.get("loss/total", loss), force=True)
                self.checkpoints.wait()
                model = None
                if step >= steps:
                    model = self.workdir / "model"
                    if begin < steps or not model.is_dir():  # else there since it was finished
                        self._export(state, model)
            finally:
                programs.close()
                late.close()
                self.checkpoints.close()
        return Result(step, model, last)

    def describe(self) -> str:
        """What is going to be trained, on what, where; a few lines."""
        plan, kinds = self.feed.plan, ", ".join(f"{k} {n}" for k, n in self.mesh.shape.items())
        used = sum(plan.counts().values())
        return "\n".join(
            [
                f"model    {self.start.directory or 'from nothing'}, computed in "
                f"{self.thinker.dtype}; latents {self.spec.num_visual} + {self.spec.num_audio}, "
                f"mode {self.options.mode}, flow {self.spec.flow}",
                f"data     {used} of {len(self.records)} examples, {plan.steps_per_epoch} steps of "
                f"{plan.batch_size} rows an epoch, {len(plan.shapes)} shapes",
                f"run      {self.run.optimizer.steps} steps on {self.mesh.size} x "
                f"{jax.devices()[0].device_kind} ({kinds})",
            ]
        )

    # ------------------------------------------------------------------ details

    def _texts(self):
        for i in range(len(self.records)):
            trajectory = self.records.trajectory(i)
            yield from (
                text
                for text in (trajectory.question, trajectory.reasoning, trajectory.answer)
                if text
            )

    def _identity(self) -> dict[str, Any]:
        return {
            "config": to_json(self.config),
            "latent": dataclasses.asdict(self.spec),
            "thinker": json.loads(json.dumps(dataclasses.asdict(self.start.config))),
            "data": self.feed.identity(),
        }

    def _state(self) -> tuple[TrainState, TrainState, int]:
        """The state to begin with, restored or new; its shardings; its step."""
        model = self.config.model
        of_params = param_shardings(self.start.config, self.mesh, lora_rank=model.lora_rank)

        def begin(params):
            return new_state(params, self.run.frozen, self.optimizer, self.config.seed)

        options = {"dtype": self.thinker.dtype, "lora_rank": model.lora_rank}
        abstract = jax.eval_shape(begin, abstract_start(self.start, self.options, **options))
        shardings = state_shardings(abstract, of_params, self.mesh)
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        restored = self.checkpoints.restore(abstract)
        if restored is not None:
            state, step = restored
            _LOG.warning("continuing from step %d", step)
            return state, shardings, step
        params = load_params(self.start, self.options, self.mesh, seed=self.config.seed, **options)
        state = run_together("first state", begin, params, out_shardings=shardings)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, abstract)
        return state, shardings, 0

    def _step(self, run: Run, shardings: TrainState) -> Any:
        thinker = run.thinker(self.start.config)
        return jit_step(thinker, self.options, self.optimizer, self.mesh, shardings)

    def _abstract(self, run: Run, shape: BatchShape) -> TrainBatch:
        micro = run.raw.accumulate
        return abstract_batch(
            self.start.config, self.options, self.mesh,
            micro=micro, rows=run.raw.batch_size // micro, shape=shape,
        )  # fmt: skip

    def _smaller(
        self, state: TrainState, shardings: TrainState, shapes: list[BatchShape]
    ) -> Iterator[tuple[str, list[Any]]]:
        """See `Programs.check`."""
        for settings, run in self.run.smaller(self.mesh.shape["data"] * self.mesh.shape["fsdp"]):
            step = self._step(run, shardings)
            yield settings, [step.lower(state, self._abstract(run, shape)) for shape in shapes]

    def _writers(self, begin: int) -> list[writing.MetricWriter]:
        if jax.process_index():
            return []
        writers: list[writing.MetricWriter] = [
            writing.JsonLines(self.workdir / "metrics.jsonl", begin),
            writing.Terminal(begin, self.run.optimizer.steps),
        ]
        if self.config.log.tensorboard:
            writers.append(writing.TensorBoard(self.workdir / "tensorboard", begin))
        return writers

    def _rates(
        self, host: TrainBatch, per_second: float | None, seconds: float
    ) -> dict[str, float]:
        """Speed of a step; `host` is this process's part of the batch."""
        passes = self.options.extra_passes(host.triggers.shape[-1])
        adapters = self.config.model.lora_rank > 0
        flops = step_flops(self.start.config, host, self.options.frozen, passes, adapters)
        flops *= jax.process_count()
        rates = {
            "flops": flops,
            "tokens_per_s": float(host.lengths.sum()) * jax.process_count() / seconds,
        }
        if per_second:
            rates["mfu"] = flops / seconds / per_second
        return rates

    def _export(self, state: TrainState, target: pathlib.Path) -> None:
        """Writes the trained model as a directory that `latentomni answer --model` takes."""
        params = merge(state.params, state.frozen)
        params = {name: tree for name, tree in params.items() if name != "sync"}
        if self.config.model.lora_rank:
            params = merge_lora(params, self.config.model.lora_alpha)
        of_params = param_shardings(self.start.config, self.mesh)
        dtype = self.thinker.dtype
        cast = jax.jit(
            lambda p: jax.tree.map(lambda x: x.astype(dtype), p), out_shardings=of_params
        )
        has_blocks = any(shape.blocks for shape in self.run.shapes)
        spec = dataclasses.replace(self.spec, is_trained=self.spec.is_trained or has_blocks)
        save_model(
            cast(params), self.start.config, spec, self.media,
            self.start.tokenizer_dir, target, overwrite=True,
        )  # fmt: skip


def _cache(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """The run's feature cache; that of `data.tiny` is made in the work directory the first time."""
    if config.data.cache:
        return pathlib.Path(config.data.cache)
    if not config.data.tiny:
        raise InputError("config.data.cache is empty: make one with `latentomni data cache`")
    cache, source = workdir / "cache", workdir / "clips"
    if not (cache / "meta.json").exists():
        if not (source / "trajectories.jsonl").exists():
            shutil.rmtree(source, ignore_errors=True)
            make_tiny_set(source, seed=config.seed)
        spec = dataclasses.replace(TRAINING_SPEC, **CACHE_OPTIONS)
        build_cache(source / "trajectories.jsonl", cache, spec)
    return cache
