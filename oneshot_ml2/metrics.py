"""What the figures mean, and how they are computed (design, section 5)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _tied_pairs(keys: NDArray[np.int64]) -> int:
    """Pairs of equal keys (n,)."""
    counts = np.unique(keys, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(ranks: NDArray[np.int64]) -> int:
    """Pairs i < j with ranks[i] > ranks[j]: each is told apart by the highest bit in which the two differ."""
    total = 0
    for bit in range(int(ranks.max(initial=0)).bit_length()):
        prefix = ranks >> (bit + 1)
        order = np.argsort(prefix, kind="stable")
        prefix, ones = prefix[order], (ranks[order] >> bit) & 1
        before = np.cumsum(ones) - ones
        first = np.searchsorted(prefix, prefix, side="left")
        total += int((before - before[first])[ones == 0].sum())
    return total


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b of two rankings (n,), in O(n log^2 n); NaN if one of them has no two different values.

    Raises:
        ValueError: the two differ in length.
    """
    first = np.unique(np.asarray(a).ravel(), return_inverse=True)[1].ravel().astype(np.int64)
    second = np.unique(np.asarray(b).ravel(), return_inverse=True)[1].ravel().astype(np.int64)
    n = len(first)
    if n != len(second):
        raise ValueError(f"rankings of {n} and {len(second)} values")
    pairs = n * (n - 1) // 2
    ties_a, ties_b, ties_both = _tied_pairs(first), _tied_pairs(second), _tied_pairs(first * max(n, 1) + second)
    if pairs in (ties_a, ties_b):
        return float("nan")
    discordant = _inversions(second[np.lexsort((second, first))])
    concordant = pairs - ties_a - ties_b + ties_both - discordant
    return (concordant - discordant) / math.sqrt((pairs - ties_a) * (pairs - ties_b))
