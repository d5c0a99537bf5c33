"""A model whose attention is known: it looks where the first number of an embedding is large.

Layers add nothing to what they read. Keys are the normalised embedding's first number, queries are
constant; both stand in the slowest pair of the rotary embedding, which hardly turns. Text and
latent states have 0 there (and in the second place, with which OSPE would mix it), so nothing but
what is planted is ever looked at.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from latentomni_jax.layout import LatentSpec
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.model import LatentOmni
from latentomni_jax.weights.checkpoint import load_model

_SHARP = 20.0  # of queries and keys: scores of 100 and more
_LARGE = 1e4


class Planted(LatentOmni):
    """Looks at the `places` of the prompt's positions alone, each alike."""

    places: np.ndarray | None = None

    def embed(self, batch, groups, table_rows):
        embeds = super().embed(batch, groups, table_rows)
        return embeds if self.places is None else embeds.at[:, self.places, 0].set(_LARGE)


def planted(directory, spec: LatentSpec, *, hears: bool = False, **options) -> Planted:
    """The model of a directory, with other weights.

    Args:
      hears: everything that the audio encoder makes is planted.
    """
    loaded = load_model(directory)
    params, config = loaded.params, loaded.config.text
    layers = params["text"]["layers"]
    slowest = np.arange(config.num_heads) * config.head_dim + config.head_dim // 2 - 1
    groups = slowest[: config.num_kv_heads]

    def emptied(linear):
        return {name: jnp.zeros_like(x) for name, x in linear.items()}

    q, k = emptied(layers["q_proj"]), emptied(layers["k_proj"])
    q["bias"] = q["bias"].at[:, slowest].set(_SHARP)
    k["kernel"] = k["kernel"].at[:, 0, groups].set(_SHARP)
    layers = layers | {
        "q_proj": q,
        "k_proj": k,
        "o_proj": emptied(layers["o_proj"]),
        "mlp": layers["mlp"] | {"down_proj": emptied(layers["mlp"]["down_proj"])},
    }
    table = params["text"]["embed_tokens"].at[:, :2].set(0)
    seen, heard = params["vision"]["merger"], params["audio"]
    params = {
        "text": params["text"] | {"embed_tokens": table, "layers": layers},
        "vision": params["vision"] | {"merger": seen | {"fc2": _silent(seen["fc2"])}},
        "audio": heard | {"proj": _silent(heard["proj"], _LARGE if hears else 0.0)},
    }
    tokenizer = load_tokenizer(directory)
    return Planted(params, loaded.config, spec, loaded.media, tokenizer, **options)


def _silent(linear, first: float = 0.0):
    """A last layer whose first two outputs are constant."""
    bias = linear["bias"].at[:2].set(jnp.array([first, 0.0]))
    return {"kernel": linear["kernel"].at[:, :2].set(0), "bias": bias}
