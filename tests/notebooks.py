"""Runs a notebook from its first cell to its last."""

import os
from collections.abc import Mapping

import nbclient
import nbformat

from tests.processes import ROOT

FOLDER = ROOT / "notebooks"


def execute(name: str, monkeypatch, settings: Mapping[str, object], small: str = "") -> str:
    """Returns what its cells printed; raises where one fails.

    Args:
      settings: of its `LATENTOMNI_...` environment.
      small: code that goes before the first cell.
    """
    for key, value in settings.items():
        monkeypatch.setenv(f"LATENTOMNI_{key}", str(value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    if small:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(small))
    where = {"metadata": {"path": FOLDER}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")
