"""The one table between checkpoint names and parameters, read in both directions.

A row is (parameter path, checkpoint name without `thinker.`, layout). `{}` in a name stands for
the layer number: such a parameter is the stack `[L, ...]` of L checkpoint tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.layout import InputError

# Layouts: how a checkpoint tensor (PyTorch) becomes a parameter (JAX).
#   same    unchanged
#   linear  [out, in] -> [in, out]
#   conv1d  [out, in, width] -> [width, in, out]
#   patch   [out, channels, time, row, column] -> [channels*time*row*column, out]


def _linear(path: str, name: str, *, bias: bool = True) -> list[tuple[str, str, str]]:
    rows = [(f"{path}/kernel", f"{name}.weight", "linear")]
    return [*rows, (f"{path}/bias", f"{name}.bias", "same")] if bias else rows


def _layer_norm(path: str, name: str) -> list[tuple[str, str, str]]:
    return [(f"{path}/scale", f"{name}.weight", "same"), (f"{path}/bias", f"{name}.bias", "same")]


def _table() -> tuple[tuple[str, str, str], ...]:
    rows = [
        ("text/embed_tokens", "model.embed_tokens.weight", "same"),
        ("text/norm/scale", "model.norm.weight", "same"),
        *_linear("text/lm_head", "lm_head", bias=False),
        ("vision/patch_embed/kernel", "visual.patch_embed.proj.weight", "patch"),
        ("vision/merger/norm/scale", "visual.merger.ln_q.weight", "same"),
        *_linear("vision/merger/fc1", "visual.merger.mlp.0"),
        *_linear("vision/merger/fc2", "visual.merger.mlp.2"),
        ("audio/bos_eos", "audio_tower.audio_bos_eos_token.weight", "same"),
        *_layer_norm("audio/norm_post", "audio_tower.ln_post"),
        *_linear("audio/proj", "audio_tower.proj"),
    ]
    for conv in ("conv1", "conv2"):
        rows += [
            (f"audio/{conv}/kernel", f"audio_tower.{conv}.weight", "conv1d"),
            (f"audio/{conv}/bias", f"audio_tower.{conv}.bias", "same"),
        ]
    # Text layers.
    layer, name = "text/layers", "model.layers.{}"
    rows += [
        (f"{layer}/input_norm/scale", f"{name}.input_layernorm.weight", "same"),
        (f"{layer}/post_norm/scale", f"{name}.post_attention_layernorm.weight", "same"),
    ]
    for part in "qkvo":
        rows += _linear(f"{layer}/{part}_proj", f"{name}.self_attn.{part}_proj", bias=part != "o")
    # Vision layers.
    vision, visual = "vision/layers", "visual.blocks.{}"
    for norm in ("norm1", "norm2"):
        rows.append((f"{vision}/{norm}/scale", f"{visual}.{norm}.weight", "same"))
    for part in "qkv":
        rows += _linear(f"{vision}/{part}_proj", f"{visual}.attn.{part}")
    rows += _linear(f"{vision}/o_proj", f"{visual}.attn.proj")
    for part in ("gate_proj", "up_proj", "down_proj"):
        rows += _linear(f"{layer}/mlp/{part}", f"{name}.mlp.{part}", bias=False)
        rows += _linear(f"{vision}/mlp/{part}", f"{visual}.mlp.{part}")
    # Audio layers.
    audio, tower = "audio/layers", "audio_tower.layers.{}"
    rows += _layer_norm(f"{audio}/attention_norm", f"{tower}.self_attn_layer_norm")
    rows += _layer_norm(f"{audio}/mlp_norm", f"{tower}.final_layer_norm")
    for part in "qkv":
        rows += _linear(f"{audio}/{part}_proj", f"{tower}.self_attn.{part}_proj", bias=part != "k")
    rows += _linear(f"{audio}/o_proj", f"{tower}.self_attn.out_proj")
    for part in ("fc1", "fc2"):
        rows += _linear(f"{audio}/{part}", f"{tower}.{part}")
    return tuple(rows)


TABLE = _table()
PREFIX = "thinker."
SKIPPED_PREFIXES = ("talker.", "token2wav.")  # other models that share the published files


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter and where it comes from.

    Attributes:
      path: parameter path, "/"-separated.
      names: checkpoint tensors without prefix; more than one for a stack over layers.
      layout: see the module's list.
      is_stacked: the parameter has a leading layer axis.
    """

    path: str
    names: tuple[str, ...]
    layout: str
    is_stacked: bool


def entries(config: ThinkerConfig) -> Iterator[Entry]:
    """All parameters of a thinker of these dimensions, each once."""
    layers = {
        "text": config.text.num_layers,
        "vision": config.vision.depth,
        "audio": config.audio.num_layers,
    }
    for path, name, layout in TABLE:
        if path == "text/lm_head/kernel" and config.text.tie_embeddings:
            continue
        is_stacked = "{}" in name
        count = layers[path.split("/")[0]] if is_stacked else 1
        yield Entry(path, tuple(name.format(i) for i in range(count)), layout, is_stacked)


def checkpoint_shape(entry: Entry, shape: tuple[int, ...], config: ThinkerConfig) -> tuple:
    """The shape of each checkpoint tensor behind a parameter of `shape`."""
    if entry.is_stacked:
        shape = shape[1:]
    if entry.layout == "patch":
        vision = config.vision
        side = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        return (shape[1], vision.in_channels, *side)
    return tuple(reversed(shape)) if entry.layout in ("linear", "conv1d") else tuple(shape)


def to_parameter(layout: str, tensor: np.ndarray) -> np.ndarray:
    """One checkpoint tensor in the parameter's layout; bits are moved, never changed."""
    if layout == "patch":
        return tensor.reshape(tensor.shape[0], -1).T
    return tensor.T if layout in ("linear", "conv1d") else tensor


def to_checkpoint(layout: str, parameter: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_parameter`; `shape` is the checkpoint tensor's."""
    if layout == "patch":
        assert math.prod(shape) == parameter.size
        return parameter.T.reshape(shape)
    return parameter.T if layout in ("linear", "conv1d") else parameter


def thinker_names(full_names: Iterable[str]) -> dict[str, str]:
    """Name without prefix -> name as in the files, for the thinker's tensors of a checkpoint.

    A full checkpoint holds `thinker.` beside the talker and the vocoder, which are left out; a
    thinker-only one may go without the prefix.

    Raises:
      InputError: a full checkpoint with tensors of some other model.
    """
    full_names = list(full_names)
    mine = [name for name in full_names if name.startswith(PREFIX)]
    others = [name for name in full_names if not name.startswith((PREFIX, *SKIPPED_PREFIXES))]
    if not mine:
        return {name: name for name in others}
    if others:
        raise InputError(
            f"{len(others)} extra tensors outside {PREFIX}*, {'*, '.join(SKIPPED_PREFIXES)}*: "
            + ", ".join(sorted(others)[:5])
        )
    return {name.removeprefix(PREFIX): name for name in mine}
