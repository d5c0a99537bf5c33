"""Sound becomes arrays: mono samples at the checkpoint's rate, and Whisper's log-mel spectrogram.

Nothing here cuts sound: the whole length is kept, an hour as well as a second. Channels are
averaged before anything else looks at them, as the checkpoint's own tooling does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator

import av
import numpy as np

from latentomni_jax.layout import InputError, MediaSpec

_BLOCK_FRAMES = 4096  # spectrogram frames per block: about 20 MB of work space, however long


class Resampler:
    """Decoded sound at one rate, block by block, also where its kind changes in the middle.

    Args:
      rate: samples per second of the result.
      layout: of its channels, "mono" or "stereo"; None keeps the sound's own.
    """

    def __init__(self, rate: int, layout: str | None = None):
        self._rate, self._layout = rate, layout
        self._kind, self._resampler = None, None

    def __call__(self, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
        """What a frame of one stream, in order, adds: f32[N,C], about a second at a time.

        At the end of the stream `frame` is None.
        """
        kind = None
        if frame is not None:
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind and self._resampler is not None:
            yield from map(_packed, self._resampler.resample(None))  # what it still holds
            self._resampler = None
        self._kind = kind
        if frame is not None:
            # Packed, not planar: PyAV 18 crashes on the planes of 8 channels.
            self._resampler = self._resampler or av.AudioResampler(
                format="flt", layout=self._layout, rate=self._rate, frame_size=self._rate
            )
            yield from map(_packed, self._resampler.resample(frame))


def _packed(frame: av.AudioFrame) -> np.ndarray:
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)


def mean_channel(samples: np.ndarray) -> np.ndarray:
    """The mean f32[N] of the channels of f32[N,C].

    A resampler that mixes down weighs channels by its own rules and, in float, lets the sum
    exceed 1.
    """
    channels = samples.shape[1]
    return samples @ np.full(channels, 1 / channels, np.float32)


def mix_down(frames: Iterable[av.AudioFrame], rate: int) -> tuple[np.ndarray, float]:
    """Decoded sound as mono samples.

    Args:
      frames: of one stream, in order; any sample format, rate and channel layout, which may
        change in the middle (broadcast recordings do).
      rate: samples per second of the result.

    Returns:
      f32[N], the mean over the channels, about -1..1 and finite; and the time of the first sample
      in seconds on the container's clock. N is 0 where there is no sound at all.
    """
    parts: list[np.ndarray] = []
    start, resampler = None, Resampler(rate)
    for frame in itertools.chain(frames, [None]):
        if start is None and frame is not None and frame.pts is not None:
            start = float(frame.pts * frame.time_base)
        parts += map(mean_channel, resampler(frame))
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return np.nan_to_num(samples, copy=False, posinf=0.0, neginf=0.0), start or 0.0


def align(samples: np.ndarray, start: float, rate: int) -> np.ndarray | None:
    """Sound that begins at `start` seconds, f32[N], moved onto the clock that begins at 0.

    Zeros go in front of what starts late, what came before 0 is dropped; None if nothing is left.
    """
    offset = round(start * rate)
    if samples.size == 0 or -offset >= samples.size:
        return None
    if offset <= 0:
        return samples[-offset:]
    return np.concatenate([np.zeros(offset, np.float32), samples])


@functools.cache
def mel_filters(num_bins: int, n_fft: int, rate: int) -> np.ndarray:
    """Triangular filters f32[n_fft//2+1, num_bins] from 0 Hz to rate/2.

    Slaney's scale (linear to 1 kHz, logarithmic above) and norm (each triangle has area 1 over
    hertz), as Whisper uses them. The array is shared: do not write to it.
    """
    # On this scale 1 kHz is 15 mel, and 27 mel more are a factor of 6.4.
    knee_hz, knee_mel, growth = 1000.0, 15.0, math.log(6.4) / 27.0
    top_hz = rate / 2
    top = top_hz * 3 / 200 if top_hz < knee_hz else knee_mel + math.log(top_hz / knee_hz) / growth
    mel = np.linspace(0.0, top, num_bins + 2)
    edge_hz = np.where(mel < knee_mel, mel * 200 / 3, knee_hz * np.exp(growth * (mel - knee_mel)))
    lower, centre, upper = edge_hz[:-2], edge_hz[1:-1], edge_hz[2:]
    hz = np.linspace(0.0, top_hz, n_fft // 2 + 1)[:, None]
    rise, fall = (hz - lower) / (centre - lower), (upper - hz) / (upper - centre)
    filters = np.maximum(0.0, np.minimum(rise, fall)) * 2 / (upper - lower)
    filters = filters.astype(np.float32)
    filters.setflags(write=False)
    return filters


@functools.cache
def _hann(size: int) -> np.ndarray:
    """The periodic Hann window, f32[size]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def log_mel(audio: np.ndarray, spec: MediaSpec) -> np.ndarray:
    """Whisper's log-mel spectrogram of sound of any length.

    Frame m is centred on sample m * hop; the sound is mirrored before its start and followed by
    zeros, as in the reference, which pads to 300 s first. Work space stays small for long sound,
    while the floor, 8 decades below the loudest cell, is that of the whole.

    Args:
      audio: f32[N] mono at `spec.sampling_rate`, N > 0.
      spec: gives the rate, window, hop and number of bins.

    Returns:
      f32[M, num_mel_bins], M = ceil(N / hop), about -1..1.5.

    Raises:
      InputError: where `audio` is empty or not one-dimensional.
    """
    if audio.ndim != 1 or audio.size == 0:
        raise InputError(f"log_mel wants samples f32[N] with N > 0, got shape {audio.shape}")
    size, hop, half = spec.n_fft, spec.hop_length, spec.n_fft // 2
    filters = mel_filters(spec.num_mel_bins, size, spec.sampling_rate)
    num_frames = -(-audio.size // hop)
    # Windows centred past the end still hear the last samples. The reference drops them only
    # after they had their say in the maximum, and so do we.
    num_heard = num_frames + -(-half // hop)
    tail = np.zeros(num_heard * hop + size - audio.size, np.float32)
    padded = np.concatenate([np.zeros(half, np.float32), audio, tail], dtype=np.float32)
    padded[:half] = padded[size:half:-1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:num_heard]

    out = np.empty((num_heard, spec.num_mel_bins), np.float32)
    for begin in range(0, num_heard, _BLOCK_FRAMES):
        block = slice(begin, min(begin + _BLOCK_FRAMES, num_heard))
        spectrum = np.fft.rfft(windows[block] * _hann(size))
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        np.log10(np.maximum(power @ filters, 1e-10), out=out[block])
    out = np.maximum(out, out.max() - 8.0, out=out)[:num_frames]
    out += 4.0
    out *= 0.25
    return out
