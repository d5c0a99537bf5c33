"""The page holds everything inside, escapes what is data, and shows something in a browser."""

import base64
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from data_pipeline.av_events.clips import make_clip
from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import Score
from latentomni_jax.evaluate.attention import look, over_clip
from latentomni_jax.evaluate.pages import plots, report
from latentomni_jax.evaluate.pages.report import Shown
from latentomni_jax.evaluate.replay import replay
from latentomni_jax.layout import Role

pytest.importorskip("matplotlib", reason="pictures need matplotlib (pip install matplotlib)")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
HOSTILE = "<script>document.title = 'taken'</script>"


@pytest.fixture(scope="module")
def shown(tiny_model, tmp_path_factory):
    model = tiny_model.with_latent(num_visual=4, num_audio=2)
    root = tmp_path_factory.mktemp("clips")
    make_clip(root / "clip.mp4", seconds=3.0)
    question = Trajectory(
        id="1", question=f"Which? {HOSTILE}", choices=(HOSTILE, "two"), answer="\\boxed{B}",
        segments=((1.0, 2.0),), kind="video", path="clip.mp4",
    )  # fmt: skip
    options = {"latents": "force", "max_blocks": 1, "max_new_tokens": 6}
    return model, Shown.ask(model, question, root, **options)


@pytest.fixture(scope="module")
def page(shown, tmp_path_factory):
    model, one = shown
    curves = {
        name: [
            {"step": i, "loss/text": 5 / (i + 1), "loss/latent": 3.0, "loss/sync": 0.0}
            for i in range(20)
        ]
        for name in ("lists", "latentomni")
    }
    score = {"sequence": Score(7, 10, 0.01), "all": Score(7, 10, 0.01)}
    sections = [
        ("Clip", report.clip_section(one, model)),
        ("Answer", report.answer_section(one, model)),
        ("Attention", report.attention_section(one, model)),
        ("Scores", report.score_section({"clip": score, "sound only": score}, 0.25)),
        ("Training", report.picture(plots.loss_curves(curves), "losses")),
        ("Facts", report.summary_table({"seed": "0", HOSTILE: "1"})),
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write_page(path, f"A page {HOSTILE}", sections)
    return path


def test_everything_is_inside_and_pictures_show_something(page):
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(pictures) == 4
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert pixels.shape[1] > 600 and pixels.std() > 20
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    clip = re.search(r"data:video/mp4;base64,([^\"]+)", text)
    assert base64.b64decode(clip[1])[4:8] == b"ftyp"


def test_data_cannot_become_markup(page):
    text = page.read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 5  # title and heading, question, option, fact


def test_latent_blocks_stand_where_they_were_made(shown):
    model, one = shown
    before, after = report.pieces(one.generation, model)
    assert before == "" and after == one.generation.text
    assert '<span class="latent">4 visual + 2 audio states</span>' in report.said(
        one.generation, model
    )


def test_attention_over_a_clip_is_that_of_the_states(shown):
    """Frames and stretches of sound get all of the weight on the clip, each its own."""
    model, one = shown
    row = replay(model, one.prompt, one.generation)
    ((seen, by_cell),) = over_clip(model, row, 3.0, cells=3)
    by_frame = seen.sum(axis=(2, 3))
    assert by_frame.shape == (6, 3) and by_cell.shape == (6, 3)
    trigger = int(np.flatnonzero(row.roles == Role.TRIGGER)[0])
    weights = look(model, row, range(trigger, trigger + 6)).keys
    for role, cells in ((Role.PROMPT_VIDEO, by_frame), (Role.PROMPT_AUDIO, by_cell)):
        places = np.flatnonzero(row.roles == role)
        np.testing.assert_allclose(cells.sum(1), weights[:, places].sum(1), rtol=1e-5)
        third = len(places) // 3  # frames are equal; 25 sound tokens a second
        if role == Role.PROMPT_VIDEO:
            np.testing.assert_allclose(cells[:, 0], weights[:, places[:third]].sum(1), rtol=1e-5)
        else:
            np.testing.assert_allclose(cells[:, 0], weights[:, places[:25]].sum(1), rtol=1e-5)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
def test_a_browser_shows_it_without_errors_and_without_network(page, tmp_path):
    picture = tmp_path / "page.png"
    ran = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,4200",
            "--virtual-time-budget=5000", f"--screenshot={picture}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "CONSOLE" not in ran.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    busy = np.array([band.std() > 10 for band in np.array_split(pixels, 40)])
    assert busy[:30].mean() > 0.8  # nearly every stretch of the page shows something
    colourful = (np.ptp(pixels, axis=-1) > 60).mean()  # spectrogram, maps, bars
    assert colourful > 0.1
