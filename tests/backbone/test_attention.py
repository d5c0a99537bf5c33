"""Attention backends: chosen in one place, equal to a float64 formula."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentomni_jax.backbone import attention, plain


def formula(q, k, v, visible):
    """Softmax attention in float64 NumPy; `visible` [B,T,S]; kv heads repeated."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    repeats = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, repeats, axis=2), np.repeat(v, repeats, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(axis=-1, keepdims=True), v)


def random_qkv(batch, length, heads, kv_heads, width, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, n, width) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def mask(length, causal, lengths, hidden=None):
    visible = np.tril(np.ones((length, length), bool)) if causal else np.ones((length,) * 2, bool)
    visible = np.broadcast_to(visible, (len(lengths), length, length))
    visible = visible & (np.arange(length) < np.asarray(lengths)[:, None])[:, None]
    if hidden is not None:
        blocked, media = (np.asarray(x) for x in hidden)
        visible = visible & ~(blocked[:, :, None] & media[:, None])
    return visible


def random_hidden(batch, length, seed=0):
    """Marked queries and keys; the first key is seen by all, so that no query sees nothing."""
    marks = np.random.default_rng(seed).random((2, batch, length)) < 0.5
    marks[1, :, 0] = False
    return jnp.asarray(marks[0]), jnp.asarray(marks[1])


# One program an example, not one for each of its operations.
attend = jax.jit(attention.attend, static_argnames=("causal", "implementation"))
local_attend = jax.jit(attention.local_attend, static_argnames="block")


@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_xla_equals_the_formula(batch, length, heads, causal, hides, data):
    hidden = random_hidden(batch, length) if hides else None
    lengths = data.draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch))
    q, k, v = random_qkv(batch, length, *heads, 8)
    with mock.patch.object(plain, "_MIN_BAND", 8):  # several bands at these lengths
        ours = attend(
            q, k, v, causal=causal, lengths=jnp.array(lengths), hidden=hidden, implementation="xla"
        )
    expected = formula(q, k, v, mask(length, causal, lengths, hidden))
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(ours[row, :n], expected[row, :n], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tile", [4 * 75 * 75, 4 * 75 * 16], ids=["by rows", "by queries"])
@pytest.mark.parametrize("hides", [False, True], ids=["open", "hidden"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_tiles_change_neither_values_nor_gradients(monkeypatch, causal, hides, tile):
    q, k, v = random_qkv(2, 75, 4, 2, 16)
    options = {"lengths": jnp.array([75, 40]), "hidden": random_hidden(2, 75) if hides else None}

    def loss(q, k, v):
        out = attention.attend(q, k, v, causal=causal, implementation="xla", **options)
        return jnp.sum(out[:, :40] ** 2)

    def program():
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))

    whole = program()(q, k, v)
    monkeypatch.setitem(plain._TILE, "cpu", tile)
    monkeypatch.setattr(plain, "_MIN_BAND", 16)
    chunked = program()(q, k, v)
    assert "scan" in str(jax.make_jaxpr(loss)(q, k, v))  # it really went tile by tile
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), whole, chunked
    )


@given(st.lists(st.integers(1, 8), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_local_attention_equals_full_attention_masked_by_segment(sizes):
    segments = np.repeat(np.arange(len(sizes)), sizes)
    length = -(-len(segments) // 8) * 8
    segments = np.pad(segments, (0, length - len(segments)), constant_values=-1)[None]
    q, k, v = random_qkv(1, length, 2, 2, 8)
    ours = local_attend(q, k, v, jnp.asarray(segments), block=8)
    expected = formula(q, k, v, segments[:, :, None] == segments[:, None])
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-4)


def test_cached_attention_equals_the_formula():
    q, k, v = random_qkv(3, 50, 6, 2, 16)
    visible = np.random.default_rng(1).random((3, 2, 50)) < 0.5
    visible[:, :, 0] = True
    ours = attention.attend_cached(
        q[:, :2], k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.asarray(visible)
    )
    np.testing.assert_allclose(ours, formula(q[:, :2], k, v, visible), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "hidden", "backend"),
    [
        ("cpu", jnp.float32, 128, False, "xla"),
        ("tpu", jnp.bfloat16, 256, False, "splash"),
        ("tpu", jnp.bfloat16, 256, True, "splash"),
        ("tpu", jnp.bfloat16, 100, False, "xla"),
        ("gpu", jnp.bfloat16, 100, False, "cudnn"),
        ("gpu", jnp.bfloat16, 100, True, "xla"),
        ("gpu", jnp.float32, 128, False, "xla"),
    ],
)
def test_auto_chooses_by_what_the_inputs_are(platform, dtype, length, hidden, backend):
    arguments = {"platform": platform, "dtype": jnp.dtype(dtype), "query_length": length}
    assert attention.choose("auto", hidden=hidden, **arguments) == backend


@pytest.mark.parametrize(
    ("name", "dtype", "length"),
    [("splash", jnp.float32, 100), ("cudnn", jnp.float32, 128)],
)
def test_a_backend_that_cannot_serve_is_an_error(name, dtype, length):
    with pytest.raises(ValueError, match="attention"):
        attention.choose(name, platform="cpu", dtype=jnp.dtype(dtype), query_length=length)


def test_cudnn_with_hidden_media_says_what_to_do():
    q, k, v = (x.astype(jnp.bfloat16) for x in random_qkv(1, 128, 2, 2, 16))
    with pytest.raises(ValueError, match="implementation='auto' or 'xla'"):
        attention.attend(q, k, v, causal=True, hidden=random_hidden(1, 128), implementation="cudnn")
