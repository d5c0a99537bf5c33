"""What the kernels of `pallas_kernels` move, beside XLA's own fusion of the same op.

    python benchmarks/kernels.py [--ops ospe info_nce] [--chips v5e v6e v5p] [--dtypes float32]

Both are compiled for the chip, forward and backward; nothing runs, and no TPU is needed (libtpu
is). The table shows what the compiler says of each program:

- bytes: `cost_analysis()["bytes accessed"]`. It counts an operand of an XLA operation once, however
  often the operation reads it, and also what stays in VMEM between two operations. For a kernel it
  is the kernel's own estimate: its blocks times how often each is fetched, which for InfoNCE means
  the keys once per row of tiles.
- ideal: those bytes over one read of every input and one write of every result; OSPE is two
  programs, forward and backward on its own, InfoNCE one, losses with all gradients.
- temp: `memory_analysis()`, the memory beside inputs and results.
- GFLOP: of `cost_analysis()`; the InfoNCE kernel makes the logits three times.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from pallas_kernels.info_nce.api import info_nce
from pallas_kernels.ospe.api import ospe

CHIPS = {"v5e": "v5e:1x1", "v6e": "v6e:1x1", "v5p": "v5p:1x1x1"}
# 3 blocks of 40 latents in each row of a batch.
OSPE_SHAPES = {
    "7B, one row": (120, 3584),
    "7B, 8 rows": (960, 3584),
    "3B, one row": (120, 2048),
    "3B, 8 rows": (960, 2048),
}
# 3 blocks of 8 moments in each row of a batch, and batches that share their negatives.
INFO_NCE_SHAPES = {
    "7B, one row": (24, 3584),
    "7B, 4 rows": (96, 3584),
    "7B, 4096 moments": (4096, 3584),
    "7B, 8192 moments": (8192, 3584),
    "7B, 16384 moments": (16384, 3584),
    "7B, 32768 moments": (32768, 3584),
}


def ospe_programs(shape, dtype, implementation):
    """(programs, shapes and types of their inputs, ideal bytes in all)."""

    def forward(h, seconds):
        return ospe(h, seconds, 1e6, implementation=implementation)

    def backward(bar, seconds):
        return jax.vjp(lambda h: forward(h, seconds), bar)[1](bar)[0]

    one_way = 2 * int(np.prod(shape)) * jnp.dtype(dtype).itemsize + 4 * shape[0]
    return (forward, backward), [(shape, dtype), (shape[:1], "float32")], 2 * one_way


def info_nce_programs(shape, dtype, implementation):
    """The same for the losses and their gradients."""

    def step(q, k, groups, scale):
        def loss(q, k, scale):
            options = {"implementation": implementation, "platform": "tpu"}
            rows, columns = info_nce(q, k, groups, scale, **options)
            return jnp.sum(rows + columns)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, scale)

    matrix, rows = (shape, dtype), shape[:1]
    ideal = 4 * int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    return (step,), [matrix, matrix, (rows, "int32"), ((), "float32")], ideal


OPS: dict[str, tuple[Callable, dict]] = {
    "ospe": (ospe_programs, OSPE_SHAPES),
    "info_nce": (info_nce_programs, INFO_NCE_SHAPES),
}


def measure(programs, shapes, topology_name: str) -> dict[str, float]:
    """Bytes and operations of the compiled programs, summed, and the largest temporary memory."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name)
    chip = NamedSharding(Mesh(np.array(topology.devices), ("x",)), jax.P())
    inputs = [jax.ShapeDtypeStruct(*x, sharding=chip) for x in shapes]
    found: dict[str, float] = {"bytes": 0, "temp": 0, "flops": 0}
    for program in programs:
        compiled = jax.jit(program).lower(*inputs).compile()
        cost: Any = compiled.cost_analysis()
        found["bytes"] += cost["bytes accessed"]
        found["flops"] += cost["flops"]
        memory: Any = compiled.memory_analysis()
        found["temp"] = max(found["temp"], memory.temp_size_in_bytes)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=OPS)
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rows", nargs="+", type=int, help="only shapes with that many rows")
    args = parser.parse_args()

    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")]
    print(f"{', '.join(versions)}; compiled, not run")
    heads = ("op", "rows", "D", "dtype", "chip", "by", "bytes", "ideal", "temp", "GFLOP", "compile")
    line = "{:9} {:>6} {:>5} {:9} {:4} {:10} {:>10} {:>6} {:>9} {:>9} {:>8}"
    print(line.format(*heads))
    wanted = [
        (op, shape)
        for op in args.ops
        for shape in OPS[op][1].values()
        if not args.rows or shape[0] in args.rows
    ]
    for (op, shape), dtype, chip, by in itertools.product(
        wanted, args.dtypes, args.chips, ("reference", "tpu")
    ):
        programs, inputs, ideal = OPS[op][0](shape, dtype, by)
        start = time.perf_counter()
        found = measure(programs, inputs, CHIPS[chip])
        numbers = (
            f"{found['bytes'] / 2**20:.1f} M",
            f"{found['bytes'] / ideal:.2f}",
            f"{found['temp'] / 2**20:.1f} M",
            f"{found['flops'] / 1e9:.1f}",
            f"{time.perf_counter() - start:.0f} s",
        )
        print(line.format(op, *shape, dtype, chip, by, *numbers), flush=True)


if __name__ == "__main__":
    main()
