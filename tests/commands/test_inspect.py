"""`latentomni inspect`: its numbers are those of the arrays, and the arrays the reference's."""

import json
import shutil

import numpy as np
import pytest

from latentomni_jax.layout import Role

ASK = ("--question", "What is it?")


def inspect_json(latentomni, *args) -> dict:
    ran = latentomni("inspect", "--json", *args)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@pytest.fixture(scope="module")
def without_weights(tiny_model, tmp_path_factory):
    """The model directory as `inspect` may meet it: its parameters were never downloaded."""
    directory = tmp_path_factory.mktemp("models") / "specs"
    shutil.copytree(tiny_model, directory, ignore=shutil.ignore_patterns("params"))
    return directory


def test_a_video_with_sound(latentomni, without_weights, clip, tmp_path):
    out = tmp_path / "prompt.npz"
    found = inspect_json(
        latentomni, "--model", without_weights, "--video", clip, "--out", out, *ASK
    )
    (medium,), prompt = found["media"], found["prompt"]
    assert medium["frame_times_s"] == [0.0, 0.5, 1.0, 1.5]
    assert medium["pixels_per_frame"] == np.prod(medium["frame_size"]) == 392 * 280
    assert medium["grid"] == [2, 20, 28] and medium["patches"] == [2 * 20 * 28, 1176]
    assert prompt["bucket"] == 512
    assert (
        sum(prompt["roles"].values())
        == prompt["tokens"]
        == prompt["runs"][-1]["start"] + (prompt["runs"][-1]["tokens"])
    )
    runs = [(run["text"], run["tokens"]) for run in prompt["runs"]]
    assert runs[1] == ("<|VIDEO|>", 280) and runs[2][0] == "<|AUDIO|>"
    assert runs[0][0].endswith("<|vision_bos|><|audio_bos|>")
    # Pictures and sound of a chunk begin at one time; height and width count rows and columns.
    pictures, sound = prompt["runs"][1], prompt["runs"][2]
    assert pictures["t"][0] == sound["t"][0] == sound["h"][0]
    assert [pictures[axis][1] - pictures[axis][0] for axis in "thw"] == [25, 9, 13]

    arrays = np.load(out)
    assert set(arrays.files) == {
        *("token_ids", "roles", "position_ids", "feature_index"),
        *("frame_times", "grid", "patches", "mel"),
    }
    assert arrays["position_ids"].shape == (3, prompt["tokens"])
    np.testing.assert_array_equal(
        arrays["feature_index"] >= 0,
        np.isin(arrays["roles"], [Role.PROMPT_VIDEO, Role.PROMPT_AUDIO]),
    )
    assert list(arrays["patches"].shape) == medium["patches"]
    assert list(arrays["mel"].shape) == medium["mel"]
    # 2 layers, keys and values of 2 heads x 16, 2 bytes each.
    assert found["cache"]["bytes"] == found["cache"]["positions"] * 2 * 2 * 2 * 16 * 2


def test_the_page_collapses_placeholders(latentomni, without_weights, clip):
    ran = latentomni("inspect", "--model", without_weights, "--video", clip, *ASK)
    assert ran.code == 0
    assert "<|VIDEO|> x280" in ran.out and "<|VIDEO|><|VIDEO|>" not in ran.out
    assert "0.00 0.50 1.00 1.50 s" in ran.out
    assert "padded to 512" in ran.out


def test_text_alone_and_several_files(latentomni, without_weights, clip, tmp_path):
    found = inspect_json(latentomni, "--model", without_weights, *ASK)
    assert found["media"] == found["encoder_calls"] == []
    assert list(found["prompt"]["roles"]) == ["prompt_text"]

    out = tmp_path / "two.npz"
    media = ("--video", clip, "--audio", clip, "--choices", "a disc", "a dog", "--out", out)
    found = inspect_json(latentomni, "--model", without_weights, *media, *ASK)
    assert [medium["kind"] for medium in found["media"]] == ["video", "audio"]
    assert "B. a dog" in found["prompt"]["runs"][-1]["text"]
    assert {"video_patches", "video_mel", "audio_mel"} <= set(np.load(out).files)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--video", "no.mp4"), "no.mp4: no such file"),
        (("--out", "no/such/place.npz"), "no/such/place.npz: cannot be written"),
    ],
)
def test_complaints_are_one_line(latentomni, without_weights, options, named):
    ran = latentomni("inspect", "--model", without_weights, *ASK, *options)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1 and named in ran.err


@pytest.mark.parametrize("name", ["bswbQtOPk6E", "d6b4OmUFt7I"])
def test_tokens_and_positions_equal_the_reference_processor(latentomni, assets, tmp_path, name):
    """From the file alone to ids and positions, exactly; the spectrogram to rounding."""
    golden = np.load(assets / "golden" / f"{name}_tiny4s.npz")
    system, question = (
        str(golden["prompt"]).split(start)[1].split("<|im_end|>")[0]
        for start in ("system\n", "<|vision_eos|>")
    )
    model = tmp_path / "qwen"
    shutil.copytree(assets / "qwen2_5_omni" / "tokenizer", model)
    shutil.copy(assets / "qwen2_5_omni" / "7b" / "config.json", model)
    out = tmp_path / "prompt.npz"
    inspect_json(
        latentomni,
        *("--model", model, "--video", assets / f"clips/daily_omni/{name}/{name}_tiny4s.mp4"),
        *("--system", system, "--question", question, "--clock", "nominal", "--out", out),
    )
    ours = np.load(out)
    np.testing.assert_array_equal(ours["token_ids"], golden["input_ids"])
    np.testing.assert_array_equal(ours["position_ids"], golden["position_ids"])
    np.testing.assert_array_equal(ours["grid"], golden["video_grid_thw"][0])
    np.testing.assert_allclose(ours["frame_times"], golden["frame_times"], atol=1e-3)
    assert ours["mel"].shape == golden["input_features"].T.shape
