"""The house's floors: imports go down, or stay in a room, and rooms make no circle.

Read from the source with `ast`, so that imports inside functions count too.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A room may import rooms of lower floors only; rooms of one floor do not know each other.
FLOORS = [
    {"latentomni_jax", "latentomni_jax.layout", "pallas_kernels"},
    {"latentomni_jax.backbone"},
    {"latentomni_jax.latent", "latentomni_jax.media", "latentomni_jax.weights"},
    {"latentomni_jax.model", "data_pipeline"},
    {"latentomni_jax.evaluate", "latentomni_jax.train"},
    {"latentomni_jax.pod"},  # certifies the programs of the others
    {"latentomni_jax.commands"},
    {"latentomni_jax.__main__"},
    {"configs", "benchmarks"},
    {"launch"},  # runs experiments, and asks them for their names
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Stricter than the floors, as the design has it.
ONLY = {
    "pallas_kernels": set(),
    "latentomni_jax.media": {"latentomni_jax", "latentomni_jax.layout"},
    "data_pipeline": {"latentomni_jax", "latentomni_jax.layout", "latentomni_jax.media"},
}


def room_of(module: str) -> str | None:
    """The longest room name that a dotted module is in; None outside the house."""
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        if (name := ".".join(parts[:size])) in FLOOR_OF:
            assert size == len(parts) or name != "latentomni_jax", f"{module} is in no room"
            return name
    return None


def modules() -> dict[str, Path]:
    """Every module of the house."""
    found = {}
    for top in ("latentomni_jax", "data_pipeline", "pallas_kernels", "launch", "configs"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(source: str, known: set[str]) -> set[str]:
    """Modules that a source imports; `from a import b` is `a.b` where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found


def edges() -> set[tuple[str, str, str]]:
    """(importing room, imported room, importing module), within the house."""
    known = modules()
    found = set()
    for name, path in known.items():
        source_room = room_of(name)
        assert source_room is not None, f"{name} is in no room"
        for imported in imports_of(path.read_text(), set(known)):
            room = room_of(imported)
            if room not in (None, source_room):
                found.add((source_room, room, name))
    return found


def test_imports_go_down():
    upward = [
        f"{module} imports {to}"
        for room, to, module in sorted(edges())
        if FLOOR_OF[to] >= FLOOR_OF[room]
    ]
    assert not upward


def test_rooms_that_know_less():
    wrong = [
        f"{module} imports {to}"
        for room, to, module in sorted(edges())
        if room in ONLY and to not in ONLY[room]
    ]
    assert not wrong


def test_modules_make_no_circle():
    known = modules()
    waiting = {
        name: imports_of(path.read_text(), set(known)) & set(known) - {name}
        for name, path in known.items()
    }
    # A package's __init__ is imported with each of its modules, and imports none of them here.
    while waiting:
        ready = {name for name, needs in waiting.items() if not needs & set(waiting)}
        assert ready, f"these import each other: {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}


def test_the_check_finds_what_it_should():
    known = {"latentomni_jax.media.video", "latentomni_jax.media"}
    source = "def f():\n    from latentomni_jax.media import video\nimport latentomni_jax.model"
    assert imports_of(source, known) == {"latentomni_jax.media.video", "latentomni_jax.model"}
    assert room_of("latentomni_jax.media.video") == "latentomni_jax.media"
    assert room_of("latentomni_jax.media.extract") == "latentomni_jax.media"
    assert room_of("numpy.linalg") is None
