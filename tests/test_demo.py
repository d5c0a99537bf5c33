"""The demo: its clip is what it claims, and the whole of it runs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.av_events.clips import COLOURS, TONES, make_clip
from latentomni_jax.layout import LatentSpec, MediaSpec
from latentomni_jax.media.video import read_clip
from launch.demo import shown_slots

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "demo.mp4"
    make_clip(path, seconds=3.0)
    return read_clip(path, MediaSpec())


def test_each_second_shows_its_colour(clip):
    np.testing.assert_allclose(clip.frame_times, np.arange(6) / 2, atol=1e-3)
    for second, colour in enumerate(COLOURS):
        frame = clip.frames[2 * second].astype(int)
        near = np.abs(frame - colour).max(axis=-1) < 40
        assert near.mean() > 0.03
        for other in set(COLOURS) - {colour}:
            assert (np.abs(frame - other).max(axis=-1) < 40).mean() < 0.005


def test_each_second_plays_its_tone(clip):
    assert abs(clip.audio.size - 3 * 16_000) < 2048
    for second, tone in enumerate(TONES):
        heard = clip.audio[second * 16_000 + 1600 : second * 16_000 + 9600]
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(heard.size)))
        assert abs(spectrum.argmax() * 16_000 / heard.size - tone) < 5


def test_the_slots_shown_are_all_sound_and_its_first_pictures():
    assert shown_slots(LatentSpec()) == [0, 4, 8, 12, 16, 20, 24, 28, *range(32, 40)]
    assert shown_slots(LatentSpec(num_visual=0, num_audio=3)) == [0, 1, 2]
    assert shown_slots(LatentSpec(num_visual=2, num_audio=0)) == [0]


@pytest.mark.slow
def test_the_demo_runs_from_start_to_end(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "launch.demo", "--max-new-tokens", "4"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs/demo/clip.mp4").is_file()
    assert "block 1 at generated position 0: trigger, 40 states fed back, stop" in ran.stdout
    assert "This model is random" in ran.stdout
