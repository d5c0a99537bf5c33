"""Int8 weights: the quantiser against its formula, models that are loaded so, what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import abstract_params
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec
from latentomni_jax.weights import checkpoint, quantize, safetensors
from tests.weights.test_safetensors import assert_same_bits, random_params, run_on_eight_devices

CONFIG = ThinkerConfig.tiny(vocab_size=64)
LATENT = LatentSpec(pad_id=60, trigger_id=61, stop_id=62)


@pytest.fixture(scope="module")
def params():
    """Small ones: with weights of unit size a rounding of one moves some logits by 5e-4."""
    return jax.tree.map(lambda x: (0.3 * x).astype(x.dtype), random_params(CONFIG))


@pytest.fixture
def directories(params, tmp_path):
    """The same model ported and as a Hugging Face directory."""
    checkpoint.save_model(params, CONFIG, LATENT, MediaSpec(), None, tmp_path / "ported")
    checkpoint.export(tmp_path / "ported", tmp_path / "hf")
    return tmp_path / "ported", tmp_path / "hf"


def exactly(kernel):
    """Scales and unrounded quotients in float64; a column of zeros has scale 1."""
    kernel = np.asarray(kernel).astype(np.float64)
    scale = np.abs(kernel).max(axis=-2) / 127
    scale[scale == 0] = 1
    return scale, kernel / scale[..., None, :]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("block", [1, 200, 1 << 18], ids=["a column", "some", "all at once"])
def test_the_quantiser_rounds_as_its_formula_in_float64(monkeypatch, dtype, block):
    monkeypatch.setattr(quantize, "_BLOCK", block)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 40, 17)) * np.exp(rng.normal(size=(3, 1, 17)))
    kernel[1, :, 5] = 0
    kernel = np.asarray(jnp.asarray(kernel, dtype))
    q, scale = quantize.quantize_kernel(kernel, "here")
    assert (q.dtype, q.shape, scale.dtype, scale.shape) == (
        np.int8,
        (3, 40, 17),
        np.float32,
        (3, 17),
    )
    expected, quotients = exactly(kernel)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert scale[1, 5] == 1 and not q[1, :, 5].any()
    # Rounded to nearest, a quotient as near to a half as f32 can tell to either side; no further
    # from the weight than half a scale.
    assert np.abs(q - quotients).max() <= 0.5 + 1e-4
    error = np.abs(kernel.astype(np.float64) - q * scale[:, None].astype(np.float64))
    assert (error <= scale[:, None] / 2 * (1 + 2e-4)).all()
    used = np.abs(q).max(axis=1)
    assert (used[scale != 1] == 127).all() and q.min() >= -127


def test_outputs_too_small_for_a_scale_become_zero():
    kernel = np.full((4, 2), 1e-40, np.float32)
    kernel[:, 1] = 1e-30
    q, scale = quantize.quantize_kernel(kernel, "here")
    assert scale[0] == 1 and not q[:, 0].any() and (q[:, 1] == 127).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(bad):
    kernel = np.ones((4, 2), np.float32)
    kernel[2, 1] = bad
    with pytest.raises(InputError, match="text/lm_head/kernel: holds NaN or infinity"):
        quantize.quantize({"text": {"lm_head": {"kernel": jnp.asarray(kernel)}}})


def test_int8_takes_the_matrices_of_decoder_and_head_alone(params):
    ours, other = (safetensors.flatten(quantize.quantize(params)), safetensors.flatten(params))
    expected = safetensors.flatten(abstract_params(CONFIG, weights="int8"))
    assert {p: (x.shape, x.dtype) for p, x in ours.items()} == {
        p: (x.shape, x.dtype) for p, x in expected.items()
    }
    matrices = {p for p, x in ours.items() if x.dtype == jnp.int8}
    assert len(matrices) == 8  # four of attention, three of feed-forward, the head
    assert all(re.fullmatch(r"text/(layers/.*|lm_head)/kernel_int8", p) for p in matrices)
    replaced = set(other) - set(ours)
    assert set(ours) - set(other) == {p for path in replaced for p in quantize.int8_paths(path)}
    assert all(ours[path] is other[path] for path in set(other) - replaced)
    assert quantize.weights_of(params) is None
    assert quantize.weights_of(quantize.quantize(params)) == "int8"


@pytest.mark.parametrize("kind", ["ported", "hf"])
@pytest.mark.parametrize("dtype", [None, jnp.float32], ids=["as stored", "f32"])
def test_a_directory_is_loaded_as_int8(directories, params, kind, dtype):
    """What is stored is quantised, and only the rest is cast."""
    directory = directories[kind == "hf"]
    model = checkpoint.load_model(directory, dtype=dtype, weights="int8")
    expected = quantize.quantize(params)
    if dtype is not None:
        expected = jax.tree.map(
            lambda x: x.astype(dtype) if x.dtype == jnp.bfloat16 else x, expected
        )
    assert jax.tree.structure(model.params) == jax.tree.structure(expected)
    assert_same_bits(model.params, expected)
    assert (model.config, model.latent) == (CONFIG, LATENT)


def test_a_mesh_gets_the_same_int8_weights_and_computes_the_same(directories):
    """Inputs split too: the scale of an output is that of all its inputs on every device."""
    run_on_eight_devices(
        """
        from latentomni_jax.backbone.sharding import param_shardings
        from latentomni_jax.backbone.thinker import Thinker
        from tests.backbone.test_int8 import text_logits

        mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
        shardings = param_shardings(config, mesh, weights="int8")
        for directory in sys.argv[1:]:
            whole = checkpoint.load_model(directory, weights="int8").params
            sharded = checkpoint.load_model(directory, shardings=shardings, weights="int8").params
            for a, b, s in zip(*map(jax.tree.leaves, (whole, sharded, shardings)), strict=True):
                assert b.sharding == s and b.dtype == a.dtype
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        one = sharded["text"]["layers"]["o_proj"]
        assert {x.data.shape for x in one["kernel_int8"].addressable_shards} == {(2, 32, 32)}
        assert {x.data.shape for x in one["scale"].addressable_shards} == {(2, 32)}
        ids = np.arange(64, dtype=np.int32).reshape(4, 16)
        thinker = Thinker(config, weights="int8")
        expected = text_logits(thinker, whole, ids)
        with jax.set_mesh(mesh):
            ids = jax.device_put(ids, NamedSharding(mesh, P(("data", "fsdp"))))
            ours = text_logits(thinker, sharded, ids)
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)
        """,
        *directories,
    )


def test_orbax_reads_a_matrix_to_the_host_and_the_rest_to_the_device(directories, monkeypatch):
    """So that a device never holds one in its ordinary width."""
    load, asked = checkpoint.ocp.load, {}

    def watched(path, tree):
        asked.update(safetensors.flatten(tree))
        return load(path, tree)

    monkeypatch.setattr(checkpoint.ocp, "load", watched)
    checkpoint.load_model(directories[0], weights="int8")
    assert set(asked) == set(safetensors.parameter_shapes(CONFIG))
    for path, leaf in asked.items():
        assert isinstance(leaf, np.ndarray) == quantize.is_quantized(path), path


def test_int8_weights_are_not_written(params, tmp_path):
    held = quantize.quantize(params)
    with pytest.raises(InputError, match="int8 weights are not written: save or export the model"):
        checkpoint.save_model(held, CONFIG, LATENT, MediaSpec(), None, tmp_path / "model")
    with pytest.raises(InputError, match="int8 weights are not written"):
        safetensors.save(held, CONFIG, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_weights_that_cannot_be_quantised_are_named_by_their_file(params, tmp_path):
    """Not as an unreadable checkpoint."""
    bad = jax.tree.map(lambda x: x, params)
    bad["text"]["lm_head"]["kernel"] = params["text"]["lm_head"]["kernel"].at[3, 5].set(jnp.nan)
    checkpoint.save_model(bad, CONFIG, LATENT, MediaSpec(), None, tmp_path / "ported")
    checkpoint.export(tmp_path / "ported", tmp_path / "hf")
    with pytest.raises(InputError, match=r"^text/lm_head/kernel: holds NaN"):
        checkpoint.load_model(tmp_path / "ported", weights="int8")
    with pytest.raises(InputError, match=r"^lm_head\.weight: holds NaN"):
        checkpoint.load_model(tmp_path / "hf", weights="int8")
