"""OSPE: every implementation equals the formula, forward and backward; both move little memory."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.test_util import check_grads

from benchmarks.kernels import OSPE_SHAPES
from pallas_kernels.ospe import tpu
from pallas_kernels.ospe.api import ospe
from tests.topologies import ONE_CHIP

SHAPES = {
    "three blocks of the 3B": OSPE_SHAPES["3B, one row"],
    "a decode step of the 7B": (8, 3584),
    "blocks of latents": (2, 3, 40, 128),
    "rows that fill no block": (77, 384),
    "one row": (1, 128),
    "no batch axis": (256,),
}
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}
QUICK = {"rows that fill no block": jnp.bfloat16, "blocks of latents": jnp.float32}
VARIANTS = [
    pytest.param(
        shape, dtype, id=f"{name}-{jnp.dtype(dtype).name}",
        marks=[] if QUICK.get(name) == dtype else pytest.mark.slow,
    )
    for name, shape in SHAPES.items()
    for dtype in TOLERANCE
]  # fmt: skip


def formula(h, seconds, base=1e6):
    """Eq. 3 in float64: pairs are complex numbers, turned by an angle."""
    h, width = np.asarray(h, np.float64), h.shape[-1]
    theta = base ** (-np.arange(0, width, 2) / width)
    angles = np.asarray(seconds, np.float64)[..., None] * theta
    turned = (h[..., 0::2] + 1j * h[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(h.shape)


def random_rows(shape, dtype=jnp.float32, seed=0):
    """Latents, their seconds and a cotangent."""
    rng = np.random.default_rng(seed)
    h, bar = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    return h, jnp.asarray(rng.uniform(0, 10, size=shape[:-1]), jnp.float32), bar


@pytest.mark.parametrize("implementation", ["reference", "tpu"])
@pytest.mark.parametrize(("shape", "dtype"), VARIANTS)
def test_values_and_gradients_equal_the_formula(
    implementation, shape, dtype, interpreted, monkeypatch
):
    monkeypatch.setattr(tpu, "_BLOCK", 16 * shape[-1])  # 16 rows, so that there are many blocks
    h, seconds, bar = random_rows(shape, dtype)
    with interpreted() if implementation == "tpu" else contextlib.nullcontext():
        ours, pull = jax.vjp(lambda h: ospe(h, seconds, 1e6, implementation=implementation), h)
        (gradient,) = pull(bar)
    assert ours.dtype == gradient.dtype == dtype
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        ours.astype(jnp.float32), formula(h, seconds), atol=tolerance, rtol=tolerance
    )
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), formula(bar, -seconds), atol=tolerance, rtol=tolerance
    )


def test_reference_equals_formula_and_finite_differences_in_f64():
    with jax.enable_x64(True):
        h = jnp.asarray(np.random.default_rng(0).normal(size=(5, 32)))
        seconds = jnp.array([0.0, 0.078125, 2.5, 4.92, 5.0])
        np.testing.assert_allclose(ospe(h, seconds, 1e6), formula(h, seconds), atol=1e-12)
        check_grads(lambda h: ospe(h, seconds, 1e6), (h,), order=1, modes=["rev"], atol=1e-6)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=9), st.sampled_from([2, 6, 32, 128]))
@settings(max_examples=15, deadline=None)
def test_norms_are_kept(seconds, width):
    h = np.random.default_rng(0).normal(size=(len(seconds), width)).astype(np.float32)
    ours = ospe(jnp.asarray(h), jnp.float32(seconds), 1e6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=-1), np.linalg.norm(h, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "tpu"])
def test_one_clock_serves_all_blocks_and_gets_no_gradient(implementation, interpreted):
    h, _, bar = random_rows((2, 3, 5, 128))
    seconds = jnp.arange(5.0)
    with interpreted() if implementation == "tpu" else contextlib.nullcontext():
        ours, pull = jax.vjp(
            lambda h, seconds: ospe(h, seconds, 1e6, implementation=implementation), h, seconds
        )
        gradient = pull(bar)[1]
    np.testing.assert_allclose(ours, formula(h, np.broadcast_to(seconds, (2, 3, 5))), atol=1e-5)
    assert gradient.shape == (5,) and not jnp.any(gradient)


@pytest.mark.parametrize(
    ("implementation", "width", "dtype", "message"),
    [
        ("tpu", 192, jnp.float32, "multiple of 128, got 192"),
        ("tpu", 128, jnp.float16, "float32 or bfloat16, got float16"),
        ("auto", 7, jnp.float32, "even width, got 7"),
        ("triton", 128, jnp.float32, "unknown OSPE implementation 'triton'"),
    ],
)
def test_what_cannot_be_served_is_an_error(implementation, width, dtype, message):
    with pytest.raises(ValueError, match=message):
        ospe(jnp.zeros((2, width), dtype), jnp.zeros(2), 1e6, implementation=implementation)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ONE_CHIP)
@pytest.mark.parametrize("implementation", ["auto", "tpu"])
def test_forward_and_backward_are_one_read_and_one_write(implementation, topology, tpu_mesh):
    """Of XLA's fusion this is why it is the default: it is as good as the kernel."""
    chip = NamedSharding(tpu_mesh(topology), jax.P())
    shape = OSPE_SHAPES["7B, 8 rows"]
    h = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=chip)
    seconds = jax.ShapeDtypeStruct(shape[:1], jnp.float32, sharding=chip)

    def forward(h, seconds):
        return ospe(h, seconds, 1e6, implementation=implementation)

    def backward(h, seconds):
        return jax.vjp(lambda h: forward(h, seconds), h)[1](h)

    for program in (forward, backward):
        compiled = jax.jit(program).lower(h, seconds).compile()
        assert ("tpu_custom_call" in compiled.as_text()) == (implementation == "tpu")
        assert compiled.cost_analysis()["bytes accessed"] < 1.02 * 2 * h.size * 2
        assert compiled.memory_analysis().temp_size_in_bytes < 0.02 * h.size * 2
