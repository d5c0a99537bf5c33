"""Where a latent block looks, drawn over what the model was given: stills, and a video.

A heat map of the pictures' tokens lies over the frame that the moment shows; below it is the sound,
as long as the clip, with a line at the moment. Bright is the most that the map has anywhere in the
clip, so that moments compare. Like Figures 13 to 15 of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipeline.av_events.clips import write_clip
from latentomni_jax.evaluate.explore import maps_of
from latentomni_jax.layout import Clip, InputError, MediaSpec

FPS = 4  # of the video; the model was given two frames a second at most
BAR = 32  # pixels, height of the sound's bar
_WIDTH = 640  # of the bar where there are no pictures
_DIMMED = 0.5  # of the frame below the heat
_LINE = np.array((90, 200, 220), np.uint8)
# From nothing to the most; ever brighter, so that the peak is the brightest place.
_HEAT = np.array([(0, 0, 8), (70, 10, 110), (190, 50, 80), (250, 150, 30), (255, 250, 200)])


def chosen(
    one: dict[str, Any], block: int, slot: str | None = None
) -> tuple[Float[np.ndarray, "T h w"], Float[np.ndarray, " C"]]:
    """A block's maps for one slot, or means: of visual slots over pictures, of the others over
    sound (of all where there are none of the kind).

    Args:
      one: see `explore`. slot: its name, such as v1 or a3.

    Raises:
      InputError: no such block or slot.
    """
    if not 0 <= block < len(one["blocks"]):
        raise InputError(f"there is no latent block {block}; the answer has {len(one['blocks'])}")
    names, (seen, heard) = one["blocks"][block]["slots"], maps_of(one, block)
    if slot is not None:
        if slot not in names:
            raise InputError(f"there is no latent slot {slot!r}; they are {', '.join(names)}")
        return seen[names.index(slot)], heard[names.index(slot)]

    def mean(weights: np.ndarray, letter: str) -> np.ndarray:
        return weights[[i for i, x in enumerate(names) if x[0] == letter] or slice(None)].mean(0)

    return mean(seen, "v"), mean(heard, "a")


def picture(
    clip: Clip, seen: Float[np.ndarray, "T h w"], heard: Float[np.ndarray, " C"], moment: float
) -> UInt8[np.ndarray, "height width 3"]:
    """What is seen at a moment (seconds) under its heat, above the sound's bar.

    Args:
      clip: as the model was given it. seen, heard: weights over it, see `chosen`; of one of the two
        there may be none.

    Returns:
      A frame of the clip's size, and `BAR` rows more where there is sound.

    Raises:
      InputError: neither pictures nor sound.
    """
    parts, width = [], _WIDTH
    if seen.size:
        place = max(int(np.searchsorted(clip.frame_times, moment + 1e-3, side="right")) - 1, 0)
        frame = clip.frames[place]
        height, width = frame.shape[:2]
        # By number and not by time: on the nominal clock the model's times are not the frames'.
        strength = seen[place * len(seen) // len(clip.frames)] / (seen.max() or 1.0)
        spread = Image.fromarray(strength.astype(np.float32))
        heat = np.asarray(spread.resize((width, height), Image.Resampling.BILINEAR))
        shown = _DIMMED * frame * (1 - heat[..., None]) + _coloured(heat) * heat[..., None]
        parts.append(shown.round().astype(np.uint8))
    if len(heard):
        cells = np.arange(width) * len(heard) // width
        row = _coloured(heard[cells] / (heard.max() or 1.0)).round().astype(np.uint8)
        bar = np.repeat(row[None], BAR, axis=0)
        place = min(int(moment / clip.duration * width), width - 2)
        bar[:, place : place + 2] = _LINE
        parts.append(bar)
    return np.concatenate(parts)


def strongest(clip: Clip, seen: np.ndarray, heard: np.ndarray) -> float:
    """The moment (seconds) of the highest weight on a frame, or else on a stretch of sound."""
    if not seen.size and not len(heard):
        raise InputError("there is nothing to lay attention over: neither pictures nor sound")
    if seen.size:
        patch = int(seen.max(axis=(1, 2)).argmax())
        return float(clip.frame_times[patch * len(clip.frames) // len(seen)])
    return (int(heard.argmax()) + 0.5) * clip.duration / len(heard)


def write_still(path: Path, clip: Clip, seen: np.ndarray, heard: np.ndarray) -> None:
    """Writes the strongest moment as a PNG; arguments and errors as of `picture`."""
    Image.fromarray(picture(clip, seen, heard, strongest(clip, seen, heard))).save(path, "PNG")


def write_film(path: Path, clip: Clip, seen: np.ndarray, heard: np.ndarray) -> None:
    """Writes the clip as an mp4 in which every moment has its heat, with the sound that was heard.

    Arguments and errors as of `picture`; a still picture becomes a film of one frame.
    """

    def moments() -> Iterator[np.ndarray]:
        for number in range(max(math.ceil(clip.duration * FPS), 1)):
            yield picture(clip, seen, heard, number / FPS)

    sound = clip.audio[None] if len(heard) else None
    write_clip(path, moments(), sound, fps=FPS, rate=MediaSpec.sampling_rate)


def _coloured(strength: np.ndarray) -> np.ndarray:
    """Strengths 0 to 1 as colours [...,3], 0 to 255."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(strength, steps, channel) for channel in _HEAT.T], axis=-1)
