"""How a program is compiled for its certificate, and what is said where that does not settle it."""

import pathlib
import types

import jax
import pytest

from latentomni_jax.commands.aot import render
from latentomni_jax.pod import certify as certifying
from latentomni_jax.pod.certify import certify
from latentomni_jax.pod.chips import GIB, Topology
from latentomni_jax.pod.programs import Traced

CHIP = 16 * GIB  # of v5e
REFUSED = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used {:.2f}G of 15.75G hbm."


class Lowered:
    """A program that wants so many GiB of a chip quickly compiled, and as for a run.

    Text instead of a number is what the compiler says as it breaks off.
    """

    def __init__(self, quick, full):
        self.wants, self.tried = {"O0": quick}, []
        self.full = full

    def compile(self, compiler_options):
        level = jax.config.jax_optimization_level
        self.tried.append("quick" if level == "O0" else "full")
        wants = self.wants.get(level, self.full)
        if isinstance(wants, str):
            raise jax.errors.JaxRuntimeError(wants)
        if wants * GIB > CHIP:
            raise jax.errors.JaxRuntimeError(REFUSED.format(wants))
        folder = pathlib.Path(compiler_options["xla_dump_to"])
        (folder / "program.after_optimizations.txt").write_text("a program")
        sizes = types.SimpleNamespace(
            argument_size_in_bytes=0,
            temp_size_in_bytes=0,
            peak_memory_in_bytes=int(wants * GIB),
        )
        return types.SimpleNamespace(memory_analysis=lambda: sizes)


def certificate(lowered, beside=0, **how):
    mesh = types.SimpleNamespace(shape={"fsdp": 4})
    traced = Traced(lowered, flops=1.0, traffic=1.0, what="a test", beside=beside)
    return certify("test", traced, mesh, Topology.parse("v5e:2x2"), **how)


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(certifying, "read_collectives", lambda *_: [])


@pytest.mark.parametrize(
    ("wants", "beside", "verdict", "is_clear"),
    [
        (12.0, 0, "fits", True),
        (20.0, 0, "does not fit", True),
        (13.0, 0, "fits", False),
        (8.0, 6, "fits", False),
        (15.5, 0, "fits with less than 5% to spare", False),
        (17.0, 0, "does not fit", False),
        # The compiler says that memory is short and not by how much.
        ("RESOURCE_EXHAUSTED: out of hbm", 0, "does not fit", False),
    ],
)
def test_a_quick_verdict_says_where_it_is_too_close(wants, beside, verdict, is_clear):
    lowered = Lowered(wants, wants)
    found = certificate(lowered, beside=beside * GIB, quick=True)
    assert (found.verdict, found.is_clear, lowered.tried) == (verdict, is_clear, ["quick"])
    assert ("--full tells for sure" in render(found)) == (not is_clear)
    assert found.to_json()["is_clear"] == is_clear
    certain = certificate(lowered, beside=beside * GIB)
    assert certain.is_clear and certain.verdict == verdict and not certain.quick
    assert "--full" not in render(certain)


def test_what_breaks_off_quickly_is_compiled_as_for_a_run():
    lowered = Lowered("UNIMPLEMENTED: DMA from hbm to hbm", 12.0)
    found = certificate(lowered, quick=True)
    assert lowered.tried == ["quick", "full"] and found.verdict == "fits" and not found.quick


def test_what_breaks_off_both_ways_is_no_verdict():
    lowered = Lowered("INTERNAL: first", "INTERNAL: second")
    with pytest.raises(jax.errors.JaxRuntimeError, match="second"):
        certificate(lowered, quick=True)


def test_a_text_that_is_not_understood_leaves_memory_and_verdict(monkeypatch):
    def fail(*_):
        raise ValueError("all-to-all.7: groups of a collective are not understood")

    monkeypatch.setattr(certifying, "read_collectives", fail)
    found = certificate(Lowered(8.0, 8.0))
    assert found.verdict == "fits" and found.memory.peak == 8 * GIB
    assert found.network_s is None and found.bound == "not known"
    assert "all-to-all.7" in found.to_json()["unread"] and not found.by_kind()
