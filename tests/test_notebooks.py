"""The notebooks are their scripts, and run from the first cell to the last with small stand-ins.

The first one is run in test_demo.py, on what the demo has made there.
"""

import importlib.util
from pathlib import Path

import pytest

from latentomni_jax.weights.checkpoint import export
from tests.models import make_model
from tests.notebooks import FOLDER, execute

NAMES = ("finetune_lora", "port_and_answer", "see_it_work")
SYNC = importlib.util.spec_from_file_location("sync", FOLDER / "sync.py")
sync = importlib.util.module_from_spec(SYNC)
SYNC.loader.exec_module(sync)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small random model as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(folder / "tiny")
    export(folder / "tiny", folder / "qwen")
    return folder / "qwen"


def test_notebooks_are_their_scripts():
    assert [path.stem for path in sync.scripts()] == list(NAMES)
    for script in sync.scripts():
        stored = script.with_suffix(".ipynb").read_text(encoding="utf-8")
        assert stored == sync.notebook(script), f"run python notebooks/sync.py ({script.name})"


@pytest.mark.tpu_compile
def test_port_and_answer(monkeypatch, tmp_path, checkpoint):
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    settings = {"OUT": tmp_path, "CHECKPOINT": checkpoint, "TOKENS": 4}
    told = execute("port_and_answer", monkeypatch, settings)
    assert "decode: 0." in told and "'skipped': 0" in told and "ms a position" in told


def test_finetune_lora(monkeypatch, tmp_path, checkpoint):
    settings = {
        "OUT": tmp_path, "CHECKPOINT": checkpoint, "TOKENS": 4,
        "CONFIG": "configs/tiny.py", "STEPS": 2,
    }  # fmt: skip
    told = execute("finetune_lora", monkeypatch, settings)
    assert "run      2 steps" in told and "latent blocks; expected" in told
