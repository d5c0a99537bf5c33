"""The decode loop's parts: OSPE, the slots' clock, sampling, options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentomni_jax.latent.decode import DecodeSpec, sample
from latentomni_jax.latent.trajectory import slot_positions
from latentomni_jax.layout import InputError, LatentSpec
from pallas_kernels.ospe.api import ospe

SPEC = LatentSpec(num_visual=4, num_audio=2, pad_id=509, trigger_id=510, stop_id=511)


def test_ospe_formula_and_norm():
    h = np.random.default_rng(0).normal(size=(5, 32))
    t = np.array([0.0, 0.078125, 2.5, 4.92, 5.0])
    theta = 1e6 ** (-np.arange(0, 32, 2) / 32)
    turned = (h[:, 0::2] + 1j * h[:, 1::2]) * np.exp(1j * t[:, None] * theta)
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(h.shape)
    ours = ospe(jnp.float32(h), jnp.float32(t), 1e6)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), np.linalg.norm(h, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(ours[0], h[0], atol=1e-6)  # time zero turns nothing


def test_slots_share_one_clock():
    spec = LatentSpec()
    seconds = spec.slot_seconds()
    visual, audio = seconds[:32], seconds[32:]
    # Visual slots 4j..4j+3 lie in the window of audio slot j and average to its time.
    np.testing.assert_allclose(visual.reshape(8, 4).mean(axis=1), audio, rtol=1e-6)
    offsets, extent = slot_positions(dataclasses.replace(spec, ospe_apply="position"), 25)
    assert list(offsets[:4]) == [1, 5, 9, 13] and list(offsets[32:34]) == [7, 23]
    assert extent == offsets.max() + 1 == 124
    assert slot_positions(spec, 25) == (pytest.approx(np.arange(40)), 40)


def test_sampling_filters():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 400)

    def draw(**filters):
        spec = DecodeSpec(spec=SPEC, temperature=1.0, **filters)
        return set(np.asarray(sample(spec, jnp.repeat(logits, 400, axis=0), keys)))

    assert draw() == {0, 1, 2, 3}
    assert draw(top_k=2) == {0, 1}
    assert draw(top_p=0.6) == {0, 1}
    assert draw(top_p=0.5) == {0}
    assert draw(top_k=1) == {0}


@pytest.mark.parametrize(
    "bad",
    [
        {"latents": "maybe"},
        {"latents": "force", "max_blocks": 0},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
    ],
)
def test_bad_options_are_named(bad):
    with pytest.raises(InputError):
        DecodeSpec(spec=SPEC, **bad)
