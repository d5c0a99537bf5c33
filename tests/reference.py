"""Small random PyTorch reference models, and the same weights as our parameters."""

from __future__ import annotations

import functools
import json
import pathlib
import tempfile

import numpy as np
import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
    Qwen2_5OmniThinkerConfig,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.weights import safetensors

# Ids of a 512-token vocabulary, so that logits stay small.
IDS = {
    "audio_token_id": 500,
    "audio_token_index": 500,
    "audio_start_token_id": 501,
    "audio_end_token_id": 502,
    "vision_start_token_id": 503,
    "vision_end_token_id": 504,
    "image_token_id": 505,
    "image_token_index": 505,
    "video_token_id": 506,
    "video_token_index": 506,
    "pad_token_id": 0,
}


def reference_config(**text) -> Qwen2_5OmniThinkerConfig:
    """The thinker's shape in small: two window layers and a full one, GQA, three rope sections."""
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        }
        | text,
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "embed_dim": 32,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 112,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "num_mel_bins": 128,
            "n_window": 100,
            "output_dim": 64,
        },
        position_id_per_seconds=25,
        seconds_per_chunk=2,
        initializer_range=0.05,
        **IDS,
    )


@functools.lru_cache
def make_reference(seed: int = 0) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """A random reference thinker; every parameter non-trivial (norm scales and biases too)."""
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(reference_config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if ("norm" in name and "weight" in name) or "ln_" in name else 0.0
                parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
            else:
                # Unit-variance attention scores, as in a trained model. Twice larger q and k make
                # the recurrence of fed-back states chaotic: f32 rounding grows to 2e-3 in 12 steps.
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


@functools.lru_cache
def make_ported(seed: int = 0):
    """`(config, params)` of ours under the weights of `make_reference(seed)`."""
    with tempfile.TemporaryDirectory() as directory:
        make_reference(seed).save_pretrained(directory)
        config = ThinkerConfig.from_hf(
            json.loads((pathlib.Path(directory) / "config.json").read_text())
        )
        return config, safetensors.unflatten(dict(safetensors.load(directory, config)))


def assert_close(ours, theirs, *, atol=1e-5, rtol=1e-4):
    """The block tolerance of CONTRIBUTING.md, never relaxed."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().float().numpy()
    np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=atol, rtol=rtol)
