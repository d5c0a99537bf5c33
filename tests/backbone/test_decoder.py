"""The text decoder's options: hidden media, cache slots of each row, adapters."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from latentomni_jax.backbone.layers import add_lora, merge_lora
from latentomni_jax.backbone.sharding import param_shardings
from latentomni_jax.backbone.text import make_cache, unstack
from latentomni_jax.backbone.thinker import Thinker, abstract_params, init_params
from tests.passes import apply
from tests.reference import make_ported


def make_inputs(config, batch, length, seed=0):
    """Input embeddings [B,T,D] and text positions [3,B,T]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, length, config.text.hidden_size)) * 0.5
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (3, batch, length))
    return jnp.asarray(x, jnp.float32), jnp.asarray(positions)


def text_only(params):
    return {"text": params["text"]}


def decode(thinker, params, *args, **kwargs):
    return apply(thinker, text_only(params), *args, method="decode", **kwargs)


def assert_trees_close(ours, theirs, atol=1e-5, rtol=1e-4):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=rtol), ours, theirs)


@pytest.mark.parametrize("policy, times", [("none", 2), ("dots", 2), ("full", 3)])
def test_remat_recomputes_attention_only_where_nothing_is_kept(policy, times):
    """Scores are exponentiated in the forward and the backward pass, and in between if remade."""
    config, params = make_ported()
    thinker = Thinker(config, remat_policy=policy)
    x, positions = make_inputs(config, 1, 8)
    grad = jax.grad(lambda p: jnp.sum(decode(thinker, p, x, positions)[0]))
    program = jax.jit(grad).lower(text_only(params)).as_text()
    assert len(re.findall(r"stablehlo.exponential .*x8x8xf32", program)) == times


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("own_slots", [True, False], ids=["per-row", "shared"])
def test_a_cache_written_row_by_row_equals_a_full_forward(scan_layers, own_slots):
    """Rows continue after their own last position, or all after the padding."""
    config, params = make_ported()
    thinker = Thinker(config, scan_layers=scan_layers)
    if not scan_layers:
        params = {"text": unstack(params["text"])}
    lengths, prompt, total = np.array([7, 12, 3]), 12, 20
    x, positions = make_inputs(config, 3, total)
    expected, _ = decode(thinker, params, x, positions)
    slots = np.arange(prompt + total)

    cache = make_cache(config.text, 3, len(slots), jnp.float32, scan_layers=scan_layers)
    _, cache = decode(thinker, params, x[:, :prompt], positions[:, :, :prompt], cache)
    rows = np.arange(3)
    for step in range(total - prompt):
        place = lengths + step  # of the new position in its row
        if own_slots:
            index, visible = jnp.asarray(place), slots <= place[:, None]
        else:
            index = jnp.int32(prompt + step)
            visible = (slots < lengths[:, None]) | ((slots >= prompt) & (slots <= prompt + step))
        new = x[rows, place][:, None]
        hidden, cache = decode(
            thinker,
            params,
            new,
            positions[:, rows, place][:, :, None],
            cache,
            index,
            jnp.asarray(visible)[:, None],
        )
        np.testing.assert_allclose(hidden[:, 0], expected[rows, place], atol=2e-4, rtol=0)


def test_hidden_media_change_only_who_is_blocked():
    """A blocked query equals the same query in a sequence whose media are masked for all."""
    config, params = make_ported()
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=1))
    params = {
        "text": params["text"] | {"layers": jax.tree.map(lambda x: x[:1], params["text"]["layers"])}
    }
    x, positions = make_inputs(config, 2, 40)
    thinker = Thinker(config)
    places = jnp.arange(40)[None]
    blocked, media = (
        jnp.broadcast_to(marks, (2, 40)) for marks in (places >= 30, (places > 4) & (places < 20))
    )
    ours, _ = decode(thinker, params, x, positions, hidden=(blocked, media))
    plain, _ = decode(thinker, params, x, positions)
    cache = make_cache(config.text, 2, 40, jnp.float32)
    visible = (places <= places.T)[None] & ~media[:, None]
    without, _ = decode(thinker, params, x, positions, cache, 0, visible)
    np.testing.assert_allclose(ours[:, :30], plain[:, :30], atol=1e-5)
    np.testing.assert_allclose(ours[:, 30:], without[:, 30:], atol=1e-5)
    assert np.abs(ours - plain)[:, 30:].max() > 1e-2


def make_adapted(rank=4):
    """Ported parameters, and the same with adapters that do something."""
    config, params = make_ported()
    adapted = add_lora(params, rank, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))

    def stir(path, x):
        return jax.random.normal(next(keys), x.shape) * 0.1 if path[-1].key == "lora_b" else x

    return config, params, adapted, jax.tree_util.tree_map_with_path(stir, adapted)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unrolled"])
def test_adapters_start_as_nothing_and_merge_into_the_kernels(scan_layers):
    config, params, fresh, stirred = make_adapted()
    x, positions = make_inputs(config, 2, 16)

    def logits(params, lora_rank):
        thinker = Thinker(config, scan_layers=scan_layers, lora_rank=lora_rank, lora_alpha=8.0)
        if not scan_layers:
            params = {"text": unstack(params["text"])}
        hidden, _ = decode(thinker, params, x, positions)
        return apply(thinker, text_only(params), hidden, method="logits")

    plain = logits(params, 0)
    np.testing.assert_allclose(logits(fresh, 4), plain, atol=1e-6)
    adapted = logits(stirred, 4)
    assert np.abs(adapted - plain).max() > 0.1
    merged = merge_lora(stirred, 8.0)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(logits(merged, 0), adapted, atol=1e-5)
    assert_trees_close(merge_lora(fresh, 8.0), params, atol=0, rtol=0)


def test_adapters_of_a_fresh_model_are_those_added_to_a_ported_one():
    """One tree, whether the thinker initialises its adapters or a checkpoint gets them."""
    config, params, fresh, _ = make_adapted(rank=3)
    expected = abstract_params(config, jnp.float32, lora_rank=3)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, expected)
    ours = init_params(config, jax.random.key(0), lora_rank=3)["text"]["layers"]["q_proj"]
    assert not ours["lora_b"].any() and 0.01 < ours["lora_a"].std() < 0.03
    layer = fresh["text"]["layers"]
    kernels = [layer[f"{name}_proj"] for name in "qkvo"]
    kernels += [layer["mlp"][f"{name}_proj"] for name in ("gate", "up", "down")]
    for kernel in kernels:
        assert kernel["lora_a"].shape == (*kernel["kernel"].shape[:2], 3)
        assert kernel["lora_b"].shape == (kernel["kernel"].shape[0], 3, kernel["kernel"].shape[2])
    assert "lora_a" not in str(jax.tree.structure([fresh["vision"], fresh["audio"]]))
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(config))


def test_adapters_beside_16_bit_kernels_are_f32_and_merge_rounds_once():
    _, params, _, _ = make_adapted()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    adapted = add_lora(half, 2, jax.random.key(0))
    leaf = adapted["text"]["layers"]["mlp"]["up_proj"]
    assert leaf["lora_a"].dtype == leaf["lora_b"].dtype == jnp.float32
    assert_trees_close(merge_lora(adapted, 4.0), half, atol=0, rtol=0)


def test_every_parameter_of_an_adapted_thinker_has_a_sharding():
    config, _ = make_ported()
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    for rank in (0, 4):
        shardings = param_shardings(config, mesh, lora_rank=rank)
        assert jax.tree.structure(shardings) == jax.tree.structure(
            abstract_params(config, lora_rank=rank)
        )
    layer = shardings["text"]["layers"]
    assert tuple(layer["q_proj"]["lora_a"].spec) == (None, "fsdp", None)
    assert tuple(layer["q_proj"]["lora_b"].spec) == (None, None, "tensor")
    assert tuple(layer["mlp"]["down_proj"]["lora_a"].spec) == (None, "tensor", None)
    assert tuple(layer["mlp"]["down_proj"]["lora_b"].spec) == (None, None, "fsdp")
