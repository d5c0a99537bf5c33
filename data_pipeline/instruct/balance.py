"""How many questions of each category are kept, and which."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

from latentomni_jax.layout import InputError


def caps(counts: Mapping[str, int], ratio: float, least: int = 0) -> dict[str, int]:
    """How many of each category are kept, so that as many as can be are kept.

    Of the categories that count none vanishes, and sorted by what is kept, of two neighbours the
    larger has at most `ratio` times the smaller. From the rarest on, each keeps what it has, up to
    `ratio` times what the one before it keeps. Nothing allowed keeps more in total: its smallest,
    second smallest, ... are at most these, one by one.

    Args:
      counts: of each category; 0 is allowed.
      ratio: at least 1, taken as the decimal number that it is written as; 0 for no limit.
      least: a category with fewer is left out.

    Raises:
      InputError: ratio is no such number.
    """
    if not (ratio == 0 or 1 <= ratio < math.inf):
        raise InputError(f"ratio should be 0 or at least 1, got {ratio}")
    exact = Fraction(str(ratio))
    kept, before = dict.fromkeys(counts, 0), 0
    for count, name in sorted((count, name) for name, count in counts.items()):
        if count >= max(least, 1):
            kept[name] = min(count, math.floor(exact * before)) if exact and before else count
            before = kept[name]
    return kept


def choose(ids: Iterable[str], cap: int, seed: int) -> set[str]:
    """The `cap` ids that come first by `rank`, or all; in whatever order they are given."""
    return set(heapq.nsmallest(cap, set(ids), key=lambda id: (rank(seed, id), id)))


def rank(seed: int, id: str) -> int:
    """Place of a sample among those of its category: 64 bits of a hash, the same everywhere."""
    data = f"{seed}:{id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
