"""Types of annotations: functions on arrays take device and host arrays alike."""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np

Array = jax.Array | np.ndarray
# How the matrices of the decoder's layers and of the head are held: see `layers.Int8Dense`; None is
# in a floating-point width of their own.
Weights = Literal["int8"] | None
