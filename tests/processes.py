"""What tests that start processes of their own share."""

from __future__ import annotations

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def environment(devices: int | None = None) -> dict[str, str]:
    """Variables of a process that computes on CPU, which pretends to have so many devices.

    How many there are has to be said before JAX starts, hence in a process of its own. A device
    that waits in a collective keeps one of XLA's threads, and may wait in two at a time: with one
    thread a device (the default) they can all be waiting for work that has no thread. XLA makes
    as many as `NPROC` says.
    """
    changes = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if devices is not None:
        flags = os.environ.get("XLA_FLAGS", "")
        changes["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
        changes["NPROC"] = str(4 * devices)
    return os.environ | changes
