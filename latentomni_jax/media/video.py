"""Files become clips: video frames with their true times, still images, sound on one clock.

`read_clip` is the door: any file in, a `Clip` on one clock out; `read_segments` also cuts stretches
out of it. A video is read twice. The first reading only lists the times of its pictures, so what
is sampled, and how large it may be, is known before anything is decoded and never depends on a
duration that a header declares. The second decodes, and leaves out pictures that are neither
sampled nor needed by others.

Files are untrusted, see `container`: whatever is wrong with one ends in an `InputError`, one line.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import av
import av.container
import av.stream
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from latentomni_jax.layout import Clip, InputError, MediaSpec
from latentomni_jax.media.audio import align, mix_down
from latentomni_jax.media.container import decode, existing_file, one_line, open_media, packets_of
from latentomni_jax.media.patches import frame_size, smart_resize

_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
TOLERANCE = 1e-3  # seconds; containers round times to milliseconds
LATEST_SOUND = 60.0  # seconds that sound may begin after the last picture


# ---------------------------------------------------------------------------- times


def pick_frames(times: np.ndarray, duration: float, spec: MediaSpec) -> np.ndarray:
    """Which frames of a video are sampled: the first one at or after each step of the clock.

    At or after, and not the nearest: at 2 fps the k-th frame then never lies before k/2 s, so
    that positions counted in whole 1/25 s agree with those of a nominal clock.

    Args:
      times: f64[n] ascending, seconds of all frames, the first at 0.
      duration: seconds; a step is 1/fps, longer where there would be more than `max_frames`,
        shorter where there would be fewer than `min_frames`.

    Returns:
      i64[m] indices into `times`, ascending, each once; m < min_frames only if n is.
    """

    def pick(step: float) -> np.ndarray:
        targets = np.arange(spec.max_frames) * step - TOLERANCE
        index = np.unique(np.searchsorted(times, targets))
        return index[index < len(times)]

    index = pick(max(1.0 / spec.fps, duration / spec.max_frames))
    if len(index) < spec.min_frames:
        index = pick(duration / spec.min_frames)
    if len(index) < spec.min_frames:  # few frames, or uneven times: several steps share one
        index = np.linspace(0, len(times) - 1, min(len(times), spec.min_frames)).round()
    return index.astype(np.int64)


def _even_count(num_frames: int, spec: MediaSpec) -> int:
    """`num_frames` made whole temporal patches: fewer if `min_frames` allows, else more."""
    patch = spec.temporal_patch_size
    fewer = num_frames // patch * patch
    if fewer >= max(spec.min_frames, 1):
        return fewer
    return -(-max(num_frames, spec.min_frames) // patch) * patch


# ---------------------------------------------------------------------------- reading


def read_clip(
    path: str | os.PathLike, spec: MediaSpec, *, audio: bool = True, video: bool = True
) -> Clip:
    """A media file as arrays on one clock; 0 s is its first video frame, or else its first sound.

    Args:
      path: a video, a sound file or an image, in any format that FFmpeg or Pillow reads.
      spec: sampling, sizes, rates.
      audio, video: False leaves that part out (the clock stays the same).

    Returns:
      A Clip. `frames` is None for sound files (cover art is no video), `audio` is None where
      there is no audio track; a silent track is sound. The number of frames is a multiple of
      `temporal_patch_size`; a video too short for `min_frames` repeats its last frame, with its
      true time. Pixels and sound are those that can be decoded: damage is left out, and
      warned about.

    Raises:
      InputError: one line naming the file, where nothing asked for can be read from it.
    """
    return read_segments(path, spec, (), audio=audio, video=video)[0]


def read_segments(
    path: str | os.PathLike,
    spec: MediaSpec,
    segments: Sequence[tuple[float, float]],
    *,
    audio: bool = True,
    video: bool = True,
) -> tuple[Clip, list[Clip]]:
    """`read_clip`, and segments cut out of the file, with one decoding for all.

    A segment is what `read_clip` makes of a file that holds just these pictures and this sound:
    sampled and sized on its own, its 0 s is its first picture. One too short for any picture has
    the one that is on the screen.

    Args:
      segments: (start, end) in seconds on the clip's clock, start < end; what lies outside the
        clip is empty.
      path, spec, audio, video: as for `read_clip`.

    Returns:
      The whole clip, and a clip for each segment. Both parts of a segment's clip may be None, as
      those of an image always are.

    Raises:
      InputError: as `read_clip`.
    """
    path = existing_file(path)
    if is_image(path):
        if not video:
            raise InputError(f"{path}: is an image, and pictures were not asked for")
        return read_image(path, spec), [Clip(None, None, None, 0.0) for _ in segments]
    index = index_pictures(path)
    origin = None if index is None else float(index.ticks[0] * index.seconds)
    duration, samples = 0.0, None
    pictures: list[_Pictures | None] = [None] * (1 + len(segments))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        sound = pool.submit(_read_sound, path, spec.sampling_rate) if audio else None
        if index is not None and video:
            pictures = _read_frames(path, index, spec, segments, pool)
            origin = float(pictures[0].seconds[0])
        if index is not None:
            duration = index.end - origin
        if sound is not None:
            samples, start = sound.result()
            late = 0.0 if origin is None else start - origin
            if samples.size and late > duration + LATEST_SOUND:
                raise InputError(f"{path}: its sound begins {late:.0f} s after its pictures")
            samples = align(samples, late, spec.sampling_rate)
    if pictures[0] is None and samples is None:
        wanted = " or ".join(["pictures"] * video + ["sound"] * audio) or "nothing"
        raise InputError(f"{path}: no {wanted} to read; expected a video, sound or image file")
    if samples is not None:
        duration = max(duration, samples.size / spec.sampling_rate)
    if audio and index is not None:  # without the sound, its length is not known
        declared = index.declared - origin
        if declared - duration > max(1, 0.02 * duration):
            message = f"{path}: ends at {duration:.1f} s, its header says {declared:.1f} s"
            warnings.warn(f"{message}; what is there is used", stacklevel=2)
    clips = [
        _cut(shown, samples, start, min(end, duration), origin or 0.0, spec.sampling_rate)
        for shown, (start, end) in zip(pictures, ((0.0, duration), *segments), strict=True)
    ]
    return clips[0], clips[1:]


def _cut(
    pictures: _Pictures | None,
    samples: np.ndarray | None,
    start: float,
    end: float,
    origin: float,
    rate: int,
) -> Clip:
    """The clip between two moments, whose clock begins at its first picture.

    `samples` and the moments are on the file's clock; it begins at `origin` on the container's.
    """
    frames, frame_times = None, None
    if pictures is not None:
        frames, seconds = pictures
        frame_times = (seconds - seconds[0]).astype(np.float32)
        start = max(start, float(seconds[0]) - origin)
    if samples is not None:
        samples = samples[max(0, round(start * rate)) : max(0, round(end * rate))]
        samples = samples if samples.size else None
    return Clip(frames, frame_times, samples, duration=max(0.0, end - start))


def read_image(path: str | os.PathLike, spec: MediaSpec) -> Clip:
    """A still image as a Clip of one frame u8[1,H,W,3] by the image size rule.

    Turned upright by its EXIF tag; transparent pixels become white.

    Raises:
      InputError: one line naming the file, where it is no image, damaged, or larger than
        Pillow's limit against decompression bombs.
    """
    path = existing_file(path)
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
        height, width = smart_resize(
            image.height,
            image.width,
            factor=spec.factor,
            min_pixels=spec.image_min_pixels,
            max_pixels=spec.image_max_pixels,
        )
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise InputError(f"{path}: cannot be read as an image: {one_line(error)}") from error
    frame = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return Clip(
        frames=frame[None],
        frame_times=np.zeros(1, np.float32),
        audio=None,
        duration=0.0,
        is_image=True,
    )


class PictureIndex(NamedTuple):
    """When the pictures of a video are shown, from the packets and not from the header."""

    stream: int
    ticks: np.ndarray  # i64[n] ascending, times of the frames
    seconds: float  # of one tick
    end: float  # seconds, when the last picture ends
    has_pts: bool  # ticks are frames' pts; otherwise the n-th tick is of the n-th decoded frame
    declared: float  # seconds, when the longest stream ends according to the header

    @property
    def times(self) -> np.ndarray:
        """f64[n] seconds on the clip's clock, the first at 0."""
        return (self.ticks - self.ticks[0]) * self.seconds

    @property
    def duration(self) -> float:
        """Seconds from the first picture to the end of the last."""
        return self.end - float(self.ticks[0]) * self.seconds

    def stretch(self, start: float, end: float) -> tuple[int, int]:
        """The pictures from `start` to `end`, seconds on the clip's clock: `ticks[first:stop]`.

        Where no picture begins in it, the one on the screen.
        """
        first, stop = np.searchsorted(self.times, np.array([start, end]) - TOLERANCE)
        if first == stop and start < self.duration:
            first, stop = first - 1, first
        return int(first), int(stop)


def index_pictures(path: Path) -> PictureIndex | None:
    """Lists the picture times of a file; None where it has no video stream."""
    with open_media(path) as container:
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            return None
        stream = streams[0]
        packets = [
            (packet.pts, packet.dts, packet.duration or 0)
            for packet in packets_of(container, stream)
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise InputError(f"{path}: its video stream is empty; re-encode or replace the file")
        shown, decoded, lengths = zip(*packets, strict=True)
        # AVI stores no pts: FFmpeg guesses, and guesses wrong where frames refer to later ones.
        has_pts = container.format.name != "avi" and None not in shown
        ticks, seconds = (shown if has_pts else decoded), float(stream.time_base)
        per_second = float(stream.average_rate or stream.guessed_rate or 25)
        if None in ticks:  # no times at all: count
            ticks, seconds, lengths = range(len(packets)), 1 / per_second, [1] * len(packets)
        end = max(ticks) * seconds + (lengths[np.argmax(ticks)] * seconds or 1 / per_second)
        ticks = np.unique(np.array(ticks, np.int64))
        declared = ((container.start_time or 0) + (container.duration or 0)) / av.time_base
        return PictureIndex(stream.index, ticks, seconds, end, has_pts, declared)


class _Pictures(NamedTuple):
    """Sampled frames, resized, u8[T,H,W,3], and their times on the container's clock f64[T]."""

    frames: np.ndarray
    seconds: np.ndarray


class _Sampling:
    """Collects the sampled frames of one stretch of a video while it is decoded."""

    def __init__(self, index: PictureIndex, spec: MediaSpec, start: float, end: float):
        first, stop = index.stretch(start, end)
        times = index.times[first:stop]
        self._spec = spec
        self._wanted: list[int] = []  # ticks
        if len(times):
            picked = first + pick_frames(
                times - times[0], min(end, index.duration) - times[0], spec
            )
            self._wanted = index.ticks[picked][: _even_count(len(picked), spec)].tolist()
        self._count = _even_count(len(self._wanted), spec)
        self._limit = index.ticks[stop] if stop < len(index.ticks) else np.inf  # not of it
        self._frames: np.ndarray | None = None
        self._ticks: list[int] = []
        self._step = 0

    @property
    def wanted(self) -> list[int]:
        """Ticks of the frames, in order."""
        return self._wanted

    @property
    def is_complete(self) -> bool:
        return self._step == len(self._wanted)

    def offer(self, tick: int, frame: av.VideoFrame) -> np.ndarray | None:
        """Where to write a decoded frame, u8[H,W,3], upright; None if it is not sampled."""
        if tick >= self._limit:
            self._step = len(self._wanted)
        if self.is_complete or tick < self._wanted[self._step]:
            return None
        # Normally one step; after damage the frame stands for all steps it is late for.
        while not self.is_complete and self._wanted[self._step] <= tick:
            self._step += 1
        if self._frames is None:
            height, width = frame.height, frame.width
            if frame.rotation % 180 != 0:
                height, width = width, height
            size = frame_size(height, width, self._count, self._spec)
            self._frames = np.empty((self._count, *size, 3), np.uint8)
        self._ticks.append(tick)
        return self._frames[len(self._ticks) - 1]

    def result(self, seconds: float) -> _Pictures | None:
        """What was collected, None if nothing was; a tick is `seconds` long."""
        frames, ticks = self._frames, np.array(self._ticks)
        if frames is None:
            return None
        if len(ticks) < self._count:  # too short, or damaged: the count is settled anew
            repeat = np.minimum(np.arange(_even_count(len(ticks), self._spec)), len(ticks) - 1)
            frames, ticks = frames[repeat], ticks[repeat]
        return _Pictures(frames, ticks * seconds)


def _read_frames(
    path: Path,
    index: PictureIndex,
    spec: MediaSpec,
    segments: Sequence[tuple[float, float]],
    pool: Executor,
) -> list[_Pictures | None]:
    """The sampled frames of the whole video, never None, and of each segment."""
    samplings = [_Sampling(index, spec, *span) for span in ((0.0, np.inf), *segments)]
    keep = {tick for sampling in samplings for tick in sampling.wanted}
    running: deque = deque()

    with open_media(path) as container:
        for tick, frame in decode_pictures(path, container, index, keep):
            offered = [sampling.offer(tick, frame) for sampling in samplings]
            if outs := [out for out in offered if out is not None]:
                running.append(pool.submit(_resize_into, outs, frame))
            if len(running) > 8:  # whole frames wait here: never many
                running.popleft().result()
            if all(sampling.is_complete for sampling in samplings):
                break
        for job in running:
            job.result()
    pictures = [sampling.result(index.seconds) for sampling in samplings]
    if pictures[0] is None:
        raise InputError(f"{path}: no frame of its video can be decoded; re-encode or replace it")
    return pictures


def decode_pictures(
    path: Path, container: av.container.InputContainer, index: PictureIndex, keep: Container[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The pictures of a video and their ticks, in order; those not to `keep` may be left out."""
    stream = container.streams[index.stream]
    stream.thread_type = "AUTO"

    def choose(packet: av.Packet):
        # Frames that no other frame refers to need not be decoded to be passed over.
        passed = index.has_pts and packet.pts is not None and packet.pts not in keep
        stream.codec_context.skip_frame = "NONREF" if passed else "DEFAULT"

    for number, frame in enumerate(decode(path, container, stream, choose)):
        tick = frame.pts
        if not index.has_pts:
            tick = int(index.ticks[min(number, len(index.ticks) - 1)])
        if tick is not None:
            yield tick, frame


def _resize_into(outs: Sequence[np.ndarray], frame: av.VideoFrame):
    """Writes a decoded frame, upright and resized, to each of `outs` u8[H,W,3]; runs in a worker.

    One worker has the frame for itself: PyAV's frames are not for several threads at once.
    """
    image = Image.fromarray(upright(frame))
    for out in outs:
        out[...] = image.resize((out.shape[1], out.shape[0]), Image.Resampling.BICUBIC)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """The pixels u8[H,W,3] of a frame, turned as its file says."""
    pixels = frame.to_ndarray(format="rgb24")
    if quarter_turns := round(frame.rotation / 90) % 4:
        pixels = np.rot90(pixels, quarter_turns)
    return pixels


def _read_sound(path: Path, rate: int) -> tuple[np.ndarray, float]:
    """Mono samples f32[N] of the first audio stream, and when they begin; N = 0 without one."""
    with open_media(path) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32), 0.0
        stream = container.streams.audio[0]
        return mix_down(decode(path, container, stream), rate)


def is_image(path: Path) -> bool:
    """Whether Pillow should read the file, from its content; moving GIFs are videos."""
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            return not (image.format == "GIF" and getattr(image, "is_animated", False))
    except UnidentifiedImageError:
        return False
    except Exception:  # an image, though a bad one: read_image says what is wrong with it
        return True
