"""Self-contained model directories: write them (port, save_model) and read them (load_model).

    DIR/latentomni.json   format version, thinker config, latent and media specs, versions
    DIR/params/           Orbax checkpoint of the parameters, layers stacked [L, ...]
    DIR/config.json, tokenizer.json, ...   small text files copied from the source

A directory is written under the name `DIR.partial` and renamed when complete.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import tqdm
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

import latentomni_jax
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import abstract_params
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec
from latentomni_jax.weights import names, safetensors

FORMAT = 1
MANIFEST = "latentomni.json"
PARAMS = "params"
LATENT_SPEC = "latent_spec.json"
PREPROCESSOR = "preprocessor_config.json"
# The text files that travel with a model; nothing else of a source directory is copied.
TEXT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    PREPROCESSOR,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_MAX_TEXT_BYTES = 64 << 20
_GROUP_BYTES = 256 << 20  # small parameters are written together
# A process reads whole chunks: small enough that a shard of a parameter costs little more than
# itself, large enough that 7B is a thousand of them.
_CHUNK_BYTES = 16 << 20
_SHARD_BYTES = 2 << 30  # of an exported safetensors file
_READ_BYTES = 1 << 30  # in flight on load, on top of the largest parameter


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Parameters `{"text", "vision", "audio"}` and all that is needed to run them.

    Attributes:
      directory: where it was loaded from; tokenizer files are looked for there.
    """

    params: dict[str, Any]
    config: ThinkerConfig
    latent: LatentSpec
    media: MediaSpec
    directory: pathlib.Path


def port(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    *,
    latent_spec: LatentSpec | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, int]:
    """Converts a Hugging Face directory, one parameter in memory at a time.

    Args:
      latent_spec: instead of the source's `latent_spec.json` or the defaults.
      overwrite: replace a `target` that is not empty (only once the new one is complete).
      progress: bar on stderr.

    Returns:
      Counts: parameters, tensors, skipped (talker and vocoder), bytes.

    Raises:
      InputError: unusable source, specs that do not fit it, or a target that is in the way.
    """
    source, target = _path(source), _path(target)
    if jax.process_count() > 1:
        raise InputError("port runs in one process; on a pod, load_model reads HF directories")
    if source.resolve() == target.resolve():
        raise InputError(f"{target}: is the source itself; port to another directory")
    config, latent, media = _read_hf_specs(source)
    latent = latent_spec or latent
    _check_specs(config, latent, media, source)
    reader = safetensors.CheckpointReader(source)
    counts = safetensors.check(config, reader.tensors) | {"skipped": reader.skipped}
    dtypes = {
        entry.path: safetensors.DTYPES[reader.tensors[entry.names[0]][0]]
        for entry in names.entries(config)
    }
    sizes = {
        path: leaf.size * jax.numpy.dtype(dtypes[path]).itemsize
        for path, leaf in safetensors.flatten(abstract_params(config)).items()
    }

    def leaves() -> Iterator[tuple[str, jax.Array]]:
        bar = tqdm.tqdm(
            total=sum(sizes.values()),
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            disable=not progress,
        )
        with bar:
            for path, leaf in safetensors.load(source, config, _host_sharding()):
                yield path, leaf
                del leaf  # before the next one is assembled
                bar.update(sizes[path])

    with _complete(target, overwrite) as partial:
        _write_params(leaves(), partial / PARAMS)
        _copy_text_files(source, partial, ("config.json", *TEXT_FILES))
        _write_manifest(partial, config, latent, media, dtypes.values())
    return counts | {"bytes": sum(sizes.values())}


def save_model(
    params: Any,
    config: ThinkerConfig,
    latent_spec: LatentSpec,
    media_spec: MediaSpec,
    tokenizer_dir: str | pathlib.Path | None,
    target: str | pathlib.Path,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a model, for instance a trained one, as a directory `load_model` reads.

    On a pod every process calls this; each writes its own shards.

    Args:
      params: nested dict of `jax.Array`; dtypes are kept.
      tokenizer_dir: where tokenizer and preprocessor files are copied from; None copies none.

    Raises:
      InputError: parameters or specs do not fit the config, or a target that is in the way.
    """
    target = _path(target)
    flat = safetensors.flatten(params)
    _check_specs(config, latent_spec, media_spec, target)
    _check_shapes(config, {path: tuple(leaf.shape) for path, leaf in flat.items()}, "params")
    if tokenizer_dir is not None and not _path(tokenizer_dir).is_dir():
        raise InputError(f"{tokenizer_dir}: no such directory to copy the tokenizer from")
    with _complete(target, overwrite) as partial:
        _write_params(flat.items(), partial / PARAMS)
        if jax.process_index() == 0:
            _write_json(partial / "config.json", config.to_hf())
            if tokenizer_dir is not None:
                _copy_text_files(_path(tokenizer_dir), partial, TEXT_FILES)
            dtypes = [str(leaf.dtype) for leaf in flat.values()]
            _write_manifest(partial, config, latent_spec, media_spec, dtypes)


def export(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    *,
    thinker_only: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Writes a model directory as a Hugging Face one, bits of the weights unchanged.

    Args:
      thinker_only: tensors and `config.json` of the thinker class alone, without `thinker.`.

    Returns:
      The tensor names written.

    Raises:
      InputError: see `load_model`; a target that is in the way.
    """
    source, target = _path(source), _path(target)
    if source.resolve() == target.resolve():
        raise InputError(f"{target}: is the source itself; export to another directory")
    with _complete(target, overwrite) as partial:
        model = load_model(source, shardings=_host_sharding())
        prefix = "" if thinker_only else names.PREFIX
        written = safetensors.save(
            model.params, model.config, partial, max_shard_bytes=_SHARD_BYTES, prefix=prefix
        )
        config = model.config.to_hf()
        if not thinker_only:
            config = {
                "architectures": ["Qwen2_5OmniForConditionalGeneration"],
                "model_type": "qwen2_5_omni",
                "enable_audio_output": False,  # there is no talker in these files
                "thinker_config": config,
            }
        _copy_text_files(source, partial, TEXT_FILES)
        _write_json(partial / "config.json", config)
        _write_json(partial / LATENT_SPEC, dataclasses.asdict(model.latent))
        path = partial / PREPROCESSOR
        known = read_json(path) if path.exists() else {}
        if not known or MediaSpec.from_hf(known) != model.media:
            _write_json(path, known | _preprocessor_fields(model.media))
    return written


def load_model(directory: str | pathlib.Path, *, shardings: Any = None, dtype: Any = None) -> Model:
    """Loads a ported directory, or a Hugging Face one as it was downloaded.

    Every process reads only what its own shards need: byte ranges of the safetensors files, or
    the Orbax chunks that overlap them.

    Args:
      shardings: tree like the parameters of `jax.sharding.Sharding`, or one for all; None is the
        first local device.
      dtype: cast parameters to this; None keeps what is stored (bf16 stays bf16).

    Raises:
      InputError: no such directory, neither kind, or contents that contradict each other.
    """
    directory = _path(directory)
    if (directory / MANIFEST).is_file():
        return _load_ported(directory, shardings, dtype)
    if (directory / "config.json").is_file() and any(directory.glob("*.safetensors*")):
        config, latent, media = _read_hf_specs(directory)
        _check_specs(config, latent, media, directory)
        leaves = dict(safetensors.load(directory, config, shardings, dtype=dtype))
        return Model(safetensors.unflatten(leaves), config, latent, media, directory)
    problem = "is no model directory" if directory.is_dir() else "there is no such directory"
    hint = ""
    if _partial(directory).exists():
        hint = f"; an interrupted run left {_partial(directory).name}, port again"
    raise InputError(
        f"{directory}: {problem}; expected {MANIFEST} and {PARAMS}/ (ported) or config.json and "
        f"*.safetensors (Hugging Face){hint}"
    )


def read_specs(directory: str | pathlib.Path) -> tuple[ThinkerConfig, LatentSpec, MediaSpec]:
    """What `load_model` would return besides the parameters, without touching those.

    Raises:
      InputError: as `load_model`.
    """
    directory = _path(directory)
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
    else:
        specs = _read_hf_specs(directory)
    _check_specs(*specs, directory)
    return specs


def read_latent_spec(path: str | pathlib.Path) -> LatentSpec:
    """From a JSON file; absent fields take their defaults, unknown ones are an `InputError`."""
    return _from_json(LatentSpec, read_json(_path(path)), path)


def _load_ported(directory: pathlib.Path, shardings: Any, dtype: Any) -> Model:
    config, latent, media = read_specs(directory)
    path = directory / PARAMS
    try:
        stored = safetensors.flatten(ocp.metadata(path).metadata)
    except Exception as error:  # whatever Orbax meets in a damaged directory
        raise InputError(f"{path}: no readable Orbax checkpoint ({_first_line(error)})") from error
    _check_shapes(config, {name: tuple(leaf.shape) for name, leaf in stored.items()}, path)
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    flat_shardings = (
        dict.fromkeys(stored, shardings)
        if isinstance(shardings, jax.sharding.Sharding)
        else safetensors.flatten(shardings)
    )
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=flat_shardings[name])
        for name, leaf in stored.items()
    }
    # Orbax reads everything at once unless told otherwise; one parameter must always fit.
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in stored.values())
    context = ocp.Context()
    context.memory.read_concurrent_bytes = largest + _READ_BYTES
    try:
        with context:
            params = ocp.load(path, safetensors.unflatten(abstract))
    except jax.errors.JaxRuntimeError:  # out of device memory: not the file's fault
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)})") from error
    return Model(params, config, latent, media, directory)


def _write_params(leaves: Iterable[tuple[str, jax.Array]], path: pathlib.Path) -> None:
    """Streams parameters into one Orbax checkpoint, holding one large one or a group at a time."""
    context = ocp.Context()
    saving = context.array.saving
    # Compressing bf16 weights gains little, and the encoded copy doubles the memory needed.
    saving.use_compression = False
    saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    saving.enable_write_sharding_file = False  # readers say how they want it sharded
    with context:
        group: dict[str, jax.Array] = {}
        size = 0
        for name, leaf in leaves:
            group[name] = leaf
            size += leaf.nbytes
            del leaf  # or it would live on while the next one is assembled
            if size >= _GROUP_BYTES:
                ocp.partial.save(path, safetensors.unflatten(group))
                group, size = {}, 0
        if group:
            ocp.partial.save(path, safetensors.unflatten(group))
        ocp.partial.finalize(path)


def _write_manifest(
    directory: pathlib.Path,
    config: ThinkerConfig,
    latent: LatentSpec,
    media: MediaSpec,
    dtypes: Iterable[str],
) -> None:
    manifest = {
        "format": FORMAT,
        "thinker": dataclasses.asdict(config),
        "latent": dataclasses.asdict(latent),
        "media": dataclasses.asdict(media),
        "parameter_dtypes": dict(collections.Counter(dtypes)),  # how many parameters of each
        "versions": {"latentomni_jax": latentomni_jax.__version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "flax", "orbax-checkpoint")},
    }
    _write_json(directory / MANIFEST, manifest)


def _read_hf_specs(directory: pathlib.Path) -> tuple[ThinkerConfig, LatentSpec, MediaSpec]:
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


def _preprocessor_fields(media: MediaSpec) -> dict[str, Any]:
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


def _check_specs(
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


def _check_shapes(config: ThinkerConfig, shapes: dict[str, tuple], where: Any) -> None:
    expected = {
        name: leaf.shape for name, leaf in safetensors.flatten(abstract_params(config)).items()
    }
    problems = [
        f"{name} is {shapes.get(name, 'absent')}, expected {expected.get(name, 'none')}"
        for name in sorted(set(expected) | set(shapes))
        if shapes.get(name) != expected.get(name)
    ]
    if problems:
        raise InputError(
            f"{where}: {len(problems)} parameters do not fit the config: {'; '.join(problems[:5])}"
        )


@contextlib.contextmanager
def _complete(target: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """A fresh directory beside `target` that takes its name when the block succeeds.

    With many processes all enter; process 0 makes and renames, all on one file system.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, expected a directory to write")
    if not overwrite and target.exists() and any(target.iterdir()):
        raise InputError(f"{target}: is not empty; choose another directory or pass --overwrite")
    partial = _partial(target)
    _barrier(f"latentomni checked {target}")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier(f"latentomni made {partial}")
    yield partial
    _barrier(f"latentomni wrote {partial}")
    if jax.process_index() == 0:
        replaced = target.with_name(target.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    _barrier(f"latentomni completed {target}")


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _partial(target: pathlib.Path) -> pathlib.Path:
    return target.with_name(target.name + ".partial")


def _copy_text_files(source: pathlib.Path, target: pathlib.Path, allowed: Iterable[str]) -> None:
    for name in allowed:
        if (path := source / name).is_file():
            if path.stat().st_size > _MAX_TEXT_BYTES:
                raise InputError(f"{path}: {path.stat().st_size} bytes is no text file of a model")
            shutil.copyfile(path, target / name)


def _host_sharding() -> jax.sharding.Sharding:
    """Host memory where there is a CPU backend, so that porting needs no room on an accelerator."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = jax.local_devices()[0]
    return jax.sharding.SingleDeviceSharding(device)


def _path(path: str | pathlib.Path) -> pathlib.Path:
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


def _write_json(path: pathlib.Path, fields: dict[str, Any]) -> None:
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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
