"""The feature cache on disk: a TFDS dataset of media, and an index of trajectories.

    DIR/meta.json           format version, media spec, counts; written last: without it, incomplete
        index.jsonl         a line per trajectory: its text, sizes of its media, their records
        problems.jsonl      a line per trajectory left out, and why
        dataset_info.json   \\
        features.json        | TFDS dataset `av_media`, split "train", ArrayRecord files; TFDS reads
        av_media-train...   /  and writes it without TensorFlow

A record is one clip, or one segment cut out of it, as the encoders take it: u8 patches (normalised
on the device), f16 mel. Trajectories about one file share its record. The index alone says how long
every example is, so batches are planned without reading media.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.examples import Media
from data_pipeline.trajectories import Trajectory, parse_object
from latentomni_jax.layout import AudioPart, InputError, MediaSpec, VisionPart

FORMAT = 1
DATASET, SPLIT, VERSION = "av_media", "train", "1.0.0"


class Records:
    """An open feature cache: random access to trajectories and their media.

    Safe to use from threads; pickles as its directory.

    Attributes:
      directory: of the cache.
      media_spec: how its media were sampled; a model that trains on them must use the same.
      meta: the contents of `meta.json`.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens a cache. Raises InputError where there is no complete one of this format."""
        require_libraries()
        self.directory = Path(directory)
        path = self.directory / "meta.json"
        if not path.is_file():
            raise InputError(
                f"{directory}: is no complete feature cache (no meta.json); "
                "make one with `latentomni data cache`"
            )
        try:
            self.meta = json.loads(path.read_text(encoding="utf-8"))
            if self.meta["format"] != FORMAT:
                raise InputError(f"{path}: format {self.meta['format']}, expected {FORMAT}")
            spec = {k: tuple(v) if isinstance(v, list) else v for k, v in self.meta["spec"].items()}
            self.media_spec = MediaSpec(**spec)
            self._lines = (self.directory / "index.jsonl").read_bytes().splitlines()
            self._source = self._open_source() if self.meta["records"] else []
            found = {"trajectories": len(self._lines), "records": len(self._source)}
        except InputError:
            raise
        except Exception as error:  # TFDS raises whatever a damaged file makes it do
            raise InputError(f"{directory}: the feature cache is damaged: {error!r}") from error
        for name, count in found.items():
            if count != self.meta[name]:
                raise InputError(
                    f"{directory}: the feature cache is damaged: {count} {name}, meta.json says "
                    f"{self.meta[name]}"
                )

    def _open_source(self):
        tfds = tensorflow_datasets()
        return tfds.builder_from_directory(self.directory).as_data_source(SPLIT)

    def __reduce__(self):
        return Records, (self.directory,)

    def __len__(self) -> int:
        """Trajectories."""
        return len(self._lines)

    def trajectory(self, i: int) -> Trajectory:
        """The i-th trajectory. Raises IndexError."""
        return self._entry(i)[0]

    def id(self, i: int) -> str:
        """The i-th trajectory's id, without a look at the rest. Raises IndexError."""
        return self._parsed(i)["trajectory"]["id"]

    def sizes(self, i: int) -> tuple[Trajectory, Media]:
        """The i-th trajectory with media of the right shapes and times, but blank; reads none."""
        trajectory, entry = self._entry(i)
        prompt, segments = entry["media"], entry["segments"]
        return trajectory, Media(
            None if prompt is None else self._blank(prompt),
            tuple(self._blank(size) for size in segments),
        )

    def read(self, i: int, *, segments: bool = True) -> tuple[Trajectory, Media]:
        """The i-th trajectory and its media: patches u8, mel f16, times f32.

        Args:
          segments: False leaves the cut segments unread.

        Raises:
          InputError: a record that cannot be read, or is not what the index says. IndexError.
        """
        trajectory, entry = self._entry(i)
        wanted = entry["segments"] if segments else []
        prompt = entry["media"]
        try:
            return trajectory, Media(
                None if prompt is None else self._part(prompt),
                tuple(self._part(size) for size in wanted),
            )
        except Exception as error:  # ArrayRecord, protobuf and NumPy each raise their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.directory}: {trajectory.id!r} is unreadable: {reason}") from (
                error
            )

    def _entry(self, i: int) -> tuple[Trajectory, dict[str, Any]]:
        entry = self._parsed(i)
        return parse_object(entry["trajectory"], f"{self.directory / 'index.jsonl'}:{i + 1}"), entry

    def _parsed(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        return json.loads(self._lines[i])

    def _blank(self, size: dict[str, Any]) -> VisionPart | AudioPart:
        spec, mel = self.media_spec, None
        if size["mel_frames"]:
            mel = np.broadcast_to(np.float16(0), (size["mel_frames"], spec.num_mel_bins))
        if size["grid"] is None:
            return AudioPart(mel)
        width = 3 * spec.temporal_patch_size * spec.patch_size**2
        patches = np.broadcast_to(np.uint8(0), (int(np.prod(size["grid"])), width))
        seconds = np.array(size["seconds"], np.float32)
        return VisionPart(patches, tuple(size["grid"]), seconds, mel, size["is_image"])

    def _part(self, size: dict[str, Any]) -> VisionPart | AudioPart:
        record = self._source[size["record"]]
        part = from_record(record, self.media_spec)
        found = {"file": record["file"].decode("utf-8", "replace"), **part_size(part)}
        if found != {key: size[key] for key in found}:
            raise ValueError(f"record {size['record']} is not what the index says")
        return part


# ---------------------------------------------------------------------------- format


def require_libraries() -> None:
    """Raises InputError where a library of the `data` extra is not installed."""
    for name in ("tensorflow_datasets", "array_record", "grain"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is missing: pip install 'latentomni_jax[data]'")


def tensorflow_datasets():
    """The module, which imports no TensorFlow. Raises InputError where it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install 'latentomni_jax[data]'") from None
    return tfds


def features():
    """The TFDS features of a record; absent parts are empty bytes and a grid of zeros."""
    tfds = tensorflow_datasets()
    raw = tfds.features.Tensor(shape=(), dtype=np.object_)  # bytes; TFDS has no variable f16 arrays
    return tfds.features.FeaturesDict(
        {
            "file": tfds.features.Text(),
            "cut": tfds.features.Tensor(shape=(2,), dtype=np.float32),  # seconds of the file
            "patches": raw,  # u8[P, 3*2*14*14]
            "grid": tfds.features.Tensor(shape=(3,), dtype=np.int32),
            "seconds": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            "is_image": np.bool_,
            "mel": raw,  # f16[M,bins], little-endian
        }
    )


def to_record(part: VisionPart | AudioPart, file: str, cut: tuple[float, float]) -> dict[str, Any]:
    """A part with patches u8 as the values of `features`; its mel is kept as f16."""
    is_vision = isinstance(part, VisionPart)
    mel = b"" if part.mel is None else part.mel.astype("<f2", copy=False).tobytes()
    return {
        "file": file,
        "cut": np.array(cut, np.float32),
        "patches": part.patches.tobytes() if is_vision else b"",
        "grid": np.array(part.grid if is_vision else (0, 0, 0), np.int32),
        "seconds": part.seconds if is_vision else np.zeros(0, np.float32),
        "is_image": is_vision and part.is_image,
        "mel": mel,
    }


def from_record(record: dict[str, Any], spec: MediaSpec) -> VisionPart | AudioPart:
    """The part of a record, as read-only views. Raises ValueError where sizes disagree."""
    mel = None
    if record["mel"]:
        mel = np.frombuffer(record["mel"], "<f2").reshape(-1, spec.num_mel_bins)
    grid = tuple(map(int, record["grid"]))
    if not any(grid):
        return AudioPart(mel)
    patches = np.frombuffer(record["patches"], np.uint8).reshape(
        int(np.prod(grid)), 3 * spec.temporal_patch_size * spec.patch_size**2
    )
    return VisionPart(patches, grid, record["seconds"], mel, bool(record["is_image"]))


def part_size(part: VisionPart | AudioPart) -> dict[str, Any]:
    """What the index says of a part: grid, times of its frames, spectrogram frames."""
    is_vision = isinstance(part, VisionPart)
    return {
        "grid": list(part.grid) if is_vision else None,
        "seconds": [float(second) for second in part.seconds] if is_vision else None,
        "mel_frames": 0 if part.mel is None else len(part.mel),
        "is_image": is_vision and part.is_image,
    }
