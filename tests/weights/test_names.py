"""The name table against the tensors of the published checkpoints, and its own inverse."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import abstract_params
from latentomni_jax.layout import InputError
from latentomni_jax.weights import names, safetensors

PUBLISHED = {
    "7b": (ThinkerConfig.qwen2_5_omni_7b(), 1346, 2448),
    "3b": (ThinkerConfig.qwen2_5_omni_3b(), 1442, 2544),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_published_thinker_tensor_is_used_exactly_once_in_its_shape(assets, size):
    config, num_thinker, num_all = PUBLISHED[size]
    listed = json.loads((assets / "qwen2_5_omni" / size / "tensors.json").read_text())
    assert len(listed) == num_all
    published = {
        full.removeprefix("thinker."): tuple(entry["shape"])
        for full, entry in listed.items()
        if full.startswith("thinker.")
    }
    assert len(published) == num_thinker

    used = [name for entry in names.entries(config) for name in entry.names]
    assert len(used) == len(set(used)) == num_thinker
    parameters = safetensors.flatten(abstract_params(config))
    exported = {
        name: names.checkpoint_shape(entry, parameters[entry.path].shape, config)
        for entry in names.entries(config)
        for name in entry.names
    }
    assert exported == published  # both directions: what is read, and what export would write
    assert {entry.path for entry in names.entries(config)} == set(parameters)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_config_reads_as_the_built_in_one(assets, size):
    config = json.loads((assets / "qwen2_5_omni" / size / "config.json").read_text())
    assert ThinkerConfig.from_hf(config) == PUBLISHED[size][0]


@pytest.mark.parametrize("config", [PUBLISHED["7b"][0], PUBLISHED["3b"][0], ThinkerConfig.tiny()])
def test_config_survives_its_hf_form(config):
    hf = json.loads(json.dumps(config.to_hf()))
    assert ThinkerConfig.from_hf(hf) == config
    assert ThinkerConfig.from_hf({"model_type": "qwen2_5_omni", "thinker_config": hf}) == config


def test_parameter_counts_of_the_towers_are_the_published_ones(assets):
    listed = json.loads((assets / "qwen2_5_omni" / "7b" / "tensors.json").read_text())
    published = sum(
        int(np.prod(entry["shape"])) for name, entry in listed.items() if name.startswith("thinker")
    )
    parameters = safetensors.flatten(abstract_params(ThinkerConfig()))
    assert sum(leaf.size for leaf in parameters.values()) == published


@given(
    layout=st.sampled_from(["same", "linear", "conv1d", "patch"]),
    sides=st.lists(st.integers(1, 4), min_size=5, max_size=5),
)
def test_layouts_are_inverted_bit_for_bit(layout, sides):
    rank = {"same": 1, "linear": 2, "conv1d": 3, "patch": 5}[layout]
    tensor = np.arange(np.prod(sides[:rank]), dtype=np.uint16).reshape(sides[:rank])
    parameter = names.to_parameter(layout, tensor)
    back = names.to_checkpoint(layout, parameter, tensor.shape)
    np.testing.assert_array_equal(back, tensor)


def test_patch_kernel_multiplies_flattened_patches_as_the_convolution_does():
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(5, 3, 2, 4, 4)), rng.normal(size=(3, 2, 4, 4))
    convolved = np.einsum("octyx,ctyx->o", kernel, patch)
    ours = patch.reshape(-1) @ names.to_parameter("patch", kernel)
    np.testing.assert_allclose(ours, convolved, rtol=1e-12)


def test_prefix_is_taken_off_and_other_models_are_left_out():
    full = ["thinker.lm_head.weight", "talker.x", "token2wav.y", "talker.model.norm.weight"]
    assert names.thinker_names(full) == {"lm_head.weight": "thinker.lm_head.weight"}
    assert names.thinker_names(["lm_head.weight"]) == {"lm_head.weight": "lm_head.weight"}


def test_tensors_of_an_unknown_model_are_refused_by_name():
    with pytest.raises(InputError, match=r"1 extra tensors .*: speller\.weight"):
        names.thinker_names(["thinker.lm_head.weight", "talker.x", "speller.weight"])
