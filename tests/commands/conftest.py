"""What the command tests share: a small random model, a short clip, and a way to run a command."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from data_pipeline.av_events.clips import make_clip
from latentomni_jax.__main__ import main
from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import init_params
from latentomni_jax.layout import LatentSpec, MediaSpec
from latentomni_jax.weights.checkpoint import save_model
from tests.models import make_model


class Ran(NamedTuple):
    """What a command left: exit code, standard output and error."""

    code: int
    out: str
    err: str


@pytest.fixture
def latentomni(capfd):
    """Runs `latentomni ARGS...` in this process."""

    def run(*args) -> Ran:
        capfd.readouterr()
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stopped:  # argparse ends the process by itself
            code = stopped.code
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The demo's model: random, with a tokenizer of its own."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory, assets) -> Path:
    """A small random thinker under the real tokenizer, chat template and preprocessor files."""
    directory = tmp_path_factory.mktemp("models") / "tiny-qwen"
    config = ThinkerConfig.tiny()
    params = init_params(config, jax.random.key(0))
    tokenizer = assets / "qwen2_5_omni" / "tokenizer"
    save_model(params, config, LatentSpec(), MediaSpec(), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Two seconds of the demo's pictures and sound."""
    path = tmp_path_factory.mktemp("clips") / "short.mp4"
    make_clip(path, seconds=2.0)
    return path
