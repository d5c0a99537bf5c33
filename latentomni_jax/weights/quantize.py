"""Int8 weights from ordinary ones, as `backbone.layers.Int8Dense` reads them.

Every output of a matrix W [in, out] has a scale of its own:

    s = max |W| / 127 over the inputs,   Q = round(W / s),   so that |W - Q s| <= s / 2

Done by NumPy on the host, a matrix at a time: a chip gets the int8 weights and never the others.
What is quantised are the matrices of the decoder's layers and of the head, which a decoded token
reads whole. Embedding table (a token reads a row), norms, biases and encoders keep their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from latentomni_jax.backbone.types import Array, Weights
from latentomni_jax.layout import InputError

_LARGEST = 127
_BLOCK = 1 << 18  # weights that are widened to f32 at once: they stay in a core's cache


def is_quantized(path: str) -> bool:
    """Whether int8 weights hold this parameter ("text/lm_head/kernel") as integers."""
    return path.startswith(("text/layers", "text/lm_head/")) and path.endswith("/kernel")


def int8_paths(path: str) -> tuple[str, str]:
    """What stands in place of a kernel: its integers, and their scales."""
    return f"{path}_int8", path.removesuffix("kernel") + "scale"


def scales(kernel: np.ndarray, name: str) -> np.ndarray:
    """The scales f32[..., out] of a kernel [..., in, out] of any floating-point width.

    Outputs whose weights are all zero (or too small for a scale in f32) have 1.

    Raises:
      InputError: NaN or infinity among the weights; says so of `name`.
    """
    largest = np.empty((*kernel.shape[:-2], kernel.shape[-1]), np.float32)
    for (*matrix, outputs), block in _blocks(kernel):
        largest[(*matrix, outputs)] = np.abs(block).max(axis=0)
    if not np.isfinite(largest).all():
        raise InputError(f"{name}: holds NaN or infinity; int8 weights have to be finite")
    scale = largest / np.float32(_LARGEST)
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)


def quantize_into(out: np.ndarray, kernel: np.ndarray, scale: np.ndarray) -> None:
    """Writes round(kernel / scale) to `out` i8[..., in, out]; some of the inputs will do."""
    for (*matrix, outputs), block in _blocks(kernel):
        block /= scale[(*matrix, outputs)]
        out[(*matrix, slice(None), outputs)] = np.rint(block, out=block)


def _blocks(kernel: np.ndarray) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
    """((matrix ..., outputs), f32[in, some outputs]), a copy, over a kernel [..., in, out]."""
    inputs, outputs = kernel.shape[-2:]
    step = max(_BLOCK // inputs, 1)
    for matrix in np.ndindex(kernel.shape[:-2]):
        for start in range(0, outputs, step):
            some = slice(start, start + step)
            yield (*matrix, some), kernel[matrix][:, some].astype(np.float32)


def quantize_kernel(kernel: Array, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Q i8[..., in, out] and s f32[..., out] of a kernel. Raises InputError, see `scales`."""
    kernel = np.asarray(kernel)
    scale, out = scales(kernel, name), np.empty(kernel.shape, np.int8)
    quantize_into(out, kernel, scale)
    return out, scale


def quantize(params: dict[str, Any]) -> dict[str, Any]:
    """A thinker's parameters with int8 weights, from ordinary ones in memory (any layout).

    `checkpoint.load_model` makes the same without holding the ordinary ones.
    """

    def walk(tree, path):
        made = {}
        for name, child in tree.items():
            here = f"{path}{name}"
            if isinstance(child, dict):
                made[name] = walk(child, f"{here}/")
            elif is_quantized(here):
                names = (of.rsplit("/", 1)[1] for of in int8_paths(here))
                made |= zip(names, map(jnp.asarray, quantize_kernel(child, here)), strict=True)
            else:
                made[name] = child
        return made

    return walk(params, "")


def weights_of(params: Any) -> Weights:
    """How these parameters hold their matrices."""
    return "int8" if any(x.dtype == jnp.int8 for x in jax.tree.leaves(params)) else None


def check_writable(params: Any) -> None:
    """Refuses int8 weights where a model is written. Raises InputError."""
    if weights_of(params):
        raise InputError(
            "int8 weights are not written: save or export the model they were made from, and ask "
            "for int8 where it is loaded"
        )
