"""`latentomni attention`: a clip through a random model, what it prints, writes and refuses."""

import numpy as np
import pytest
from PIL import Image

from latentomni_jax.evaluate.explore import read_explored

BLOCK = ("--latents", "force", "--max-blocks", 1, "--k-visual", 2, "--k-audio", 1)


@pytest.fixture
def attention(latentomni, tiny_model, tmp_path):
    def run(*args, out=tmp_path / "out"):
        ask = ("attention", "--model", tiny_model, "--question", "Which?", "--out", out)
        return latentomni(*ask, "--max-new-tokens", 4, *args)

    return run


def test_it_prints_shares_and_writes_what_is_shown(attention, clip, tmp_path):
    asked = ("--video", clip, "--choices", "yes", "no", "--slots", "a1")
    ran = attention(*asked, *BLOCK, "--layers", "--compare")
    assert ran.code == 0, ran.err
    table = [line.split() for line in ran.out.splitlines()]
    (head,) = (i for i, line in enumerate(table) if line[:2] == ["video", "audio"])
    assert table[head] == ["video", "audio", "latent", "text", "through"]
    names = [line[0] for line in table[head + 1 : -2]]
    assert names[0] == "block" and names[-3:] == ["all", "layer", "layer"]
    for line in table[head + 1 : -2]:
        numbers = line[2:] if line[0] in ("block", "layer") else line[1:]
        assert sum(map(float, numbers[:4])) == pytest.approx(1, abs=4e-4)
    assert ran.out.splitlines()[-1].startswith("direct share on the clip: 0.")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"00000.json"} | {
        f"block0{slot}.{kind}" for slot in ("", "-a1") for kind in ("png", "mp4")
    }
    one = read_explored(tmp_path / "out" / "00000.json")
    assert one["video"] == str(clip) and one["question"] == "Which?" and one["right"] is None
    assert one["blocks"][0]["slots"] == ["v1", "v2", "a1"] and one["frames"]["grid"] == [2, 10, 14]
    still = np.asarray(Image.open(tmp_path / "out" / "block0.png"))
    assert still.shape == (280 + 32, 392, 3) and still.std() > 10


def test_an_answer_without_a_block_has_nothing_to_draw(attention, clip, tmp_path):
    ran = attention("--audio", clip, "--latents", "off")
    assert ran.code == 0 and "no latent block to draw" in ran.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.json"]
    one = read_explored(tmp_path / "out" / "00000.json")
    assert one["blocks"] == [] and one["frames"] == {"seconds": [], "grid": [0, 0, 0]}
    assert one["cells"] == 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "expected one of --video, --audio and --image, got 0"),
        (("--slots", "v99"), "--slots v99: there is no such latent"),
        (("--latents", "off", "--compare"), "--compare sets latents beside none"),
    ],
)
def test_mistakes_are_refused_before_anything_is_loaded(attention, options, named, tmp_path):
    ran = attention(*options)
    assert ran.code == 2 and ran.out == "" and not (tmp_path / "out").exists()
    assert ran.err.startswith("latentomni attention: error: ") and named in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(attention, clip, tmp_path):
    (tmp_path / "file").write_text("")
    ran = attention("--audio", clip, out=tmp_path / "file")
    assert ran.code == 2 and "file: cannot be written to: File exists" in ran.err
    assert len(ran.err.splitlines()) == 1
