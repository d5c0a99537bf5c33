"""The feature cache: exact, whole after an interruption, and clear about what it left out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import shards
from data_pipeline.cache import build_cache
from data_pipeline.records import Records
from data_pipeline.trajectories import PAIR, DataProblem, Reason
from latentomni_jax.layout import AudioPart, InputError, VisionPart
from latentomni_jax.media.audio import log_mel
from latentomni_jax.media.processor import clip_part
from latentomni_jax.media.video import read_clip
from tests.data_pipeline.conftest import SPEC
from tests.media.test_video import click, jpeg, numbers, write_video
from tests.processes import environment


def frames_of(part: VisionPart) -> np.ndarray:
    """The pixels u8[T,H,W,3] that patches were cut from."""
    t, h, w = part.grid
    x = part.patches.reshape(t, h // 2, w // 2, 2, 2, 3, 2, 14, 14)
    return x.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(2 * t, 14 * h, 14 * w, 3)


def by_id(records: Records, name: str) -> int:
    return next(i for i in range(len(records)) if records.trajectory(i).id == name)


# ---------------------------------------------------------------------------- what is in it


def test_media_come_back_exactly(records, tiny):
    assert len(records) == 16 and records.media_spec == SPEC
    for i in range(len(records)):
        trajectory, media = records.read(i)
        if trajectory.kind is None:
            assert media.prompt is None and media.segments == ()
            continue
        path = tiny.parent / trajectory.path
        clip = read_clip(path, SPEC, video=trajectory.kind == "video")
        if trajectory.kind == "video":
            assert media.prompt.patches.dtype == np.uint8
            np.testing.assert_array_equal(frames_of(media.prompt), clip.frames)
            np.testing.assert_array_equal(media.prompt.seconds, clip.frame_times[::2])
            f32 = clip_part(clip, SPEC).patches
            scale, shift = SPEC.normalisation()
            pixels = media.prompt.patches.astype(np.float32)
            np.testing.assert_array_equal(pixels * scale + shift, f32)
        else:
            assert isinstance(media.prompt, AudioPart)
        if clip.audio is None:
            assert media.prompt.mel is None
        else:
            mel = log_mel(clip.audio, SPEC)
            assert media.prompt.mel.dtype == np.float16
            np.testing.assert_array_equal(media.prompt.mel, mel.astype(np.float16))
            np.testing.assert_allclose(media.prompt.mel, mel, atol=2**-11, rtol=2**-11)


def test_segments_are_the_clip_at_these_times(records, tiny):
    seen = 0
    for i in range(len(records)):
        trajectory, media = records.read(i)
        if not trajectory.segments:
            continue
        video = trajectory.kind == "video"
        clip = read_clip(tiny.parent / trajectory.path, SPEC, video=video)
        for (start, end), part in zip(trajectory.segments, media.segments, strict=True):
            if clip.audio is not None:
                sound = clip.audio[round(start * 16_000) : round(end * 16_000)]
                np.testing.assert_array_equal(part.mel, log_mel(sound, SPEC).astype(np.float16))
            if not video:
                assert isinstance(part, AudioPart)
            elif end - start >= 2:  # otherwise sampled more densely than the clip
                first, stop = round(start * 2), round(end * 2)
                np.testing.assert_array_equal(frames_of(part), clip.frames[first:stop])
                np.testing.assert_allclose(part.seconds, np.arange(end - start), atol=1e-3)
                seen += 1
            else:
                assert part.seconds[0] == 0 and len(frames_of(part)) == SPEC.min_frames
                shown = clip.frames[-int(-start * 2 // 1)]
                np.testing.assert_array_equal(frames_of(part)[0], shown)
                seen += 1
    assert seen > 10


def test_a_segment_is_what_cutting_the_file_gives(tmp_path):
    whole = write_video(tmp_path / "a.mkv", num_frames=100, audio=click(4.0, at=2.0))
    cut = write_video(tmp_path / "b.mkv", times=np.arange(30) / 25, num_frames=30)
    _, clips = shards.read_segments(whole, SPEC, [(1.0, 2.2), (3.99, 4.0), (3.97, 3.99), (7, 9)])
    reference = read_clip(cut, SPEC)
    np.testing.assert_allclose(clips[0].frame_times, reference.frame_times, atol=1e-3)
    np.testing.assert_allclose(numbers(clips[0].frames), 25 + numbers(reference.frames), atol=1.0)
    assert clips[0].frames.shape == reference.frames.shape
    assert len(clips[0].audio) == round(1.2 * 16_000) and abs(clips[0].audio.argmax() - 16_000) < 3
    # Too short for a picture of its own: the one on the screen.
    assert numbers(clips[1].frames) == pytest.approx([99] * 4, abs=1.0)
    assert clips[1].frame_times.max() == 0 and len(clips[1].audio) == 160
    assert numbers(clips[2].frames) == pytest.approx([99] * 4, abs=1.0)
    assert clips[3].frames is None and clips[3].audio is None


def test_sizes_need_no_media(records):
    for i in range(len(records)):
        (trajectory, blank), (same, media) = records.sizes(i), records.read(i)
        assert trajectory == same
        pairs = zip((blank.prompt, *blank.segments), (media.prompt, *media.segments), strict=True)
        for a, b in pairs:
            assert type(a) is type(b)
            if b is None:
                continue
            assert (a.mel is None) == (b.mel is None)
            if b.mel is not None:
                assert a.mel.shape == b.mel.shape and a.mel.dtype == b.mel.dtype
            if isinstance(b, VisionPart):
                assert a.patches.shape == b.patches.shape and a.patches.dtype == b.patches.dtype
                assert a.grid == b.grid and a.is_image == b.is_image
                np.testing.assert_array_equal(a.seconds, b.seconds)
                assert a.patches.strides == (0, 0)  # no memory


def test_tfds_reads_the_dataset(cache):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(cache).as_data_source("train")
    meta = json.loads((cache / "meta.json").read_text())
    assert len(source) == meta["records"] == 31
    assert source[0]["file"] == b"0000.mp4" and source[0]["grid"].tolist() == [4, 8, 8]
    assert tuple(source[1]["cut"]) == (3.0, 4.0)


def test_an_image_and_a_file_asked_about_twice(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg((112, 84)))
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    lines = [
        {"id": "a", "image": "a.jpg", "question": "Which colour?", "answer": "red"},
        {"id": "b", "image": "link.jpg", "question": "Is it red?", "answer": "yes"},
    ]
    summary = build(tmp_path, lines)
    assert (summary.trajectories, summary.records) == (2, 1)
    records = Records(tmp_path / "cache")
    prompts = [records.read(i)[1].prompt for i in range(2)]
    assert prompts[0].is_image and prompts[0].grid == (1, 6, 8)
    np.testing.assert_array_equal(prompts[0].patches, prompts[1].patches)


def test_text_alone_needs_no_media(tmp_path):
    build(tmp_path, [{"id": "a", "question": "What?", "answer": "x"}])
    trajectory, media = Records(tmp_path / "cache").read(0)
    assert trajectory.answer == "x" and media.prompt is None and media.segments == ()


def build(folder: Path, lines, **options):
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return build_cache(data, folder / "cache", SPEC, progress=False, **options)


# ---------------------------------------------------------------------------- what is left out


@pytest.fixture
def bad_data(tmp_path, tiny) -> list[dict]:
    """Two good trajectories among one of every problem."""
    shutil.copy(tiny.parent / "clips/0001.mp4", tmp_path / "good.mp4")
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:3000])
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(16_000)) * 9000).astype("<i2").tobytes())

    def one(name, segments=((1, 2),), **change):
        sample = {"id": name, "question": "What?", "answer": "x", "segments": segments}
        return sample | {"video": "good.mp4", "reasoning": PAIR * len(segments)} | change

    return [
        one("good"),
        one("late end", [(3, 4.4)]),
        one("unknown", other=1),
        one("good", [(2, 3)]),
        one("uncited", reasoning="no pair"),
        one("empty", [(2, 2)]),
        one("outside", [(1, 2), (9, 11)]),
        one("image", video=None, image="a.jpg"),
        one("blocks", [(0, 1)] * 4),
        one("missing", video="nowhere.mp4"),
        one("broken", video="broken.mp4"),
        one("text", video="text.mp4"),
        one("still", (), video="a.jpg"),
        one("sound", (), video="tone.wav"),
        one("no picture", (), video=None, image="good.mp4"),
    ]


def test_problems_are_named_and_counted(bad_data, tmp_path):
    # Four seconds, and with some versions of FFmpeg the padding of the sound's last frame.
    duration = read_clip(tmp_path / "good.mp4", SPEC).duration
    assert 4 <= duration < 4.03
    summary = build(tmp_path, bad_data)
    data = tmp_path / "data.jsonl"
    assert {(p.where, p.id, p.reason) for p in summary.problems} == {
        (f"{data}:3", "unknown", Reason.MALFORMED),
        (f"{data}:4", "good", Reason.DUPLICATE),
        (f"{data}:5", "uncited", Reason.CITATION),
        (f"{data}:6", "empty", Reason.EMPTY),
        (f"{data}:7", "outside", Reason.OUTSIDE),
        (f"{data}:8", "image", Reason.OUTSIDE),
        (f"{data}:9", "blocks", Reason.BLOCKS),
        (f"{data}:10", "missing", Reason.MEDIA),
        (f"{data}:11", "broken", Reason.MEDIA),
        (f"{data}:12", "text", Reason.MEDIA),
        (f"{data}:13", "still", Reason.MEDIA),
        (f"{data}:14", "sound", Reason.MEDIA),
        (f"{data}:15", "no picture", Reason.MEDIA),
    }
    table = str(summary)
    assert table.startswith("2 trajectories") and "13 left out" in table
    assert "     6  unreadable media" in table and "and 1 more, see problems.jsonl" in table
    assert f"9 to 11 s of a clip of {duration:.2f} s" in table
    written = (tmp_path / "cache/problems.jsonl").read_text().splitlines()
    assert len(written) == 13 and json.loads(written[0])["id"] == "unknown"
    meta = json.loads((tmp_path / "cache/meta.json").read_text())
    assert meta["problems"]["unreadable media"] == 6 and meta["trajectories"] == 2
    records = Records(tmp_path / "cache")
    assert records.trajectory(1).segments[0] == (3.0, pytest.approx(duration))
    assert records.read(1)[1].segments[0].grid == (2, 8, 8)


@pytest.mark.parametrize("bad", range(2, 15))
def test_any_problem_ends_a_strict_run(bad_data, tmp_path, bad):
    with pytest.raises(DataProblem) as caught:
        build(tmp_path, [bad_data[0], bad_data[bad]], on_error="fail")
    assert str(caught.value).startswith(f"{tmp_path / 'data.jsonl'}:2: {bad_data[bad]['id']!r} ")


def test_nothing_usable_is_an_error(bad_data, tmp_path):
    with pytest.raises(InputError, match=r"no trajectory can be used: .*missing"):
        build(tmp_path, [bad_data[9]])


def test_media_of_which_nothing_can_be_read_is_an_error(bad_data, tmp_path):
    """A trajectory without media does not make a set of a thousand broken files a success."""
    text = {"id": "words", "question": "What?", "answer": "x"}
    with pytest.raises(InputError, match=r"none of 1 media files can be used: .*broken.mp4"):
        build(tmp_path, [text, bad_data[10]])
    shutil.copy(tmp_path / "good.mp4", tmp_path / "broken.mp4")  # mended, it is looked at anew
    assert "2 trajectories, " in str(build(tmp_path, [text, bad_data[10]]))


def test_odd_file_names(tiny, tmp_path):
    name = b"\xff b\n.mp4".decode("utf-8", "surrogateescape")
    shutil.copy(tiny.parent / "clips/0000.mp4", tmp_path / name)
    build(tmp_path, [{"id": "\ud800\n", "video": name, "question": "What?", "answer": "x"}])
    trajectory, media = Records(tmp_path / "cache").read(0)
    assert trajectory.id == "\ud800\n" and trajectory.path == name and media.prompt is not None


def test_an_unexpected_failure_is_one_files_own(tiny, tmp_path, monkeypatch):
    read = shards.read_segments

    def fail(path, *args, **options):
        if path.endswith("0003.mp4"):
            raise MemoryError("too much")
        return read(path, *args, **options)

    monkeypatch.setattr(shards, "read_segments", fail)
    summary = build_cache(tiny, tmp_path / "cache", SPEC, progress=False)
    assert summary.trajectories == 15
    assert "0003.mp4: MemoryError: too much" in summary.problems[0].detail


# ---------------------------------------------------------------------------- interruptions


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.*")}


@pytest.mark.parametrize("calls", [1, 6, 14])
def test_an_interrupted_run_is_completed(cache, tiny, tmp_path, monkeypatch, calls):
    out, counted, read = tmp_path / "cache", [], shards.read_segments

    def interrupt(*args, **options):
        counted.append(args)
        if len(counted) == calls:
            raise KeyboardInterrupt
        return read(*args, **options)

    monkeypatch.setattr(shards, "read_segments", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny, out, SPEC, shard_files=4, progress=False)
    with pytest.raises(InputError, match="no complete feature cache"):
        Records(out)
    counted.clear()
    monkeypatch.setattr(shards, "read_segments", lambda *a, **k: counted.append(a) or read(*a, **k))
    build_cache(tiny, out, SPEC, shard_files=4, progress=False)
    assert len(counted) == 15 - (calls - 1) // 4 * 4  # finished shards were kept
    assert contents(out) == contents(cache)


def test_a_killed_run_is_completed_by_other_workers(cache, tiny, tmp_path):
    out = tmp_path / "cache"
    script = (
        "import os, sys\n"
        "from data_pipeline import shards\n"
        "from data_pipeline.cache import build_cache\n"
        "from tests.data_pipeline.conftest import SPEC\n"
        "write, finished = shards.write_text, []\n"
        "def kill(path, text):\n"
        "    finished.append(path.parent.name == shards.REPORTS)\n"
        "    os.kill(os.getpid(), 9) if sum(finished) == 2 else write(path, text)\n"
        "shards.write_text = kill\n"
        "build_cache(sys.argv[1], sys.argv[2], SPEC, shard_files=4, progress=False)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, tiny, out], env=environment())
    assert ran.returncode == -9 and len(list((out / shards.REPORTS).glob("0*.json"))) == 1
    build_cache(tiny, out, SPEC, shard_files=4, workers=2, progress=False)
    assert contents(out) == contents(cache)


def test_a_directory_is_not_replaced_by_mistake(cache, tiny, tmp_path):
    out = tmp_path / "cache"
    shutil.copytree(cache, out)
    with pytest.raises(InputError, match="holds a complete feature cache; use --overwrite"):
        build_cache(tiny, out, SPEC, progress=False)
    build_cache(tiny, out, SPEC, shard_files=4, overwrite=True, progress=False)
    assert contents(out) == contents(cache)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not empty, and no feature cache"):
        build_cache(tiny, other, SPEC, overwrite=True, progress=False)
    assert (other / "thesis.tex").exists()


def test_an_interrupted_run_is_not_completed_with_other_options(tiny, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "read_segments", stop)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny, tmp_path / "cache", SPEC, progress=False)
    with pytest.raises(InputError, match="begun with other data or options"):
        build_cache(tiny, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("options", [{"workers": 0}, {"shard_files": 0}, {"on_error": "ignore"}])
def test_bad_options(tiny, tmp_path, options):
    with pytest.raises(InputError, match=next(iter(options))):
        build_cache(tiny, tmp_path / "cache", SPEC, **options)


# ---------------------------------------------------------------------------- opening


def test_bad_caches_are_errors_of_one_line(cache, tmp_path):
    with pytest.raises(InputError, match="no complete feature cache"):
        Records(tmp_path)
    for name, text, message in [
        ("meta.json", "{", "is damaged"),
        ("meta.json", '{"format": 99}', "format 99, expected 1"),
        ("index.jsonl", "", "0 trajectories, meta.json says 16"),
        ("dataset_info.json", "{}", "is damaged"),
        ("features.json", "{", "is damaged"),
    ]:
        out = tmp_path / f"bad {name} {len(text)}"
        shutil.copytree(cache, out)
        (out / name).write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            Records(out)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "swapped"])
def test_a_damaged_shard_spoils_its_own_records_only(cache, tmp_path, damage):
    out = tmp_path / "cache"
    shutil.copytree(cache, out)
    first, second = sorted(out.glob("*array_record*"))[:2]
    data = bytearray(second.read_bytes())
    if damage == "cut":
        second.write_bytes(data[:5000])
    elif damage == "flipped":
        second.write_bytes(bytes(255 - byte for byte in data))
    elif damage == "gone":
        second.unlink()
    else:
        shutil.copy(first, second)
    records = Records(out)
    bad = [by_id(records, f"tiny-{number:04d}") for number in (4, 5, 6, 7)]
    for i in range(len(records)):
        if i in bad:
            with pytest.raises(InputError, match="is unreadable: ") as caught:
                records.read(i)
            assert "\n" not in str(caught.value)
            records.sizes(i)
        else:
            records.read(i)
    with pytest.raises(IndexError):
        records.read(16)
