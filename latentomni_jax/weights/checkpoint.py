"""Self-contained model directories: write them (port, save_model) and read them (load_model).

    DIR/latentomni.json   format version, thinker config, latent and media specs, versions
    DIR/params/           Orbax checkpoint of the parameters, layers stacked [L, ...]
    DIR/config.json, tokenizer.json, ...   small text files copied from the source

A directory is written under the name `DIR.partial` and renamed when complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.types import Weights
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec
from latentomni_jax.weights import names, quantize, safetensors, specs
from latentomni_jax.weights.specs import read_specs

# The text files that travel with a model; nothing else of a source directory is copied.
TEXT_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    specs.PREPROCESSOR,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_MAX_TEXT_BYTES = 64 << 20
_GROUP_BYTES = 256 << 20  # small parameters are written together
# A process reads whole chunks: small enough that a shard of a parameter costs little more than
# itself. Buffers of more than 32 MiB go back to the system when freed (glibc), smaller ones stay.
_CHUNK_BYTES = 64 << 20
_SHARD_BYTES = 1 << 30  # of an exported safetensors file


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
    source, target = specs.local_path(source), specs.local_path(target)
    if jax.process_count() > 1:
        raise InputError("port runs in one process; on a pod, load_model reads HF directories")
    if source.resolve() == target.resolve():
        raise InputError(f"{target}: is the source itself; port to another directory")
    config, latent, media = specs.read_hf_specs(source)
    latent = latent_spec or latent
    specs.check_specs(config, latent, media, source)
    reader = safetensors.CheckpointReader(source)
    counts = safetensors.check(config, reader.tensors) | {"skipped": reader.skipped}
    dtypes = {
        entry.path: safetensors.DTYPES[reader.tensors[entry.names[0]][0]]
        for entry in names.entries(config)
    }
    sizes = {
        path: math.prod(shape) * jax.numpy.dtype(dtypes[path]).itemsize
        for path, shape in safetensors.parameter_shapes(config).items()
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
        _write_params(leaves(), partial / specs.PARAMS)
        _copy_text_files(source, partial, ("config.json", *TEXT_FILES))
        specs.write_manifest(partial, config, latent, media, dtypes.values())
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
      InputError: parameters or specs do not fit the config, int8 weights, or a target that is in
        the way.
    """
    quantize.check_writable(params)
    target = specs.local_path(target)
    flat = safetensors.flatten(params)
    specs.check_specs(config, latent_spec, media_spec, target)
    _check_shapes(config, {path: tuple(leaf.shape) for path, leaf in flat.items()}, "params")
    if tokenizer_dir is not None and not specs.local_path(tokenizer_dir).is_dir():
        raise InputError(f"{tokenizer_dir}: no such directory to copy the tokenizer from")
    with _complete(target, overwrite) as partial:
        _write_params(flat.items(), partial / specs.PARAMS)
        if jax.process_index() == 0:
            specs.write_json(partial / "config.json", config.to_hf())
            if tokenizer_dir is not None:
                _copy_text_files(specs.local_path(tokenizer_dir), partial, TEXT_FILES)
            dtypes = [str(leaf.dtype) for leaf in flat.values()]
            specs.write_manifest(partial, config, latent_spec, media_spec, dtypes)


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
    source, target = specs.local_path(source), specs.local_path(target)
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
        specs.write_json(partial / "config.json", config)
        specs.write_json(partial / specs.LATENT_SPEC, dataclasses.asdict(model.latent))
        path = partial / specs.PREPROCESSOR
        known = specs.read_json(path) if path.exists() else {}
        if not known or MediaSpec.from_hf(known) != model.media:
            specs.write_json(path, known | specs.preprocessor_fields(model.media))
    return written


def load_model(
    directory: str | pathlib.Path,
    *,
    shardings: Any = None,
    dtype: Any = None,
    weights: Weights = None,
) -> Model:
    """Loads a ported directory, or a Hugging Face one as it was downloaded.

    Every process reads only what its own shards need: byte ranges of the safetensors files, or
    the Orbax chunks that overlap them.

    Args:
      shardings: tree like the parameters of `jax.sharding.Sharding`, or one for all; None is the
        first local device.
      dtype: cast parameters to this; None keeps what is stored (bf16 stays bf16).
      weights: "int8" quantises on the host what is stored, so that devices get nothing wider:
        matrix by matrix, of a ported directory stack by stack (at most 3.8 GB at 7B, whole in
        every process). `shardings` are then those of int8 parameters.

    Raises:
      InputError: no such directory, neither kind, contents that contradict each other, or weights
        that cannot be quantised.
    """
    directory = specs.local_path(directory)
    if (directory / specs.MANIFEST).is_file():
        return _load_ported(directory, shardings, dtype, weights)
    if (directory / "config.json").is_file() and any(directory.glob("*.safetensors*")):
        config, latent, media = specs.read_hf_specs(directory)
        specs.check_specs(config, latent, media, directory)
        leaves = dict(safetensors.load(directory, config, shardings, dtype=dtype, weights=weights))
        return Model(safetensors.unflatten(leaves), config, latent, media, directory)
    raise specs.no_model(directory)


def _load_ported(directory: pathlib.Path, shardings: Any, dtype: Any, weights: Weights) -> Model:
    config, latent, media = read_specs(directory)
    path = directory / specs.PARAMS
    try:
        tree = ocp.metadata(path).metadata
    except Exception as error:  # whatever Orbax meets in a damaged directory
        raise InputError(f"{path}: no readable Orbax checkpoint ({_first_line(error)})") from error
    if tree is None:  # Orbax's answer, with a warning, where files of the checkpoint are damaged
        raise InputError(f"{path}: no readable Orbax checkpoint; port or copy it again")
    stored = safetensors.flatten(tree)
    _check_shapes(config, {name: tuple(leaf.shape) for name, leaf in stored.items()}, path)
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    flat_shardings = {}
    if not isinstance(shardings, jax.sharding.Sharding):
        flat_shardings = safetensors.flatten(shardings)
    quantized = {name for name in stored if weights == "int8" and quantize.is_quantized(name)}

    def sharding_of(name):
        return flat_shardings[name] if flat_shardings else shardings

    def abstract(name):
        leaf = stored[name]
        if name in quantized:  # an array of NumPy's, which takes no memory, asks Orbax for one
            return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding_of(name))

    def parameters(name, leaf):
        if name not in quantized:
            return {name: leaf}
        made = zip(quantize.int8_paths(name), quantize.quantize_kernel(leaf, name), strict=True)
        return {
            path: jax.make_array_from_callback(x.shape, sharding_of(path), x.__getitem__)
            for path, x in made
        }

    # Orbax holds what it reads twice on a CPU: the largest first, while there is room, and in
    # groups, not all at once.
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    by_size = sorted(stored, key=lambda name: -_num_bytes(stored[name]))
    params: dict[str, Any] = {}
    try:
        with context:
            for group in _groups(by_size, lambda name: _num_bytes(stored[name])):
                part = safetensors.unflatten({name: abstract(name) for name in group})
                loaded = safetensors.flatten(ocp.load(path, part))
                for name in group:
                    params |= parameters(name, loaded.pop(name))
                # Transfers run on in the background and would keep the host's copies alive.
                jax.block_until_ready(params)
    # Out of device memory, or weights that cannot be quantised: not the file's fault.
    except (jax.errors.JaxRuntimeError, InputError):
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)})") from error
    return Model(safetensors.unflatten(params), config, latent, media, directory)


def _groups(items: Iterable[Any], num_bytes: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Consecutive items in lists of some 256 MiB, so that small ones share a file operation."""
    group: list[Any] = []
    total = 0
    for item in items:
        group.append(item)
        total += num_bytes(item)
        del item  # a lazy source may need its memory for the next one
        if total >= _GROUP_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def _num_bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _write_params(leaves: Iterable[tuple[str, jax.Array]], path: pathlib.Path) -> None:
    """Streams parameters into one Orbax checkpoint, holding one large one or a group at a time."""
    context = ocp.Context()
    saving = context.array.saving
    # Compression is slow on weights, and its encoded copies double the memory needed.
    saving.use_compression = False
    saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    saving.enable_write_sharding_file = False  # readers say how they want it sharded
    with context:
        for group in _groups(leaves, lambda item: item[1].nbytes):
            ocp.partial.save(path, safetensors.unflatten(dict(group)))
            del group
        ocp.partial.finalize(path)


def _check_shapes(config: ThinkerConfig, shapes: dict[str, tuple], where: Any) -> None:
    expected = safetensors.parameter_shapes(config)
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
    if target.exists() and any(target.iterdir()):
        if not overwrite:
            raise InputError(f"{target}: is not empty; choose another directory or --overwrite it")
        if not any((target / name).exists() for name in (specs.MANIFEST, "config.json")):
            raise InputError(f"{target}: is not empty and holds no model; will not overwrite that")
    partial = specs.partial_name(target)
    _barrier(f"latentomni checked {target}")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier(f"latentomni made {partial}")
    try:
        yield partial
    except BaseException:
        if jax.process_count() == 1:  # elsewhere others may still be writing
            shutil.rmtree(partial, ignore_errors=True)
        raise
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


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
