"""Pieces of clips: what `read_segments` reads of a stretch, whole, and the same each time."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.instruct import pieces
from data_pipeline.instruct.cut import MARKER, cut, digest, duration_of, payload
from data_pipeline.instruct.items import Failed, Reason
from data_pipeline.instruct.survey import Packets, plan_piece, survey
from latentomni_jax.layout import InputError
from latentomni_jax.media.video import read_clip, read_segments
from tests.media.test_audio import write_wav
from tests.media.test_video import BAD_FILES, SMALL, bad_file, jpeg, numbers, write_video

RATE = 16_000


def noise(seconds: float) -> np.ndarray:
    """Sound that resembles itself at no lag but 0, f32[N]; below 2 kHz, as codecs keep it."""
    white = np.random.default_rng(0).normal(size=round(seconds * RATE))
    smooth = np.convolve(white, np.hanning(16) / 8, "same")
    return (0.2 * smooth / smooth.std()).clip(-0.9, 0.9).astype(np.float32)


def match(a: np.ndarray, b: np.ndarray) -> tuple[int, float]:
    """The lag of `b` behind `a` in samples, and the correlation of the two at that lag."""
    size = min(len(a), len(b))
    spectrum = np.fft.rfft(b[:size], 2 * size) * np.fft.rfft(a[:size], 2 * size).conj()
    lag = (int(np.fft.irfft(spectrum).argmax()) + size) % (2 * size) - size
    a, b = a[max(0, -lag) : size - max(0, lag)], b[max(0, lag) : size + min(0, lag)]
    return lag, float(np.corrcoef(a, b)[0, 1])


def packets(path, kind: str) -> list[tuple[float, bytes]]:
    """Seconds and bytes of the packets of a stream, in the file's order."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [
            (float(packet.pts * packet.time_base), bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def check(path, stretches, directory, lag=0):
    """Cuts, and compares with `read_segments`; `lag`: samples that copied sound may be off."""
    cuts = cut(path, stretches, directory, 2.0)
    _, clips = read_segments(path, SMALL, stretches)
    source = survey(path)
    for piece, clip, stretch in zip(cuts, clips, stretches, strict=True):
        plan = plan_piece(source, piece.number, *stretch, 2.0)
        assert (piece.video is None) == (clip.frames is None) == (piece.frames == ())
        assert (piece.audio is None) == (clip.audio is None)
        if clip.audio is not None:
            heard = read_clip(piece.audio, SMALL, video=False).audio
            assert abs(len(heard) - len(clip.audio)) < 20
            compare_sound(clip.audio, heard, 0, 0.98)
        if piece.video is not None:
            shown = read_clip(piece.video, SMALL)
            np.testing.assert_allclose(shown.frame_times, clip.frame_times, atol=1.1e-3)
            difference = np.abs(shown.frames.astype(int) - clip.frames)
            assert difference.max() == 0 if plan.copies_pictures else difference.mean() < 2
            end = min(stretch[1], source.index.duration) - plan.begin
            silent = read_clip(piece.video, SMALL, audio=False)
            assert abs(silent.duration - end) < (0.041 if plan.copies_pictures else 0.001)
            assert (shown.audio is None) == (clip.audio is None)
        if piece.video is not None and clip.audio is not None:
            # Codecs round up to whole packets, and the end of the last is played.
            assert -0.001 < (len(shown.audio) - len(clip.audio)) / RATE < 0.065
            compare_sound(clip.audio, shown.audio, lag if plan.copies_sound else 0, 0.93)
    return cuts


def compare_sound(expected: np.ndarray, found: np.ndarray, most: int, likeness: float):
    if not expected.any():
        assert not found.any()
        return
    lag, correlation = match(expected, found)
    assert abs(lag) <= most and correlation > likeness


# ---------------------------------------------------------------------------- one clock

STRETCHES = [(0.0, 1.0), (1.0, 2.0), (0.5, 1.7), (2.01, 2.99), (2.4, 3.0)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_pieces_hold_what_segments_hold(tmp_path, name):
    """B-frames, keyframes each second, sound coded and raw; times that a container guesses."""
    path = write_video(tmp_path / name, num_frames=75, audio=noise(3.0), gop=25)
    check(path, STRETCHES, tmp_path / "pieces", lag=1)


@pytest.mark.filterwarnings("ignore:.*its header says")  # not so in Matroska, which counts from 0
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("video_start, audio_start", [(2.0, 0.0), (0.0, 0.7), (3.0, 4.3)])
def test_streams_that_begin_at_other_times(tmp_path, name, video_start, audio_start):
    times = video_start + np.arange(75) / 25
    seconds = video_start + 3 - audio_start
    path = write_video(
        tmp_path / name, times=times, audio=noise(seconds), audio_start=audio_start, gop=25
    )
    check(path, STRETCHES, tmp_path / "pieces", lag=1)


def test_uneven_frame_times(tmp_path):
    times = [0, 0.04, 0.08, 0.5, 1.5, 1.54, 1.66, 3.0, 3.04, 3.5, 4.0, 4.01]
    path = write_video(tmp_path / "a.mkv", times=times, audio=noise(4.1), gop=4)
    stretches = [(0.0, 1.5), (1.5, 3.0), (0.6, 1.4), (0.3, 2.0), (1.0, 3.2), (3.0, 4.05)]
    cuts = check(path, stretches, tmp_path / "pieces")
    assert len(cuts[2].frames) == 1  # what is on the screen from 0.5 s on


@pytest.mark.parametrize("codec", ["mp3", "libopus", "flac", "ac3"])
def test_sound_of_other_codecs(tmp_path, codec):
    """The first two are copied; all five or six channels of the last are mixed."""
    path = tmp_path / "a.mkv"
    layout = "5.1" if codec == "ac3" else "stereo"
    channels = 6 if codec == "ac3" else 2
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"g": "25"})
        video.width, video.height, video.pix_fmt = 112, 56, "yuv420p"
        sound = container.add_stream(codec, rate=48_000, layout=layout)
        for number in range(75):
            picture = np.full((56, 112, 3), 2 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode())
        samples = np.repeat(noise(3.0), 3)
        for begin in range(0, len(samples), 4800):
            part = np.repeat(samples[None, begin : begin + 4800], channels, 0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = 48_000, begin, Fraction(1, 48_000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    check(path, STRETCHES, tmp_path / "pieces", lag=16)  # matroska rounds to 1 ms
    is_copied = plan_piece(survey(path), 1, 0.0, 1.0, 2.0).copies_sound
    assert is_copied == (codec in ("mp3", "libopus"))


def test_sound_alone_has_no_mp4(tmp_path):
    path = write_wav(tmp_path / "a.wav", noise(3.0))
    cuts = check(path, [(0.0, 1.5), (1.25, 3.0)], tmp_path / "pieces")
    assert [piece.audio.name for piece in cuts] == ["001.mp3", "002.mp3"]
    assert duration_of(path) == pytest.approx(3.0)
    assert payload(cuts[0], "video") == [] and len(payload(cuts[0], "audio")) == 1


def test_pictures_alone_have_no_mp3(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=50, gop=25)
    for piece in check(path, [(0.0, 1.0), (0.3, 1.7)], tmp_path / "pieces"):
        assert piece.audio is None and payload(piece, "audio") == []


def test_sound_may_last_longer_than_pictures(tmp_path):
    path = write_video(tmp_path / "a.mkv", num_frames=25, audio=noise(3.0))
    assert duration_of(path) == pytest.approx(3.0, abs=2e-3)
    pictured, mixed, heard = check(path, [(0, 1), (0.5, 2), (1.5, 3)], tmp_path / "pieces")
    assert pictured.video and mixed.video and heard.video is None and heard.audio


def test_gaps_in_sound_are_closed_as_they_are_read(tmp_path):
    """Samples are counted: a copied piece of a later stretch would be half a second off."""
    path = tmp_path / "a.mkv"
    whole = write_video(tmp_path / "whole.mkv", num_frames=75, audio=noise(3.0), gop=25)
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in source.streams}
        for packet in source.demux():
            if not packet.size:
                continue
            if packet.stream.type == "audio" and packet.pts * packet.time_base > 1:
                packet.pts = packet.dts = packet.pts + round(Fraction(1, 2) / packet.time_base)
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    check(path, STRETCHES, tmp_path / "pieces")
    sound = survey(path).sound
    assert sound.end == pytest.approx(3.0, abs=0.07) and sound.whole_until <= 1.1


@pytest.mark.parametrize("stretch", [(0.0, 1.0), (0.3, 0.9)])
def test_turned_videos_are_upright(tmp_path, stretch):
    """Copied, an mp4 says how it is turned; encoded, it is turned. Stills are upright."""
    path = write_video(tmp_path / "a.mp4", num_frames=50, gop=25)
    data = path.read_bytes()
    one, none = (65536).to_bytes(4, "big"), bytes(4)
    end = (0x40000000).to_bytes(4, "big")
    straight = one + none * 3 + one + none * 3 + end
    turned = none + (-65536).to_bytes(4, "big", signed=True) + none + one + none * 4 + end
    at = data.index(straight, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
    (piece,) = check(path, [stretch], tmp_path / "pieces")
    assert read_clip(piece.video, SMALL).frames.shape[1:3] == (112, 56)
    assert Image.open(piece.frames[0]).size == (56, 112)


@pytest.mark.parametrize(
    "name, codec, kind",
    [
        ("a.mov", "png", "rgb24"),
        ("a.gif", "gif", "rgb8"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.mkv", "ffv1", "yuv444p10le"),
    ],
)
@pytest.mark.parametrize("colour", [(200, 30, 60), (20, 180, 90)])
def test_colours_are_kept(tmp_path, name, codec, kind, colour):
    """However they were stored; of full range or not."""
    with av.open(str(tmp_path / name), "w") as container:
        video = container.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, kind
        for _ in range(10):
            picture = np.full((64, 64, 3), colour, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode())
    _, (clip,) = read_segments(tmp_path / name, SMALL, [(0.1, 0.9)])
    (piece,) = cut(tmp_path / name, [(0.1, 0.9)], tmp_path / "pieces", 2.0)
    expected = clip.frames.mean((0, 1, 2))  # a GIF is dithered
    shown = read_clip(piece.video, SMALL).frames.mean((0, 1, 2))
    still = np.asarray(Image.open(piece.frames[0])).mean((0, 1))
    np.testing.assert_allclose(shown, expected, atol=4)
    np.testing.assert_allclose(still, expected, atol=4)


def test_odd_sizes_are_cut_too(tmp_path):
    path = write_video(tmp_path / "a.avi", num_frames=20, size=(57, 111), codec="ffv1")
    (piece,) = cut(path, [(0.0, 0.8)], tmp_path / "pieces", 2.0)
    with av.open(str(piece.video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (110, 56, 20)


# ---------------------------------------------------------------------------- copies


def test_copied_pieces_have_the_same_packets(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=75, audio=noise(3.0), gop=25)
    (piece,) = cut(path, [(1.0, 2.0)], tmp_path / "pieces", 2.0)
    before, after = packets(path, "video"), packets(piece.video, "video")
    assert [data for _, data in after] == [data for time, data in before if 0.999 < time < 1.999]
    assert min(time for time, _ in after) == 0.0
    before, after = dict(packets(path, "audio")), packets(piece.video, "audio")
    for time, data in after:
        original = min(before, key=lambda moment: abs(moment - 1.0 - time))
        assert abs(original - 1.0 - time) < 1 / RATE and before[original] == data
    with av.open(str(piece.video)) as container:  # and nothing of before is heard
        assert next(container.decode(audio=0)).pts == 0


def test_what_can_be_copied(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=75, gop=25)
    source = survey(path)

    def is_copied(start: float, end: float) -> bool:
        return plan_piece(source, 1, start, end, 2.0).copies_pictures

    assert is_copied(0, 1) and is_copied(0.99, 2.0) and is_copied(1, 3)
    assert not is_copied(1.05, 2)  # begins within its group
    assert {is_copied(1, 2 - n / 25) for n in range(1, 6)} == {True, False}  # ends at a B-frame
    for name in ("a.ts", "a.avi"):
        assert survey(write_video(tmp_path / name)).packets is None
    mpeg4 = write_video(tmp_path / "b.mp4", codec="mpeg4", times=None)
    assert survey(mpeg4).packets is None


def test_packets_that_can_be_decoded_alone():
    # Shown 0 .. 8, in the order of a file whose second group is open: 3 refers to 2 and to 4.
    pts = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7])
    packets = Packets(pts, np.isin(pts, [0, 4]))
    assert packets.hold([0, 1, 2]) and packets.hold([4, 5, 6]) and packets.hold([4, 5, 6, 7, 8])
    assert not packets.hold([0, 1, 2, 3])  # needs 4
    assert not packets.hold([0, 1]) and not packets.hold([2]) and not packets.hold([3, 4])
    assert not packets.hold([0, 1, 2, 2])  # times that stand there once


def test_real_clips_are_cut_exactly(assets, tmp_path):
    path = assets / "clips/daily_omni/d6b4OmUFt7I/d6b4OmUFt7I_video_0.mp4"
    stretches = [(0.0, 4.9216), (4.9216, 9.4678), (6.0, 7.5)]
    check(path, stretches, tmp_path / "pieces", lag=1)
    plans = [plan_piece(survey(path), 1, *stretch, 2.0) for stretch in stretches]
    assert [plan.copies_pictures for plan in plans] == [True, True, False]


@pytest.mark.parametrize("name", ["axera_2_1.6s_308x308_aac.mp4", "gradio_b_5s_mpeg4_mp3.avi"])
def test_real_edge_cases(assets, tmp_path, name):
    check(assets / "clips/edge_cases" / name, [(0.0, 0.9), (0.5, 1.6)], tmp_path / "pieces")


# ---------------------------------------------------------------------------- once, and whole


def files_of(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds with sound, a keyframe each second."""
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    return write_video(path, num_frames=75, audio=noise(3.0), gop=25)


def test_the_same_bytes_each_time(clip, tmp_path):
    stretches = [(0.0, 1.0), (0.6, 2.1)]  # copied, encoded
    for name in ("one", "two"):
        cut(clip, stretches, tmp_path / name, 2.0)
    one, two = (files_of(tmp_path / name) for name in ("one", "two"))
    assert one == two
    files = {f"{number}.{kind}" for number in ("001", "002") for kind in ("mp4", "mp3")}
    stills = {f"001-0{n}.jpg" for n in range(2)} | {f"002-0{n}.jpg" for n in range(3)}
    assert set(one) == files | stills | {MARKER}


def test_a_whole_directory_is_not_cut_again(clip, tmp_path, monkeypatch):
    first = cut(clip, [(0.0, 1.0)], tmp_path / "pieces", 2.0)
    monkeypatch.setattr("data_pipeline.instruct.cut.survey", None)
    assert cut(clip, [(0.0, 1.0)], tmp_path / "pieces", 2.0) == first
    shutil.move(tmp_path / "pieces", tmp_path / "moved")
    (again,) = cut(clip, [(0.0, 1.0)], tmp_path / "moved", 2.0)
    assert again.video == tmp_path / "moved/001.mp4" and again.digests == first[0].digests


@pytest.mark.parametrize("stretches, rate", [([(0.0, 2.0)], 2.0), ([(0.0, 1.0)], 1.0)])
def test_a_directory_of_other_pieces_is_an_error(clip, tmp_path, stretches, rate):
    cut(clip, [(0.0, 1.0)], tmp_path / "pieces", 2.0)
    with pytest.raises(InputError, match="delete it"):
        cut(clip, stretches, tmp_path / "pieces", rate)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(InputError, match="delete it"):
        cut(clip, stretches, tmp_path / "mine", rate)


def test_an_end_in_the_middle_leaves_nothing(clip, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def end(path, text):
        assert "cuts" in json.loads(text)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("data_pipeline.instruct.cut.write_text", end)
        with pytest.raises(Killed):
            cut(clip, [(0.0, 1.0)], tmp_path / "pieces", 2.0)
    assert list(tmp_path.iterdir()) == []
    assert len(cut(clip, [(0.0, 1.0)], tmp_path / "pieces", 2.0)) == 1


def test_two_may_cut_the_same_at_once(clip, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(cut, clip, [(0.5, 2.0)], tmp_path / "pieces", 2.0) for _ in range(4)]
        results = [job.result() for job in jobs]
    assert all(result == results[0] for result in results)
    assert [path.name for path in tmp_path.iterdir()] == ["pieces"]


def test_few_pieces_are_open_at_a_time(tmp_path, monkeypatch):
    """However long a clip is."""
    path = write_video(tmp_path / "a.mkv", num_frames=120, fps=5, audio=noise(24.0))
    count, most = 0, 0

    class Counted(pieces._Writer):
        def __init__(self, *args):
            nonlocal count, most
            super().__init__(*args)
            count += 1
            most = max(most, count)

        def close(self):
            nonlocal count
            count -= 1
            return super().close()

    monkeypatch.setattr(pieces, "_Writer", Counted)
    cuts = cut(path, [(n, n + 1) for n in range(24)], tmp_path / "pieces", 2.0)
    assert len(cuts) == 24 and count == 0 and most <= 6


# ---------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("kind", sorted(set(BAD_FILES.split()) - {"thin"}))
def test_bad_files_fail_with_one_line(tmp_path, kind):
    path = bad_file(tmp_path, kind)
    for attempt in (
        lambda: cut(path, [(0, 1)], tmp_path / "pieces", 2.0),
        lambda: duration_of(path),
    ):
        with pytest.raises(Failed) as caught:
            attempt()
        assert caught.value.reason == Reason.MEDIA
        assert str(path) in caught.value.detail and "\n" not in caught.value.detail
    assert not list(tmp_path.glob("*pieces*"))


@pytest.mark.filterwarnings("ignore:.*is damaged")  # found while the pictures before are decoded
def test_pictures_that_cannot_be_decoded_fail(tmp_path):
    """Those of the last second, in an mp4 whose index is whole."""
    path = write_video(tmp_path / "a.mp4", num_frames=75, gop=25)
    with av.open(str(path)) as container:
        last = [p for p in container.demux(video=0) if p.size and p.pts * p.time_base >= 2]
        places = [(packet.pos, packet.size) for packet in last]
    data = bytearray(path.read_bytes())
    for start, size in places:
        data[start : start + size] = bytes(size)
    path.write_bytes(data)
    assert len(cut(path, [(0.0, 1.0), (1.0, 2.0)], tmp_path / "pieces", 2.0)) == 2
    with (
        pytest.warns(UserWarning, match=r"damaged near 2\.0 s"),
        pytest.raises(Failed, match=r"a\.mp4: no picture from 2 to 3 s can be decoded"),
    ):
        cut(path, [(0.0, 1.0), (2.0, 3.0)], tmp_path / "more", 2.0)
    assert not (tmp_path / "more").exists()


def test_an_image_is_no_clip(tmp_path):
    (tmp_path / "a.mp4").write_bytes(jpeg())
    with pytest.raises(Failed, match="is an image"):
        cut(tmp_path / "a.mp4", [(0, 1)], tmp_path / "pieces", 2.0)


@pytest.mark.parametrize(
    "stretch", [(3.1, 3.4), (2.0, 3.6), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (np.nan, 1.0)]
)
def test_stretches_outside_the_clip_fail(clip, tmp_path, stretch):
    with pytest.raises(Failed, match=r"a\.mp4: .* no stretch of a clip of 3"):
        cut(clip, [(0.0, 1.0), stretch], tmp_path / "pieces", 2.0)
    assert list(tmp_path.iterdir()) == []


def test_an_end_shortly_after_the_clips_is_the_clips(clip, tmp_path):
    (piece,) = cut(clip, [(2.0, 3.2)], tmp_path / "pieces", 2.0)
    assert piece.end == duration_of(clip) == pytest.approx(3.0, abs=0.07)


# ---------------------------------------------------------------------------- for the captioner


@pytest.mark.parametrize("rate, seconds, count", [(2.0, 2.5, 5), (0.1, 2.5, 1), (25.0, 2.5, 16)])
def test_stills_are_spread_over_the_stretch(clip, tmp_path, rate, seconds, count):
    (piece,) = cut(clip, [(0.4, 0.4 + seconds)], tmp_path / "pieces", rate)
    assert [path.name for path in piece.frames] == [f"001-{n:02d}.jpg" for n in range(count)]
    pictures = np.stack([np.asarray(Image.open(path)) for path in piece.frames])
    step = max(1 / rate, seconds / 16)
    expected = 10 + np.ceil(np.arange(count) * step * 25 - 0.03)
    np.testing.assert_allclose(numbers(pictures), expected, atol=0.8)


def test_stills_are_small(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=3, size=(360, 640))
    (piece,) = cut(path, [(0.0, 0.1)], tmp_path / "pieces", 2.0)
    assert Image.open(piece.frames[0]).size == (448, 252)


def test_payload_and_digest(clip, tmp_path):
    first, second = cut(clip, [(0.0, 1.0), (1.0, 2.0)], tmp_path / "pieces", 2.0)
    parts = payload(first, "video")
    for part, path in zip(parts, first.frames, strict=True):
        head, _, data = part["image_url"]["url"].partition(",")
        assert part["type"] == "image_url" and head == "data:image/jpeg;base64"
        assert base64.b64decode(data) == path.read_bytes()
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == "JPEG"
    (part,) = payload(first, "audio")
    assert part["type"] == "input_audio" and part["input_audio"]["format"] == "mp3"
    assert base64.b64decode(part["input_audio"]["data"]) == first.audio.read_bytes()
    json.dumps(parts)
    inner = hashlib.sha256(first.audio.read_bytes()).digest()
    assert digest(first, "audio") == hashlib.sha256(inner).hexdigest()
    (other,) = cut(clip, [(1.0, 2.0)], tmp_path / "other", 2.0)
    shutil.rmtree(tmp_path / "pieces")  # nothing is read
    seen, heard = (
        {digest(piece, sense) for piece in (first, second)} for sense in ("video", "audio")
    )
    assert len(seen) == len(heard) == 2
    assert digest(other, "video") == digest(second, "video")
    assert digest(other, "audio") == digest(second, "audio")
    assert (tmp_path / "other" / MARKER).is_file()
