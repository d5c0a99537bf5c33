"""Muon moves matrices by their directions alone, and leaves the rest to AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from latentomni_jax.layout import InputError
from latentomni_jax.train.state import OptimizerConfig, _clip, new_state

RATE = 0.1


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = {
        "text/layers/q_proj/kernel": (3, 24, 16),
        "text/layers/q_proj/bias": (3, 16),
        "text/embed_tokens": (40, 24),
        "text/lm_head/kernel": (24, 40),
        "audio/conv1/kernel": (3, 8, 16),
        "vision/patch_embed/kernel": (48, 16),
    }
    tree = {}
    for name, shape in shapes.items():
        node = tree
        *path, last = name.split("/")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return tree


def first_update(params, grads, **settings):
    """What the first step adds, warm-up and decay left out."""
    config = OptimizerConfig(
        learning_rate=RATE, warmup_fraction=0.0, weight_decay=0.0, clip_norm=1e9, **settings
    )
    optimizer = config.transformation()
    state = new_state(params, ("vision/",), optimizer, seed=0)
    grads = jax.tree.map(lambda p, g: None if p is None else g, state.params, grads,
                         is_leaf=lambda x: x is None)  # fmt: skip
    return optimizer.update(grads, state.optimizer, state.params)[0]


def test_every_matrix_moves_along_its_own_directions(params):
    grads = jax.tree.map(lambda x: x[::-1] * 1e-3, params)
    got = first_update(params, grads, name="muon")
    assert got["vision"]["patch_embed"]["kernel"] is None  # frozen
    kernels = list(
        zip(got["text"]["layers"]["q_proj"]["kernel"],
            grads["text"]["layers"]["q_proj"]["kernel"], strict=True)
    )  # fmt: skip
    taps, bins, width = params["audio"]["conv1"]["kernel"].shape
    flat = [tree["audio"]["conv1"]["kernel"].reshape(taps * bins, width) for tree in (got, grads)]
    for moved, gradient in [*kernels, flat]:
        u, _, v = np.linalg.svd(np.asarray(gradient, np.float64), full_matrices=False)
        turned = u.T @ np.asarray(moved, np.float64) @ v.T
        sizes = -np.diag(turned) / (RATE * 0.2 * np.sqrt(max(gradient.shape)))
        # Five Newton-Schulz steps bring every singular value near 1, not to it.
        assert (sizes > 0.6).all() and (sizes < 1.3).all()
        off = turned - np.diag(np.diag(turned))
        assert np.abs(off).max() < 1e-3 * RATE


def test_what_is_no_matrix_of_a_layer_moves_by_adamw(params):
    grads = jax.tree.map(lambda x: x[::-1] * 1e-3, params)
    got = first_update(params, grads, name="muon")
    want = first_update(params, grads)
    for path in (("layers", "q_proj", "bias"), ("embed_tokens",), ("lm_head", "kernel")):
        a, b = got["text"], want["text"]
        for part in path:
            a, b = a[part], b[part]
        np.testing.assert_allclose(a, b, rtol=1e-5)
    different = want["text"]["layers"]["q_proj"]["kernel"]
    assert np.abs(got["text"]["layers"]["q_proj"]["kernel"] - different).max() > 0.01


def test_kernels_decay(params):
    config = OptimizerConfig(
        name="muon", learning_rate=RATE, warmup_fraction=0.0, weight_decay=0.5, clip_norm=1.0
    )
    optimizer = config.transformation()
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates = optimizer.update(nothing, optimizer.init(params), params)[0]
    moved = optax.apply_updates(params, updates)
    kernel, bias = (params["text"]["layers"]["q_proj"][name] for name in ("kernel", "bias"))
    np.testing.assert_allclose(
        moved["text"]["layers"]["q_proj"]["kernel"], kernel * (1 - RATE * 0.5), rtol=1e-5
    )
    np.testing.assert_array_equal(moved["text"]["layers"]["q_proj"]["bias"], bias)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match="adamw or muon: 'adam'"):
        OptimizerConfig(name="adam")


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_gradients_are_clipped_by_their_global_norm(params, limit):
    """As optax does; what is smaller than the limit stays as it is, bit for bit."""
    clip, reference = _clip(limit), optax.clip_by_global_norm(limit)
    clipped = clip.update(params, clip.init(params))[0]
    expected = reference.update(params, reference.init(params))[0]
    for got, want in zip(jax.tree.leaves(clipped), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    if limit > optax.global_norm(params):
        jax.tree.map(np.testing.assert_array_equal, clipped, params)
    else:
        np.testing.assert_allclose(optax.global_norm(clipped), limit, rtol=1e-5)
