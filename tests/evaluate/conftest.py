"""A small model to ask."""

import pytest

from latentomni_jax.model import LatentOmni
from tests.models import make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> LatentOmni:
    """The demo's model: random, with a tokenizer of its own."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory)
    return LatentOmni.from_pretrained(directory)
