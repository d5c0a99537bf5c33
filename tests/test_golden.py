"""A real clip from file to prompt, against what the reference processor made of it."""

import json

import numpy as np
import pytest

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.latent.trajectory import lay_out
from latentomni_jax.layout import MediaSpec, Role
from latentomni_jax.media.processor import build_prompt, clip_part
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.media.video import read_clip

CLIPS = ("bswbQtOPk6E", "d6b4OmUFt7I")
SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
    "perceiving auditory and visual inputs, as well as generating text and speech."
)


@pytest.fixture(scope="module", params=CLIPS)
def golden(request, assets):
    return request.param, np.load(assets / f"golden/{request.param}_tiny4s.npz")


@pytest.mark.parametrize("clock", ["true", "nominal"])
def test_ids_positions_and_features(golden, assets, clock):
    name, expected = golden
    hf = assets / "qwen2_5_omni"
    preprocessor = json.loads((hf / "tokenizer/preprocessor_config.json").read_text())
    spec = MediaSpec.from_hf(preprocessor)
    config = ThinkerConfig.from_hf(json.loads((hf / "7b/config.json").read_text()))
    clip = read_clip(assets / f"clips/daily_omni/{name}/{name}_tiny4s.mp4", spec)
    part = clip_part(clip, spec, nominal_clock=clock == "nominal")
    tokenizer = load_tokenizer(hf / "tokenizer")
    parts = build_prompt(tokenizer, "What is happening in the video?", [part], system=SYSTEM)
    row = lay_out(config, parts, clock)

    np.testing.assert_array_equal(row.token_ids, expected["input_ids"])
    np.testing.assert_array_equal(row.position_ids, expected["position_ids"])
    assert row.next_position - len(row.token_ids) == int(expected["rope_delta"].item())
    assert part.grid == tuple(expected["video_grid_thw"][0])
    assert row.count(Role.PROMPT_VIDEO) == 576 and row.count(Role.PROMPT_AUDIO) == 99
    mel = expected["input_features"].T
    assert part.mel.shape == mel.shape
    np.testing.assert_allclose(part.mel, mel, atol=1e-4)
