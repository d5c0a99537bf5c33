"""The TPU kernel: interpreted against the XLA path, and compiled for real topologies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from latentomni_jax.backbone import attention, splash
from tests.backbone.test_attention import formula, mask, random_hidden, random_qkv
from tests.topologies import FOUR_CHIPS, tpu_mesh


def interpreted(capfd, f, *args):
    """`f(*args)` in the TPU interpreter, which prints the races that it detects."""
    from jax.experimental.pallas import tpu as pltpu

    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
        out = jax.block_until_ready(f(*args))
    assert "race" not in "".join(capfd.readouterr()).lower()
    return out


@pytest.mark.parametrize("causal", [True, False])
def test_splash_in_the_tpu_interpreter_equals_the_formula(causal, capfd):
    """The kernel's numbers, GQA and padding included, with the interpreter's race detection."""
    q, k, v = random_qkv(2, 256, 4, 2, 64)
    lengths = [256, 150]
    kernel = splash.kernel(4, 256, causal)
    expected = formula(q, k, v, mask(256, causal, lengths))
    for row, n in enumerate(lengths):  # row by row: the interpreter cannot vmap this kernel
        ids = splash.segment_ids((jnp.arange(256) < n).astype(jnp.int32))
        args = (x[row].swapaxes(0, 1) for x in (q * 64**-0.5, k, v))
        ours = interpreted(capfd, kernel, *args, ids).swapaxes(0, 1)[:n]
        np.testing.assert_allclose(ours, expected[row, :n], atol=1e-5, rtol=1e-4)


def trigger_hidden(length):
    """Media in the middle of the prompt (a whole key block of it), a block, then hidden from."""
    place = np.arange(length)[None]
    return jnp.asarray(place >= 300) & (place % 7 != 0), jnp.asarray((place >= 5) & (place < 280))


@pytest.mark.parametrize("make_hidden", [trigger_hidden, lambda n: random_hidden(1, n)])
def test_hidden_keys_have_no_weight_and_no_gradient(make_hidden, capfd, monkeypatch):
    """Values and gradients of the appended coordinate against the XLA path's mask."""
    length = 384
    q, k, v = random_qkv(1, length, 4, 2, 64, seed=2)
    hidden = make_hidden(length)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)

    def loss(attend, q, k, v):
        out = attend(q, k, v)
        return jnp.sum(out * weights), out

    def kernel(q, k, v):
        q, k = splash.hide(q * 64**-0.5, k, *hidden)
        row = splash.kernel(4, length, True)(*(x[0].swapaxes(0, 1) for x in (q, k, v)))
        return row.swapaxes(0, 1)[None]

    def dense(q, k, v):
        return attention.attend(q, k, v, causal=True, hidden=hidden, implementation="xla")

    @jax.jit
    def expected_gradients(q, k, v):
        return jax.grad(loss, argnums=(1, 2, 3), has_aux=True)(dense, q, k, v)

    theirs = expected_gradients(q, k, v)
    ours = interpreted(capfd, lambda: jax.grad(loss, (1, 2, 3), has_aux=True)(kernel, q, k, v))
    expected = formula(q, k, v, mask(length, True, [length], hidden))
    np.testing.assert_allclose(ours[1], expected, atol=1e-5, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), ours, theirs)


def test_the_hiding_number_is_exact_in_bfloat16():
    assert float(jnp.bfloat16(splash.HIDE)) == splash.HIDE


def gradient_memory(topology, length, *, hides, batch):
    """Temporary bytes of a chip for attention and its gradient at 7B heads, S = `length`.

    Half of the rows and of the heads are on each chip.
    """
    mesh = tpu_mesh(topology, fsdp=2)

    def loss(q, k, v, blocked, media):
        hidden = (blocked, media) if hides else None
        out = attention.attend(q, k, v, causal=True, hidden=hidden, platform="tpu")
        return jnp.sum(out.astype(jnp.float32) ** 2)

    def shaped(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    heads = P("fsdp", None, "tensor")
    args = [shaped((batch, length, n, 128), jnp.bfloat16, heads) for n in (28, 4, 4)]
    args += [shaped((batch, length), jnp.bool_, P("fsdp"))] * 2
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*args).compile()
    assert "splash" in step.as_text()
    return step.memory_analysis().temp_size_in_bytes


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", FOUR_CHIPS)
@pytest.mark.parametrize("batch", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_hidden_media_take_memory_linear_in_length(topology, batch):
    # Measured at most 31.5 KiB per position of a row: a few copies of 14 heads, padded from 129 to
    # 256 lanes. Short rows take less, for XLA then keeps some in VMEM. One [heads, S, S] matrix of
    # scores in f32 would be 448 KiB per position at the first length and 1.8 MiB at the second.
    for length in (8192, 32_768):
        used = gradient_memory(topology, length, hides=True, batch=batch)
        assert used < 34 * 2**10 * length * batch // 2, used / 2**20
