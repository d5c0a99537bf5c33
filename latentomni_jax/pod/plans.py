"""From a config and a topology to the programs that are to be certified."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from data_pipeline.cache import TRAINING_SPEC
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.types import Weights
from latentomni_jax.latent.decode import DecodeSpec
from latentomni_jax.layout import BatchShape, InputError, LatentSpec, MediaSpec
from latentomni_jax.pod.chips import Topology
from latentomni_jax.pod.programs import SERVING, Serving, Traced, Training, trace_step
from latentomni_jax.train.config import Run, load, resolve
from latentomni_jax.weights.specs import read_specs

PRESETS = ("qwen2_5_omni_7b", "qwen2_5_omni_3b", "small", "tiny")
_MAX_TENSOR = 4  # chips that a layer's matrices are cut over, at most


@dataclasses.dataclass(frozen=True)
class Plans:
    """A run on a topology."""

    run: Run
    config: ThinkerConfig
    latent: LatentSpec
    media: MediaSpec
    topology: Topology

    @classmethod
    def load(cls, path: str, settings: Sequence[str], topology: Topology) -> Plans:
        """Reads an experiment file.

        Raises:
          InputError: config, model or topology that do not fit together.
        """
        return cls.of(resolve(load(path, settings)), topology)

    @classmethod
    def of(cls, run: Run, topology: Topology) -> Plans:
        model = run.raw.model
        if model.directory:
            config, latent, media = read_specs(model.directory)
        elif model.preset in PRESETS:
            config = getattr(ThinkerConfig, model.preset)()
            latent, media = LatentSpec(), TRAINING_SPEC
        else:
            raise InputError(f"model.preset must be one of {PRESETS}: {model.preset!r}")
        return cls(run, config, run.latent(latent), media, topology)

    def describe(self) -> str:
        raw = self.run.raw
        return (
            f"{raw.model.directory or raw.model.preset} on {self.topology} "
            f"({self.topology.size} chips)"
        )

    def takes(self, tensor: int) -> bool:
        """Whether layers can be cut over so many chips."""
        return self.config.text.num_kv_heads % tensor == 0 and self.topology.size % tensor == 0

    def program(
        self,
        name: str,
        *,
        tokens: int | None = None,
        rows: int = 1,
        prompt: int = 8192,
        weights: Weights = None,
    ) -> tuple[Mesh, Callable[[], Traced]]:
        """The mesh of a program, and what traces it.

        Args:
          tokens: of the shape to train on; None is the longest. rows: of each replica that answers.
          weights: see `Thinker`; answering alone.

        Raises:
          InputError: what cannot be compiled, with what can.
        """
        if name == "train":
            if weights:
                raise InputError(
                    f"{weights} weights do not train; give --program prefill, decode or encode"
                )
            return self._training(tokens)
        tensor = max(n for n in range(1, _MAX_TENSOR + 1) if self.takes(n))
        mesh = self.topology.mesh(data=-1, fsdp=1, tensor=tensor)
        spec = DecodeSpec(spec=self.latent)
        rows *= mesh.shape["data"]
        serving = Serving(spec=spec, rows=rows, prompt=prompt, weights=weights)
        return mesh, functools.partial(SERVING[name], self.config, mesh, serving)

    def _training(self, tokens: int | None) -> tuple[Mesh, Callable[[], Traced]]:
        raw = self.run.raw
        mesh = self.topology.mesh(**raw.mesh.to_dict())
        rows, replicas = raw.batch_size // raw.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
        if rows % replicas:
            near = max(round(raw.batch_size / replicas), 1)
            raise InputError(
                f"{raw.batch_size} rows in {raw.accumulate} parts do not divide over "
                f"{replicas} replicas; nearest: --set batch_size={near * replicas} "
                f"--set accumulate={near}"
            )
        training = Training(
            run=self.run,
            options=self.run.objective(self.latent, self.media),
            shape=self._shape(tokens),
            rows=rows,
            micro=raw.accumulate,
        )
        return mesh, functools.partial(trace_step, self.config, mesh, training)

    def _shape(self, tokens: int | None) -> BatchShape:
        shapes = self.run.shapes
        found = [shape for shape in shapes if tokens in (None, shape.tokens)]
        if not found:
            lengths = sorted({shape.tokens for shape in shapes})
            raise InputError(f"no shape of {tokens} tokens; the config has {lengths}")
        return max(found)
