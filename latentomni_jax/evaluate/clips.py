"""Clips of questions: read ahead in threads, encoded once each, and kept as features on disk.

Reading and encoding a clip takes far longer than asking one more question about it. What the
encoders make of a clip depends on the file, on how it is read and on the encoders, so it can be
kept for other questions and for other runs: FOLDER/IDENTITY/DIGEST-KIND.safetensors, where IDENTITY
is of all but the file and stands beside as spec.json.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from data_pipeline.shards import write_text
from latentomni_jax.backbone.positions import Clock
from latentomni_jax.evaluate.answers import Media, read_part
from latentomni_jax.layout import AudioPart, EncodedPart, InputError, VisionPart
from latentomni_jax.model import LatentOmni

_LOG = logging.getLogger(__name__)
_READERS = 8  # threads that decode clips, at most


class FeatureStore:
    """Features of clips on disk.

    Args:
      folder: holds one folder for each identity.
      identity: all that features depend on but the clip, as JSON has it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / "spec.json", text)

    def place(self, clip: Path, kind: str) -> Path:
        """Where the features of a file are. Raises OSError where it cannot be read."""
        with clip.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        return self._folder / f"{digest}-{kind}.safetensors"

    def read(self, place: Path) -> EncodedPart | None:
        """What is kept there; None where nothing is, or (with a warning) something damaged."""
        try:
            with safetensors.safe_open(place, framework="np") as file:
                told = json.loads(file.metadata()["part"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return EncodedPart(
                told["kind"], arrays.get("video"), arrays.get("audio"),
                tuple(told["grid"]), arrays["seconds"],
            )  # fmt: skip
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s: damaged features are made anew: %s", place, error)
            return None

    def write(self, place: Path, part: EncodedPart) -> None:
        """Keeps features; the file is there whole or not at all."""
        arrays = {"video": part.video, "audio": part.audio, "seconds": part.seconds}
        told = json.dumps({"kind": part.kind, "grid": part.grid})
        partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
        save_file(
            {name: np.ascontiguousarray(x) for name, x in arrays.items() if x is not None},
            partial, {"part": told},
        )  # fmt: skip
        os.replace(partial, place)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a thread brought of a clip, and where its features are to be kept."""

    part: Media
    place: Path | None = None


class Clips:
    """The clips of some questions, each read once by a thread and encoded once when asked for.

    Args:
      wanted: (path, kind) of every clip, the ones asked for first in front.
      store: where features are kept; None keeps them in memory alone.
    """

    def __init__(
        self,
        model: LatentOmni,
        wanted: Iterable[tuple[Path, str]],
        pool: concurrent.futures.Executor,
        *,
        clock: Clock = "true",
        store: FeatureStore | None = None,
    ):
        self._model, self._clock, self._store = model, clock, store
        self._encoded: dict[tuple[Path, str], EncodedPart] = {}
        self._read = {key: pool.submit(self._bring, *key) for key in dict.fromkeys(wanted)}

    def __call__(self, path: Path, kind: str) -> EncodedPart:
        """A clip's features. Raises InputError where it is unreadable."""
        key = path, kind
        if key not in self._encoded:
            found = self._read[key].result()
            part = found.part
            if isinstance(part, VisionPart | AudioPart):
                part = self._model.encode(part)
                if self._store is not None and found.place is not None:
                    self._store.write(found.place, part)
            self._encoded[key] = part
            del self._read[key]  # its pixels are no longer needed
        return self._encoded[key]

    def _bring(self, path: Path, kind: str) -> _Found:
        """The features that are kept, else the clip.

        Raises InputError whatever it is that the file makes happen: it is this file's, and other
        questions wait.
        """
        try:
            place = None
            if self._store is not None and path.is_file():
                place = self._store.place(path, kind)
                if (kept := self._store.read(place)) is not None:
                    return _Found(kept, place)
            return _Found(read_part(self._model, path, kind, self._clock), place)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path}: {type(error).__name__}: {error}") from error


def readers() -> concurrent.futures.ThreadPoolExecutor:
    """Threads that read clips."""
    return concurrent.futures.ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
