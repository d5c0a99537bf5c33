"""The specs beside the weights of a model directory: read, checked against each other, written.

A ported directory keeps them in `latentomni.json`; a Hugging Face one in `config.json`,
`preprocessor_config.json` and, where we exported it, `latent_spec.json`.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import latentomni_jax
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec

FORMAT = 1
MANIFEST = "latentomni.json"
PARAMS = "params"
LATENT_SPEC = "latent_spec.json"
PREPROCESSOR = "preprocessor_config.json"


def read_specs(directory: str | pathlib.Path) -> tuple[ThinkerConfig, LatentSpec, MediaSpec]:
    """What `load_model` would return besides the parameters, without touching those.

    Raises:
      InputError: as `load_model`.
    """
    directory = local_path(directory)
    path = directory / MANIFEST
    if path.is_file():
        manifest = read_json(path)
        if manifest.get("format") != FORMAT:
            raise InputError(
                f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT}; "
                "port the checkpoint again, or update latentomni_jax"
            )
        specs = (
            _from_json(ThinkerConfig, manifest.get("thinker"), f"{path}: thinker"),
            _from_json(LatentSpec, manifest.get("latent"), f"{path}: latent"),
            _from_json(MediaSpec, manifest.get("media"), f"{path}: media"),
        )
    elif (directory / "config.json").is_file():
        specs = read_hf_specs(directory)
    else:
        raise no_model(directory)
    check_specs(*specs, directory)
    return specs


def read_latent_spec(path: str | pathlib.Path) -> LatentSpec:
    """From a JSON file; absent fields take their defaults, unknown ones are an `InputError`."""
    return _from_json(LatentSpec, read_json(local_path(path)), path)


def write_manifest(
    directory: pathlib.Path,
    config: ThinkerConfig,
    latent: LatentSpec,
    media: MediaSpec,
    dtypes: Iterable[str],
) -> None:
    """Writes `latentomni.json`; `dtypes` of all parameters, one each."""
    manifest = {
        "format": FORMAT,
        "thinker": dataclasses.asdict(config),
        "latent": dataclasses.asdict(latent),
        "media": dataclasses.asdict(media),
        "parameter_dtypes": dict(collections.Counter(dtypes)),  # how many parameters of each
        "versions": {"latentomni_jax": latentomni_jax.__version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "flax", "orbax-checkpoint")},
    }
    write_json(directory / MANIFEST, manifest)


def read_hf_specs(directory: pathlib.Path) -> tuple[ThinkerConfig, LatentSpec, MediaSpec]:
    """The specs of a Hugging Face directory; defaults where it has no file for them."""
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{path}: absent; expected a downloaded checkpoint with its config.json")
    try:
        config = ThinkerConfig.from_hf(read_json(path))
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path}: malformed ({error})") from None
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None
    latent = LatentSpec(ospe_base=config.text.rope_theta)
    if (path := directory / LATENT_SPEC).is_file():
        latent = read_latent_spec(path)
    media = MediaSpec()
    if (path := directory / PREPROCESSOR).is_file():
        media = MediaSpec.from_hf(read_json(path))
    return config, latent, media


def preprocessor_fields(media: MediaSpec) -> dict[str, Any]:
    """The inverse of `MediaSpec.from_hf`."""
    renamed = {
        "image_min_pixels": "min_pixels",
        "image_max_pixels": "max_pixels",
        "num_mel_bins": "feature_size",
    }
    fields = {renamed.get(name, name): value for name, value in dataclasses.asdict(media).items()}
    return fields | {
        "processor_class": "Qwen2_5OmniProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
    }


def check_specs(
    config: ThinkerConfig, latent: LatentSpec, media: MediaSpec, where: pathlib.Path
) -> None:
    """Refuses specs that contradict the config."""
    ids = {name: getattr(latent, name) for name in ("pad_id", "trigger_id", "stop_id")}
    if bad := {name: i for name, i in ids.items() if not 0 <= i < config.text.vocab_size}:
        raise InputError(
            f"{where}: latent spec ids {bad} are outside the vocabulary of "
            f"{config.text.vocab_size}; give a {LATENT_SPEC} with ids of unused tokens"
        )
    taken = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    taken = {value: name for name, value in taken.items() if name.endswith("_id")}
    if bad := {name: taken[i] for name, i in ids.items() if i in taken}:
        raise InputError(f"{where}: latent spec ids {bad} are special tokens of the thinker")
    vision = config.vision
    for name, ours, theirs in (
        ("patch_size", media.patch_size, vision.patch_size),
        ("temporal_patch_size", media.temporal_patch_size, vision.temporal_patch_size),
        ("merge_size", media.merge_size, vision.merge_size),
        ("num_mel_bins", media.num_mel_bins, config.audio.num_mel_bins),
    ):
        if ours != theirs:
            raise InputError(f"{where}: {name} is {ours} for the media, {theirs} in the thinker")


def no_model(directory: pathlib.Path) -> InputError:
    """The error that says what was looked for."""
    problem = "is no model directory" if directory.is_dir() else "there is no such directory"
    hint = ""
    if (left := partial_name(directory)).exists():
        hint = f"; an interrupted run left {left.name}: port again"
    return InputError(
        f"{directory}: {problem}; expected {MANIFEST} and {PARAMS}/ (ported) or config.json and "
        f"*.safetensors (Hugging Face){hint}"
    )


def partial_name(target: pathlib.Path) -> pathlib.Path:
    """The name of `target` while it is being written."""
    return target.with_name(target.name + ".partial")


def local_path(path: str | pathlib.Path) -> pathlib.Path:
    """Absolute path; an `InputError` for a bucket's address."""
    if "://" in str(path):
        raise InputError(f"{path}: expected a path of this machine; mount or download the bucket")
    return pathlib.Path(path).absolute()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file; `InputError` where there is none."""
    try:
        fields = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: holds a {type(fields).__name__}, expected a JSON object")
    return fields


def write_json(path: pathlib.Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=1))


def _from_json(kind: type, fields: Any, where: Any) -> Any:
    """A frozen dataclass of specs (nested ones, tuples) from what `asdict` and JSON made of it."""
    if not isinstance(fields, dict):
        raise InputError(f"{where}: absent or not a JSON object")
    defaults = kind()
    known = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(kind)}
    if unknown := sorted(set(fields) - set(known)):
        raise InputError(f"{where}: unknown fields {unknown}; known: {sorted(known)}")
    taken = {}
    for name, value in fields.items():
        kinds = (float, int) if isinstance(known[name], float) else type(known[name])
        if dataclasses.is_dataclass(known[name]):
            value = _from_json(kinds, value, f"{where}.{name}")
        value = tuple(value) if isinstance(value, list) else value
        if not isinstance(value, kinds):
            raise InputError(f"{where}: {name} is {value!r}, expected like {known[name]!r}")
        taken[name] = value
    try:
        return kind(**taken)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
