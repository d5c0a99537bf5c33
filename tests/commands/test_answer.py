"""`latentomni answer`: real clips through a random model, its output, and its complaints."""

import json
import shutil

import av
import numpy as np
import pytest

from latentomni_jax.commands import answer
from latentomni_jax.commands.decoding import load
from tests.commands.conftest import Ran

KEYS = [
    "text",
    "answer",
    "token_ids",
    "latent_blocks",
    "latent_steps",
    "prompt_tokens",
    "timings",
    "device",
]
SHORT = ("--max-new-tokens", 4)


def answer_of(ran: Ran) -> dict:
    """The JSON object that must be all of stdout."""
    assert ran.code == 0, ran.err
    fields = json.loads(ran.out)
    assert list(fields) == KEYS
    assert list(fields["prompt_tokens"]) == ["text", "video", "audio"]
    assert list(fields["timings"]) == [
        "media_s",
        "encode_s",
        "prefill_s",
        "decode_s",
        "tokens_per_s",
    ]
    assert all(np.isfinite(value) and value >= 0 for value in fields["timings"].values())
    return fields


def assert_refused(ran: Ran, *named: str):
    """Exit code 2, nothing on stdout, one line on stderr that names the culprit."""
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1, ran.err
    assert ran.err.startswith("latentomni answer: error: ")
    for text in named:
        assert text in ran.err


def test_json_is_all_of_stdout(latentomni, tiny_model, clip):
    fields = answer_of(
        latentomni(
            *("answer", "--model", tiny_model, "--video", clip, "--question", "What is it?"),
            *("--latents", "force", "--max-blocks", 1, "--json", *SHORT),
        )
    )
    assert fields["latent_blocks"] == 1 and fields["latent_steps"] == 40
    # The trigger, 40 slots, the stop token, and the rest of the four sampled tokens.
    assert len(fields["token_ids"]) <= 4 + 40 + 1
    # 4 frames of 392x280 in 2 pairs of 10x14 tokens; 2 s of sound, which AAC rounds up.
    assert fields["prompt_tokens"]["video"] == 280
    assert fields["prompt_tokens"]["audio"] in (50, 51)


def test_text_streams_to_stdout_and_the_summary_to_stderr(latentomni, tiny_model):
    question = ("answer", "--model", tiny_model, "--question", "Say it.", "--max-new-tokens", 40)
    options = ("--latents", "off", "--temperature", 1.0, "--seed", 3)
    ran = latentomni(*question, *options)
    assert ran.code == 0
    assert (
        ran.out.removesuffix("\n") == answer_of(latentomni(*question, *options, "--json"))["text"]
    )
    assert "0 latent blocks with 0 steps" in ran.err and "prefill" in ran.err


def test_slot_counts_are_overridden_aloud(latentomni, tiny_model):
    ran = latentomni(
        *("answer", "--model", tiny_model, "--question", "Which?", "--choices", "yes", "no"),
        *("--latents", "force", "--max-blocks", 1, "--k-visual", 16, "--k-audio", 4),
        *("--dtype", "bfloat16", "--json", *SHORT),
    )
    assert answer_of(ran)["latent_steps"] == 20
    assert "K overridden: 32+8 -> 16+4\n" in ran.err


def test_int8_weights_are_asked_for_where_the_model_is_loaded(latentomni, tiny_model, monkeypatch):
    loaded = []

    def watched(*args, **kwargs):
        loaded.append(load(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(answer, "load", watched)
    ask = ("answer", "--model", tiny_model, "--question", "Which?", "--json", *SHORT)
    answer_of(latentomni(*ask, "--weights", "int8"))
    assert [model.thinker.weights for model in loaded] == ["int8"]
    ran = latentomni(*ask, "--weights", "int4")
    assert ran.code == 2 and "choose from" in ran.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--latents", "force", "--max-blocks", 0), "max_blocks >= 1"),
        (("--top-p", 0), "top_p"),
        (("--max-new-tokens", 0), "max_new_tokens"),
        (("--k-visual", -1), "latent counts"),
        (("--choices", *"abcdefghijklmnopqrstuvwxyz1"), "27 choices"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(latentomni, tiny_model, options, named):
    ran = latentomni("answer", "--model", tiny_model, "--question", "?", *options)
    assert_refused(ran, named)


# ---------------------------------------------------------------------------- unusable files


def cut(source, target):
    """The first half of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])


def without_frames(source, target):
    """The streams of a clip, declared as before, but not one packet of pictures."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        assert stream.type == "video"
        new.start_encoding()


BROKEN = {
    "truncated.mp4": cut,
    "empty.mp4": lambda source, target: target.touch(),
    "missing.mp4": lambda source, target: None,
    "text.mp4": lambda source, target: target.write_text("This is no video.\n" * 100),
    "no_frames.mp4": without_frames,
    "directory.mp4": lambda source, target: target.mkdir(),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("option", ["--video", "--audio", "--image"])
def test_unusable_files_are_refused_in_one_line(
    latentomni, tiny_model, clip, tmp_path, name, option
):
    BROKEN[name](clip, tmp_path / name)
    ran = latentomni("answer", "--model", tiny_model, option, tmp_path / name, "--question", "?")
    assert_refused(ran, str(tmp_path / name))


def test_unusable_model_directories_are_refused(latentomni, tiny_model, tmp_path):
    ask = ("--question", "?")
    assert_refused(latentomni("answer", "--model", tmp_path / "no", *ask), str(tmp_path / "no"))
    assert_refused(latentomni("answer", "--model", tmp_path, *ask), str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    shutil.rmtree(broken / "params")
    assert_refused(latentomni("answer", "--model", broken, *ask), str(broken))
    (broken / "tokenizer.model").unlink()
    assert_refused(latentomni("answer", "--model", broken, *ask), "tokenizer")


# ---------------------------------------------------------------------------- real clips


def ask_about(latentomni, model, video, *options) -> dict:
    return answer_of(
        latentomni(
            *("answer", "--model", model, "--video", video, "--json", *SHORT),
            *("--latents", "force", "--max-blocks", 1, "--question", "What happens first?"),
            *options,
        )
    )


def test_a_real_clip_is_answered(latentomni, tiny_qwen, assets):
    golden = np.load(assets / "golden/d6b4OmUFt7I_tiny4s.npz")["input_ids"]
    video = assets / "clips/daily_omni/d6b4OmUFt7I/d6b4OmUFt7I_tiny4s.mp4"
    choices = ("--choices", "a dog", "a sign", "a house", "rain")
    fields = ask_about(latentomni, tiny_qwen, video, *choices)
    assert fields["latent_steps"] == 40
    for kind, token in (("video", 151_656), ("audio", 151_646)):
        assert fields["prompt_tokens"][kind] == np.sum(golden == token)
    assert fields["answer"] in (None, "A", "B", "C", "D")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_edge_case_clips_are_answered(latentomni, tiny_qwen, assets, number):
    files = sorted((assets / "clips/edge_cases").iterdir())
    assert len(files) == 4
    fields = ask_about(latentomni, tiny_qwen, files[number])
    assert fields["prompt_tokens"]["video"] > 0
    has_sound = "noaudio" not in files[number].name
    assert (fields["prompt_tokens"]["audio"] > 0) == has_sound


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bswbQtOPk6E", "d6b4OmUFt7I"])
def test_half_minute_clips_are_answered(latentomni, tiny_qwen, assets, name):
    video = assets / f"clips/daily_omni/{name}/{name}_video.mp4"
    fields = ask_about(latentomni, tiny_qwen, video)
    # 60 frames or so, 30 pairs of 13 x 23 tokens; 25 audio tokens per second.
    assert fields["prompt_tokens"]["video"] >= 29 * 13 * 23
    assert abs(fields["prompt_tokens"]["audio"] - 750) <= 15
