import jax
import jax.numpy as jnp
import pytest

from latentomni_jax.layout import InputError
from latentomni_jax.train.config import load, resolve
from latentomni_jax.train.step import Programs

CONFIG = "configs/tiny.py"


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


def test_a_step_that_does_not_fit_is_refused_with_what_would():
    @jax.jit
    def step(state, batch):
        return state + (batch @ batch.T).sum(), {}

    def smaller(names):
        assert names == ["1 x 4 rows"]
        for parts in (2, 32, 64):
            asked.append(parts)
            yield f"--set accumulate={parts}", [step.lower(0.0, jnp.ones((1024 // parts, 64)))]

    asked = []
    batches = {"1 x 4 rows": jnp.ones((1024, 64)), "short": jnp.ones((8, 64))}
    programs = Programs(step, jnp.float32(0), batches)
    programs.check(2**30, smaller)
    assert not asked
    with pytest.raises(InputError, match=r"a step of 1 x 4 rows needs 0.00 GiB .*accumulate=32$"):
        programs.check(2**17, smaller)
    assert asked == [2, 32]
    with pytest.raises(InputError, match=r"take more devices"):
        programs.check(2**5, lambda names: [])
    programs.close()


def test_less_at_a_time_is_more_parts_and_then_less_kept():
    run = resolve(load(CONFIG, ["batch_size=24", "accumulate=2", "model.remat=dots"]))
    tried = [settings for settings, _ in run.smaller(replicas=4)]
    assert tried == [
        "--set accumulate=3",
        "--set accumulate=6",
        "--set model.remat=full",
        "--set accumulate=3 --set model.remat=full",
        "--set accumulate=6 --set model.remat=full",
    ]
    runs = [smaller for _, smaller in run.smaller(replicas=4)]
    assert [r.raw.accumulate for r in runs] == [3, 6, 2, 3, 6]
    assert run.raw.accumulate == 2 and run.raw.model.remat == "dots"
