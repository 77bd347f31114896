"""What the figures mean, and how they are computed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The quality that a failed pick counts as in a geometric mean.
FAILED = 0.01


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


def pairwise_accuracy(truth: ArrayLike, guess: ArrayLike) -> float:
    """Share of pairs (i, j), i < j, of two rankings (n,) with (guess_i > guess_j) = (truth_i > truth_j).

    Ties count as "not greater", as in TenSet's code; 0.5 where there is no pair.
    """
    a, b = np.asarray(truth).ravel(), np.asarray(guess).ravel()
    n = len(a)
    if n < 2:
        return 0.5
    agree = 0
    for i in range(n - 1):
        agree += int(((b[i] > b[i + 1 :]) == (a[i] > a[i + 1 :])).sum())
    return agree / (n * (n - 1) // 2)


def auroc(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: chance that a positive (n,) scores above a negative (ties: half); NaN if one lacks."""
    positive = np.asarray(truth, dtype=bool).ravel()
    _, rank, counts = np.unique(np.asarray(score).ravel(), return_inverse=True, return_counts=True)
    # Mid-ranks of equal scores.
    middle = np.cumsum(counts) - (counts - 1) / 2
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        return float("nan")
    return float((middle[rank.ravel()][positive].sum() - p * (p + 1) / 2) / (p * n))


def validity_scores(truth: ArrayLike, p_valid: ArrayLike, threshold: float = 0.5) -> dict[str, float]:
    """Precision, recall and F1 of ``p_valid >= threshold`` (n,) against the truth (n,), and the AUROC.

    A ratio without a denominator is NaN: precision where nothing is called valid, recall where nothing is.
    """
    real = np.asarray(truth, dtype=bool).ravel()
    called = np.asarray(p_valid).ravel() >= threshold
    hits = int((real & called).sum())
    precision = hits / int(called.sum()) if called.any() else float("nan")
    recall = hits / int(real.sum()) if real.any() else float("nan")
    either = int(real.sum()) + int(called.sum())
    f1 = 2 * hits / either if either else float("nan")
    return {"precision": precision, "recall": recall, "f1": f1, "auroc": auroc(real, p_valid)}


def geometric_mean(values: ArrayLike) -> float:
    """Of positive values (n,); 0 if one is 0, NaN if there are none."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array):
        return float("nan")
    if (array <= 0).any():
        return 0.0
    return float(np.exp(np.log(array).mean()))


def pick_quality(best: float, picked: float | None) -> float:
    """T* / T(pick): 1 at the optimum, 0 where there is no pick or it is invalid (None or < 0)."""
    return best / picked if picked is not None and picked > 0 else 0.0


def top_k_quality(best: float, cycles: ArrayLike, k: int) -> float:
    """T* over the least T of the first k picks (n,) in their order, invalid ones (< 0) skipped; 0 if none is valid."""
    first = np.asarray(cycles).ravel()[:k]
    valid = first[first > 0]
    return best / float(valid.min()) if len(valid) else 0.0


def best_of_first(cycles: ArrayLike, guess: ArrayLike, k: int) -> float:
    """Least true cycles (n,) among the k candidates of the least guess (n,); NaN if there is none."""
    truth = np.asarray(cycles, dtype=np.float64).ravel()
    if not len(truth):
        return float("nan")
    return float(truth[np.argsort(np.asarray(guess).ravel(), kind="stable")[:k]].min())


def peak_score(cycles: ArrayLike, guess: ArrayLike, k: int) -> float:
    """TenSet's peak score@k of a task (its code's metric.py): the mean over j = 1..k of (best throughput among the
    first j candidates by the guess) / (best throughput of all n), throughput being 1 / cycles (n,). NaN without any.

    TenSet averages it over tasks weighted by their numbers of candidates. At k = 1 it is min l / l(first).
    """
    truth = np.asarray(cycles, dtype=np.float64).ravel()
    if not len(truth):
        return float("nan")
    first = truth[np.argsort(np.asarray(guess).ravel(), kind="stable")[:k]]
    return float((truth.min() / np.minimum.accumulate(first)).mean())


def network_quality(best: ArrayLike, picked: ArrayLike, counts: ArrayLike) -> float:
    """Sum of T* x count over the sum of T(pick) x count of a model's tasks (n,).

    With the best latency among a task's candidates for T*, and the least among the first k by the guess
    (`best_of_first`) for T(pick), it is the top-k score of the TenSet paper and of TLP (its tlp_eval.py):
    sum_t w_t min_i l_i / sum_t w_t min_(i in the first k) l_i, summed before dividing.
    """
    weights = np.asarray(counts, dtype=np.float64)
    return float((np.asarray(best) * weights).sum() / (np.asarray(picked) * weights).sum())


def summarise_quality(qualities: ArrayLike) -> dict[str, float]:
    """Geometric mean, worst and share of at least 95 % of pick qualities (n,)."""
    array = np.asarray(qualities, dtype=np.float64).ravel()
    if not len(array):
        return {"geomean": float("nan"), "worst": float("nan"), "share_95": float("nan")}
    return {"geomean": geometric_mean(array), "worst": float(array.min()), "share_95": float((array >= 0.95).mean())}


def summarise_picks(
    qualities: ArrayLike, cycles: ArrayLike, predicted: ArrayLike, spread: ArrayLike
) -> dict[str, float | int]:
    """Figures of picks (n,): those of `summarise_quality`, and how well their latencies are predicted.

    Args:
        qualities: T* / T; 0 for a failed pick, which counts as `FAILED` in the geometric mean.
        cycles, predicted, spread: true and predicted cycles, and the standard deviation of log T; cycles of failed
            picks are below 1.

    Returns:
        ``tasks``, ``geomean``, ``worst``, ``share_95``, ``failures``; of the picks that did not fail ``mape``, the mean
        of abs(predicted - T) / T, and ``within_1``, ``within_2``, the shares with abs(log T - log predicted) of at most
        so many spreads. Of nothing: NaN.
    """
    quality, truth, guess, width = (
        np.asarray(column, dtype=np.float64).ravel() for column in (qualities, cycles, predicted, spread)
    )
    there = truth >= 1
    found: dict[str, float | int] = {"tasks": len(quality)}
    found |= summarise_quality(quality) | {"failures": int((~there).sum())}
    found["geomean"] = geometric_mean(np.where(there, quality, FAILED))
    truth, guess, width = truth[there], guess[there], width[there]
    if not len(truth):
        return found | dict.fromkeys(("mape", "within_1", "within_2"), float("nan"))
    away = np.abs(np.log(truth) - np.log(guess))
    shares = {f"within_{k}": float((away <= k * width).mean()) for k in (1, 2)}
    return found | {"mape": float((np.abs(guess - truth) / truth).mean())} | shares


def invalid_rate(trials: ArrayLike) -> float:
    """Invalid trials over trials; ``trials`` (n,) is true where one was invalid. NaN without trials."""
    array = np.asarray(trials, dtype=bool).ravel()
    return float(array.mean()) if len(array) else float("nan")


def reliability(truth: ArrayLike, p_valid: ArrayLike, bins: int = 10) -> dict[str, list[float]]:
    """How often what is called valid with probability p is: of each of ``bins`` equal ranges of ``p_valid`` (n,) that
    is not empty its mean ``predicted`` probability, the ``observed`` share of the truth (n,), and its ``count``.
    """
    real, called = np.asarray(truth, dtype=np.float64).ravel(), np.asarray(p_valid, dtype=np.float64).ravel()
    place = np.clip((called * bins).astype(np.int64), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    kept = counts > 0
    means = [np.bincount(place, weights=column, minlength=bins)[kept] / counts[kept] for column in (called, real)]
    return {"predicted": means[0].tolist(), "observed": means[1].tolist(), "count": counts[kept].tolist()}


def calibration_error(truth: ArrayLike, p_valid: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: the mean over `reliability`'s ranges of |predicted - observed|, weighted by their
    counts; NaN of nothing.
    """
    found = reliability(truth, p_valid, bins)
    if not found["count"]:
        return float("nan")
    gaps = np.abs(np.array(found["predicted"]) - np.array(found["observed"]))
    return float(np.average(gaps, weights=found["count"]))
