"""A small model to ask."""

from pathlib import Path

import pytest

from latentomni_jax.model import LatentOmni
from tests.models import make_model


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    """The demo's model: random, with a tokenizer of its own."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_model(tiny_directory) -> LatentOmni:
    return LatentOmni.from_pretrained(tiny_directory)
