"""The search over ways to train tries what can be, in an order that wastes no compilation."""

import pytest

from latentomni_jax.pod import search as searching
from latentomni_jax.pod.certify import Certificate, Memory
from latentomni_jax.pod.chips import GIB, Topology
from latentomni_jax.pod.plans import Plans

CONFIG = "configs/qwen2_5_omni_7b.py"


def certificate(peak, compute_s=1.0, recompute_s=0.0, network_s=0.0):
    memory = Memory(0, 0, int(peak))
    return Certificate(
        program="train", what="", topology="v6e:4x4", mesh={}, hbm=32 * GIB, memory=memory,
        needed=None, beside=0, flops=0.0, traffic=0.0, collectives=(), compile_s=0.0, quick=True,
        compute_s=compute_s, recompute_s=recompute_s, memory_s=0.1, network_s=network_s,
    )  # fmt: skip


@pytest.mark.tpu_compile
def test_each_policy_has_the_fewest_micro_batches_that_fit(monkeypatch):
    """In a world where a row costs so much memory under each policy, and `none` never fits."""
    pytest.importorskip("libtpu", reason="describing a TPU topology needs libtpu")
    a_row = {"full": 4 * GIB, "dots": 16 * GIB, "none": 64 * GIB}

    def compiled(_name, run, mesh, _topology, *, quick):
        assert quick and mesh.size == 16
        raw = run.raw
        rows = raw.batch_size / raw.accumulate / (mesh.shape["data"] * mesh.shape["fsdp"])
        again = 0.3 if raw.model.remat == "full" else 0.0
        found = certificate(
            rows * a_row[raw.model.remat] / mesh.shape["tensor"],
            recompute_s=again, network_s=0.1 * raw.accumulate * mesh.shape["tensor"],
        )  # fmt: skip
        tried.append((mesh.shape["tensor"], raw.model.remat, raw.accumulate, found.fits))
        return found

    tried = []
    monkeypatch.setattr(searching, "certify", compiled)
    monkeypatch.setattr(
        Plans, "program", lambda self, name, tokens: (_mesh(self), lambda: self.run)
    )
    plans = Plans.load(CONFIG, [], Topology.parse("v6e:4x4"))
    found = list(searching.search(plans, 8192))
    # 96 rows over 16, 8 and 4 replicas are 6, 12 and 24 rows on each, cut into 1, 2, 3, ... parts.
    assert tried[:7] == [
        (1, "full", 1, True),
        (1, "dots", 1, False), (1, "dots", 2, False), (1, "dots", 3, False), (1, "dots", 6, True),
        (1, "none", 1, False), (1, "none", 2, False),
    ]  # fmt: skip
    assert {tensor for tensor, *_ in tried} == {1, 2, 4}
    best = min((one for one in found if one.certificate.fits), key=lambda one: one.seconds)
    assert best.settings[-2:] == ("model.remat=full", "accumulate=1")


def _mesh(plans):
    return plans.topology.mesh(**plans.run.raw.mesh.to_dict())
