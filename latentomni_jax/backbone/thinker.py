"""The Qwen2.5-Omni thinker: two encoders and a text decoder over one embedding space.

Nothing here knows of latents. Every method is a pure function of parameters and arrays:
`thinker.apply({"params": params}, ..., method="decode")`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from latentomni_jax.backbone import attention
from latentomni_jax.backbone.audio import AudioEncoder
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.text import Decoder
from latentomni_jax.backbone.types import Array, Weights
from latentomni_jax.backbone.vision import VisionEncoder


class Thinker(nn.Module):
    """Encoders and decoder; parameters `{"text", "vision", "audio"}`.

    Attributes:
      dtype: of the computation.
      param_dtype: of freshly initialised parameters; loaded ones keep theirs.
      implementation, platform: attention backend, see `attention.attend`.
      remat_policy: see `layers.REMAT_POLICIES`.
      scan_layers: decoder layers scanned over stacked parameters, or one by one (`text.unstack`).
      lora_rank, lora_alpha: adapters of the decoder layers, see `layers.LoraDense`; 0 is none.
      weights: "int8" holds the matrices of decoder layers and head so, see `layers.Int8Dense`; both
        encoders and the embedding table keep their width.
    """

    config: ThinkerConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    implementation: attention.Implementation = "auto"
    platform: str | None = None
    remat_policy: str = "none"
    scan_layers: bool = True
    lora_rank: int = 0
    lora_alpha: float = 16.0
    weights: Weights = None

    def setup(self):
        common = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "remat_policy": self.remat_policy,
        }
        backend = {"implementation": self.implementation, "platform": self.platform}
        self.text = Decoder(
            self.config.text,
            scan_layers=self.scan_layers,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            weights=self.weights,
            **common,
            **backend,
        )
        self.vision = VisionEncoder(self.config.vision, **common, **backend)
        self.audio = AudioEncoder(self.config.audio, platform=self.platform, **common)

    def encode_vision(self, patches, rows_columns, windows, restore, lengths):
        return self.vision(patches, rows_columns, windows, restore, lengths)

    def encode_audio(self, mel, lengths):
        return self.audio(mel, lengths)

    def embed(self, token_ids):
        return self.text.embed(token_ids)

    def decode(self, x_btd, position_ids, cache=None, write_index=0, visible_bts=None, hidden=None):
        return self.text.decode(x_btd, position_ids, cache, write_index, visible_bts, hidden)

    def logits(self, hidden):
        return self.text.logits(hidden)

    def splice(
        self,
        token_ids: Int[Array, "B T"],
        feature_index: Int[Array, "B T"],
        features: Float[Array, "N D"],
    ) -> Float[Array, "B T D"]:
        """Input embeddings: row `feature_index` of `features` where >= 0, else the token's own.

        A gather, not a scatter: every position asks for its row.
        """
        rows = jnp.take(features, jnp.maximum(feature_index, 0), axis=0)
        return jnp.where(
            (feature_index >= 0)[..., None], rows.astype(self.dtype), self.embed(token_ids)
        )

    def __call__(self):
        """Touches every parameter once, on the smallest inputs (initialisation only)."""
        vision, audio = self.config.vision, self.config.audio
        patches = (vision.window_size // vision.patch_size) ** 2
        merged = patches // vision.merge_size**2
        self.encode_vision(
            jnp.zeros((1, patches, vision.patch_dim)),
            jnp.zeros((1, patches, 2), jnp.int32),
            jnp.zeros((1, patches), jnp.int32),
            jnp.zeros((1, merged), jnp.int32),
            jnp.array([patches]),
        )
        self.encode_audio(
            jnp.zeros((1, audio.chunk_frames, audio.num_mel_bins)), jnp.array([audio.chunk_frames])
        )
        return self.text(jnp.zeros((1, 1), jnp.int32), jnp.zeros((3, 1, 1), jnp.int32))


def init_params(
    config: ThinkerConfig, key: jax.Array, dtype: Any = jnp.float32, *, lora_rank: int = 0
) -> dict[str, Any]:
    """Random parameters (a model trained from nothing), plain arrays without sharding boxes."""
    thinker = Thinker(config, param_dtype=dtype, lora_rank=lora_rank)
    variables = jax.jit(thinker.init)(key)
    return nn.meta.unbox(variables["params"])


def abstract_params(
    config: ThinkerConfig,
    dtype: Any = jnp.bfloat16,
    *,
    lora_rank: int = 0,
    weights: Weights = None,
) -> dict[str, Any]:
    """Shapes and dtypes of all parameters, without allocating any."""
    thinker = Thinker(config, param_dtype=dtype, lora_rank=lora_rank, weights=weights)
    variables = jax.eval_shape(thinker.init, jax.random.key(0))
    return nn.meta.unbox(variables["params"])
