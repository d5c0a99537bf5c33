"""Compiles a program for a topology, and says whether it fits and what will bound it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from latentomni_jax.pod.chips import GIB, Topology
from latentomni_jax.pod.collectives import Collective, read_collectives
from latentomni_jax.pod.programs import Traced

_HEADROOM = 0.05  # of a chip's memory that should stay free: code, fragments
# Quickly compiled the same step wants 3.5 % less to 13 % more (docs/pods.md).
_CLOSE = 0.2  # of a chip's memory, to which a quick verdict may be as near as it may be wrong


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip: of arguments, of temporaries, and the most at once."""

    arguments: int
    temporaries: int
    peak: int

    @classmethod
    def of(cls, compiled: Any) -> Memory:
        analysis = compiled.memory_analysis()
        return cls(
            analysis.argument_size_in_bytes,
            analysis.temp_size_in_bytes,
            analysis.peak_memory_in_bytes,
        )


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known of a program without running it.

    Attributes:
      program, what: its name and sizes. topology, mesh: what it is compiled for.
      memory: None where it does not fit. needed: bytes, as the compiler tells where it refuses.
      beside: bytes on a chip of what else stays there, see `programs.Traced`.
      flops: of a call, all chips. traffic: bytes between a chip and its memory.
      collectives: what chips send each other. unread: why that is not known; empty where it is.
      compile_s: seconds that compiling took. quick: it was compiled with little optimisation.
      compute_s, memory_s, network_s: seconds of a call at the published speeds, each alone;
        network_s is None where it is not known.
      recompute_s: of what is computed again, to keep less; not in compute_s.
    """

    program: str
    what: str
    topology: str
    mesh: dict[str, int]
    hbm: int
    memory: Memory | None
    needed: int | None
    beside: int
    flops: float
    traffic: float
    collectives: tuple[Collective, ...]
    compile_s: float
    quick: bool
    compute_s: float
    recompute_s: float
    memory_s: float
    network_s: float | None
    unread: str = ""

    @property
    def peak(self) -> int:
        """Bytes, of the program or of what was refused."""
        return self.memory.peak if self.memory else (self.needed or 0)

    @property
    def total(self) -> int:
        """Bytes on a chip: the program's at its peak, and what stays there beside it."""
        return self.peak + self.beside

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.total <= (1 - _HEADROOM) * self.hbm

    @property
    def is_clear(self) -> bool:
        """Whether the verdict can be relied on: that of a quick program cannot within `_CLOSE`."""
        far = self.peak > 0 and abs(self.total - self.hbm) > _CLOSE * self.hbm
        return far or not self.quick

    @property
    def bound(self) -> str:
        """Which of the three takes longest; "not known" where one is not."""
        if self.network_s is None:
            return "not known"
        times = {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "network": self.network_s,
        }
        return max(times, key=times.__getitem__)

    @property
    def verdict(self) -> str:
        if self.memory is None or self.total > self.hbm:
            return "does not fit"
        return "fits" if self.fits else f"fits with less than {_HEADROOM:.0%} to spare"

    def by_kind(self) -> list[dict[str, Any]]:
        """Collectives added up over kind and axes: runs and bytes received of a call, seconds."""
        sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0, 0.0])
        for one in self.collectives:
            total = sums[one.kind, "+".join(one.axes)]
            total[0] += one.count
            total[1] += one.count * one.received
            total[2] += one.count * one.seconds
        rows = [
            {"kind": kind, "axes": axes, "count": n, "received": size, "seconds": seconds}
            for (kind, axes), (n, size, seconds) in sums.items()
        ]
        return sorted(rows, key=lambda row: -row["seconds"])

    def to_json(self) -> dict[str, Any]:
        shown = dataclasses.asdict(self)
        return shown | {
            "collectives": self.by_kind(),
            "peak": self.peak,
            "total": self.total,
            "fits": self.fits,
            "bound": self.bound,
            "verdict": self.verdict,
            "is_clear": self.is_clear,
        }


def certify(
    program: str, traced: Traced, mesh: Mesh, topology: Topology, *, quick: bool = False
) -> Certificate:
    """Compiles; a program that is too large makes a certificate that says so.

    Args:
      quick: compile with little optimisation, which takes a fraction of the time. The partitioner
        is the same; the memory is that of a slightly other program. What breaks off so (libtpu
        0.0.52 does on some programs for one chip) is compiled as for a run.
    """
    started = time.monotonic()
    if quick:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return _certify(program, traced, mesh, topology, started, quick=True)
    return _certify(program, traced, mesh, topology, started, quick=False)


def _certify(
    program: str, traced: Traced, mesh: Mesh, topology: Topology, started: float, *, quick: bool
) -> Certificate:
    memory, needed, unread = None, None, "there is no program to read it from"
    collectives: tuple[Collective, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        # The text as the compiler writes it: reading it back from the compiled program fails
        # for some asynchronous operations.
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            with _optimization("O0" if quick else None):
                memory = Memory.of(traced.lowered.compile(compiler_options=dump))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or "hbm" not in str(error).lower():
                raise
            needed = _needed(str(error))
        else:
            text, unread = _dumped(folder), ""
            try:
                collectives = tuple(read_collectives(text, mesh, topology, traced.open_loops))
            except ValueError as error:  # minutes of compiling have still told the memory
                unread = str(error)
    chip = topology.chip
    return Certificate(
        program=program,
        what=traced.what,
        topology=str(topology),
        mesh=dict(mesh.shape),
        hbm=chip.memory,
        memory=memory,
        needed=needed,
        beside=int(traced.beside),
        flops=traced.flops,
        traffic=traced.traffic,
        collectives=collectives,
        compile_s=time.monotonic() - started,
        quick=quick,
        compute_s=traced.flops / topology.size / chip.flops,
        recompute_s=traced.recomputed / topology.size / chip.flops,
        memory_s=traced.traffic / chip.bandwidth,
        network_s=None if unread else sum(one.count * one.seconds for one in collectives),
        unread=unread,
    )


@contextlib.contextmanager
def _optimization(level: str | None) -> Iterator[None]:
    """JAX's optimisation level inside; None leaves it."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level or before)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _dumped(folder: str) -> str:
    (path,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
    return path.read_text(encoding="utf-8")


def _needed(message: str) -> int | None:
    """Bytes of "Used 21.35G of 15.75G hbm" or "temporaries (80.00G) exceeds available HBM"."""
    found = re.search(r"([\d.]+)([KMG])\)? (?:of|exceeds)", message)
    if found is None:
        return None
    return int(float(found.group(1)) * {"K": 1 << 10, "M": 1 << 20, "G": GIB}[found.group(2)])
