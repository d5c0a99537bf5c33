"""What is left of a long job, about how long that takes here, and how much training fits."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipeline.shards import write_text

_SPARE = 0.05  # of the time, for what is estimated too low
_LEAST = 0.1  # of the steps: a machine too slow for them is late


class Part(NamedTuple):
    """About how long a part takes: seconds, and seconds for each of the steps that are wanted."""

    seconds: float
    step_seconds: float = 0.0
    steps: int = 0


class Agenda:
    """Says which part begins, how many steps it has and about how long the rest will take.

    A machine slower than the one that the parts were timed on, as the parts before have shown,
    takes fewer steps, in the same share for all parts left, so that all is done in time.

    Args:
      parts: in order.
      limit: seconds from now.
      kept: file with the steps of begun parts, so that what was interrupted goes on with as many.
    """

    def __init__(self, parts: Mapping[str, Part], limit: float, kept: Path):
        self._left, self._limit, self._kept = dict(parts), limit, kept
        self._planned, self._taken, self._count = 0.0, 0.0, len(parts)
        self._began = time.monotonic()
        self._decided: dict[str, int] = json.loads(kept.read_text()) if kept.is_file() else {}

    @contextlib.contextmanager
    def part(self, name: str, title: str) -> Iterator[int]:
        """For the time that a part takes; gives the number of its steps."""
        began, wanted = time.monotonic(), self._left[name].steps
        pace = self._taken / self._planned if self._planned else 1.0
        share = self._share(pace, began)
        minutes = pace * sum(self._seconds(one, share) for one in self._left) / 60
        number = self._count - len(self._left) + 1
        line = f"[{number}/{self._count}] {title}"
        print(f"\n{line}   (about {minutes:.0f} min left)\n{'-' * len(line)}", flush=True)
        steps = self._steps(name, share)
        if steps < wanted:
            limit = f"{self._limit / 60:g} minutes"
            print(f"steps     {steps} of {wanted}, to be done in {limit} here; more with --minutes")
        if wanted and name not in self._decided:
            self._decided[name] = steps
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._kept, json.dumps(self._decided) + "\n")
        yield steps
        planned, taken = self._seconds(name, share), time.monotonic() - began
        del self._left[name]
        if taken > planned / 20:  # else it was done before, and says nothing about this machine
            self._taken, self._planned = self._taken + taken, self._planned + planned

    def _share(self, pace: float, now: float) -> float:
        """Of the steps that are wanted and not decided, how many there is time for."""
        time_left = self._limit * (1 - _SPARE) - (now - self._began)
        undecided = (part for name, part in self._left.items() if name not in self._decided)
        steps = sum(part.step_seconds * part.steps for part in undecided)
        without = sum(self._seconds(name, 1.0) for name in self._left) - steps
        return min(max((time_left / pace - without) / steps, _LEAST), 1.0) if steps else 1.0

    def _steps(self, name: str, share: float) -> int:
        wanted = self._left[name].steps
        return self._decided.get(name, min(wanted, max(1, round(share * wanted))))

    def _seconds(self, name: str, share: float) -> float:
        part = self._left[name]
        return part.seconds + part.step_seconds * self._steps(name, share)
