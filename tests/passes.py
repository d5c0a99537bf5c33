"""Passes of a thinker, each as one program: run as it is, every operation is compiled by itself."""

import functools
from typing import Any

import jax

from latentomni_jax.backbone.thinker import Thinker


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(thinker: Thinker, params: Any, *args: Any, method: str, **kwargs: Any) -> Any:
    """What `thinker.apply` returns."""
    return thinker.apply({"params": params}, *args, method=method, **kwargs)
