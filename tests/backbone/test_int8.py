"""Int8 weights: one layer, the whole thinker, and what they do not go with."""

import dataclasses

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.layers import dense
from latentomni_jax.backbone.text import unstack
from latentomni_jax.backbone.thinker import Thinker, abstract_params
from latentomni_jax.layout import InputError
from latentomni_jax.weights.quantize import quantize
from tests.passes import apply
from tests.reference import make_ported


def text(thinker, ids, positions):
    return thinker.text(ids, positions)


def text_logits(thinker, params, ids):
    """Of a text-only sequence, by everything that the decoder does."""
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), (3, *ids.shape))
    return apply(thinker, {"text": params["text"]}, ids, positions, method=text)


def widened(params):
    """Ordinary parameters in f32 with the kernels that int8 ones stand for."""

    def walk(tree):
        if not isinstance(tree, dict):
            return tree
        tree = {name: walk(child) for name, child in tree.items()}
        if "kernel_int8" in tree:
            q, scale = np.float64(tree.pop("kernel_int8")), np.float64(tree.pop("scale"))
            tree["kernel"] = np.float32(q * scale[..., None, :])
        return tree

    return walk(params)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_layer_is_its_float64_formula(bias):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(2, 3, 48)))
    params = {
        "kernel_int8": rng.integers(-127, 128, (48, 20)).astype(np.int8),
        "scale": np.float32(rng.uniform(1e-3, 1e-1, 20)),
    }
    expected = np.float64(x) @ (np.float64(params["kernel_int8"]) * np.float64(params["scale"]))
    if bias:
        params["bias"] = np.float32(rng.normal(size=20))
        expected += np.float64(params["bias"])
    types = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    layer = dense(20, ("embed", "mlp"), None, bias=bias, weights="int8", **types)
    ours = jax.jit(lambda p, x: layer.apply({"params": p}, x))(params, x)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-4)
    fresh = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    assert nn.get_partition_spec(fresh)["scale"] == P("mlp")  # cut as the kernel's outputs


def test_in_bf16_the_scale_is_applied_before_rounding():
    """One rounding of the product, one of the result: two units of 2^-8, not three."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 96)), jnp.bfloat16)
    params = {
        "kernel_int8": rng.integers(-127, 128, (96, 50)).astype(np.int8),
        "scale": np.float32(rng.uniform(1e-3, 1e-1, 50)),
    }
    types = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    layer = dense(50, ("embed", "mlp"), None, bias=False, weights="int8", **types)
    ours = layer.apply({"params": params}, x)
    assert ours.dtype == jnp.bfloat16
    expected = np.float64(x) @ (np.float64(params["kernel_int8"]) * np.float64(params["scale"]))
    np.testing.assert_allclose(np.float64(ours), expected, rtol=2 * 2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("scan_layers", "tied"), [(True, False), (False, True)], ids=["scanned", "unrolled, tied head"]
)
def test_the_thinker_is_that_of_the_weights_it_stands_for(scan_layers, tied):
    config, params = make_ported()
    if tied:
        text = {name: x for name, x in params["text"].items() if name != "lm_head"}
        params = params | {"text": text}
        config = dataclasses.replace(
            config, text=dataclasses.replace(config.text, tie_embeddings=True)
        )
    held = quantize(params)
    ids = np.random.default_rng(0).integers(0, 500, (2, 12)).astype(np.int32)
    ordinary = text_logits(Thinker(config), params, ids)
    expected = text_logits(Thinker(config), widened(held), ids)
    if not scan_layers:
        held = {"text": unstack(held["text"])}
    thinker = Thinker(config, scan_layers=scan_layers, weights="int8")
    ours = text_logits(thinker, held, ids)
    np.testing.assert_allclose(ours, expected, atol=2e-4, rtol=0)
    assert 1e-3 < np.abs(ours - ordinary).max() < 1.0  # it is another model, and a near one


def test_a_layer_that_knows_of_no_scale_finds_no_kernel():
    """A thinker and parameters of different kinds are an error, not another model."""
    config, params = make_ported()
    ids = np.zeros((1, 4), np.int32)
    for held, weights in ((quantize(params), None), (params, "int8")):
        with pytest.raises(flax.errors.ScopeParamNotFoundError, match=r"kernel|scale"):
            text_logits(Thinker(config, weights=weights), held, ids)


def test_what_int8_does_not_go_with_is_said():
    config = ThinkerConfig.tiny(vocab_size=64)
    with pytest.raises(InputError, match="no adapters: merge_lora first"):
        abstract_params(config, lora_rank=2, weights="int8")
    with pytest.raises(InputError, match="float16's range"):
        jax.eval_shape(Thinker(config, dtype=jnp.float16, weights="int8").init, jax.random.key(0))
