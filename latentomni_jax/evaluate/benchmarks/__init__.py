"""Benchmarks, each a module of this folder with a `BENCHMARK`; a new one is one more file."""

from __future__ import annotations

import importlib
import pkgutil

from latentomni_jax.evaluate.benchmarks.base import Benchmark
from latentomni_jax.layout import InputError


def _find() -> dict[str, Benchmark]:
    modules = (
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
    )
    found = [module.BENCHMARK for module in modules if hasattr(module, "BENCHMARK")]
    return {benchmark.name: benchmark for benchmark in found}


_BENCHMARKS = _find()
NAMES = tuple(_BENCHMARKS)


def get(name: str) -> Benchmark:
    """The benchmark of a name on the command line. Raises InputError, which lists the names."""
    if name not in _BENCHMARKS:
        raise InputError(f"no benchmark {name!r}; expected one of {', '.join(NAMES)}")
    return _BENCHMARKS[name]
