"""Which mesh, remat policy and number of micro-batches trains fastest in a topology's memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from latentomni_jax.pod.certify import Certificate, certify
from latentomni_jax.pod.plans import Plans
from latentomni_jax.train.config import apply, resolve

_REMATS = ("full", "dots", "none")  # each keeps more than the one before
_TENSORS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to train. Attributes: settings: that make it, for `--set`."""

    settings: tuple[str, ...]
    certificate: Certificate

    @property
    def seconds(self) -> float:
        """Of a step at the published speeds: what a chip computes again included, and what chips
        send each other not overlapped."""
        found = self.certificate
        alone = max(found.compute_s + found.recompute_s, found.memory_s)
        return alone + (math.inf if found.network_s is None else found.network_s)


def search(plans: Plans, tokens: int | None = None) -> Iterator[Candidate]:
    """Compiles candidates, quickly; batch and shapes stay.

    Each tensor axis that layers divide over and each remat policy is tried with the fewest
    micro-batches that fit. Where a policy fits with none, those that keep more are not tried.
    Weights are cut over all chips of a slice (fsdp), slices lie along `data`.

    Args:
      tokens: of the shape to train on; None is the longest.
    """
    for tensor in _TENSORS:
        if not plans.takes(tensor):
            continue
        for remat in _REMATS:
            fits = False
            for candidate in _fewest_parts(plans, tensor, remat, tokens):
                yield candidate
                fits = candidate.certificate.fits
            if not fits:
                break


def _fewest_parts(plans: Plans, tensor: int, remat: str, tokens: int | None) -> Iterator[Candidate]:
    """With more and more micro-batches until one fits."""
    raw = plans.run.raw
    replicas = plans.topology.size // tensor
    for parts in range(1, raw.batch_size // replicas + 1):
        if raw.batch_size % (parts * replicas):
            continue
        settings = (
            f"mesh.data={plans.topology.slices}",
            "mesh.fsdp=-1",
            f"mesh.tensor={tensor}",
            f"model.remat={remat}",
            f"accumulate={parts}",
        )
        changed = resolve(apply(raw.copy_and_resolve_references(), settings))
        mesh, trace = dataclasses.replace(plans, run=changed).program("train", tokens=tokens)
        found = certify("train", trace(), mesh, plans.topology, quick=True)
        yield Candidate(settings, found)
        if found.fits:
            return
