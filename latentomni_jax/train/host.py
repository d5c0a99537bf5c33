"""The host's memory, where the host is what computes."""

from __future__ import annotations

import ctypes
import sys

import jax

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
