import jax
import jax.numpy as jnp

from latentomni_jax.train.step import Programs


def test_the_step_is_traced_for_each_shape_once_and_before_it_is_needed():
    traced = []

    @jax.jit
    def step(state, batch):
        traced.append(batch.shape)
        return state + batch.sum(), {"size": batch.size}

    batches = [jnp.ones(n) for n in (3, 5)]
    programs = Programs(step, jnp.float32(0), batches)
    assert traced == [(3,), (5,)]
    state = jnp.float32(0)
    for batch in batches * 2:
        state, metrics = programs(state, batch)
        assert metrics["size"] == batch.size
    programs.close()
    assert state == 16 and len(traced) == 2
