"""What models replied, kept under the key of what they were asked (`replies.request_key`).

A directory of logs, `*.replies`. A process appends to one of its own, a line for each reply, and
reads those that were there when it began. A line without its end is of a process that was killed,
and is passed over. One file for a reply would be as simple, and dear where there are a million.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from pathlib import Path
from typing import Any

_KEY = 32  # characters of a key that are kept: 128 bits


@dataclasses.dataclass(frozen=True)
class Reply:
    """Attributes: data: keeps to the request's schema. model: who replied, as it calls itself."""

    data: dict[str, Any]
    model: str


class Store:
    """Replies in a directory; of one thread. About 200 bytes of memory for each reply."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self._files: list[int] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}  # key -> file, start, length
        logs = directory.glob("*.replies")
        for path in sorted(logs, key=lambda log: (log.stat().st_mtime_ns, log.name)):
            self._read(path)  # of a key's replies the newest counts: an older one may be damaged
        self._directory, self._mine, self._end = directory, -1, 0

    def get(self, key: str) -> Reply | None:
        place = self._places.get(bytes.fromhex(key[:_KEY]))
        if place is None:
            return None
        file, start, length = place
        try:
            found = json.loads(os.pread(self._files[file], length, start))
            return Reply(found["data"], found["model"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a damaged log: asked again

    def put(self, key: str, reply: Reply) -> None:
        if self._mine < 0:  # with the first reply, so that no empty log is left
            path = self._directory / f"{uuid.uuid4().hex}.replies"
            self._mine = len(self._files)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._files.append(os.open(path, flags, 0o644))
        text = json.dumps({"data": reply.data, "model": reply.model}).encode()
        line = key[:_KEY].encode() + b" " + text + b"\n"
        # At once, so that a kill leaves a whole line or none.
        written = os.write(self._files[self._mine], line)
        if written == len(line):
            place = (self._mine, self._end + _KEY + 1, len(text))
            self._places[bytes.fromhex(key[:_KEY])] = place
        self._end += written

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()
        self._places.clear()

    def _read(self, path: Path) -> None:
        start = 0
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    try:
                        key = bytes.fromhex(line[:_KEY].decode("ascii"))
                    except ValueError:
                        key = b""  # damaged
                    self._places[key] = (len(self._files), start + _KEY + 1, len(line) - _KEY - 2)
                start += len(line)
        self._files.append(os.open(path, os.O_RDONLY))
