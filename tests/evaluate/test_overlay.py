"""What is written of an answer's attention: the object to explore, stills and films."""

import base64
import dataclasses
import json

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.av_events.clips import play, write_clip
from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.attention import KINDS, shares
from latentomni_jax.evaluate.explore import (
    explored,
    maps_of,
    read_explored,
    write_explored,
)
from latentomni_jax.evaluate.overlay import BAR, FPS, chosen, picture, write_film, write_still
from latentomni_jax.evaluate.replay import replay
from latentomni_jax.layout import InputError, Role
from latentomni_jax.media.processor import clip_part
from latentomni_jax.media.video import read_clip
from latentomni_jax.model import Generation
from latentomni_jax.weights.specs import read_specs
from tests.evaluate.planted import planted

SECONDS, SIZE = 4, (336, 224)  # width, height: 12 x 8 tokens
PEAK, CELL = (2, 5, 9), 5  # temporal patch, row, column; half seconds


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Four dark seconds with sound."""
    path = tmp_path_factory.mktemp("clips") / "dark.mp4"
    dark = np.full((SIZE[1], SIZE[0], 3), 24, np.uint8)
    write_clip(path, (dark for _ in range(SECONDS * 8)), play(SECONDS), fps=8, rate=44_100)
    return path


@pytest.fixture(scope="module")
def asked(tiny_directory, path):
    """A model that attends to one token of the pictures and one of the sound, and its answer."""
    spec = read_specs(tiny_directory)[1]
    model = planted(tiny_directory, dataclasses.replace(spec, num_visual=2, num_audio=1))
    media = dataclasses.replace(model.media, video_min_pixels=SIZE[0] * SIZE[1])
    clip = read_clip(path, media)
    choices = ("the disc", "the square")
    question = Trajectory(
        id="q1", question="Where is <b>it</b>?", answer="\\boxed{B}", choices=choices
    )
    prompt = model.prompt(question.question, choices=choices)
    prompt.insert(1, clip_part(clip, media))
    answer = Generation(
        np.array([7, 8, *_block(spec), 9, 11, *_block(spec), 12], np.int32),
        "\\boxed{B}",
        np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32),
        None,
        True,
    )
    row = replay(model, prompt, answer)
    # Where the tokens are, by TMRoPE ids: two frames at two a second are a patch, 25 ids a second.
    time, height, width = (
        ids - ids[row.roles == Role.PROMPT_VIDEO].min() for ids in row.position_ids[:, 0]
    )
    at = (time == 25 * PEAK[0]) & (height == PEAK[1]) & (width == PEAK[2])
    (seen,) = np.flatnonzero(at & (row.roles == Role.PROMPT_VIDEO))
    (heard,) = np.flatnonzero((time == 25 * CELL // 2 + 3) & (row.roles == Role.PROMPT_AUDIO))
    model.places = np.array([seen, heard])
    return model, question, prompt, answer, clip


def _block(spec):
    return [spec.trigger_id, *[spec.pad_id] * 3, spec.stop_id]


@pytest.fixture(scope="module")
def one(asked, path):
    model, question, prompt, answer, clip = asked
    return explored(model, question, prompt, answer, path, clip)


def test_pieces_stand_in_order_with_their_shares(one, asked, path):
    model, _, prompt, answer, clip = asked
    assert [piece["kind"] for piece in one["pieces"]] == [
        "text",
        "latent",
        "text",
        "latent",
        "text",
    ]
    assert [piece["block"] for piece in one["pieces"] if piece["kind"] == "latent"] == [0, 1]
    said = "".join(piece.get("text", "") for piece in one["pieces"])
    assert said and said == "".join(model.tokenizer.decode(ids) for ids in ([7, 8], [9, 11], [12]))
    row = replay(model, prompt, answer)
    made_by = row.prompt_length - 1 + np.array([0, 1])
    expected = shares(model, row, made_by)
    assert one["pieces"][0]["shares"] == pytest.approx(expected._asdict(), abs=1e-6)
    for piece in one["pieces"]:
        assert sum(piece["shares"][kind] for kind in KINDS) == pytest.approx(1, abs=1e-5)
        assert piece["shares"]["video"] == pytest.approx(0.5, abs=1e-4)
    assert len(one["layers"]) == 2
    assert one["video"] == str(path) and one["duration"] == clip.duration
    assert (one["expected"], one["answer"], one["right"]) == ("B", "B", True)
    assert one["frames"] == {"seconds": [0, 1, 2, 3], "grid": [4, 8, 12]}
    assert one["blocks"][0]["slots"] == ["v1", "v2", "a1"]
    assert one["blocks"][0]["clock"] == [1.25, 3.75, 2.5]


def test_maps_hold_the_peak_alone_and_add_up_to_the_share(one):
    assert one["cells"] == 8
    for number, block in enumerate(one["blocks"]):
        seen, heard = maps_of(one, number)
        assert seen.shape == (3, 4, 8, 12) and heard.shape == (3, 8)
        assert [np.unravel_index(x.argmax(), x.shape) for x in seen] == [PEAK] * 3
        assert list(heard.argmax(axis=1)) == [CELL] * 3
        assert (seen > 0).sum() == (heard > 0).sum() == 3
        piece = next(p for p in one["pieces"] if p.get("block") == number)
        total = seen.sum(axis=(1, 2, 3)).mean()
        assert total == pytest.approx(piece["shares"]["video"], abs=0.01)
        assert block["seen_max"] == pytest.approx(0.5, abs=1e-4)


def brightest(pixels):
    """Row and column of the brightest token of a frame, and how bright the middle of each is."""
    cells = pixels[: SIZE[1]].mean(axis=-1).reshape(8, 28, 12, 28)[:, 12:16, :, 12:16]
    cells = cells.mean(axis=(1, 3))
    return np.unravel_index(cells.argmax(), cells.shape), cells


def brightest_cell(pixels):
    bar = pixels[SIZE[1] :].astype(float).mean(axis=(0, 2))
    return int(np.median(np.flatnonzero(bar > 0.9 * bar.max())) / SIZE[0] * SECONDS * 2)


def test_a_still_shows_the_peak_at_its_place_and_moment(one, asked, tmp_path):
    clip = asked[-1]
    for block, slot in ((0, None), (1, "v2")):
        path = tmp_path / f"{block}.png"
        write_still(path, clip, *chosen(one, block, slot))
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape == (SIZE[1] + BAR, SIZE[0], 3)
        place, cells = brightest(pixels)
        assert place == PEAK[1:] and cells.max() > 150 and np.median(cells) < 30
        assert brightest_cell(pixels) == CELL
        line = np.abs(pixels[-1].astype(int) - (90, 200, 220)).sum(axis=-1).argmin()
        assert line == pytest.approx(2 / clip.duration * SIZE[0], abs=1)


def test_a_film_shows_the_peak_at_its_place_and_moment(one, asked, tmp_path):
    clip = asked[-1]
    path = tmp_path / "block.mp4"
    write_film(path, clip, *chosen(one, 0))
    with av.open(str(path)) as film:
        assert film.streams.video[0].codec_context.name == "h264"
        heard = np.concatenate([frame.to_ndarray() for frame in film.decode(audio=0)], axis=-1)
        film.seek(0)
        shown = {
            float(frame.time): frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)
        }
    assert np.abs(heard).max() > 0.1
    assert len(shown) == pytest.approx(clip.duration * FPS, abs=1)
    strength = {}
    for moment, pixels in shown.items():
        place, cells = brightest(pixels)
        strength[moment] = cells.max()
        if 2 <= moment < 3:  # the third patch
            assert place == PEAK[1:]
        assert brightest_cell(pixels) == CELL
    lit = [moment for moment, value in strength.items() if value > 150]
    assert lit == [2 + i / FPS for i in range(FPS)]
    assert max(strength[m] for m in strength if m not in lit) < 30


def test_heat_is_where_the_weight_is_over_any_frame(asked):
    """Between tokens it is between them; a frame without weight is dimmed alone."""
    clip = dataclasses.replace(asked[-1], frames=np.full((8, 224, 336, 3), 200, np.uint8))
    seen = np.zeros((4, 8, 12), np.float32)
    seen[0, 3, 4] = 0.2
    lit, dark = (picture(clip, seen, np.zeros(0), moment) for moment in (0.5, 1.5))
    assert lit.shape == (224, 336, 3) and (dark == 100).all()
    assert lit[3 * 28 + 14, 4 * 28 + 14].mean() > 200  # nearly white
    assert (lit[: 2 * 28 + 13] == 100).all() and (lit[:, 6 * 28 :] == 100).all()


def test_sound_alone_has_a_bar_and_nothing_at_all_is_refused(asked, tmp_path):
    clip = dataclasses.replace(asked[-1], frames=None, frame_times=None)
    seen, heard = np.zeros((0, 0, 0)), np.eye(8)[3]
    write_still(tmp_path / "bar.png", clip, seen, heard)
    pixels = np.asarray(Image.open(tmp_path / "bar.png"))
    assert pixels.shape == (BAR, 640, 3)
    assert pixels[0].mean(axis=-1)[3 * 80 : 3 * 80 + 30].min() > 200
    with pytest.raises(InputError, match="neither pictures nor sound"):
        write_still(tmp_path / "none.png", clip, seen, np.zeros(0))


def test_chosen_names_what_is_not_there(one):
    seen, _ = chosen(one, 0)
    assert seen.max() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(InputError, match="no latent block 2"):
        chosen(one, 2)
    with pytest.raises(InputError, match="'v9'; they are v1, v2, a1"):
        chosen(one, 0, "v9")


def test_files_come_back_as_they_were(one, tmp_path):
    path = write_explored(tmp_path / "explore", 7, one)
    assert path.name == "00007.json" and read_explored(path) == one


def _spoil(name):
    def set_to(*keys, value):
        def spoil(one):
            for key in keys[:-1]:
                one = one[key]
            one[keys[-1]] = value

        return spoil

    half = base64.b64encode(bytes(5)).decode()
    return {
        "field": set_to("cells", value="8"),
        "bool": set_to("duration", value=True),
        "negative": set_to("blocks", 0, "seen_max", value=-1.0),
        "infinite": set_to("layers", 0, 0, value=float("inf")),
        "shares": set_to("pieces", 0, "shares", "text", value=0.9),
        "layer": set_to("layers", 1, value=[0.5, 0.5]),
        "grid": set_to("frames", "seconds", value=[0.0]),
        "map": set_to("blocks", 1, "heard", value=half),
        "base64": set_to("blocks", 0, "seen", value="&&"),
        "block": set_to("pieces", 1, "block", value=2),
        "kind": set_to("pieces", 0, "kind", value=3),
        "another kind": set_to("pieces", 1, "kind", value="text"),
        "clock": set_to("blocks", 0, "clock", value=[None]),
    }[name]


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ("field", "cells is missing"), ("bool", "duration is"), ("negative", "blocks is"),
        ("infinite", "layers is"), ("shares", "do not add up"), ("layer", "do not add up"),
        ("grid", "1 times of frames"), ("map", "maps of block 1"), ("base64", "maps of block 0"),
        ("block", "not there"), ("kind", "pieces is"), ("clock", "clock of block 0"),
        ("another kind", "of kind 'text'"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_by_name(one, tmp_path, spoilt, said):
    path = tmp_path / "00000.json"
    changed = json.loads(json.dumps(one))
    _spoil(spoilt)(changed)
    path.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=said) as refused:
        read_explored(path)
    assert str(refused.value).startswith(f"{path}: is damaged")


@pytest.mark.parametrize("text", ["{", "[]", "null", "\xff", '{"id": 1}'])
def test_what_is_no_such_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "00000.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as refused:
        read_explored(path)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"gone\.json: no such file"):
        read_explored(tmp_path / "gone.json")
