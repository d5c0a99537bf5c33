"""Writes the notebooks from their scripts, in which they are kept.

    pip install -e '.[test]' && python notebooks/sync.py

A notebook has the script's cells and nothing that a run left in it.
"""

import pathlib

import jupytext
import nbformat


def notebook(script: pathlib.Path) -> str:
    """A script's notebook as it is stored."""
    made = jupytext.read(script)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata = nbformat.from_dict({"kernelspec": kernel})
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"
    return nbformat.writes(made) + "\n"


def scripts() -> list[pathlib.Path]:
    here = pathlib.Path(__file__)
    return sorted(path for path in here.parent.glob("*.py") if path != here)


if __name__ == "__main__":
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook(script), encoding="utf-8")
        print(script.with_suffix(".ipynb").name)
