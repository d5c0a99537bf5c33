"""What tests that start processes of their own share."""

from __future__ import annotations

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def environment(devices: int | None = None) -> dict[str, str]:
    """Variables of a process that computes on CPU, which pretends to have so many devices.

    How many there are has to be said before JAX starts, hence in a process of its own.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if devices is not None:
        flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
