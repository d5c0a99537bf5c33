"""Clips are encoded once, to the bit what a prompt with the clip itself gives, and kept."""

import dataclasses
import logging

import ml_dtypes
import numpy as np
import pytest

from data_pipeline.av_events.clips import make_clip
from latentomni_jax.evaluate.answers import read_part, see_through
from latentomni_jax.evaluate.clips import Clips, FeatureStore, readers
from latentomni_jax.latent.trajectory import lay_out
from latentomni_jax.layout import EncodedPart, InputError
from latentomni_jax.media.processor import build_prompt

OPTIONS = {"latents": "force", "max_blocks": 1, "max_new_tokens": 4, "keep_hidden": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    make_clip(path / "a.mp4", 2.0, size=(112, 112))
    make_clip(path / "mute.mp4", 2.0, size=(112, 112), sound=False)
    (path / "text.mp4").write_text("no clip")
    return path


@pytest.mark.parametrize(
    "name,kind", [("a.mp4", "video"), ("mute.mp4", "video"), ("a.mp4", "audio")]
)
def test_an_encoded_clip_stands_for_the_clip(tiny_model, folder, name, kind):
    part = read_part(tiny_model, folder / name, kind)
    encoded = tiny_model.encode(part)
    assert encoded.kind == kind
    for view in ("both", "video", "audio"):
        prompts = [
            build_prompt(tiny_model.tokenizer, "What is it?", seen)
            for seen in (see_through(part, view), see_through(encoded, view))
        ]
        rows = [lay_out(tiny_model.config, prompt) for prompt in prompts]
        for mine, its in zip(*(vars(row).values() for row in rows), strict=True):
            np.testing.assert_array_equal(mine, its)
        own, other = (tiny_model.generate([prompt], **OPTIONS)[0] for prompt in prompts)
        np.testing.assert_array_equal(own.hidden, other.hidden)
        np.testing.assert_array_equal(own.latents, other.latents)


def test_clips_are_read_and_encoded_once(tiny_model, folder, monkeypatch):
    calls = []
    encode = type(tiny_model).encode
    monkeypatch.setattr(
        type(tiny_model), "encode", lambda self, part: calls.append(part) or encode(self, part)
    )
    wanted = [(folder / "a.mp4", "video"), (folder / "text.mp4", "video")] * 3
    with readers() as pool:
        clips = Clips(tiny_model, wanted, pool)
        first = clips(folder / "a.mp4", "video")
        assert clips(folder / "a.mp4", "video") is first and len(calls) == 1
        for _ in range(2):
            with pytest.raises(InputError, match=r"text\.mp4"):
                clips(folder / "text.mp4", "video")


def test_features_are_kept_for_other_runs(tiny_model, folder, tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, {"model": 1})
    key = folder / "a.mp4", "video"
    with readers() as pool:
        made = Clips(tiny_model, [key], pool, store=store)(*key)
    monkeypatch.setattr(type(tiny_model), "encode", None)  # another call would fail
    with readers() as pool:
        kept = Clips(tiny_model, [key], pool, store=FeatureStore(tmp_path, {"model": 1}))(*key)
    for field in dataclasses.fields(EncodedPart):
        mine, its = getattr(made, field.name), getattr(kept, field.name)
        np.testing.assert_array_equal(mine, its)
    # Of another model, and of another file under the same name, there is nothing.
    other = FeatureStore(tmp_path, {"model": 2})
    assert other.read(other.place(*key)) is None
    assert store.place(folder / "mute.mp4", "video") != store.place(*key)


def test_bfloat16_is_kept_as_it_is(tmp_path):
    features = np.arange(8, dtype=np.float32).reshape(2, 4).astype(ml_dtypes.bfloat16)
    part = EncodedPart("audio", None, features, (0, 0, 0), np.zeros(0, np.float32))
    store = FeatureStore(tmp_path, {})
    store.write(tmp_path / "x.safetensors", part)
    kept = store.read(tmp_path / "x.safetensors")
    assert kept.audio.dtype == features.dtype and kept.video is None and kept.grid == (0, 0, 0)
    np.testing.assert_array_equal(kept.audio, features)


def test_damaged_features_are_told_and_made_anew(tiny_model, folder, tmp_path, caplog):
    store = FeatureStore(tmp_path, {})
    key = folder / "a.mp4", "video"
    store.place(*key).write_bytes(b"half a fi")
    with readers() as pool, caplog.at_level(logging.WARNING):
        Clips(tiny_model, [key], pool, store=store)(*key)
    assert "damaged features are made anew" in caplog.text
    assert store.read(store.place(*key)) is not None
