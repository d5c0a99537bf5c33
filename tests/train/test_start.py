"""Where a run starts: presets, given tokenizers, and rows of new tokens that are made once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.layers import rotate
from latentomni_jax.backbone.text import tmrope
from latentomni_jax.layout import InputError
from latentomni_jax.train.loop import Trainer
from latentomni_jax.train.mesh import make_mesh
from latentomni_jax.train.start import PRESETS, find_start, load_params
from latentomni_jax.weights.checkpoint import load_model
from tests.models import TEXT, make_model


def begin(tmp_path, preset, tokenizer=""):
    return find_start("", preset, tokenizer, tmp_path, TEXT.strip().splitlines)


def load(start, options):
    return load_params(start, options, make_mesh(fsdp=1), dtype=jnp.float32, lora_rank=0, seed=0)


@pytest.fixture
def options(small_config, tmp_path):
    return Trainer(small_config(), tmp_path / "run").options


def test_a_small_model_begins_with_loud_embeddings(tmp_path, options):
    start = begin(tmp_path, "small")
    config = start.config
    assert config.text.num_layers == 4 and config.text.tie_embeddings
    params = load(start, options)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert 0.7e6 < count < 1.5e6
    assert np.asarray(params["text"]["embed_tokens"]).std() == pytest.approx(0.5, rel=0.05)
    assert "lm_head" not in params["text"]  # tied


def test_its_first_layer_begins_by_looking_back(tmp_path, options):
    """Where contents say nothing, as far as the preset says, and nowhere in other heads."""
    start = begin(tmp_path, "small")
    layers = load(start, options)["text"]["layers"]
    text = start.config.text
    positions = jnp.broadcast_to(jnp.arange(40), (3, 1, 40))
    q, k = (
        rotate(
            jnp.broadcast_to(
                layers[name]["bias"][0].reshape(1, 1, count, -1), (1, 40, count, text.head_dim)
            ),
            *tmrope(text, positions),
        )[0]
        for name, count in (("q_proj", text.num_heads), ("k_proj", text.num_kv_heads))
    )
    k = jnp.repeat(k, text.num_heads // text.num_kv_heads, axis=1)
    scores = np.array(jnp.einsum("qnh,knh->nqk", q, k)) * text.head_dim**-0.5
    scores[:, ~np.tri(40, dtype=bool)] = -np.inf
    offsets = PRESETS["small"].look_back
    assert offsets == (1, 3, 2, None)
    for head, offset in zip(scores, offsets, strict=True):
        if offset is None:
            assert np.ptp(head[39]) == 0
        else:
            assert (head.argmax(axis=1)[offset:] == np.arange(40 - offset)).all()
            chosen = scipy.special.softmax(head[39])
            assert chosen[39 - offset] > 3 * np.delete(chosen, 39 - offset).max()
    assert not np.any(layers["q_proj"]["bias"][1:]) and not np.any(layers["k_proj"]["bias"][1:])


def test_rows_of_new_tokens_are_made_once(small_config, tmp_path):
    """A run that goes on from trained latents keeps their trigger and stop."""
    trained, plain = tmp_path / "trained", tmp_path / "plain"
    make_model(trained, is_trained=True)
    further = Trainer(small_config(f"model.directory={trained}"), tmp_path / "further")
    assert further.start.latent.is_trained and further.spec.is_trained
    kept = load_model(trained).params["text"]["embed_tokens"]
    begun = load(further.start, further.options)["text"]["embed_tokens"]
    np.testing.assert_array_equal(begun, kept)

    # Trained without blocks (or not at all), a model has yet to learn what they are.
    make_model(plain)
    further = Trainer(small_config(f"model.directory={plain}"), tmp_path / "fresh")
    assert not further.start.latent.is_trained
    kept = np.asarray(load_model(plain).params["text"]["embed_tokens"])
    begun = np.asarray(load(further.start, further.options)["text"]["embed_tokens"])
    changed = np.flatnonzero((begun != kept).any(axis=1))
    assert sorted(changed) == sorted([further.spec.trigger_id, further.spec.stop_id])


def test_sizes_survive_their_way_through_a_config_file():
    for preset in ("tiny", "small"):
        config = PRESETS[preset].config()
        assert ThinkerConfig.from_hf(config.to_hf()) == config


def test_a_given_tokenizer_is_taken(tmp_path):
    kept = begin(tmp_path / "one", "tiny")
    again = begin(tmp_path / "two", "small", str(kept.tokenizer_dir))
    assert again.tokenizer_dir == kept.tokenizer_dir
    assert not (tmp_path / "two").exists()
    assert again.latent == kept.latent  # the same ids
    with pytest.raises(InputError, match="tiny or small"):
        begin(tmp_path, "huge")
