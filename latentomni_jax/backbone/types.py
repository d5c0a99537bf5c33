"""The array type of annotations: functions on arrays take device and host arrays alike."""

from __future__ import annotations

import jax
import numpy as np

Array = jax.Array | np.ndarray
