import jax
import jax.numpy as jnp
import pytest

from latentomni_jax.layout import InputError
from latentomni_jax.train.step import Programs


def test_the_step_is_traced_for_each_shape_once_and_before_it_is_needed():
    traced = []

    @jax.jit
    def step(state, batch):
        traced.append(batch.shape)
        return state + batch.sum(), {"size": batch.size}

    batches = [jnp.ones(n) for n in (3, 5)]
    programs = Programs(step, jnp.float32(0), {"three": batches[0], "five": batches[1]})
    assert traced == [(3,), (5,)]
    state = jnp.float32(0)
    for batch in batches * 2:
        state, metrics = programs(state, batch)
        assert metrics["size"] == batch.size
    programs.close()
    assert state == 16 and len(traced) == 2


def test_a_step_that_does_not_fit_is_refused_with_its_numbers():
    step = jax.jit(lambda state, batch: (state + (batch @ batch.T).sum(), {}))
    programs = Programs(step, jnp.float32(0), {"1 x 4 rows": jnp.ones((1024, 64))})
    programs.check(2**30)
    with pytest.raises(InputError, match=r"a step of 1 x 4 rows needs \d.\d\d GiB .* has 0.00;"):
        programs.check(2**10)
    programs.close()
