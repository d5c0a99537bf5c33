"""A small run on the drawn clips that all tests of the loop share."""

from __future__ import annotations

import pathlib

import pytest

from latentomni_jax.train.config import load

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory) -> pathlib.Path:
    """The feature cache of the 16 drawn clips."""
    import dataclasses

    from data_pipeline.av_events.tiny import CACHE_OPTIONS, make_tiny_set
    from data_pipeline.cache import TRAINING_SPEC, build_cache

    root = tmp_path_factory.mktemp("tiny")
    path = make_tiny_set(root / "clips")
    spec = dataclasses.replace(TRAINING_SPEC, **CACHE_OPTIONS)
    build_cache(path, root / "cache", spec, progress=False)
    return root / "cache"


@pytest.fixture
def small_config(tiny_cache):
    """Makes the tiny config cut down to 8 rows a step, with settings on top."""

    def make(*settings: str):
        config = load(str(ROOT / "configs" / "tiny.py"))
        config.data.tiny = False
        config.data.cache = str(tiny_cache)
        config.batch_size = 8
        config.optimizer.steps = 6
        config.optimizer.warmup_fraction = 0.0
        config.checkpoint.every = 2
        config.checkpoint.keep_best = 0
        config.log.tensorboard = False
        from latentomni_jax.train.config import apply

        return apply(config, settings)

    return make
