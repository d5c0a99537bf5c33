"""What all tests share: where the real assets are."""

from __future__ import annotations

import os
from pathlib import Path

import jaxtyping
import pytest

# Shapes in annotations of the array code are checked while the tests run, and cost users nothing.
jaxtyping.install_import_hook(
    ["latentomni_jax.backbone", "latentomni_jax.latent"], "beartype.beartype"
)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the real assets: `$LATENTOMNI_ASSETS`, else `../shared/assets` of the checkout.

    Skips the test, saying what was looked for, where it is absent.
    """
    named = os.environ.get("LATENTOMNI_ASSETS")
    path = Path(named) if named else Path(__file__).parents[2] / "shared" / "assets"
    if not path.is_dir():
        pytest.skip(f"real assets are absent: no folder {path} (set LATENTOMNI_ASSETS)")
    return path
