"""Experiment files: one ml_collections tree of every choice, and the typed configs made of it.

A file in `configs/` defines `get_config()` (or `get_config(name)` for `file.py:name`), which takes
`base()` and changes a few lines. `--set optimizer.learning_rate=3e-5` changes one more.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.latent.options import Objective
from latentomni_jax.layout import BatchShape, InputError, LatentSpec, MediaSpec
from latentomni_jax.train.state import OptimizerConfig

# With adapters only these train: adapters, the embedding and head that hold the new tokens, sync.
_LORA_FROZEN = ("audio/", r"text/layers/(?!.*lora_)", "text/norm/")


def base() -> ml_collections.ConfigDict:
    """Every field with its default: the paper's recipe, without model, data and shapes."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.batch_size = 96  # rows of an optimiser step, over the whole mesh
    c.accumulate = 1  # micro-batches that a step's rows are cut into
    # Static shapes (fields of layout.BatchShape), smallest first; a program is compiled for each.
    c.shapes = ()
    c.model = ml_collections.ConfigDict(
        {
            "directory": "",  # ported or Hugging Face directory; "" trains from nothing
            # The sizes: where there is no directory one of train.start.PRESETS is made of nothing.
            "preset": "tiny",
            "tokenizer": "",  # its tokenizer's directory; "" trains one on the run's own text
            "dtype": "bfloat16",  # of the computation; masters are float32
            "remat": "full",  # see backbone.layers.REMAT_POLICIES
            "frozen": ("vision/",),  # patterns of parameter paths that do not train
            "lora_rank": 0,  # > 0 trains adapters on the decoder's matrices, which are frozen
            "lora_alpha": 16.0,
        }
    )
    c.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # -1: the rest
    c.latent = _fields(
        LatentSpec, but=("pad_id", "trigger_id", "stop_id", "ospe_base", "is_trained")
    )
    c.objective = _fields(Objective, but=("spec", "media", "frozen"))
    c.optimizer = _fields(OptimizerConfig)
    c.data = ml_collections.ConfigDict(
        {
            "cache": "",  # made by `latentomni data cache`
            "tiny": False,  # no cache: draw 16 clips into the work directory and train on those
            "only": "",  # regular expression: train on those whose id matches it somewhere
            "reasoning": "latent",  # "text": Explicit Text CoT; "none": Vanilla SFT
            "on_misfit": "skip",  # an example that fits no shape: "skip" counts it, "fail" stops
            "workers": 0,  # processes that read and lay out batches
            "prefetch": 4,  # batches laid out ahead
            "log_rows": False,  # write which records a host reads in every step: WORKDIR/hosts
        }
    )
    c.checkpoint = ml_collections.ConfigDict({"every": 100, "keep": 2, "keep_best": 1})
    c.log = ml_collections.ConfigDict({"tensorboard": True})
    return c


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The typed parts of a config; made once, before anything heavy."""

    raw: ml_collections.ConfigDict
    shapes: tuple[BatchShape, ...]
    optimizer: OptimizerConfig

    def latent(self, base: LatentSpec) -> LatentSpec:
        """The model's spec with the run's choices."""
        return dataclasses.replace(base, **self.raw.latent.to_dict())

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of parameter paths that do not train; with adapters, all that they stand in
        for."""
        model = self.raw.model
        return tuple(dict.fromkeys((*model.frozen, *(_LORA_FROZEN if model.lora_rank else ()))))

    def objective(self, spec: LatentSpec, media: MediaSpec) -> Objective:
        """The objective; a tower counts as frozen where one of the patterns takes all of it."""
        towers = tuple(t for t in ("vision", "audio") if {t, f"{t}/"} & set(self.frozen))
        return Objective(spec=spec, media=media, frozen=towers, **self.raw.objective.to_dict())

    def thinker(self, config: ThinkerConfig, platform: str | None = None) -> Thinker:
        """The module that is trained. Args: platform: see `Thinker`."""
        model = self.raw.model
        return Thinker(
            config,
            dtype=jnp.dtype(model.dtype),
            platform=platform,
            remat_policy=model.remat,
            lora_rank=model.lora_rank,
            lora_alpha=model.lora_alpha,
        )

    def smaller(self, replicas: int) -> Iterator[tuple[str, Run]]:
        """The same run with less on a device at a time: in more micro-batches, then with remat
        "full"; the cheapest first, each with the settings that make it.

        Args:
          replicas: data x fsdp, over which a micro-batch's rows have to divide.
        """
        raw = self.raw
        for remat in dict.fromkeys((raw.model.remat, "full")):
            same = remat == raw.model.remat
            for parts in range(raw.accumulate + same, raw.batch_size // replicas + 1):
                if raw.batch_size % (parts * replicas):
                    continue
                settings = [f"accumulate={parts}"] if parts != raw.accumulate else []
                settings += [] if same else [f"model.remat={remat}"]
                yield (
                    " ".join(f"--set {one}" for one in settings),
                    resolve(apply(raw.copy_and_resolve_references(), settings)),
                )


def resolve(config: ml_collections.ConfigDict) -> Run:
    """Checks a config and makes its typed parts.

    Raises:
      InputError: names the field and what is legal.
    """
    if config.batch_size % config.accumulate:
        raise InputError(
            f"batch_size {config.batch_size} is no multiple of accumulate {config.accumulate}"
        )
    if not config.shapes:
        raise InputError("config.shapes is empty: give at least one BatchShape")
    if config.data.reasoning not in ("latent", "text", "none"):
        raise InputError(f"data.reasoning must be latent|text|none: {config.data.reasoning!r}")
    if config.data.on_misfit not in ("skip", "fail"):
        raise InputError(f"data.on_misfit must be skip or fail: {config.data.on_misfit!r}")
    try:
        shapes = tuple(BatchShape(**dict(shape)) for shape in config.shapes)
    except TypeError as error:
        raise InputError(f"config.shapes: {error}") from None
    return Run(raw=config, shapes=shapes, optimizer=OptimizerConfig(**config.optimizer.to_dict()))


def load(path: str, settings: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Runs an experiment file and applies `name=value` settings.

    Args:
      path: `configs/tiny.py`, or `configs/ablations.py:without_ospe` for files of several.

    Raises:
      InputError: no such file, name or field, or a value of another type.
    """
    file, _, name = path.partition(":")
    if not pathlib.Path(file).is_file():
        raise InputError(f"{file}: no such config file")
    module_spec = importlib.util.spec_from_file_location("latentomni_experiment", file)
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    # Files of one folder build on each other: `from configs.base_file import ...`.
    root = str(pathlib.Path(file).resolve().parents[1])
    sys.path.insert(0, root)
    try:
        module_spec.loader.exec_module(module)
    finally:
        sys.path.remove(root)
    if not hasattr(module, "get_config"):
        raise InputError(f"{file}: defines no get_config()")
    takes_name = bool(inspect.signature(module.get_config).parameters)
    if takes_name != bool(name):
        raise InputError(
            f"{file}: {'name one, as in ' if takes_name else 'takes no name: '}{file}"
            f"{':NAME' if takes_name else ''}"
        )
    config = module.get_config(name) if name else module.get_config()
    return apply(config, settings)


def apply(config: ml_collections.ConfigDict, settings: Sequence[str]) -> ml_collections.ConfigDict:
    """Changes fields of a config in place: `["optimizer.steps=100"]`. Errors as `load`."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"--set wants name=value, got {setting!r}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        _set(config, key, value)
    return config


def _set(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    *groups, name = key.split(".")
    group = config
    for part in groups:
        group = group.get(part) if isinstance(group, ml_collections.ConfigDict) else None
    if not isinstance(group, ml_collections.ConfigDict) or name not in group:
        near = difflib.get_close_matches(key, _names(config), n=1)
        hint = f"; do you mean {near[0]}?" if near else ""
        raise InputError(f"--set {key}: the config has no such field{hint}")
    try:
        group[name] = value
    except TypeError:
        kind = type(group[name]).__name__
        raise InputError(f"--set {key}={value!r}: expected {kind}, as {group[name]!r}") from None


def _names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        is_group = isinstance(value, ml_collections.ConfigDict)
        names += _names(value, f"{prefix}{name}.") if is_group else [f"{prefix}{name}"]
    return names


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Plain JSON values, for checkpoints and logs."""
    return json.loads(json.dumps(config.to_dict(), default=list))


def _fields(cls: type, but: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """A dataclass's fields and defaults as a config."""
    return ml_collections.ConfigDict(
        {f.name: f.default for f in dataclasses.fields(cls) if f.name not in but}
    )
