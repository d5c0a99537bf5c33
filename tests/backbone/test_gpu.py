"""What only a GPU runs: cuDNN attention. Skipped, saying so, where JAX sees no GPU (as in CI).

On a machine with one (docs/performance.md has when that was last done, and on which):

    JAX_PLATFORMS=cuda,cpu JAX_DEFAULT_MATMUL_PRECISION=highest python -m pytest tests/backbone
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentomni_jax.backbone import attention
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.text import Decoder
from tests.backbone.test_attention import formula, mask, random_qkv

try:
    GPU = jax.devices("gpu")[0]
except RuntimeError:
    pytest.skip("JAX sees no GPU here", allow_module_level=True)


@pytest.mark.parametrize(
    ("causal", "lengths", "heads", "width"),
    [
        (True, None, (28, 4), 128),  # the decoder of the 7B thinker
        (False, [600, 37], (20, 20), 64),  # its audio encoder
    ],
    ids=["decoder", "audio encoder"],
)
def test_cudnn_equals_the_formula_and_plain_gradients(causal, lengths, heads, width):
    length = 640
    q, k, v = (x.astype(jnp.bfloat16) for x in random_qkv(2, length, *heads, width))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    rows = lengths or [length, length]
    real = (jnp.arange(length) < jnp.array(rows)[:, None])[..., None, None]

    def run(implementation, dtype):
        def loss(*qkv):
            out = attention.attend(
                *qkv,
                causal=causal,
                lengths=None if lengths is None else jnp.array(lengths),
                implementation=implementation,
            )
            return jnp.sum(jnp.where(real, out * weights, 0)), out

        args = [jax.device_put(x.astype(dtype), GPU) for x in (q, k, v)]
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True)).lower(*args).compile()
        (_, out), grads = compiled(*args)
        return out, grads, compiled.as_text()

    out, grads, program = run("auto", jnp.bfloat16)
    assert "cudnn" in program  # what the choice says is what runs
    expected = formula(q, k, v, mask(length, causal, rows))
    _, exact, _ = run("xla", jnp.float32)
    for row, n in enumerate(rows):
        np.testing.assert_allclose(np.float64(out[row, :n]), expected[row, :n], atol=2e-2)
        for ours, theirs in zip(grads, exact, strict=True):
            ours, theirs = (np.float64(x[row, :n]) for x in (ours, theirs))
            assert np.linalg.norm(ours - theirs) < 2e-2 * np.linalg.norm(theirs)
            assert np.linalg.norm(theirs) > 1  # and it is not a comparison of nothing


@pytest.mark.parametrize(("policy", "forward"), [("dots", 1), ("full", 2)])
def test_dots_keeps_what_cudnn_computed(policy, forward):
    config = dataclasses.replace(ThinkerConfig.tiny().text, num_layers=2)
    decoder = Decoder(config, dtype=jnp.bfloat16, implementation="cudnn", remat_policy=policy)
    x = jnp.ones((1, 128, config.hidden_size), jnp.bfloat16)
    ids = jnp.broadcast_to(jnp.arange(128), (3, 1, 128))
    params = jax.eval_shape(decoder.init, jax.random.key(0), ids[0], ids)["params"]

    def loss(params):
        out, _ = decoder.apply({"params": params}, x, ids, method="decode")
        return jnp.sum(out.astype(jnp.float32))

    program = str(jax.make_jaxpr(jax.grad(loss))(params))  # one scan forward, one backward
    assert len(re.findall(r"\bdot_product_attention_fwd_wrapper\[", program)) == forward
    assert len(re.findall(r"\bdot_product_attention_bwd_wrapper\[", program)) == 1
