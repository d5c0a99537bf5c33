"""Where a run starts: a checkpoint's weights, specs and tokenizer, or a model from nothing."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from latentomni_jax.backbone.config import TextConfig, ThinkerConfig
from latentomni_jax.backbone.layers import add_lora
from latentomni_jax.backbone.sharding import param_shardings
from latentomni_jax.backbone.thinker import Thinker, abstract_params
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.sync import init_sync
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec
from latentomni_jax.media.text import LATENT_TOKENS, load_tokenizer, train_sentencepiece
from latentomni_jax.train.host import run_together
from latentomni_jax.train.state import init_latent_rows
from latentomni_jax.weights.checkpoint import load_model
from latentomni_jax.weights.specs import read_specs


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model from nothing.

    Attributes:
      config: makes its sizes, given token ids.
      pieces: of a tokenizer trained on the run's own text.
      embedding_scale: of the embeddings over those that checkpoints began with (0.02).
      look_back: for each head of the decoder's first layer, how many positions before its own it
        begins by looking at; None leaves it as it is.
    """

    config: Callable[..., ThinkerConfig]
    pieces: int
    embedding_scale: float = 1.0
    look_back: tuple[int | None, ...] = ()


PRESETS = {
    "tiny": Preset(ThinkerConfig.tiny, 512),
    # To find a name again, a model has to learn two things that help only together: to know what
    # stood before a position, and to look for it. Begun with the first, it learned the second where
    # it had not before (docs/design.md); so it did with embeddings that are not drowned by what a
    # shallow decoder adds to them. Three back, because a name can have three words and be known by
    # its first.
    "small": Preset(ThinkerConfig.small, 640, embedding_scale=25.0, look_back=(1, 3, 2, None)),
}
_LOOK_BACK_BIAS = 5.0  # of queries and keys: sharp among content scores of about 1


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What is known before any weight is loaded.

    Attributes:
      directory: of the checkpoint; None for a model from nothing.
      tokenizer_dir: where its tokenizer is.
      preset: of a model from nothing.
    """

    directory: pathlib.Path | None
    tokenizer_dir: pathlib.Path
    config: ThinkerConfig
    latent: LatentSpec
    media: MediaSpec
    preset: Preset | None = None


def find_start(
    directory: str,
    preset: str,
    tokenizer: str,
    workdir: pathlib.Path,
    texts: Callable[[], Iterable[str]],
) -> Start:
    """Reads a checkpoint's specs, or designs a model around a tokenizer: the one in a directory,
    or one trained on `texts` and kept in `workdir`.

    Raises:
      InputError: no such checkpoint or preset.
    """
    if directory:
        config, latent, media = read_specs(directory)
        return Start(pathlib.Path(directory), pathlib.Path(directory), config, latent, media)
    if preset not in PRESETS:
        raise InputError(
            f"model.preset must be {' or '.join(PRESETS)} where model.directory is empty: "
            f"{preset!r}"
        )
    chosen = PRESETS[preset]
    tokenizer_dir = pathlib.Path(tokenizer or workdir / "tokenizer")
    if not tokenizer and not tokenizer_dir.is_dir():
        train_sentencepiece(texts(), tokenizer_dir, vocab_size=chosen.pieces)
    config, latent = model_for(tokenizer_dir, chosen.config)
    return Start(None, tokenizer_dir, config, latent, MediaSpec(), chosen)


def model_for(
    tokenizer_dir: pathlib.Path, make: Callable[..., ThinkerConfig] = ThinkerConfig.tiny
) -> tuple[ThinkerConfig, LatentSpec]:
    """A thinker whose vocabulary is a tokenizer's, and its latent tokens."""
    tokenizer = load_tokenizer(tokenizer_dir)
    config = make(
        vocab_size=-(-tokenizer.vocab_size // 64) * 64,
        audio_token_id=tokenizer.id("<|AUDIO|>"),
        audio_start_id=tokenizer.id("<|audio_bos|>"),
        audio_end_id=tokenizer.id("<|audio_eos|>"),
        vision_start_id=tokenizer.id("<|vision_bos|>"),
        vision_end_id=tokenizer.id("<|vision_eos|>"),
        image_token_id=tokenizer.id("<|IMAGE|>"),
        video_token_id=tokenizer.id("<|VIDEO|>"),
    )
    pad, trigger, stop = map(tokenizer.id, LATENT_TOKENS)
    return config, LatentSpec(pad_id=pad, trigger_id=trigger, stop_id=stop)


def _init(start: Start, key: jax.Array) -> dict[str, Any]:
    params = nn.meta.unbox(Thinker(start.config).init(key)["params"])
    preset, text = start.preset, params["text"]
    rows = text["embed_tokens"] * preset.embedding_scale
    layers = text["layers"]
    if preset.look_back:
        for name, bias in _look_back_biases(start.config.text, preset.look_back).items():
            begun = layers[name]["bias"].at[0].set(bias)
            layers = {**layers, name: {**layers[name], "bias": begun}}
    return {**params, "text": {**text, "embed_tokens": rows, "layers": layers}}


def _look_back_biases(text: TextConfig, offsets: Sequence[int | None]) -> dict[str, np.ndarray]:
    """Query and key biases that the rotary embedding turns to one another at a head's offset."""
    half = text.head_dim // 2
    angles = text.rope_theta ** (-np.arange(half) / half)
    queries = np.zeros((text.num_heads, 2, half), np.float32)
    for head, offset in enumerate(offsets):
        if offset is not None:
            queries[head] = np.cos(angles * offset), -np.sin(angles * offset)
    keys = np.zeros((text.num_kv_heads, 2, half), np.float32)
    keys[:, 0] = 1
    return {
        "q_proj": _LOOK_BACK_BIAS * queries.ravel(),
        "k_proj": _LOOK_BACK_BIAS * keys.ravel(),
    }


def abstract_start(start: Start, options: Objective, *, dtype: Any, lora_rank: int) -> Any:
    """Shapes and dtypes of what `load_params` returns, without loading anything."""
    towers = abstract_params(
        start.config, jnp.float32 if start.directory is None else dtype, lora_rank=lora_rank
    )
    width = start.config.text.hidden_size
    sync = jax.eval_shape(lambda: init_sync(options, width, jax.random.key(0)))
    return {**towers, "sync": sync}


def load_params(
    start: Start, options: Objective, mesh: Mesh, *, dtype: Any, lora_rank: int, seed: int
) -> dict[str, Any]:
    """Parameters on the mesh, with the training-only ones: sync, adapters, and where latents have
    not been trained yet, rows of new tokens.

    Args:
      dtype: of loaded weights; masters are made from them. Models from nothing are float32.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    shardings = param_shardings(start.config, mesh)
    if start.directory is not None:
        params = load_model(start.directory, shardings=shardings, dtype=dtype).params
    else:
        init = functools.partial(_init, start)
        params = run_together("init", init, keys[0], out_shardings=shardings)
    if not start.latent.is_trained:
        fresh = functools.partial(init_latent_rows, spec=options.spec, seed=seed)
        params = run_together("latent rows", fresh, params, out_shardings=shardings)
    if lora_rank:
        with_lora = param_shardings(start.config, mesh, lora_rank=lora_rank)
        params = run_together(
            "adapters", lambda p, key: add_lora(p, lora_rank, key, jnp.float32), params, keys[1],
            out_shardings=with_lora,
        )  # fmt: skip
    return {**params, "sync": init_sync(options, start.config.text.hidden_size, keys[2])}
