"""What hosts need care with: memory where the host computes, and files that all of them see."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

# Of glibc's <malloc.h>: M_MMAP_MAX 0, so that large arrays come from the heap as well, and
# M_TRIM_THRESHOLD -1, so that what is freed stays there.
_SETTINGS = ((-4, 0), (-1, -1))


def keep_freed_memory() -> bool:
    """Makes a process that computes on CPU keep memory that it has freed, for its next step.

    XLA's temporaries of a step are freed at its end. What is larger than 32 MB goes back to the
    system, and the next step pays for every page of it again: 390,000 page faults a step at 100 M
    parameters, a tenth of its time (docs/performance.md). The process then stays as large as it
    ever was. Steps run in the thread that calls them, because only the main thread's heap has room
    for large arrays; call this there, and before JAX starts its first device.

    Returns:
      Whether it was done: only where JAX is set to compute on CPU alone (`JAX_PLATFORMS=cpu`), on
      Linux, with a C library that has these settings (glibc).
    """
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms != "cpu" or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not all([mallopt(*setting) for setting in _SETTINGS]):
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True


def first_process_first(name: str, make: Callable[[], T]) -> T:
    """`make()` on process 0, then on the others, which find what it has written.

    Args:
      name: the same on all processes, and of this call alone.
    """
    if jax.process_count() == 1:
        return make()
    made = make() if jax.process_index() == 0 else None
    multihost_utils.sync_global_devices(name)
    return make() if made is None else made


def wait_for_all(name: str, hours: float = 2.0) -> None:
    """Waits until every process is here.

    Where hosts may be minutes apart, as after compiling, a step's collectives are no place to wait:
    on CPU they give up after 30 s. This asks the service that the processes joined by.

    Args:
      name: the same on all processes, and of this call alone. hours: after which it is an error.
    """
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=round(hours * 3_600_000))


def run_together(name: str, function: Callable[..., Any], *args: Any, out_shardings: Any) -> Any:
    """The result of a jitted function, which no process runs before all have compiled it.

    One that finds it in a cache of compiled programs would be minutes ahead of the others.
    """
    program = jax.jit(function, out_shardings=out_shardings).lower(*args).compile()
    wait_for_all(f"compiled: {name}")
    return program(*args)


class StopSignal:
    """Notes SIGTERM and the first Ctrl-C, so that the loop can end after a step.

    With several processes the signal reaches them at different steps; there JAX's preemption
    service agrees on one (it catches SIGTERM itself).

    Args:
      first: what is done before the end, for the message.
      alone: this process ends by itself; default is where there are no others.
    """

    def __init__(self, first: str = "saving a checkpoint", *, alone: bool | None = None):
        self.first, self.asked = first, False
        self.alone = jax.process_count() == 1 if alone is None else alone
        self.previous: dict[int, Any] = {}

    def __enter__(self):
        if self.alone:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._ask)
        return self

    def is_asked(self, step: int) -> bool:
        """Whether the run is to end after this step."""
        if self.alone:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        _LOG.warning("signal %d: %s, then stopping", number, self.first)

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
