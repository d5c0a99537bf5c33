"""A short video with sound, drawn and played by this file: something to show a model.

Each second has one shape (disc, square or triangle, in a colour of its own) and one tone. Shape and
tone change together, so what is seen and what is heard can be told apart second by second.
"""

from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT, FPS, RATE = 320, 240, 24, 44_100
SHAPES = ("disc", "square", "triangle")
COLOURS = ((230, 80, 60), (70, 170, 90), (60, 110, 220))
TONES = (262.0, 392.0, 523.0)  # Hz: C, G, C


def make_clip(path: str | os.PathLike, seconds: float = 6.0) -> None:
    """Writes an mp4 with H.264 pictures and AAC sound, `seconds` long."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("h264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="stereo")
        for number in range(round(seconds * FPS)):
            picture = av.VideoFrame.from_ndarray(draw(number / FPS), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        sound = play(seconds)
        size = audio.codec_context.frame_size
        for start in range(0, sound.shape[1], size):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[:, start : start + size]), "fltp", "stereo"
            )
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def draw(time: float) -> np.ndarray:
    """The picture at a time, u8[H,W,3]: the second's shape, moving from left to right."""
    shape = int(time) % len(SHAPES)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    x, y = x - (60 + 200 * (time % 1)), y - (HEIGHT / 2 + 30 * np.sin(2 * np.pi * time))
    inside = {
        "disc": x**2 + y**2 < 45**2,
        "square": np.maximum(abs(x), abs(y)) < 40,
        "triangle": (y < 40) & (y > 2 * abs(x) - 50),
    }[SHAPES[shape]]
    picture = np.full((HEIGHT, WIDTH, 3), 235, np.uint8)
    picture[inside] = COLOURS[shape]
    return picture


def play(seconds: float) -> np.ndarray:
    """The sound f32[2,N]: the second's tone, fading within it."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = np.array(TONES)[time.astype(int) % len(TONES)]
    tone = 0.4 * np.sin(2 * np.pi * pitch * time) * np.exp(-2 * (time % 1))
    return np.stack([tone, tone]).astype(np.float32)
