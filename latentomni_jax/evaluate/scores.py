"""Scores of questions, and whether two sides differ in them."""

from __future__ import annotations

import scipy.stats


def mcnemar(gained: int, lost: int) -> float:
    """The exact McNemar test, two-sided: p of the hypothesis that two sides are equally good.

    Args:
      gained, lost: questions that only the one, only the other side has right. Those that both or
        neither have right say nothing; where there are no others, p is 1.
    """
    return float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
