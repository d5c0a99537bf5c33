"""Losses and anchors against float64 NumPy formulas and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentomni_jax.latent import losses
from latentomni_jax.latent.anchors import anchors, pool
from latentomni_jax.latent.sync import latent_moments, sync_mask, sync_scale, sync_windows
from latentomni_jax.layout import LatentSpec

SPEC = LatentSpec(num_visual=8, num_audio=2)


def check_gradient(function, x, samples=20, seed=0):
    """Central differences in float64 at random coordinates."""
    function = jax.jit(function)
    gradient = np.asarray(jax.jit(jax.grad(function))(x))
    rng = np.random.default_rng(seed)
    for flat in rng.integers(0, x.size, samples):
        place = np.unravel_index(flat, x.shape)
        step = np.zeros(x.shape)
        step[place] = 1e-5
        slope = (float(function(x + step)) - float(function(x - step))) / 2e-5
        assert abs(slope - gradient[place]) < 1e-6 * max(1, abs(slope)), (slope, gradient[place])


def apply(head, hidden):
    return hidden @ head


@pytest.mark.parametrize("vocabulary", [64, 2560])  # 2560: no multiple of the usual block of 2048
@pytest.mark.parametrize("chunk", [3, 100])
def test_text_loss_is_the_exact_cross_entropy(vocabulary, chunk):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        hidden = rng.normal(size=(2, 7, 5))
        head = rng.normal(size=(5, vocabulary))
        ids = rng.integers(0, vocabulary, (2, 7))
        weights = rng.integers(0, 2, (2, 7)).astype(np.float64)

        def loss(h):
            return losses.text_loss(apply, head, h, ids, weights, chunk)[0]

        scores = hidden @ head
        nll = (
            np.log(np.exp(scores).sum(-1)) - np.take_along_axis(scores, ids[..., None], -1)[..., 0]
        )
        assert abs(float(loss(hidden)) - (nll * weights).sum()) < 1e-9
        right = losses.text_loss(apply, head, hidden, ids, weights, chunk)[1]
        assert float(right) == ((scores.argmax(-1) == ids) * weights).sum()
        check_gradient(loss, hidden)


def test_no_array_of_all_logits_exists():
    """The compiled gradient's temporaries hold a chunk of logits, not all of them."""
    rows, targets, width, vocabulary = 2, 2048, 64, 8192
    head = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
    hidden = jax.ShapeDtypeStruct((rows, targets, width), jnp.float32)
    ids = jax.ShapeDtypeStruct((rows, targets), jnp.int32)
    weights = jax.ShapeDtypeStruct((rows, targets), jnp.float32)

    def loss(h, w, ids, weights):
        return losses.text_loss(apply, w, h, ids, weights, 64)[0]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, ids, weights).compile()
    chunk_of_logits = rows * 64 * vocabulary * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * chunk_of_logits
    assert rows * targets * vocabulary * 4 > 30 * chunk_of_logits


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_latent_loss_is_the_mean_over_anchored_slots_of_each_block(reduction):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        z, a = rng.normal(size=(2, 2, 3, 10, 6))
        mask = np.zeros((2, 3, 10), bool)
        mask[0, 0] = True
        mask[0, 1, :8] = True  # a segment without sound: its audio slots have no anchor
        mask[1, 2, 8:] = True
        total = 0.0
        for block in np.argwhere(mask.any(-1)):
            slots = np.flatnonzero(mask[tuple(block)])
            square = ((z - a)[tuple(block)][slots] ** 2).sum(-1) / (1 if reduction == "sum" else 6)
            total += square.mean()

        def loss(z):
            return losses.latent_loss(z, a, mask, reduction)

        assert abs(float(loss(z)) - total) < 1e-9
        check_gradient(loss, z)


def numpy_pool(x, count, rows, power):
    """Method section 4, one output row at a time."""
    x = x[:count].astype(np.float64)
    if not count:
        return np.zeros((rows, x.shape[1]))
    out = []
    for i in range(rows):
        if count > rows:
            window = x[i * count // rows : -(-(i + 1) * count // rows)]
            weight = np.linalg.norm(window, axis=1) ** power + 1e-6
            out.append((window * weight[:, None]).sum(0) / weight.sum())
        else:
            centre = max((i + 0.5) * count / rows - 0.5, 0)
            low = min(int(centre), count - 1)
            high, part = min(low + 1, count - 1), centre - low
            out.append((1 - part) * x[low] + part * x[high])
    return np.stack(out)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(0, 40), rows=st.integers(1, 12), power=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_pooling_is_windows_of_weighted_means_or_interpolation(count, rows, power, seed):
    x = np.random.default_rng(seed).normal(size=(40, 5)).astype(np.float32)
    got = jax.jit(pool, static_argnums=(2, 3))(jnp.asarray(x), jnp.asarray(count), rows, power)
    np.testing.assert_allclose(got, numpy_pool(x, count, rows, power), atol=1e-5)


def test_interpolation_is_torch_interpolate():
    import torch

    x = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    want = torch.nn.functional.interpolate(
        torch.tensor(x.T)[None], size=12, mode="linear", align_corners=False
    )[0].T
    np.testing.assert_allclose(pool(jnp.asarray(x), jnp.asarray(5), 12), want, atol=1e-6)


def test_anchors_follow_the_row_lists_and_stop_gradients():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(2, 50, 4)).astype(np.float32)
    visual = np.full((2, 3, 20), -1, np.int32)
    audio = np.full((2, 3, 6), -1, np.int32)
    visual[0, 0, :20], audio[0, 0, :3] = np.arange(10, 30), [40, 41, 42]
    visual[1, 1, :5] = np.arange(5)  # a segment without sound
    run = jax.jit(functools.partial(anchors, SPEC))
    got, mask = run(jnp.asarray(features), visual, audio)
    np.testing.assert_allclose(got[0, 0, :8], numpy_pool(features[0, 10:30], 20, 8, 1), atol=1e-5)
    np.testing.assert_allclose(got[0, 0, 8:], numpy_pool(features[0, 40:43], 3, 2, 1), atol=1e-5)
    np.testing.assert_allclose(got[1, 1, :8], numpy_pool(features[1, :5], 5, 8, 1), atol=1e-5)
    want = np.zeros((2, 3, 10), bool)
    want[0, 0], want[1, 1, :8] = True, True
    np.testing.assert_array_equal(mask, want)
    np.testing.assert_array_equal(got[~want], 0)
    gradient = jax.grad(lambda f: run(f, visual, audio)[0].sum())(jnp.asarray(features))
    assert not np.any(gradient)


def test_sync_windows_share_the_clock_of_the_slots():
    windows = sync_windows(LatentSpec())
    assert windows.shape == (8, 32)
    for j in range(8):
        np.testing.assert_array_equal(np.flatnonzero(windows[j]), np.arange(4 * j, 4 * j + 4))
    np.testing.assert_allclose(windows.sum(-1), 1)
    uneven = sync_windows(LatentSpec(num_visual=24, num_audio=16))
    np.testing.assert_allclose(uneven.sum(-1), 1)
    np.testing.assert_array_equal((uneven > 0).sum(-1), [1, 2] * 8)
    sparse = sync_windows(LatentSpec(num_visual=2, num_audio=4))
    np.testing.assert_array_equal(sparse.any(-1), [False, True, False, True])
    moments = np.ones((1, 1, 6), bool)
    np.testing.assert_array_equal(
        sync_mask(LatentSpec(num_visual=2, num_audio=4), moments)[0, 0], sparse.any(-1)
    )


def test_moments_are_means_of_the_models_own_states():
    z = np.random.default_rng(4).normal(size=(1, 2, 10, 3)).astype(np.float32)
    h_v, h_a = latent_moments(SPEC, jnp.asarray(z))
    np.testing.assert_allclose(h_v[0, 1, 1], z[0, 1, 4:8].mean(0), atol=1e-6)
    np.testing.assert_array_equal(h_a[0, 1], z[0, 1, 8:])


def test_temperature_is_clamped():
    assert float(sync_scale(jnp.float32(losses_init()))) == pytest.approx(1 / 0.07, rel=1e-6)
    assert float(sync_scale(jnp.float32(50.0))) == 100.0


def losses_init():
    from latentomni_jax.latent.sync import LOG_SCALE_INIT

    return LOG_SCALE_INIT


def test_diversity_and_retrieval():
    same = jnp.ones((1, 1, 4, 8))
    eye = jnp.eye(4, 8)[None, None]
    on = jnp.ones((1, 1), bool)
    assert float(losses.diversity(same, on)["cosine"]) == pytest.approx(1, abs=1e-5)
    assert float(losses.diversity(same, on)["rank"]) == pytest.approx(1, abs=1e-4)
    assert float(losses.diversity(eye, on)["cosine"]) == pytest.approx(0, abs=1e-5)
    assert float(losses.diversity(eye, on)["rank"]) == pytest.approx(4, abs=1e-4)
    slots = jnp.ones((1, 1, 4), bool)
    assert float(losses.retrieval(eye, eye, slots)) == 1
    assert float(losses.retrieval(eye[:, :, ::-1], eye, slots)) == 0
    half = slots.at[..., 2:].set(False)
    assert float(losses.retrieval(eye, eye, half)) == 1
