"""What chips send each other in a compiled program, read from its text."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from latentomni_jax.pod.chips import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "token": 0,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations|"
    r"true_computation|false_computation|async_execution_thread)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
      kind: one of `KINDS`. axes: of the mesh, over which its chips differ.
      size: bytes of the whole array on one chip. count: times a call of the program runs it.
      received: bytes that a chip receives each time.
      seconds: that they take at the published speed of links, each time.
      where: of the source, as JAX names it.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    count: int
    received: int
    seconds: float
    where: str


def read_collectives(
    text: str, mesh: Mesh, topology: Topology, open_loops: int | None = None
) -> list[Collective]:
    """The collectives of a compiled program's text (`compiled.as_text()`, or a dump).

    A loop's body counts as often as it runs. A collective that computation goes on beside is
    written three times, where it starts, beside the computation and where it ends: it counts once.
    Between slices a collective is the runtime's: the text has that a chip sends and receives.

    Args:
      open_loops: how often to count the body of a loop whose end depends on data.

    Raises:
      ValueError: text that is not understood; without `open_loops`, a collective in such a loop.
    """
    computations, entry = _parse(text)
    times = _times(computations, entry, open_loops)
    devices = list(mesh.devices.flat)
    found = []
    for name, lines in computations.items():
        count = times[name]
        if name.startswith("async_collective_fusion") or any(
            "AsyncCollectiveDone" in line.rest for line in lines
        ):
            continue
        for line in lines:
            between = _between_slices(line)
            kind = between or line.op.removesuffix("-start")
            if kind not in KINDS or count == 0 or line.op.endswith("-done"):
                continue
            if count is None:
                raise ValueError(f"{name}: a {kind} in a loop of unknown length")
            if "all-reduce-scatter" in name:
                kind = "reduce-scatter"  # libtpu's form of it: an all-reduce and a slice, fused
            if between:
                group = _one_of_each_slice(devices)
            else:
                group = max(_groups(line.rest, len(devices)), key=len)
            if len(group) < 2:
                continue
            n = len(group)
            size = _size(line, n)
            share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
            received = round(size * share)
            where = re.search(r'op_name="([^"]*)"', line.rest)
            found.append(
                Collective(
                    kind,
                    _axes(group, mesh),
                    size,
                    count,
                    received,
                    received / topology.speed([devices[i] for i in group]),
                    where.group(1) if where else "",
                )
            )
    return found


def _between_slices(line: _Line) -> str | None:
    """The kind of a collective between slices, of which the text has what is received."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
    return found.group(1).lower().replace("_", "-") if found and line.op == "recv" else None


def _one_of_each_slice(devices: list[Any]) -> list[int]:
    """Numbers of the first chip and of those at its place in the other slices."""
    return [i for i, device in enumerate(devices) if device.coords == devices[0].coords]


@dataclasses.dataclass(frozen=True)
class _Line:
    name: str
    shape: str
    op: str
    rest: str


def _parse(text: str) -> tuple[dict[str, list[_Line]], str]:
    computations: dict[str, list[_Line]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        if lines is None:
            if found := _COMPUTATION.match(line):
                lines = computations[found.group(2)] = []
                entry = found.group(2) if found.group(1) else entry
        elif line.rstrip() == "}":  # a kernel's metadata may have a line that begins so
            lines = None
        elif found := _INSTRUCTION.match(line):
            lines.append(_Line(*found.groups()))
    if not entry:
        raise ValueError("not the text of a compiled program: it has no ENTRY")
    return computations, entry


def _times(
    computations: dict[str, list[_Line]], entry: str, open_loops: int | None
) -> dict[str, int | None]:
    """How often a call of the program runs each computation; None where that is not known."""
    times: dict[str, int | None] = {name: 0 for name in computations}
    callers: dict[str, int] = collections.Counter()
    calls = {
        name: list(_calls(lines, computations, open_loops)) for name, lines in computations.items()
    }
    for made in calls.values():
        callers.update(callee for callee, _ in made)
    times[entry] = 1
    ready = [entry, *(name for name in computations if not callers[name] and name != entry)]
    while ready:  # callers before those whom they call
        name = ready.pop()
        for callee, factor in calls[name]:
            own, before = times[name], times[callee]
            if own == 0:
                pass
            elif own is None or factor is None or before is None:
                times[callee] = None
            else:
                times[callee] = before + own * factor
            callers[callee] -= 1
            if not callers[callee]:
                ready.append(callee)
    return times


def _calls(
    lines: list[_Line], computations, open_loops: int | None
) -> Iterator[tuple[str, int | None]]:
    for line in lines:
        factor = 1
        if line.op == "while" and (factor := _trips(line, computations)) is None:
            factor = open_loops
        for names in _CALLED.findall(line.rest):
            for name in re.findall(r"%([\w.\-]+)", names):
                if name in computations:
                    yield name, factor


def _trips(line: _Line, computations) -> int | None:
    """How often a loop runs: told by the compiler, or the number in its condition."""
    if found := re.search(r'known_trip_count[":{\s]+n[":\s]+(\d+)', line.rest):
        return int(found.group(1))
    found = re.search(r"condition=%([\w.\-]+), body=%([\w.\-]+)", line.rest)
    if not found:
        return None
    lines, body = (computations.get(name, []) for name in found.groups())
    # A scan's: a counter, from 0, is less than a constant. Anything more is a condition on data.
    simple = {inner.op for inner in lines} <= {
        "constant",
        "parameter",
        "get-tuple-element",
        "compare",
    }
    numbers = _constants(lines)
    for inner in lines:
        if simple and inner.op == "compare" and "direction=LT" in inner.rest:
            counter, limit = _operands(inner)
            place = next((one.rest for one in lines if one.name == counter), "")
            step = _step(body, re.search(r"index=(\d+)", place))
            return -(-numbers[limit] // step) if step and limit in numbers else None
    return None


def _step(body: list[_Line], place: re.Match | None) -> int | None:
    """What a loop adds to its counter; a loop that was unrolled adds more than one."""
    if not place or not body or body[-1].op != "tuple":
        return None
    counter = _operands(body[-1])[int(place.group(1))]
    numbers = _constants(body)
    for inner in body:
        if inner.name == counter and inner.op == "add":
            return sum(numbers.get(name, 0) for name in _operands(inner))
    return None


def _constants(lines: list[_Line]) -> dict[str, int]:
    """Whole numbers of a computation, and copies of them, by name."""
    numbers: dict[str, int] = {}
    for inner in lines:
        if inner.op == "constant" and inner.shape.startswith(("s32[]", "u32[]")):
            if found := re.match(r"(\d+)\)", inner.rest):
                numbers[inner.name] = int(found.group(1))
        elif inner.op == "copy" and (source := _operands(inner)[0]) in numbers:
            numbers[inner.name] = numbers[source]
    return numbers


def _operands(line: _Line) -> list[str]:
    return re.findall(r"%([\w.\-]+)", line.rest.partition(")")[0])


def _size(line: _Line, chips: int) -> int:
    """Bytes of the whole array: what is gathered, or what is reduced or exchanged."""
    arrays = [_bytes(*array) for array in _ARRAY.findall(line.shape)]
    if line.op == "collective-permute-start":
        return arrays[0]  # then its copy, and two flags
    if line.op in ("all-gather-start", "reduce-scatter-start"):
        return max(arrays)  # a chip's part and the whole
    if line.op == "reduce-scatter":
        return chips * sum(arrays)  # of which each chip is left with a part
    if line.op == "recv":
        return arrays[0]  # then a context
    return sum(arrays)


def _bytes(dtype: str, dims: str) -> int:
    if dtype not in _BITS:
        raise ValueError(f"type {dtype!r} of unknown size")
    return math.prod(map(int, filter(None, dims.split(",")))) * _BITS[dtype] // 8


def _groups(rest: str, count: int) -> list[list[int]]:
    """Numbers of the devices that talk to each other, in any of the three notations."""
    if found := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", rest):
        pairs = re.findall(r"\{(\d+),(\d+)\}", found.group(1))
        return [sorted({int(a), int(b)}) for a, b in pairs]
    if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", rest):
        return [[int(i) for i in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", found.group(1))]
    if re.search(r"replica_groups=\{\}", rest):
        return [list(range(count))]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = (
            [int(n) for n in part.split(",")] if part else None for part in found.groups()
        )
        numbers = np.arange(count).reshape(dims)
        return (numbers if order is None else numbers.transpose(order)).reshape(shape).tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        names = re.findall(r"'(\w+)'=(\d+)", found.group(1))
        chosen = re.findall(r"'(\w+)'", found.group(2))
        order = [name for name, _ in names]
        numbers = np.arange(count).reshape([int(size) for _, size in names])
        inner = [order.index(name) for name in chosen]
        outer = [i for i in range(len(order)) if i not in inner]
        size = math.prod(numbers.shape[i] for i in inner)
        return numbers.transpose(outer + inner).reshape(-1, size).tolist()
    raise ValueError(f"groups of a collective are not understood: {rest[:300]}")


def _axes(group: list[int], mesh: Mesh) -> tuple[str, ...]:
    """Axes of the mesh along which the devices of a group differ."""
    places = np.unravel_index(np.array(group), mesh.devices.shape)
    return tuple(
        name for name, place in zip(mesh.axis_names, places, strict=True) if len(set(place)) > 1
    )
