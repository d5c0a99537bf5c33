"""Where a clip is cut: by its shots, or into pieces of one length."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentomni_jax.layout import InputError

MIN_SECONDS = 0.1  # of a piece that a shot makes; less has nothing to see or hear
_JOINED = 0.25  # of a length: what is left over and shorter is no piece of its own


def stretches(
    duration: float, shots: Sequence[tuple[float, float]], seconds: float
) -> tuple[tuple[float, float], ...]:
    """Pieces, (start, end) in seconds, that cover the clip without gap or overlap.

    Shots are cut where they start, in order of time, and last until the next one starts: what lies
    between two belongs to the one before, what two share to the one after, and the first begins
    with the clip. Starts outside the clip, or that would leave a piece under `MIN_SECONDS`, are
    passed over. Without shots pieces are `seconds` long; a last one that would be shorter than a
    quarter of that joins the one before it.

    Raises:
      InputError: duration or seconds is not a positive number.
    """
    for name, value in (("duration", duration), ("seconds", seconds)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} should be more than 0 seconds, got {value}")
    edges = [0.0]
    if shots:
        for start, _ in sorted(shots):
            if start - edges[-1] >= MIN_SECONDS and duration - start >= MIN_SECONDS:
                edges.append(start)
    else:
        count = math.floor(duration / seconds)
        if duration - count * seconds >= _JOINED * seconds:
            count += 1
        edges = [k * seconds for k in range(max(count, 1))]
    return tuple(zip(edges, [*edges[1:], float(duration)], strict=True))
