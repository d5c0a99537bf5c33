"""What all tests share: where the real assets are, and how their programs are compiled."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import jaxtyping
import pytest

# Shapes in annotations of the array code are checked while the tests run, and cost users nothing.
jaxtyping.install_import_hook(
    ["latentomni_jax.backbone", "latentomni_jax.latent"], "beartype.beartype"
)

# Older emitters (xla_cpu_use_fusion_emitters=false) would be faster still, but kill libtpu.
QUICKLY_COMPILED = "--xla_backend_optimization_level=0"


def pytest_configure(config: pytest.Config) -> None:
    """Programs of tests are compiled once a run of the suite, and fast rather than well.

    Most of the suite's time goes into compiling programs that run once on small arrays. Without
    optimised machine code for what is between products a test takes a quarter to a half less, and
    computes the same. The slow tests, some of which have limits of time, are compiled as
    everyone's programs are; `XLA_FLAGS= bash launch/test.sh` does so for all.
    """
    if config.option.markexpr == "not slow":  # the default, see pyproject.toml
        os.environ.setdefault("XLA_FLAGS", QUICKLY_COMPILED)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and subprocesses inherit it
        folder = tempfile.TemporaryDirectory(prefix="latentomni-compiled-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


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
