"""Where metrics go: progress bar, `metrics.jsonl`, TensorBoard.

Values arrive as device arrays one step late, so that reading them never makes the devices wait.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import tqdm

Rates = Callable[[float], dict[str, float]]


class MetricWriter(Protocol):
    """Takes the metrics of a step."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One object a line in `metrics.jsonl`; a resumed run continues a clean file.

    Lines at or after `start`, written by a run that died before its next checkpoint, are dropped.
    """

    def __init__(self, path: pathlib.Path, start: int):
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] < start:
                        kept.append(line)
                except (ValueError, KeyError):  # the line that a kill cut short
                    continue
        path.write_text("".join(f"{line}\n" for line in kept))
        self.file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step} | clean) + "\n")

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Scalars for TensorBoard."""

    def __init__(self, directory: pathlib.Path, start: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=start)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Terminal:
    """A progress bar with the losses; a plain line now and then where there is no terminal."""

    def __init__(self, start: int, steps: int, lines: int = 20):
        self.bar = tqdm.tqdm(total=steps, initial=start, unit="step", file=sys.stderr)
        self.every = 0 if sys.stderr.isatty() else max(steps // lines, 1)
        self.bar.disable = not sys.stderr.isatty()
        self.steps = steps

    def write(self, step: int, values: dict[str, float]) -> None:
        shown = {
            "loss": values["loss/total"],
            "text": values["loss/text"],
            "latent": values["loss/latent"],
            "sync": values["loss/sync"],
            "tok/s": values.get("tokens_per_s", math.nan),
        }
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(1)
        if self.every and ((step + 1) % self.every == 0 or step == 0):
            print(f"step {step + 1}/{self.steps}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()


class Late:
    """Holds a step's metrics back until the next one is under way, then hands them to writers.

    A step's `seconds` are from the end of the step before it to its own: what the devices took,
    with everything that kept them waiting.
    """

    def __init__(self, writers: list[MetricWriter]):
        self.writers, self.waiting = writers, None
        self.ended = time.perf_counter()

    def push(self, step: int, values: dict[str, Any], rates: Rates) -> dict[str, float] | None:
        """Takes this step's device values; returns the previous step's as floats.

        Args:
          rates: seconds of the step -> further metrics.
        """
        previous, self.waiting = self.waiting, (step, values, rates)
        return self._write(previous)

    def flush(self) -> dict[str, float] | None:
        """Waits for the last step."""
        previous, self.waiting = self.waiting, None
        return self._write(previous)

    def _write(self, item) -> dict[str, float] | None:
        if item is None:
            return None
        step, values, rates = item
        numbers = {name: value.item() for name, value in values.items()}  # waits for the step
        now = time.perf_counter()
        seconds, self.ended = now - self.ended, now
        numbers |= {"seconds": seconds} | rates(seconds)
        for writer in self.writers:
            writer.write(step, numbers)
        return numbers

    def close(self) -> None:
        self.flush()
        for writer in self.writers:
            writer.close()
