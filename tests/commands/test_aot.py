"""`latentomni aot`: programs are compiled for chips that are not there, or refused with reasons."""

import json

import pytest

CONFIG = "configs/qwen2_5_omni_{}.py"
GIB = 1 << 30


def aot(latentomni, size, *words):
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    return latentomni("aot", "--config", CONFIG.format(size), *words)


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology", "v5e-32"], "CHIP:LAYOUT"),
        (["--topology", "v5e:5x5"], "4x8"),
        (["--topology", "v5e:4x8", "--tokens", "99"], "4096, 8192, 16384, 24576"),
        (["--topology", "v5e:16x16"], "nearest: --set batch_size=256 --set accumulate=1"),
        (["--topology", "2*v5e:4x4"], "let mesh.data be 2"),
        (["--topology", "v5e:4x8", "--set", "model.preset=7b"], "qwen2_5_omni_7b"),
    ],
)
def test_what_does_not_go_together_is_one_line(latentomni, words, said):
    ran = aot(latentomni, "7b", "--program", "train", *words)
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err
