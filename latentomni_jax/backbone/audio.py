"""The audio encoder. Its unit is the chunk: 2 seconds, 200 mel frames, 50 tokens.

Attention, convolutions and pooling never leave a chunk, so a recording of any length is a batch of
chunks `[C,200,...]` and nothing has to be cut at 300 s. Only the last chunk is shorter.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from latentomni_jax.backbone import attention
from latentomni_jax.backbone.axes import constrain
from latentomni_jax.backbone.config import AudioConfig
from latentomni_jax.backbone.layers import dense, remat
from latentomni_jax.backbone.types import Array


def num_audio_tokens(mel_frames: int) -> int:
    """Tokens that a recording of this many mel frames becomes (25 per second)."""
    after_convolutions = (mel_frames - 1) // 2 + 1
    return max((after_convolutions - 2) // 2 + 1, 0)


def chunk_mel(
    config: AudioConfig, mel: Float[np.ndarray, "frames bins"]
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a spectrogram into chunks `f32[C,200,bins]` (zero-padded) and their lengths `i32[C]`."""
    size = config.chunk_frames
    count = max(-(-len(mel) // size), 1)
    padded = np.zeros((count * size, mel.shape[1]), np.float32)
    padded[: len(mel)] = mel
    lengths = np.minimum(len(mel) - np.arange(count) * size, size).astype(np.int32)
    return padded.reshape(count, size, -1), lengths


class AudioBlock(nn.Module):
    """One pre-norm Whisper layer; the key projection has no bias."""

    config: AudioConfig
    dtype: Any
    param_dtype: Any
    platform: str | None = None

    @nn.compact
    def __call__(self, x_ctd, lengths):
        config = self.config
        chunks, length, width = x_ctd.shape
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        y = nn.LayerNorm(epsilon=1e-5, name="attention_norm", **types)(x_ctd)
        q, k, v = (
            dense(width, ("embed", "heads"), name, bias=name != "k_proj", **types)(y).reshape(
                chunks, length, config.num_heads, -1
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )
        # 100 x 100 scores a chunk: the plain path is the right one on every platform.
        out = attention.attend(
            q,
            k,
            v,
            causal=False,
            lengths=lengths,
            implementation="xla",
            platform=self.platform,
        )
        out = out.astype(x_ctd.dtype).reshape(chunks, length, width)
        x_ctd = x_ctd + dense(width, ("heads", "embed"), "o_proj", bias=True, **types)(out)
        y = nn.LayerNorm(epsilon=1e-5, name="mlp_norm", **types)(x_ctd)
        y = dense(config.intermediate_size, ("embed", "mlp"), "fc1", bias=True, **types)(y)
        y = jax.nn.gelu(y, approximate=False)
        return x_ctd + dense(width, ("mlp", "embed"), "fc2", bias=True, **types)(y), None


class AudioEncoder(nn.Module):
    """Chunks of log-mel frames to tokens of the language model."""

    config: AudioConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    platform: str | None = None
    remat_policy: str = "none"

    @nn.compact
    def __call__(
        self, mel: Float[Array, "C M bins"], lengths: Int[Array, C]
    ) -> Float[Array, "C tokens D"]:
        """Encodes C chunks of M = 200 mel frames, of which `lengths` are real.

        Returns:
          M / 4 tokens a chunk; those beyond `num_audio_tokens(length)` are unspecified.
        """
        config = self.config
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # Trained start and end embeddings that the thinker's forward pass never reads; kept so
        # that a checkpoint leaves as it came.
        self.param(
            "bos_eos",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed")),
            (2, config.out_hidden_size),
            self.param_dtype,
        )

        def conv(name, stride):
            return nn.Conv(
                config.hidden_size, (3,), strides=stride, padding=((1, 1),), name=name, **types
            )

        real = jnp.arange(mel.shape[1]) < lengths[:, None]
        x = jax.nn.gelu(conv("conv1", 1)(mel.astype(self.dtype)), approximate=False)
        x = jnp.where(real[..., None], x, 0)
        x_ctd = jax.nn.gelu(conv("conv2", 2)(x), approximate=False)
        x_ctd = x_ctd + _sinusoids(x_ctd.shape[1], config.hidden_size).astype(self.dtype)
        x_ctd = constrain("chunks", x_ctd)
        x_ctd, _ = nn.scan(
            remat(AudioBlock, self.remat_policy),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            config, self.dtype, self.param_dtype, self.platform, name="layers"
        )(x_ctd, (lengths + 1) // 2)
        pooled = (x_ctd[:, 0::2] + x_ctd[:, 1::2]) / 2
        pooled = nn.LayerNorm(epsilon=1e-5, name="norm_post", **types)(pooled)
        return dense(config.out_hidden_size, ("mlp", "embed"), "proj", bias=True, **types)(pooled)


def _sinusoids(length: int, channels: int) -> jax.Array:
    """Whisper's sinusoidal positions, f32[length, channels]: sines, then cosines."""
    step = np.log(10_000) / (channels // 2 - 1)
    inverse = np.exp(-step * np.arange(channels // 2, dtype=np.float32)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
