"""Several processes that compute as one: joining them, and noticing one that hangs."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable

import jax

from latentomni_jax.layout import InputError

HUNG = 70  # exit code of a process that gave up waiting for another


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process with the others; before JAX starts its devices.

    Args:
      coordinator: HOST:PORT of process 0; None where the platform tells all three (a TPU pod,
        Slurm, GKE).

    Raises:
      InputError: some of the three without the others, or numbers that do not fit.
    """
    given = (coordinator, processes, process)
    if all(one is None for one in given):
        jax.distributed.initialize()
        return
    if any(one is None for one in given):
        raise InputError("--coordinator, --processes and --process go together")
    assert processes is not None and process is not None
    if not 0 <= process < processes:
        raise InputError(f"process {process} of {processes}: they are numbered from 0")
    jax.distributed.initialize(coordinator, processes, process)


class Watchdog:
    """Ends this process, saying which one hangs, where steps stop coming.

    Every process keeps a small file in a directory that all of them see: its step, and when it was
    last alive. A step ends for all or for none, so who waits longer than `limit` reads the files: a
    process whose file is old is dead or stopped, one whose step is behind is stuck before it.

    Attributes:
      limit: seconds that a step may take, once one was taken. first: until the first step, which
        waits for the compiler.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        limit: float,
        *,
        first: float | None = None,
        say: Callable[[str], None] = print,
        leave: Callable[[int], None] = os._exit,
    ):
        self.directory, self.limit, self.first = directory, limit, first or 10 * limit
        self._say, self._leave = say, leave
        self._step, self._begun, self._since = -1, False, time.time()
        self._ended = threading.Event()
        directory.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join()

    def __call__(self, step: int) -> None:
        """A step has ended."""
        self._begun = self._step >= 0
        self._step, self._since = step, time.time()

    @property
    def _period(self) -> float:
        return min(self.limit / 4, 10.0)

    def _watch(self) -> None:
        while not self._ended.wait(self._period):
            self._write()
            allowed = self.limit if self._begun else self.first
            if time.time() - self._since > allowed:
                self._say(self._complaint(allowed))
                self._leave(HUNG)
                return

    def _write(self) -> None:
        path = self.directory / f"{jax.process_index()}.json"
        told = {"step": self._step, "alive": time.time(), "host": socket.gethostname()}
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(told), encoding="utf-8")
        partial.replace(path)  # never seen half written

    def _complaint(self, allowed: float) -> str:
        """Names the processes that are to blame."""
        now, silent, behind = time.time(), [], []
        for process in range(jax.process_count()):
            try:
                told = json.loads((self.directory / f"{process}.json").read_text("utf-8"))
            except (OSError, ValueError):
                silent.append(f"process {process} (never heard of)")
                continue
            name = f"process {process} on {told['host']}"
            if now - told["alive"] > 3 * self._period:
                silent.append(f"{name} (last alive {now - told['alive']:.0f} s ago)")
            elif told["step"] < self._step:
                behind.append(f"{name} (at step {told['step']})")
        blamed = silent or behind or ["no process in particular: all are alive, at the same step"]
        return (
            f"no step for {allowed:.0f} s after step {self._step}: {', '.join(blamed)}; "
            "this process ends, and the run can be started again"
        )
