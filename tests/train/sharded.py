"""Prints how far a step on meshes of 8 host devices is from the step on one; run as a process.

    NPROC=32 XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python -m tests.train.sharded block teacher 1x1x1 8x1x1 2x2x2 1x4x2

"2x2x2/2" is that mesh with two micro-batches alone.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.sharding import param_shardings
from latentomni_jax.backbone.thinker import Thinker, init_params
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.sync import init_sync
from latentomni_jax.train.state import new_state, state_shardings
from latentomni_jax.train.step import batch_shardings, jit_step
from tests.examples import MEDIA, SPEC, make_batch, mixed_examples

IDS = dict(
    audio_token_id=500, audio_start_id=501, audio_end_id=502, vision_start_id=503,
    vision_end_id=504, image_token_id=505, video_token_id=506,
)  # fmt: skip


def step_on(shape, accumulate, options, config, params, batch):
    """Parameters after one step of plain gradient descent, and the metrics."""
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    optimizer = optax.sgd(0.1)

    def make(params):
        return new_state(params, ("vision/",), optimizer, seed=0)

    abstract = jax.eval_shape(make, params)
    shardings = state_shardings(abstract, param_shardings(config, mesh), mesh)

    def micro(x, axis):
        x = x.reshape(*x.shape[:axis], accumulate, -1, *x.shape[axis + 1 :])
        return np.moveaxis(x, axis, 0)

    batch = batch.map_rows(micro)
    with jax.set_mesh(mesh):
        state = jax.jit(make, out_shardings=shardings)(params)
        step = jit_step(Thinker(config), options, optimizer, mesh, shardings)
        state, metrics = step(state, jax.device_put(batch, batch_shardings(mesh)))
        return jax.device_get((state.params, metrics))


def main():
    config = ThinkerConfig.tiny(vocab_size=512, **IDS)
    negatives, mode, *meshes = sys.argv[1:]
    options = Objective(spec=SPEC, media=MEDIA, sync_negatives=negatives, mode=mode)
    # A larger weight for what is small, so that its errors are seen.
    options = dataclasses.replace(options, weight_latent=0.1)
    sync = init_sync(options, config.text.hidden_size, jax.random.key(1))
    params = {**init_params(config, jax.random.key(0), jnp.float32), "sync": sync}
    examples = [*mixed_examples(0), *mixed_examples(1)[1:3], None]
    batch = make_batch(config, examples)
    want, want_metrics = step_on((1, 1, 1), 1, options, config, params, batch)
    cuts = [1] if negatives == "global" else [1, 2]
    for mesh in meshes:
        mesh, _, cut = mesh.partition("/")
        shape = tuple(map(int, mesh.split("x")))
        for accumulate in [int(cut)] if cut else cuts:
            if accumulate > 1 and shape == (8, 1, 1):
                continue  # 4 rows do not divide over 8 devices
            got, metrics = step_on(shape, accumulate, options, config, params, batch)
            off = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), got, want)
            far = {
                k: abs(float(metrics[k] - want)) / max(1, abs(float(want)))
                for k, want in want_metrics.items()
            }
            moved = jax.tree.map(
                lambda a, b: float(np.abs(a - np.asarray(b)).max()),
                want,
                new_state(params, ("vision/",), optax.sgd(0.1), 0).params,
            )
            print(json.dumps({
                "mesh": shape, "accumulate": accumulate,
                "parameters": max(jax.tree.leaves(off)), "moved": max(jax.tree.leaves(moved)),
                "metrics": max(far.values()),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
