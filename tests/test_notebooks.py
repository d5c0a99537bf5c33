"""The notebooks are their scripts, and run from the first cell to the last with small stand-ins."""

import importlib.util
import os
from pathlib import Path

import nbclient
import nbformat
import pytest

from latentomni_jax.weights.checkpoint import export
from tests.models import make_model
from tests.processes import ROOT

FOLDER = ROOT / "notebooks"
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


def run(name: str, monkeypatch, **settings) -> str:
    """Executes a notebook in a kernel of its own; returns what it printed."""
    for key, value in settings.items():
        monkeypatch.setenv(f"LATENTOMNI_{key}", str(value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    made = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(made, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    outputs = [output for cell in made.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    return "".join(output.get("text", "") for output in outputs if output.output_type == "stream")


def test_notebooks_are_their_scripts():
    assert [path.stem for path in sync.scripts()] == list(NAMES)
    for script in sync.scripts():
        stored = script.with_suffix(".ipynb").read_text(encoding="utf-8")
        assert stored == sync.notebook(script), f"run python notebooks/sync.py ({script.name})"


def test_see_it_work(monkeypatch, tmp_path):
    told = run("see_it_work", monkeypatch, OUT=tmp_path, SCALE="smallest")
    assert told.count("samples seen; loss") == 4 and "whole clip" in told and "expected" in told


@pytest.mark.tpu_compile
def test_port_and_answer(monkeypatch, tmp_path, checkpoint):
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    told = run("port_and_answer", monkeypatch, OUT=tmp_path, CHECKPOINT=checkpoint, TOKENS=4)
    assert "decode: 0." in told and "'skipped': 0" in told and "ms a position" in told


def test_finetune_lora(monkeypatch, tmp_path, checkpoint):
    told = run(
        "finetune_lora", monkeypatch, OUT=tmp_path, CHECKPOINT=checkpoint,
        CONFIG="configs/tiny.py", STEPS=2, TOKENS=4,
    )  # fmt: skip
    assert "run      2 steps" in told and "latent blocks; expected" in told
