"""Attention weights are those that the decoder used, and what is said of them adds up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentomni_jax.evaluate.attention import attention_weights, shares
from latentomni_jax.evaluate.replay import replay
from latentomni_jax.latent.masks import flow_mask
from latentomni_jax.layout import LatentSpec, Role
from latentomni_jax.model import LatentOmni
from tests.prompts import PromptMaker
from tests.reference import make_ported

SPEC = LatentSpec(num_visual=4, num_audio=2, pad_id=509, trigger_id=510, stop_id=511)
SLOTS = (Role.LATENT_VISUAL, Role.LATENT_AUDIO)


@pytest.fixture(scope="module", params=["open", "bottleneck"])
def generated(request):
    """A model, and what it generated with one block about a video with sound."""
    config, params = make_ported()
    model = LatentOmni(params, config, dataclasses.replace(SPEC, flow=request.param))
    make = PromptMaker(0)
    prompt = [make.text(5), make.vision((2, 8, 8), frames=200), make.text(9)]
    generation = model.generate([prompt], latents="force", max_blocks=1, max_new_tokens=12)[0]
    return model, replay(model, prompt, generation)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_weights_times_values_are_what_the_layers_made(generated, scan_layers):
    model, row = generated
    config = model.config.text

    @jax.jit
    def decode(params, embeds, positions, hidden):
        return model.thinker.apply(
            {"params": params},
            embeds,
            positions,
            hidden=hidden,
            method="decode",
            capture_intermediates=lambda module, _: module.name in ("v_proj", "o_proj"),
            mutable=["intermediates"],
        )

    hidden = flow_mask(model.latent, jnp.asarray(row.roles)[None])
    _, captured = decode(model.text_params, row.embeds, jnp.asarray(row.position_ids), hidden)
    queries = np.arange(3, row.embeds.shape[1])
    asked = model
    if scan_layers:
        asked = LatentOmni(make_ported()[1], model.config, model.latent, scan_layers=True)
    weights = attention_weights(asked, row, queries)
    assert weights.shape[:3] == (config.num_layers, config.num_heads, len(queries))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    for layer in range(config.num_layers):
        names = captured["intermediates"]["text"][f"layers_{layer}"]
        v, o = (np.asarray(names[name]["__call__"][0][0]) for name in ("v_proj", "o_proj"))
        v = v.reshape(len(v), config.num_kv_heads, config.head_dim)
        v = np.repeat(v, config.num_heads // config.num_kv_heads, axis=1)
        mixed = np.einsum("nqs,snh->qnh", weights[layer], v).reshape(len(queries), -1)
        kernel = np.asarray(model.text_params["text"][f"layers_{layer}"]["o_proj"]["kernel"])
        np.testing.assert_allclose(mixed @ kernel, o[queries], atol=1e-4)


def test_shares_add_up_and_a_bottleneck_shuts_the_direct_way(generated):
    model, row = generated
    slots = np.flatnonzero(np.isin(row.roles, SLOTS))
    after = np.arange(slots[-1] + 2, len(row.roles))
    before = [int(slots[0]) - 2]
    late, early = shares(model, row, after), shares(model, row, before)
    for one in (late, early):
        assert abs(one.video + one.audio + one.latent + one.text - 1) < 1e-5
    assert early.latent == 0 and early.through_latents == 0 and early.video > 0 < early.audio
    assert late.latent > 0 and late.through_latents > 0
    is_shut = model.latent.flow == "bottleneck"
    assert (late.video + late.audio == 0) == is_shut
