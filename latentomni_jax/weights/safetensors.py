"""Safetensors directories as sharded parameters, and back.

Tensors are read slice by slice through the index: a process touches only the byte ranges of its
own shards, and no tensor is ever widened. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax
import numpy as np
import safetensors
from safetensors.numpy import save_file

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import abstract_params
from latentomni_jax.backbone.types import Weights
from latentomni_jax.layout import InputError
from latentomni_jax.weights import names, quantize

DTYPES = {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}
_INDEX = "model.safetensors.index.json"


class CheckpointReader:
    """The tensors of a safetensors directory by name, without the `thinker.` prefix.

    Attributes:
      tensors: name -> (dtype as in the file, shape).
      skipped: how many tensors belong to the talker or the vocoder.

    Raises:
      InputError: no safetensors there, a shard missing, or a file that is not one.
    """

    def __init__(self, directory: str | pathlib.Path):
        self.directory = pathlib.Path(directory)
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._place: dict[str, tuple[pathlib.Path, int]] = {}
        listed = self._listed_files()
        paths = sorted({self.directory / file for file in listed.values()})
        if not listed:
            paths = sorted(self.directory.glob("*.safetensors"))
        if not paths:
            raise InputError(f"{self.directory}: no *.safetensors file here")
        found: dict[str, tuple[pathlib.Path, int, dict[str, Any]]] = {}
        for path in paths:
            data_start, header = _open_header(path)
            for full, part in header.items():
                if full in found:
                    raise InputError(f"{path}: tensor {full} is also in {found[full][0]}")
                found[full] = (path, data_start, part)
        if absent := sorted(set(listed) - set(found)):
            raise InputError(f"{self.directory}: in the index but in no file: {_some(absent)}")
        try:
            used = names.thinker_names(found)
        except InputError as error:
            raise InputError(f"{self.directory}: {error}") from None
        for name, full in used.items():
            path, data_start, part = found[full]
            self.tensors[name] = (part["dtype"], tuple(part["shape"]))
            self._place[name] = (path, data_start + part["data_offsets"][0])
        self.skipped = len(found) - len(used)

    def _listed_files(self) -> dict[str, str]:
        path = self.directory / _INDEX
        if not path.exists():
            return {}
        try:
            listed = dict(json.loads(path.read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a safetensors index ({error!r})") from None
        # A hostile index must not reach outside its directory.
        if bad := [file for file in listed.values() if not _is_plain_file_name(file)]:
            raise InputError(f"{path}: shard names must be plain file names, got {_some(bad)}")
        return listed

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A view of one slice of a tensor: its bytes are read when they are copied, no others.

        Mapped anew every time: pages of a mapping stay in the process's memory as long as the
        mapping lives, and shards held open would add up to the size of the checkpoint.
        """
        dtype, shape = self.tensors[name]
        path, offset = self._place[name]
        kind = jax.numpy.dtype(DTYPES[dtype])
        return np.memmap(path, kind, mode="r", offset=offset, shape=shape)[index]


def _open_header(path: pathlib.Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Where the data of a shard starts, in bytes, and name -> dtype, shape and data_offsets."""
    try:
        with safetensors.safe_open(path, framework="np"):
            pass  # the library validates header, offsets and file length
        with open(path, "rb") as file:
            size = int.from_bytes(_exactly(file, 8), "little")
            header = json.loads(_exactly(file, size))
    except FileNotFoundError:
        raise InputError(f"{path}: the index names this shard, but it is absent") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    header.pop("__metadata__", None)
    return 8 + size, header


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"the file ends after {len(data)} of {size} bytes")
    return data


def _is_plain_file_name(file: Any) -> bool:
    return (
        isinstance(file, str)
        and pathlib.PurePath(file).name == file
        and file.endswith(".safetensors")
        and "\\" not in file
    )


def check(config: ThinkerConfig, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Compares names, shapes and dtypes with what the config needs; touches no data.

    Args:
      tensors: name (without `thinker.`) -> (safetensors dtype, shape).

    Returns:
      Coverage: parameters, tensors used.

    Raises:
      InputError: names every missing, extra or misshapen tensor, every dtype we do not read and
        every stack of layers that mixes dtypes (the first few of each).
    """
    expected = _expected(config)
    kinds = {
        entry.path: sorted({tensors[name][0] for name in entry.names if name in tensors})
        for entry in names.entries(config)
    }
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(set(tensors) - set(expected))
    shapes = [
        f"{name} is {list(tensors[name][1])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name][1]) != shape
    ]
    dtypes = [
        f"{name} is {dtype}" for name, (dtype, _) in sorted(tensors.items()) if dtype not in DTYPES
    ]
    problems = [
        f"{len(found)} {title}: {_some(found)}"
        for title, found in (
            ("missing", missing),
            ("extra", extra),
            ("of the wrong shape", shapes),
            (f"of a dtype other than {'/'.join(DTYPES)}", dtypes),
            ("of several dtypes", [f"{path} {kind}" for path, kind in kinds.items() if kind[1:]]),
        )
        if found
    ]
    if problems:
        raise InputError("checkpoint does not fit the config: " + "; ".join(problems))
    return {"parameters": len(kinds), "tensors": len(expected)}


def load(
    directory: str | pathlib.Path,
    config: ThinkerConfig,
    shardings: Any = None,
    *,
    dtype: Any = None,
    weights: Weights = None,
) -> Iterator[tuple[str, jax.Array]]:
    """Streams parameters `(path, array)` one leaf at a time.

    Args:
      shardings: tree like the parameters of `jax.sharding.Sharding`, or one for all; default is
        the first local device.
      dtype: cast to this; None keeps the checkpoint's (bf16 stays bf16).
      weights: "int8" quantises what the files hold (`quantize`); the rest is cast.

    Raises:
      InputError: see `CheckpointReader`, `check` and `quantize.scales`.
    """
    reader = CheckpointReader(directory)
    try:
        check(config, reader.tensors)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None
    shapes = parameter_shapes(config)
    flat_shardings = {}
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if not isinstance(shardings, jax.sharding.Sharding):
        flat_shardings = flatten(shardings)
    for entry in names.entries(config):
        shape = shapes[entry.path]
        if weights == "int8" and quantize.is_quantized(entry.path):
            leaves = _int8_readers(reader, entry, shape)
        else:
            stored = jax.numpy.dtype(DTYPES[reader.tensors[entry.names[0]][0]])
            leaves = [(entry.path, shape, _slice_reader(reader, entry, shape, stored, dtype))]
        for path, shape, read in leaves:
            sharding = flat_shardings.get(path, shardings)
            yield path, jax.make_array_from_callback(shape, sharding, read)


def save(
    params: Any,
    config: ThinkerConfig,
    directory: str | pathlib.Path,
    *,
    max_shard_bytes: int = 5 << 30,
    prefix: str = names.PREFIX,
) -> list[str]:
    """Writes parameters as sharded safetensors plus index, in the checkpoint's own names.

    Tensors are produced layer by layer, one shard in memory at a time. `.partial` names are
    renamed at the end, so that an interrupted export never looks complete.

    Returns:
      The tensor names written (with `prefix`).

    Raises:
      InputError: int8 weights.
    """
    quantize.check_writable(params)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    flat = flatten(params)
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    pending_bytes = total = 0

    def flush():
        nonlocal pending, pending_bytes
        if pending:
            save_file(
                pending, directory / f"shard-{len(shards)}.partial", metadata={"format": "pt"}
            )
            shards.append(list(pending))
            pending, pending_bytes = {}, 0

    for entry in names.entries(config):
        leaf = flat[entry.path]
        shape = names.checkpoint_shape(entry, leaf.shape, config)
        for layer, name in enumerate(entry.names):
            part = np.asarray(leaf[layer] if entry.is_stacked else leaf)
            tensor = np.ascontiguousarray(names.to_checkpoint(entry.layout, part, shape))
            if pending_bytes + tensor.nbytes > max_shard_bytes:
                flush()
            pending[prefix + name] = tensor
            pending_bytes += tensor.nbytes
            total += tensor.nbytes
    flush()
    weight_map = {}
    for number, held in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (directory / f"shard-{number}.partial").rename(directory / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / _INDEX).write_text(json.dumps(index, indent=1))
    return list(weight_map)


@functools.lru_cache(maxsize=8)  # tracing a model takes half a second
def parameter_shapes(config: ThinkerConfig) -> Mapping[str, tuple[int, ...]]:
    """Path -> shape of every parameter; the layer axis of stacks comes first."""
    flat = flatten(abstract_params(config))
    return types.MappingProxyType({path: leaf.shape for path, leaf in flat.items()})


def _slice_reader(reader, entry, shape, stored, dtype):
    """A callback for `jax.make_array_from_callback`: global index -> that part of the leaf."""

    def one(name, index):
        if entry.layout == "patch":  # a reshape in between: read whole (3 MB), then slice
            return names.to_parameter("patch", reader.read(name))[index]
        reversed_index = index[::-1] if entry.layout in ("linear", "conv1d") else index
        return names.to_parameter(entry.layout, reader.read(name, reversed_index))

    def read(index):
        out = _aligned_empty(index, shape, dtype or stored)
        if not entry.is_stacked:
            out[...] = one(entry.names[0], index)
            return out
        for place, layer in enumerate(range(*index[0].indices(len(entry.names)))):
            out[place] = one(entry.names[layer], index[1:])
        return out

    return read


def _int8_readers(reader, entry, shape):
    """(path, shape, callback) of an int8 kernel and of its scales, as `_slice_reader`.

    A scale needs all inputs of its outputs, also where a device holds some of them.
    """
    known = {}

    def columns(layer, outputs):
        return names.to_parameter(entry.layout, reader.read(entry.names[layer], (outputs,)))

    def scale_of(layer, outputs):
        key = layer, *outputs.indices(shape[-1])
        if key not in known:
            known[key] = quantize.scales(columns(layer, outputs), entry.names[layer])
        return known[key]

    def layers(index):
        return range(*index[0].indices(shape[0])) if entry.is_stacked else [0]

    def read_kernel(index):
        inputs, outputs = index[-2:]
        out = _aligned_empty(index, shape, np.int8)
        for place, layer in enumerate(layers(index)):
            part = out[place] if entry.is_stacked else out
            scale = scale_of(layer, outputs)
            quantize.quantize_into(part, columns(layer, outputs)[inputs], scale)
        return out

    def read_scales(index):
        rows = [scale_of(layer, index[-1]) for layer in layers(index)]
        return np.stack(rows) if entry.is_stacked else rows[0]

    kernel_path, scale_path = quantize.int8_paths(entry.path)
    scale_shape = (*shape[:-2], shape[-1])
    return [(kernel_path, shape, read_kernel), (scale_path, scale_shape, read_scales)]


def _aligned_empty(index: tuple[slice, ...], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Room for `index` of an array of `shape`.

    At a 64-byte boundary: JAX on CPU adopts such a buffer instead of copying it.
    """
    sizes = [len(range(*part.indices(n))) for part, n in zip(index, shape, strict=True)]
    size = math.prod(sizes) * jax.numpy.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(sizes)


def _expected(config: ThinkerConfig) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape, for everything the config needs."""
    shapes = dict(parameter_shapes(config))
    expected = {}
    for entry in names.entries(config):
        shape = names.checkpoint_shape(entry, shapes.pop(entry.path), config)
        for name in entry.names:
            assert name not in expected, f"{name} is consumed twice"
            expected[name] = shape
    assert not shapes, f"parameters without a checkpoint name: {sorted(shapes)}"
    return expected


def flatten(tree: Any) -> dict[str, Any]:
    """`{"a/b": leaf}` of a nested tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The nested tree of `{"a/b": leaf}`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _some(items: list[str], limit: int = 5) -> str:
    text = ", ".join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text}, and {len(items) - limit} more"
