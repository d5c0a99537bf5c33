"""Sound: decoding keeps everything, the spectrogram is Whisper's."""

from __future__ import annotations

import wave

import numpy as np
import pytest

from latentomni_jax.layout import InputError, MediaSpec
from latentomni_jax.media.audio import align, log_mel, mel_filters
from latentomni_jax.media.video import read_clip

SPEC = MediaSpec()
RATE = SPEC.sampling_rate
GOLDEN = ("bswbQtOPk6E", "d6b4OmUFt7I")


def write_wav(path, samples: np.ndarray, rate: int = RATE):
    """f32[N] or f32[N, channels] as 16-bit PCM."""
    samples = np.atleast_2d(samples.T).T
    with wave.open(str(path), "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return path


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture(scope="module")
def whisper():
    extractors = pytest.importorskip("transformers.models.whisper.feature_extraction_whisper")
    return extractors.WhisperFeatureExtractor(feature_size=128, chunk_length=300)


@pytest.mark.parametrize("name", GOLDEN)
def test_mel_equals_the_reference_processor(assets, name):
    golden = np.load(assets / f"golden/{name}_tiny4s.npz")
    mel = log_mel(golden["audio"], SPEC)
    assert mel.dtype == np.float32 and mel.shape == (int(golden["mel_frames"]), 128)
    np.testing.assert_allclose(mel.T, golden["input_features"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", GOLDEN)
def test_samples_equal_the_reference(assets, name):
    golden = np.load(assets / f"golden/{name}_tiny4s.npz")
    clip = read_clip(assets / f"clips/daily_omni/{name}/{name}_tiny4s.mp4", SPEC, video=False)
    assert clip.frames is None
    np.testing.assert_allclose(clip.audio, golden["audio"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 159, 161, 16_150, 48_123])
@pytest.mark.parametrize("kind", ["noise", "tone", "late_burst", "silence"])
def test_mel_equals_whisper_of_transformers(whisper, num_samples, kind):
    rng = np.random.default_rng(num_samples)
    audio = (0.1 * rng.standard_normal(num_samples)).astype(np.float32)
    if kind == "tone":
        audio = tone(num_samples / RATE).astype(np.float32)
    elif kind == "late_burst":  # heard most by the frames that are cut off after the end
        audio *= 1e-3
        audio[-30:] = 0.9
    elif kind == "silence":
        audio[:] = 0
    theirs = whisper(audio, sampling_rate=RATE, padding="max_length", return_tensors="np")
    ours = log_mel(audio, SPEC)
    assert ours.shape == (-(-num_samples // 160), 128)
    theirs = theirs["input_features"][0, :, : len(ours)]
    np.testing.assert_allclose(ours.T, theirs, rtol=0, atol=1e-4)


def test_mel_filters_equal_those_of_transformers(whisper):
    np.testing.assert_allclose(mel_filters(128, 400, RATE), whisper.mel_filters, rtol=0, atol=1e-7)


def test_mel_does_not_depend_on_the_block_size(monkeypatch):
    audio = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    whole = log_mel(audio, SPEC)
    monkeypatch.setattr("latentomni_jax.media.audio._BLOCK_FRAMES", 7)
    np.testing.assert_allclose(log_mel(audio, SPEC), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (2, 100)])
def test_mel_of_something_else_is_an_error(shape):
    with pytest.raises(InputError, match="log_mel"):
        log_mel(np.zeros(shape, np.float32), SPEC)


def test_more_than_300_seconds_are_kept(tmp_path):
    clip = read_clip(write_wav(tmp_path / "long.wav", tone(310)), SPEC)
    assert clip.audio.shape == (310 * RATE,) and clip.duration == 310
    mel = log_mel(clip.audio, SPEC)
    assert mel.shape == (31_000, 128)
    assert np.ptp(mel[30_100:30_900], axis=0).max() < 0.01  # the tone goes on after 300 s


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_pitch_level_and_length(tmp_path, rate):
    clip = read_clip(write_wav(tmp_path / "a.wav", tone(2, rate=rate), rate), SPEC)
    assert abs(clip.audio.size - 2 * RATE) <= 1
    np.testing.assert_allclose(clip.audio[200:31_800], tone(2)[200:31_800], rtol=0, atol=2e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
def test_channels_are_averaged(tmp_path, channels):
    samples = np.zeros((RATE, channels))
    samples[:, 0] = tone(1)
    clip = read_clip(write_wav(tmp_path / "a.wav", samples), SPEC)
    np.testing.assert_allclose(clip.audio, tone(1) / channels, rtol=0, atol=1e-4)


def test_silence_is_sound_and_no_samples_are_none(tmp_path):
    clip = read_clip(write_wav(tmp_path / "silent.wav", np.zeros(RATE)), SPEC)
    assert clip.audio.shape == (RATE,) and not clip.audio.any()
    with pytest.raises(InputError, match=r"nothing\.wav"):
        read_clip(write_wav(tmp_path / "nothing.wav", np.zeros(0)), SPEC)


def test_align_pads_late_sound_and_trims_early_sound():
    samples = np.ones(10, np.float32)
    np.testing.assert_array_equal(align(samples, 0.5, 4), [0, 0, *np.ones(10)])
    np.testing.assert_array_equal(align(samples, -0.5, 4), np.ones(8))
    assert align(samples, -3.0, 4) is None
    assert align(samples[:0], 1.0, 4) is None
