"""InfoNCE: every implementation equals a float64 formula; the kernel never forms the logits."""

import contextlib
import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.test_util import check_grads

from pallas_kernels.info_nce import tpu
from pallas_kernels.info_nce.api import choose, info_nce
from tests.processes import ROOT, environment
from tests.topologies import ONE_CHIP

SCALE = 1 / 0.07
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}
IMPLEMENTATIONS = ["reference", "tpu"]
CASES = {  # groups of the rows, and width
    "one group, less than a tile": (np.zeros(24, int), 128),
    "blocks of one row at full width": (np.arange(24) // 8, 3584),
    "blocks in order": (np.arange(304) // 8, 128),
    "groups out of order, some rows out": (np.random.default_rng(1).integers(-1, 4, 301), 128),
    "a tile without a row that counts": (np.where(np.arange(300) < 140, -1, 0), 256),
    "each row alone": (np.arange(131), 128),
    "no row counts": (np.full(40, -1), 128),
    "one row": (np.zeros(1, int), 128),
}


def formula(q, k, groups, scale, row_bar, column_bar):
    """Both losses, and the gradients of q, k and scale for these cotangents, in float64 NumPy."""
    q, k, row_bar, column_bar = (np.asarray(x, np.float64) for x in (q, k, row_bar, column_bar))
    valid = groups >= 0
    pair = (groups[:, None] == groups) & valid
    cosines = q @ k.T
    powers = np.where(pair, np.exp(scale * (cosines - 1)), 0)
    sums = [np.where(valid, powers.sum(axis), 1) for axis in (1, 0)]
    rows, columns = (np.where(valid, scale + np.log(s) - scale * np.diag(cosines), 0) for s in sums)
    bars = [np.where(valid, bar, 0) for bar in (row_bar, column_bar)]
    weights = powers / sums[0][:, None] * bars[0][:, None] + powers / sums[1] * bars[1]
    weights -= np.diag(bars[0] + bars[1])
    gradients = scale * weights @ k, scale * weights.T @ q, np.sum(weights * cosines)
    return rows, columns, *gradients


def random_pairs(groups, width, dtype=jnp.float32, seed=0):
    """Unit rows q and k, alike enough for losses of interest, and cotangents of both losses."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(len(groups), width))
    k = q + rng.normal(size=q.shape)
    q, k = (jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype) for x in (q, k))
    bars = jnp.asarray(rng.uniform(0.5, 1.5, size=(2, len(groups))), jnp.float32)
    return q, k, bars


def losses_and_gradients(q, k, groups, bars, **options):
    """(rows, columns, dq, dk, dscale)."""
    groups = jnp.asarray(groups, jnp.int32)
    losses, pull = jax.vjp(
        lambda q, k, scale: info_nce(q, k, groups, scale, **options), q, k, jnp.float32(SCALE)
    )
    return *losses, *pull(tuple(bars))


def assert_all_close(ours, expected, tolerance):
    """Each result to `tolerance` of its own size: losses reach ln N, gradients N times SCALE."""
    for name, a, b in zip(("rows", "columns", "dq", "dk", "dscale"), ours, expected, strict=True):
        size = max(1.0, np.abs(np.asarray(b, np.float64)).max())
        np.testing.assert_allclose(
            np.asarray(a, np.float64), b, atol=tolerance * size, rtol=tolerance, err_msg=name
        )


VARIANTS = [
    *((case, jnp.float32) for case in CASES),
    ("blocks of one row at full width", jnp.bfloat16),
    ("groups out of order, some rows out", jnp.bfloat16),
]
QUICK = [  # what most goes wrong in: many tiles, rows and tiles that take no part, bfloat16
    ("groups out of order, some rows out", jnp.float32),
    ("a tile without a row that counts", jnp.float32),
    ("blocks of one row at full width", jnp.bfloat16),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [v if v in QUICK else pytest.param(*v, marks=pytest.mark.slow) for v in VARIANTS],
)
def test_values_and_gradients_equal_the_formula(
    implementation, case, dtype, interpreted, monkeypatch
):
    groups, width = CASES[case]
    monkeypatch.setattr(tpu, "_TILE_BYTES", 0)  # the smallest tiles, 128 rows, so there are many
    q, k, bars = random_pairs(groups, width, dtype)
    with interpreted() if implementation == "tpu" else contextlib.nullcontext():
        ours = losses_and_gradients(q, k, groups, bars, implementation=implementation)
    assert ours[0].dtype == ours[1].dtype == ours[4].dtype == jnp.float32
    assert ours[2].dtype == ours[3].dtype == dtype
    assert_all_close(ours, formula(q, k, groups, SCALE, *bars), TOLERANCE[dtype])


def test_reference_equals_formula_and_finite_differences_in_f64():
    groups = np.array([0, 1, 0, -1, 1, 1, 2, 0])
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        q, k = (jnp.asarray(rng.normal(size=(8, 5)) / 3) for _ in range(2))

        def losses(q, k, scale):
            return info_nce(q, k, jnp.asarray(groups), scale)

        ours, pull = jax.vjp(losses, q, k, jnp.float64(SCALE))
        bars = [jnp.asarray(rng.normal(size=8)) for _ in range(2)]
        for a, b in zip(
            (*ours, *pull(tuple(bars))), formula(q, k, groups, SCALE, *bars), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-10)
        check_grads(losses, (q, k, 3.0), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_other_groups_change_nothing(implementation, interpreted):
    groups = np.array([0, 3, 0, -1, 3, 3, 7, 0, -1])
    q, k, bars = random_pairs(groups, 128)
    run = jax.jit(
        lambda q, k: losses_and_gradients(q, k, groups, bars, implementation=implementation)
    )
    other = jnp.asarray((groups != 3)[:, None])
    with interpreted() if implementation == "tpu" else contextlib.nullcontext():
        before = run(q, k)
        changed = [jnp.where(other, -2 * x[::-1], x) for x in (q, k)]
        after = run(*changed)
        # Not even NaN comes out of a row that takes no part, nor into the gradient of the scale.
        out = jnp.asarray((groups < 0)[:, None])
        broken = [jnp.where(out, jnp.nan, x) for x in (q, k)]
        without = run(*broken)
    for a, b in zip(before[:4], after[:4], strict=True):
        np.testing.assert_array_equal(a[groups == 3], b[groups == 3])
    for a, b in zip(before, without, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "implementation", ["reference", pytest.param("tpu", marks=pytest.mark.slow)]
)
def test_groups_are_blocks_of_their_own(implementation, interpreted):
    """Block mode over a batch is the loss of each block alone, as if it were the whole batch."""
    groups = np.arange(24) // 8
    q, k, bars = random_pairs(groups, 128)
    with interpreted() if implementation == "tpu" else contextlib.nullcontext():
        together = losses_and_gradients(q, k, groups, bars, implementation=implementation)
        at = slice(8, 16)
        alone = losses_and_gradients(
            q[at], k[at], np.zeros(8), bars[:, at], implementation=implementation
        )
    for a, b in zip(together[:4], alone[:4], strict=True):
        np.testing.assert_allclose(a[at], b, atol=2e-6, rtol=1e-6)


@given(st.lists(st.integers(-1, 6), min_size=1, max_size=40), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_no_pair_lies_outside_the_tiles_computed(groups, size):
    count = -(-len(groups) // size)
    tiles = np.pad(groups, (0, count * size - len(groups)), constant_values=-1)
    low, high = map(np.asarray, tpu._reach(*[jnp.asarray(tiles.reshape(count, 1, size))] * 2))
    assert np.all(low >= 0) and np.all(high < count)
    for i, one in enumerate(groups):
        for j, other in enumerate(groups):
            if one == other >= 0:
                assert low[i // size] <= j // size <= high[i // size]


def test_ordered_blocks_cost_their_diagonal():
    tiles = jnp.arange(32768).reshape(64, 1, 512) // 8
    low, high = tpu._reach(tiles, tiles)
    np.testing.assert_array_equal(low, np.arange(64))
    np.testing.assert_array_equal(high, np.arange(64))


def test_sharded_over_eight_devices_equals_one_device():
    """In a process of its own, because the number of devices is set before JAX starts."""
    command = [sys.executable, "-m", "tests.pallas_kernels.eight_devices"]
    ran = subprocess.run(command, cwd=ROOT, env=environment(8), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.split() == ["info_nce", "ospe"]


@pytest.mark.parametrize(
    ("platform", "width", "logits", "chosen"),
    [
        ("tpu", 3584, 16384 * 16384, "tpu"),
        ("tpu", 3584, 8192 * 8192, "reference"),
        ("tpu", 200, 16384 * 16384, "reference"),
        ("gpu", 3584, 16384 * 16384, "reference"),
        ("cpu", 3584, 16384 * 16384, "reference"),
    ],
)
def test_auto_takes_the_kernel_where_the_logits_would_fill_the_memory(
    platform, width, logits, chosen
):
    shape = {"platform": platform, "width": width, "dtype": jnp.dtype("float32"), "logits": logits}
    assert choose("auto", **shape) == chosen
    assert choose("tpu", **shape) == "tpu"
    assert choose("auto", **{**shape, "dtype": jnp.dtype("float16")}) == "reference"


@pytest.mark.parametrize(
    ("implementation", "width", "dtype", "rows", "message"),
    [
        ("tpu", 200, jnp.float32, 4, "multiple of 128, got 200"),
        ("tpu", 128, jnp.float16, 4, "float32 or bfloat16, got float16"),
        ("auto", 128, jnp.float32, 3, "a group for each row"),
        ("triton", 128, jnp.float32, 4, "unknown InfoNCE implementation 'triton'"),
    ],
)
def test_what_cannot_be_served_is_an_error(implementation, width, dtype, rows, message):
    x = jnp.zeros((4, width), dtype)
    with pytest.raises(ValueError, match=message):
        info_nce(x, x, jnp.zeros(rows, jnp.int32), jnp.float32(1), implementation=implementation)


def compile_step(mesh, rows, width, dtype, axis_name=None):
    """Losses and all gradients by the kernel, rows spread over the mesh, compiled for its chips."""
    spread, one = (jax.P("x"), jax.P())
    options = {"implementation": "tpu", "platform": "tpu", "axis_name": axis_name}
    losses = jax.shard_map(
        functools.partial(info_nce, **options),
        mesh=mesh,
        in_specs=(spread, spread, spread, one),
        out_specs=spread,
    )

    def step(q, k, groups, scale):
        def loss(q, k, scale):
            return sum(map(jnp.sum, losses(q, k, groups, scale)))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, scale)

    def array(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    matrix, groups = array((rows, width), dtype, spread), array((rows,), jnp.int32, spread)
    return jax.jit(step).lower(matrix, matrix, groups, array((), jnp.float32, one)).compile()


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ONE_CHIP)
@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [
        (24, 3584, jnp.bfloat16),
        pytest.param(1111, 3584, jnp.float32, marks=pytest.mark.slow),
        (1111, 128, jnp.bfloat16),
    ],
)
def test_kernels_compile_for_awkward_shapes(topology, rows, width, dtype, tpu_mesh):
    compiled = compile_step(tpu_mesh(topology), rows, width, dtype)
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.tpu_compile
def test_chips_share_negatives_through_one_gather_and_one_exchange(tpu_mesh):
    compiled = compile_step(tpu_mesh("v5e:2x2"), 4 * 96, 3584, jnp.bfloat16, axis_name="x")
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert "all-gather" in text and "all-to-all" in text


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1", "v5p:1x1x1"])
def test_memory_grows_with_the_rows_and_not_with_their_square(topology, tpu_mesh):
    mesh = tpu_mesh(topology)
    temporary = [
        compile_step(mesh, rows, 3584, jnp.bfloat16).memory_analysis().temp_size_in_bytes
        for rows in (8192, 16384, 32768)
    ]
    for smaller, larger in itertools.pairwise(temporary):
        assert larger / smaller < 2.2
    assert temporary[-1] < 1e-3 * 4 * 32768**2  # of the logits in f32
