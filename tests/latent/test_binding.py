"""L_bind against a float64 NumPy formula, and what may not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentomni_jax.latent import binding
from latentomni_jax.latent.binding import moments
from latentomni_jax.layout import Role
from tests.examples import ExampleMaker, make_batch
from tests.latent.test_losses import check_gradient
from tests.reference import make_ported


@pytest.fixture(scope="module")
def batch():
    """Video with sound of two lengths, video alone, sound alone, text, an empty row."""
    make = ExampleMaker(4)
    examples = [
        make.example("video_with_sound"), make.example("video", [None]), make.example("audio"),
        make.example("text"), None,
    ]  # fmt: skip
    return make_batch(make_ported()[0], examples, source="prompt")


def formula(hidden, embeds, log_scale, batch, before):
    """Row by row, with loops."""
    total, rows_per_frame = 0.0, batch.prompt.windows.shape[2] // 4
    for b in range(len(batch.lengths)):
        time, roles = batch.position_ids[0, b], batch.roles[b]
        frames = {}
        for s in np.flatnonzero(roles == Role.PROMPT_VIDEO):
            frames.setdefault(batch.feature_index[b, s] // rows_per_frame, []).append(s)
        starts = {g: time[places].max() for g, places in frames.items()}
        heard = {}
        for s in np.flatnonzero(roles == Role.PROMPT_AUDIO):
            begun = [g for g, start in starts.items() if start <= time[s]]
            if begun:
                heard.setdefault(max(begun), []).append(s)
        if not heard:
            continue
        h = np.stack([hidden[b, places].mean(0) for places in heard.values()])
        h = h / np.sqrt((h * h).sum(-1, keepdims=True) + 1e-12)
        numbers = list(heard)
        late = [i for i, g in enumerate(numbers) if g - 1 in heard]
        early = [numbers.index(numbers[i] - 1) for i in late]
        half = embeds.shape[-1] // 2
        for own in ([frames[g] for g in heard], heard.values()):
            x = np.stack([embeds[b, places].mean(0) for places in own])
            x = x - x.mean(0)
            x = x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-12)
            rotated = np.concatenate([x[:, half:], x[:, :half]], axis=1)
            for state, feature in ((h, x), (h[late], rotated[early]))[: 1 + before]:
                scores = state @ feature.T * np.exp(log_scale)
                for axis in (0, 1):
                    total += (np.log(np.exp(scores).sum(axis)) - np.diag(scores)).sum() / 2
    return total


def states(batch):
    rng = np.random.default_rng(0)
    shape = (*batch.token_ids.shape, 16)
    return rng.normal(size=shape), rng.normal(size=shape)


@pytest.mark.parametrize("before", [False, True])
def test_it_is_the_formula_and_its_gradient_is_right(batch, before):
    assert moments(batch)[0].sum(axis=1)[0] > 1
    assert not np.asarray(moments(batch)[0])[1:].any()
    with jax.enable_x64(True):
        hidden, embeds = states(batch)
        expected = formula(hidden, embeds, 1.3, batch, before)

        @jax.jit
        def loss(h):
            return binding.binding_loss(h, embeds, jnp.float64(1.3), batch, before=before)

        assert abs(float(loss(hidden)) - expected) < 1e-6 and expected > 0
        check_gradient(loss, hidden)


@pytest.mark.parametrize("before", [False, True])
def test_pictures_get_no_gradient_and_padding_changes_nothing(batch, before):
    binding_loss = jax.jit(functools.partial(binding.binding_loss, before=before))
    hidden, embeds = (x.astype(np.float32) for x in states(batch))
    scale = jnp.float32(2.0)
    grad = jax.grad(lambda e: binding_loss(hidden, e, scale, batch))(embeds)
    assert not np.asarray(grad).any()
    whole = binding_loss(hidden, embeds, scale, batch)
    first = batch.map_rows(lambda x, axis: np.take(x, [0], axis))
    alone = binding_loss(hidden[:1], embeds[:1], scale, first)
    np.testing.assert_allclose(whole, alone, rtol=1e-6)  # the only row that has both
    beyond = np.arange(hidden.shape[1]) >= batch.lengths[:, None]
    other = np.where(beyond[..., None], 9.0, hidden)
    np.testing.assert_allclose(binding_loss(other, embeds, scale, batch), whole, rtol=1e-6)
