"""Pictures for pages, as PNG data URIs: a clip, attention over it, losses, accuracies, a study.

Needs matplotlib (`pip install latentomni_jax[report]`). Nothing is written to disk.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.signal

from latentomni_jax.evaluate.answers import Score
from latentomni_jax.evaluate.study import Row
from latentomni_jax.layout import Clip, InputError, MediaSpec

WIDTH = 9.0  # inches
_RATE = MediaSpec.sampling_rate  # of every clip that is read
_SILENCE = 1e-14  # has no logarithm: power per hertz that is drawn darkest
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#718096")


def to_uri(figure: Any) -> str:
    """A figure, closed, as a data URI."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def to_bytes(uri: str) -> bytes:
    """The PNG file that a data URI holds."""
    return base64.b64decode(uri.partition(",")[2])


def film(clip: Clip, cited: Sequence[tuple[float, float]] = ()) -> str:
    """A clip's frames above the spectrogram of its sound, on one clock, `cited` framed."""
    figure, axes = pyplot().subplots(
        2, 1, figsize=(WIDTH, 3.2), sharex=True, gridspec_kw={"height_ratios": [1, 1]}
    )
    _draw_clip(axes, clip)
    for start, end in cited:
        for axis in axes:
            axis.axvspan(start, end, fill=False, edgecolor="#e53e3e", linewidth=2)
    axes[1].set_xlabel("seconds")
    return to_uri(figure)


def attention_over_clip(
    clip: Clip,
    weights: tuple[np.ndarray, np.ndarray],
    num_visual: int,
    cited: tuple[float, float] | None,
) -> str:
    """Where each latent of a block looks, over the clip's frames and over its sound.

    Args:
      weights: (seen, heard) f32[K, cells], shares of the attention on each stretch of the clip,
        which cells divide evenly.
      num_visual: slots of the K that are visual; they come first.
      cited: the segment that a teacher would cite here.
    """
    num_audio = len(weights[0]) - num_visual
    names = [f"v{i + 1}" for i in range(num_visual)] + [f"a{i + 1}" for i in range(num_audio)]
    figure, axes = pyplot().subplots(
        4, 1, figsize=(WIDTH, 6.4), sharex=True, gridspec_kw={"height_ratios": [1, 0.8, 2, 2]}
    )
    _draw_clip(axes[:2], clip)
    for axis, cells, title in zip(axes[2:], weights, ("frames", "sound"), strict=True):
        axis.imshow(
            cells, aspect="auto", cmap="magma", extent=(0, clip.duration, len(names), 0), vmin=0,
            interpolation="nearest",
        )  # fmt: skip
        axis.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
        axis.set_ylabel(f"attention to {title}")
        axis.axhline(num_visual, color="white", linewidth=1)
    if cited is not None:
        for axis in axes:
            axis.axvspan(*cited, fill=False, edgecolor="#e53e3e", linewidth=2)
    axes[-1].set_xlabel("seconds")
    return to_uri(figure)


def loss_curves(stages: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Every loss of every stage over its steps; `stages` are lines of `metrics.jsonl`."""
    figure, axes = pyplot().subplots(
        1, len(stages), figsize=(WIDTH, 2.8), squeeze=False, layout="constrained"
    )
    for axis, (name, lines) in zip(axes[0], stages.items(), strict=True):
        steps = [line["step"] + 1 for line in lines]
        for colour, kind in zip(COLOURS, ("text", "latent", "sync"), strict=False):
            values = [line[f"loss/{kind}"] for line in lines]
            if any(values):
                axis.plot(steps, values, color=colour, linewidth=1, label=kind)
        axis.set(title=name, xlabel="step", yscale="log")
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    return to_uri(figure)


def accuracies(scores: Mapping[str, Mapping[str, Score]], chance: float) -> str:
    """Bars by type of question, a colour for each of `scores` (what the model was given)."""
    types = list(next(iter(scores.values())))
    figure, axis = pyplot().subplots(figsize=(WIDTH, 3.0), layout="constrained")
    wide = 0.8 / len(scores)
    for i, (name, by_type) in enumerate(scores.items()):
        asked = [place for place, type in enumerate(types) if type in by_type]
        values = [100 * by_type[types[place]].accuracy for place in asked]
        places = np.array(asked) + (i - (len(scores) - 1) / 2) * wide
        bars = axis.bar(places, values, wide, label=name, color=COLOURS[i % len(COLOURS)])
        axis.bar_label(bars, fmt="%.0f", fontsize=7)
    axis.axhline(100 * chance, color="black", linewidth=1, linestyle="--", label="chance")
    axis.set_xticks(range(len(types)), types)
    axis.set(ylabel="right, %", ylim=(0, 105))
    axis.legend(frameon=False, ncols=len(scores) + 1, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return to_uri(figure)


def study_rows(rows: Sequence[Row], chance: float) -> str:
    """Accuracy of every row of a study: a dot for each seed, a line for their mean."""
    figure, axis = pyplot().subplots(figsize=(WIDTH, 0.8 + 0.28 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        values = [100 * accuracy for accuracy in row.accuracies]
        axis.plot(values, [place] * len(values), "o", color=COLOURS[0], alpha=0.6)
        axis.plot([100 * row.mean] * 2, [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2)
    axis.axvline(100 * chance, color="black", linewidth=1, linestyle="--", label="chance")
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="right, % (dots: seeds, bars: their means)", xlim=(0, 100))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    return to_uri(figure)


def pyplot() -> Any:
    """matplotlib's, drawing without a screen. Raises InputError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(
            "pictures need matplotlib: pip install 'latentomni_jax[report]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


# ------------------------------------------------------------------------- details


def _draw_clip(axes: Sequence[Any], clip: Clip) -> None:
    pictures, sound = axes
    seconds = clip.duration
    if clip.frames is not None:
        starts = [*clip.frame_times, seconds]
        for i, frame in enumerate(clip.frames):
            if starts[i + 1] > starts[i]:
                pictures.imshow(frame, extent=(starts[i], starts[i + 1], 0, 1), aspect="auto")
    pictures.set(xlim=(0, seconds), ylim=(0, 1), yticks=[], ylabel="seen")
    if clip.audio is not None:
        hertz, _, power = scipy.signal.spectrogram(clip.audio, _RATE, nperseg=512, noverlap=256)
        decibel = 10 * np.log10(np.maximum(power, _SILENCE))
        extent = (0, len(clip.audio) / _RATE, 0, hertz[-1])
        sound.imshow(decibel, origin="lower", aspect="auto", extent=extent)
        sound.set_ylim(0, 4000)
    sound.set(xlim=(0, seconds), ylabel="heard, Hz")
