"""How fast a video becomes frames, patches and a spectrogram, beside the reference's way.

    python benchmarks/media.py [--video FILE ...] [--repeats 5]

Ours is `latentomni_jax.media`. The reference's way is what the checkpoint's own tooling does with
the same sampled frames: decord, bicubic resize of u8 frames with torch, patches with torch; sound
through PyAV, and the Whisper features of transformers, which pad every clip to 300 s. The two run
in turn, repetition by repetition, in one process; the table shows medians. Both use every core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import decord
import numpy as np
import torch
from PIL import Image
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

from latentomni_jax.layout import MediaSpec
from latentomni_jax.media.audio import log_mel
from latentomni_jax.media.patches import patchify
from latentomni_jax.media.video import read_clip

SPEC = MediaSpec()
STAGES = ("decode + resize", "  of which resize", "patchify", "sound", "mel")
WHISPER = WhisperFeatureExtractor(feature_size=SPEC.num_mel_bins, chunk_length=300)


def reference_frames(path: Path, indices: list[int], size: tuple[int, int], spent: dict):
    """Frames as decord and torch make them, u8[T,3,H,W]; adds the resize to `spent`."""
    frames = decord.VideoReader(str(path)).get_batch(indices).asnumpy()
    start = time.perf_counter()
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        channels_first, size=size, mode="bicubic", antialias=True
    )
    spent["  of which resize"] = time.perf_counter() - start
    return resized


def reference_patches(frames: torch.Tensor) -> torch.Tensor:
    """Patches f32[P, 1176] of frames u8[T,3,H,W] in the reference's order."""
    mean = 255 * torch.tensor(SPEC.image_mean).view(3, 1, 1)
    std = 255 * torch.tensor(SPEC.image_std).view(3, 1, 1)
    x = frames.float().sub_(mean).div_(std)  # rescaling and normalising fused, as it does
    size, pair, merge = SPEC.patch_size, SPEC.temporal_patch_size, SPEC.merge_size
    t, h, w = len(x) // pair, x.shape[2] // size, x.shape[3] // size
    x = x.reshape(t, pair, 3, h // merge, merge, size, w // merge, merge, size)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(t * h * w, 3 * pair * size * size)


def reference_sound(path: Path) -> np.ndarray:
    """Mono f32[N] at the model's rate."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SPEC.sampling_rate)
        frames = [*container.decode(audio=0), None]
        parts = [out.to_ndarray()[0] for frame in frames for out in resampler.resample(frame)]
    return np.concatenate(parts)


def reference_mel(audio: np.ndarray) -> np.ndarray:
    features = WHISPER(
        audio,
        sampling_rate=SPEC.sampling_rate,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="np",
    )
    return features["input_features"][0][:, features["attention_mask"][0].astype(bool)]


def timed(spent: dict, stage: str, work: Callable, *arguments, **options):
    start = time.perf_counter()
    result = work(*arguments, **options)
    spent[stage] = time.perf_counter() - start
    return result


def run_ours(path: Path, raw: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """Seconds per stage; then end to end, where sound is read beside the pictures."""
    spent: dict[str, float] = {}
    clip = timed(spent, "decode + resize", read_clip, path, SPEC, audio=False)

    def resize(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))

    # In the reader, resizing runs beside decoding; alone it takes this long.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        timed(spent, "  of which resize", lambda: list(pool.map(resize, raw)))
    timed(spent, "patchify", patchify, clip.frames, SPEC)
    sound = timed(spent, "sound", read_clip, path, SPEC, video=False).audio
    timed(spent, "mel", log_mel, sound, SPEC)

    def everything():
        clip = read_clip(path, SPEC)
        return patchify(clip.frames, SPEC), log_mel(clip.audio, SPEC)

    del clip
    timed(spent, "end to end", everything)
    return spent


def run_reference(path: Path, indices: list[int], size: tuple[int, int]) -> dict[str, float]:
    """Seconds per stage, and end to end, one after the other as the tooling runs them."""
    spent: dict[str, float] = {}
    frames = timed(spent, "decode + resize", reference_frames, path, indices, size, spent)
    timed(spent, "patchify", reference_patches, frames)
    sound = timed(spent, "sound", reference_sound, path)
    timed(spent, "mel", reference_mel, sound)
    del frames

    def everything():
        frames = reference_frames(path, indices, size, {})
        return reference_patches(frames), reference_mel(reference_sound(path))

    timed(spent, "end to end", everything)
    return spent


def measure(path: Path, repeats: int):
    clip = read_clip(path, SPEC)
    reader = decord.VideoReader(str(path))
    stamps = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    indices = [int(np.abs(stamps - t).argmin()) for t in clip.frame_times]
    raw, size = reader.get_batch(indices).asnumpy(), clip.frames.shape[1:3]
    del reader

    # The same work is being compared: pixels and spectrograms are the same, measured here.
    their_frames = reference_frames(path, indices, size, {}).permute(0, 2, 3, 1).numpy()
    pixels = np.abs(their_frames.astype(np.int16) - clip.frames)
    their_patches = reference_patches(torch.from_numpy(clip.frames).permute(0, 3, 1, 2)).numpy()
    patches = np.abs(their_patches - patchify(clip.frames, SPEC)[0]).max()
    ours_mel, their_mel = log_mel(clip.audio, SPEC), reference_mel(clip.audio).T
    mels = np.abs(ours_mel - their_mel).max()
    del their_frames, their_patches
    runs: dict[str, list[dict]] = {"ours": [], "reference": []}
    for _ in range(repeats):
        runs["reference"].append(run_reference(path, indices, size))
        runs["ours"].append(run_ours(path, raw, size))

    height, width = raw.shape[1:3]
    print(
        f"\n{path.name}: {clip.duration:.1f} s, {width}x{height} -> {size[1]}x{size[0]}, ", end=""
    )
    print(f"{len(indices)} frames, {len(ours_mel)} mel frames, median of {repeats}")
    tail = np.percentile(pixels, 99.9)
    print(f"pixels differ by {pixels.mean():.3f} levels, 99.9 % by <= {tail:.0f}, ", end="")
    print(f"at most {pixels.max()}; patches {patches:.0e}, mel {mels:.0e} (same input)")
    print(f"{'':20}{'reference':>12}{'ours':>12}{'ratio':>9}")
    for stage in (*STAGES, "end to end"):
        theirs, ours = (
            statistics.median(run[stage] for run in runs[who]) for who in ("reference", "ours")
        )
        print(f"{stage:20}{theirs * 1e3:9.0f} ms{ours * 1e3:9.0f} ms{theirs / ours:8.2f}x")
    spreads = {who: sorted(run["end to end"] for run in runs[who]) for who in runs}
    for who, values in spreads.items():
        middle = statistics.median(values)
        print(f"{who}: {len(indices) / middle:.1f} video frames/s, ", end="")
        print(f"{len(ours_mel) / middle:.0f} mel frames/s, ", end="")
        print(f"{clip.duration / middle:.1f} x real time ", end="")
        print(f"(end to end {values[0]:.2f} .. {values[-1]:.2f} s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, nargs="+", help="default: the 30 s Daily-Omni clips")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    folder = Path(os.environ.get("LATENTOMNI_ASSETS", Path(__file__).parents[2] / "shared/assets"))
    videos = options.video or sorted(folder.glob("clips/daily_omni/*/*_video.mp4"))
    if not videos:
        parser.error(f"no clips under {folder}; name a file with --video")
    print(f"{os.cpu_count()} cores, PyAV {av.__version__}, torch {torch.__version__}")
    for video in videos:
        measure(video, options.repeats)


if __name__ == "__main__":
    main()
