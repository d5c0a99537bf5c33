"""What the data tests share: the tiny set, its cache, a tokenizer; made once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data_pipeline.av_events.tiny import CACHE_OPTIONS, make_tiny_set
from data_pipeline.cache import TRAINING_SPEC, build_cache
from data_pipeline.records import Records
from latentomni_jax.media.text import load_tokenizer, train_sentencepiece

SPEC = dataclasses.replace(TRAINING_SPEC, **CACHE_OPTIONS)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The trajectories of the tiny set."""
    return make_tiny_set(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def cache(tiny, tmp_path_factory) -> Path:
    """Its feature cache, in shards of 4 files. Not to be written to."""
    out = tmp_path_factory.mktemp("cache") / "tiny"
    summary = build_cache(tiny, out, SPEC, shard_files=4, progress=False)
    assert not summary.problems
    return out


@pytest.fixture(scope="session")
def records(cache) -> Records:
    return Records(cache)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Small, lossless, with all special tokens."""
    directory = tmp_path_factory.mktemp("tokenizer")
    texts = ["Which shape is on the screen? I listen, and I look at the disc.", "system user"]
    train_sentencepiece(texts, directory, vocab_size=300)
    return load_tokenizer(directory)
