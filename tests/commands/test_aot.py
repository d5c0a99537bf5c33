"""`latentomni aot`: programs are compiled for chips that are not there, or refused with reasons."""

import json
import shlex

import pytest

from latentomni_jax.commands.aot import render
from latentomni_jax.pod.certify import Certificate, Memory
from tests.processes import ROOT

CONFIG = "configs/qwen2_5_omni_{}.py"
GIB = 1 << 30


def aot(latentomni, size, *words):
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    return latentomni("aot", "--config", CONFIG.format(size), *words)


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_the_3b_decodes_on_one_chip_of_16_gib(latentomni):
    ran = aot(
        latentomni,
        "3b",
        "--topology",
        "v5e:1x1",
        "--program",
        "decode",
        "--prompt",
        "4096",
        "--full",
        "--json",
    )
    found = json.loads(ran.out)
    assert ran.code == 0 and found["fits"] and found["bound"] == "memory"
    assert found["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1} and not found["collectives"]
    assert found["peak"] == pytest.approx(6.64 * GIB, rel=0.05)  # measured on 2026-11-26
    # A position reads decoder and head once, in bf16, and the cache: 6.2 GB and 0.17 GB.
    assert found["traffic"] == pytest.approx(6.3e9, rel=0.05)
    attention = 4 * 36 * 16 * 128 * (4096 + 384)  # layers, heads, their width; scores and values
    assert found["flops"] == pytest.approx(2 * 3.09e9 + attention, rel=0.01)


@pytest.mark.tpu_compile
def test_the_7b_decodes_in_int8_on_one_chip_of_16_gib(latentomni):
    words = ("--topology", "v5e:1x1", "--program", "decode", "--prompt", "4096", "--json")
    found = json.loads(aot(latentomni, "7b", *words, "--weights", "int8", "--full").out)
    assert found["fits"] and found["verdict"] == "fits" and found["bound"] == "memory"
    assert found["peak"] == pytest.approx(8.09 * GIB, rel=0.05)  # measured on 2026-11-26
    # No weight is widened in memory: what there is beside the arguments is smaller than the head
    # alone would be in bf16 (1.01 GiB), and a layer's feed-forward (0.38 GiB).
    assert found["memory"]["temporaries"] < 0.3 * GIB
    # The encoders' weights stay on the chip, in bf16: 1.32 billion.
    assert found["beside"] == pytest.approx(2 * 1.32e9, rel=0.01)
    assert found["total"] == found["peak"] + found["beside"] < 0.7 * found["hbm"]
    # A position reads decoder and head once, a byte a weight, and the cache in bf16.
    layers = 28 * 3584 * (64 * 128 + 3 * 18_944)
    cache = 2 * 28 * 4 * 128 * (4096 + 384) * 2
    assert found["traffic"] == pytest.approx(layers + 3584 * 152_064 + cache, rel=0.01)


def test_what_stays_beside_a_program_is_counted_and_told():
    """By the verdict and by what is left: here a program that would fit alone."""
    sizes = {"arguments": 9 * GIB, "temporaries": 3 * GIB, "peak": 12 * GIB}
    fields = {
        "program": "decode", "what": "1 rows", "topology": "v5e:1x1", "mesh": {"data": 1},
        "hbm": 16 * GIB, "memory": Memory(**sizes), "needed": None, "flops": 1.0, "traffic": 1.0,
        "collectives": (), "compile_s": 1.0, "quick": False, "compute_s": 0.0,
        "recompute_s": 0.0, "memory_s": 1.0, "network_s": 0.0,
    }  # fmt: skip
    for beside, verdict, left in (
        (0, "fits", "4.00 left"),
        (3 * GIB, "fits", "1.00 left"),
        (4 * GIB, "fits with less than 5% to spare", "0.00 left"),
        (5 * GIB, "does not fit", "1.00 too much"),
    ):
        found = Certificate(**fields, beside=beside)
        text = render(found)
        assert found.verdict == verdict and f"verdict   {verdict} (" in text and left in text
        assert found.fits == (verdict == "fits")
        told = f"beside    {beside / GIB:.2f} GiB of other towers' weights; {12 + beside / GIB:.2f}"
        assert (told in text) == (beside > 0)
    # What was refused has no program to read the network from.
    fields |= {"memory": None, "needed": 20 * GIB, "network_s": None, "unread": "no program"}
    refused = Certificate(**fields, beside=0)
    assert "network not known (no program)" in render(refused)
    assert "20.00 GiB wanted" in render(refused) and refused.bound == "not known"


KEPT = json.loads((ROOT / "docs" / "pods.json").read_text())


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("command", "programs"),
    [
        (next(iter(KEPT)), ("decode",)),
        *(pytest.param(command, None, marks=pytest.mark.slow) for command in KEPT),
    ],
)
def test_the_table_is_what_the_compiler_says(latentomni, command, programs):
    """docs/pods.md is written from docs/pods.json by benchmarks/pods.py."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    kept = {one["program"]: one for one in KEPT[command]}
    for program in programs or kept:
        how = [] if kept[program]["quick"] else ["--full"]
        words = shlex.split(f"--config configs/{command} --json")
        ran = latentomni("aot", *words, "--program", program, *how)
        (found,) = map(json.loads, ran.out.splitlines())
        for name in ("peak", "beside", "flops", "traffic", "network_s"):
            assert found[name] == pytest.approx(kept[program][name], rel=0.05), (program, name)
        assert found["verdict"] == kept[program]["verdict"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology", "v5e-32"], "CHIP:LAYOUT"),
        (["--topology", "v5e:5x5"], "4x8"),
        (["--topology", "v5e:4x8", "--tokens", "99"], "4096, 8192, 16384, 24576"),
        (["--topology", "v5e:16x16"], "nearest: --set batch_size=256 --set accumulate=1"),
        (["--topology", "2*v5e:4x4"], "let mesh.data be 2"),
        (["--topology", "v5e:4x8", "--set", "model.preset=7b"], "qwen2_5_omni_7b"),
        (["--topology", "v5e:4x8", "--search", "--weights", "int8"], "for training"),
        (
            ["--topology", "v5e:4x8", "--weights", "int8"],
            "int8 weights do not train; give --program",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(latentomni, words, said):
    ran = aot(latentomni, "7b", "--program", "train", *words)
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err
