"""A long file of lines, written window by window: what is there is never made again, or lost.

    OUT.run.json            what the lines depend on; stays beside OUT
    OUT.parts/00007-...     the lines of a window that is done
    OUT                     all lines in order, once every window is done; the parts are then gone

Every file is there whole or not at all, and is the same whoever writes it. So a run may be killed
at any moment, and several processes that see the same folder may work on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentomni_jax.layout import InputError


class Parts:
    """The windows of a run.

    Args:
      out: the file that they become.
      sizes: lines of every window.
      identity: all that the lines depend on, as JSON has it; parts of another identity are refused.
      overwrite: begin anew, whatever is there. For one process only: it removes what others wrote.

    Raises:
      InputError: `out` was begun by another run, or is of unknown origin.
    """

    def __init__(
        self,
        out: Path,
        sizes: Sequence[int],
        identity: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ):
        self.out, self.sizes = out, sizes
        self._folder = out.with_name(out.name + ".parts")
        text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
        # In the names of the parts: processes that begin at the same moment with different options
        # find no `run.json` of each other.
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        told = out.with_name(out.name + ".run.json")
        if overwrite:
            shutil.rmtree(self._folder, ignore_errors=True)
            told.unlink(missing_ok=True)
            out.unlink(missing_ok=True)
        if told.exists():
            _refuse_another(out, json.loads(told.read_text("utf-8")), json.loads(text))
        elif out.exists() or self._folder.exists():
            raise InputError(
                f"{out}: {out.name if out.exists() else self._folder.name} is there without "
                f"{told.name}, so what it is of is unknown; name another file, or --overwrite it"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(told, text)

    def is_done(self, window: int) -> bool:
        """Whether the lines of a window are there."""
        # The part first: it goes when `out` is there.
        return self._path(window).is_file() or self.out.is_file()

    def write(self, window: int, lines: Iterable[Mapping[str, Any]]) -> None:
        """Keeps the lines of a window that is done."""
        self._folder.mkdir(exist_ok=True)
        _write(self._path(window), "".join(json.dumps(line) + "\n" for line in lines))

    def finish(self) -> bool:
        """Joins the parts if all are there. Returns whether `out` is there.

        Raises:
          InputError: a damaged part.
        """
        try:
            _write(self.out, "".join(map(self._read, range(len(self.sizes)))), self._folder)
        except FileNotFoundError:
            # Windows are missing, or another process has joined all and removed them.
            if not self.out.is_file():
                return False
        shutil.rmtree(self._folder, ignore_errors=True)
        return True

    def missing(self) -> int:
        """How many windows are not done."""
        return sum(not self.is_done(window) for window in range(len(self.sizes)))

    def _path(self, window: int) -> Path:
        return self._folder / f"{window:05d}-{self._digest}.jsonl"

    def _read(self, window: int) -> str:
        path = self._path(window)
        text = path.read_text("utf-8")
        if (found := text.count("\n")) != self.sizes[window] or not text.endswith("\n"):
            raise InputError(
                f"{path}: is damaged, with {found} lines in place of {self.sizes[window]}; remove "
                "it and run again"
            )
        return text


def _refuse_another(out: Path, told: Any, mine: Any) -> None:
    """Raises InputError where a run is not the one that began a file; names what differs."""
    differs = [
        f"{name} was {told.get(name)!r} and is {mine.get(name)!r}"
        for name in sorted(told.keys() | mine.keys())
        if told.get(name) != mine.get(name)
    ]
    if differs:
        raise InputError(
            f"{out}: was begun by another run: {'; '.join(differs)}; run as before to continue it, "
            "name another file, or --overwrite it"
        )


def _write(path: Path, text: str, folder: Path | None = None) -> None:
    """Writes a file that is there whole or not at all, by way of `folder` of the same disk."""
    # A name of its own: other processes may write the same file now.
    partial = (folder or path.parent) / f".{path.name}.{uuid.uuid4().hex[:8]}"
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a machine may die, too, and a name must not come before the bytes
    os.replace(partial, path)
