"""Every metric against a plain loop over its definition, and the edges that its docstring names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_ml2.common import metrics

# Few distinct values, so that ties are common.
FEW = st.integers(-3, 3)
rankings = st.lists(st.tuples(FEW, FEW), max_size=25)
labelled = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])), max_size=25)
fast = settings(max_examples=200, deadline=None, derandomize=True)


def split(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def same(found: float, wanted: float) -> bool:
    return found == pytest.approx(wanted, rel=1e-12, abs=1e-12, nan_ok=True)


def plain_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Tau-b by Kendall's definition (1945): (C - D) / sqrt(pairs not tied in a x pairs not tied in b)."""
    score = untied_a = untied_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        step_a, step_b = (a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])
        score += step_a * step_b
        untied_a += step_a != 0
        untied_b += step_b != 0
    return score / math.sqrt(untied_a * untied_b) if untied_a and untied_b else math.nan


@fast
@given(rankings)
def test_kendall_tau_is_its_definition(pairs: list[tuple[float, float]]) -> None:
    a, b = split(pairs)
    assert same(metrics.kendall_tau(a, b), plain_tau(a, b))
    assert same(metrics.kendall_tau(b, a), plain_tau(a, b))


def test_kendall_tau_by_hand() -> None:
    assert metrics.kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert metrics.kendall_tau([1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1]) == -1.0
    # Pairs: 12 tied in a, 13 and 23 concordant.
    assert metrics.kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(2 * 3))
    # Five of six pairs concordant.
    assert metrics.kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [7, 7, 7])])
def test_kendall_tau_without_two_values_is_nan(a: list[int], b: list[int]) -> None:
    assert math.isnan(metrics.kendall_tau(a, b))


def test_kendall_tau_of_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="rankings of 2 and 3 values"):
        metrics.kendall_tau([1, 2], [1, 2, 3])


def test_kendall_tau_of_many_values() -> None:
    """Against all pairs at once, where inversions span many bits."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 500, 1500)
    b = a + rng.integers(0, 200, 1500)
    i, j = np.triu_indices(len(a), 1)
    step_a, step_b = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    wanted = (step_a * step_b).sum() / math.sqrt(np.count_nonzero(step_a) * np.count_nonzero(step_b))
    assert metrics.kendall_tau(a, b) == pytest.approx(wanted, rel=1e-12)


@fast
@given(rankings)
def test_pairwise_accuracy_is_its_definition(pairs: list[tuple[float, float]]) -> None:
    truth, guess = split(pairs)
    agree = [(guess[i] > guess[j]) == (truth[i] > truth[j]) for i, j in itertools.combinations(range(len(truth)), 2)]
    assert same(metrics.pairwise_accuracy(truth, guess), sum(agree) / len(agree) if agree else 0.5)


def test_pairwise_accuracy_by_hand() -> None:
    assert metrics.pairwise_accuracy([], []) == metrics.pairwise_accuracy([3], [1]) == 0.5
    assert metrics.pairwise_accuracy([3, 2, 1], [30, 20, 10]) == 1.0
    assert metrics.pairwise_accuracy([3, 2, 1], [10, 20, 30]) == 0.0
    # A tie is "not greater": right where the truth ascends, wrong where it descends.
    assert metrics.pairwise_accuracy([1, 2], [5, 5]) == 1.0
    assert metrics.pairwise_accuracy([2, 1], [5, 5]) == 0.0


def plain_auroc(truth: Sequence[float], score: Sequence[float]) -> float:
    above = [s for t, s in zip(truth, score, strict=True) if t]
    below = [s for t, s in zip(truth, score, strict=True) if not t]
    wins = sum((p > n) + (p == n) / 2 for p in above for n in below)
    return wins / (len(above) * len(below)) if above and below else math.nan


@fast
@given(labelled)
def test_auroc_and_validity_scores_are_their_definitions(pairs: list[tuple[bool, float]]) -> None:
    truth, score = split(pairs)
    assert same(metrics.auroc(truth, score), plain_auroc(truth, score))
    for threshold in (0.5, 0.7):
        found = metrics.validity_scores(truth, score, threshold)
        hits = sum(bool(t) and s >= threshold for t, s in pairs)
        called, real = sum(s >= threshold for s in score), sum(map(bool, truth))
        precision = hits / called if called else math.nan
        recall = hits / real if real else math.nan
        assert same(found["precision"], precision)
        assert same(found["recall"], recall)
        assert same(found["auroc"], plain_auroc(truth, score))
        if called and real:
            harmonic = 2 * precision * recall / (precision + recall) if hits else 0.0
            assert same(found["f1"], harmonic)
        else:
            assert same(found["f1"], 0.0 if called or real else math.nan)


def test_validity_scores_by_hand() -> None:
    scores = metrics.validity_scores([1, 1, 0, 0, 1], [0.9, 0.4, 0.5, 0.1, 0.6])
    assert scores == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "auroc": 5 / 6})
    assert metrics.auroc([0, 1], [0.3, 0.3]) == 0.5
    assert all(math.isnan(value) for value in metrics.validity_scores([], []).values())
    nothing_called = metrics.validity_scores([1, 0], [0.2, 0.1])
    assert math.isnan(nothing_called["precision"]) and nothing_called["recall"] == nothing_called["f1"] == 0.0
    nothing_valid = metrics.validity_scores([0, 0], [0.9, 0.1])
    assert math.isnan(nothing_valid["recall"]) and nothing_valid["precision"] == nothing_valid["f1"] == 0.0
    assert math.isnan(nothing_valid["auroc"])


@fast
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_geometric_mean_is_the_root_of_the_product(values: list[float]) -> None:
    assert metrics.geometric_mean(values) == pytest.approx(math.prod(values) ** (1 / len(values)), rel=1e-9)


def test_geometric_mean_at_the_edges() -> None:
    assert math.isnan(metrics.geometric_mean([]))
    assert metrics.geometric_mean([0.5, 0.0, 2.0]) == 0.0
    assert metrics.geometric_mean([1, 4]) == pytest.approx(2.0)
    # The product itself would overflow.
    assert metrics.geometric_mean(np.full(1000, 1e300)) == pytest.approx(1e300)


def test_pick_quality() -> None:
    assert metrics.pick_quality(100, 100) == 1.0
    assert metrics.pick_quality(100, 125) == 0.8
    assert metrics.pick_quality(100, None) == metrics.pick_quality(100, -1) == 0.0


@fast
@given(st.lists(st.one_of(st.just(-1), st.integers(100, 200)), max_size=12), st.integers(1, 14))
def test_top_k_quality_is_the_best_of_the_first_picks(cycles: list[int], k: int) -> None:
    wanted = max((metrics.pick_quality(100, value) for value in cycles[:k]), default=0.0)
    assert metrics.top_k_quality(100, cycles, k) == wanted
    assert metrics.top_k_quality(100, cycles, 1) <= wanted


def test_network_quality_weighs_by_count() -> None:
    assert metrics.network_quality([100, 10], [200, 10], [1, 10]) == pytest.approx((100 + 100) / (200 + 100))
    assert metrics.network_quality([7, 9], [7, 9], [3, 1]) == 1.0
    # Not the mean of the tasks' qualities: the long task counts for more.
    assert metrics.network_quality([1000, 1], [1000, 100], [1, 1]) == pytest.approx(1001 / 1100)


def test_summarise_quality() -> None:
    found = metrics.summarise_quality([1.0, 0.95, 0.64, 0.9499])
    wanted = (0.95 * 0.64 * 0.9499) ** 0.25
    assert found == pytest.approx({"geomean": wanted, "worst": 0.64, "share_95": 0.5})
    assert metrics.summarise_quality([1.0, 0.0]) == {"geomean": 0.0, "worst": 0.0, "share_95": 0.5}
    empty = metrics.summarise_quality([])
    assert set(empty) == {"geomean", "worst", "share_95"} and all(map(math.isnan, empty.values()))


def test_invalid_rate() -> None:
    assert metrics.invalid_rate([True, False, False, True]) == 0.5
    assert metrics.invalid_rate(np.array([0, 3, -1, 1, 0])) == pytest.approx(3 / 5)
    assert math.isnan(metrics.invalid_rate([]))


def test_shapes_are_flattened() -> None:
    a, b = np.arange(6), np.array([0, 2, 1, 3, 5, 4])
    for metric in (metrics.kendall_tau, metrics.pairwise_accuracy):
        assert metric(a.reshape(2, 3), b.reshape(2, 3)) == metric(a, b)


candidates = st.lists(st.tuples(st.integers(1, 9), FEW), min_size=1, max_size=12)


@fast
@given(candidates, st.integers(1, 6))
def test_scores_of_the_first_k_are_their_definitions(pairs: list[tuple[int, int]], k: int) -> None:
    cycles, guess = [a for a, _ in pairs], [b for _, b in pairs]
    order = sorted(range(len(pairs)), key=lambda i: guess[i])
    assert metrics.best_of_first(cycles, guess, k) == min(cycles[i] for i in order[:k])
    peaks = [min(cycles) / min(cycles[i] for i in order[: j + 1]) for j in range(min(k, len(order)))]
    assert same(metrics.peak_score(cycles, guess, k), sum(peaks) / len(peaks))


def test_scores_of_no_candidates_are_nan() -> None:
    assert math.isnan(metrics.best_of_first([], [], 1))
    assert math.isnan(metrics.peak_score([], [], 5))


@fast
@given(labelled, st.integers(1, 5))
def test_reliability_is_its_definition(pairs: list[tuple[bool, float]], bins: int) -> None:
    truth, score = [a for a, _ in pairs], [b for _, b in pairs]
    predicted, observed, count = [], [], []
    for i in range(bins):
        own = [j for j, p in enumerate(score) if i / bins <= p < (i + 1) / bins or (i == bins - 1 and p == 1)]
        if own:
            predicted.append(sum(score[j] for j in own) / len(own))
            observed.append(sum(truth[j] for j in own) / len(own))
            count.append(len(own))
    found = metrics.reliability(truth, score, bins)
    assert found["count"] == count
    assert found["predicted"] == pytest.approx(predicted) and found["observed"] == pytest.approx(observed)
    gaps = [n * abs(p - q) for n, p, q in zip(count, predicted, observed)]
    assert same(metrics.calibration_error(truth, score, bins), sum(gaps) / sum(count) if count else math.nan)


def test_figures_of_picks_by_hand():
    found = metrics.summarise_picks([1.0, 0.5, 0.0, 0.25], [100, 200, 0, 400], [110, 100, 0, 396], [0.1, 0.4, 0, 0.004])
    assert (found["tasks"], found["failures"], found["worst"], found["share_95"]) == (4, 1, 0.0, 0.25)
    assert found["geomean"] == pytest.approx((1.0 * 0.5 * 0.01 * 0.25) ** 0.25)
    assert found["mape"] == pytest.approx((0.1 + 0.5 + 0.01) / 3)
    # In spreads: log 1.1 / 0.1 = 0.95, log 2 / 0.4 = 1.7, log(1 / 0.99) / 0.004 = 2.5.
    assert (found["within_1"], found["within_2"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert metrics.summarise_picks([1.0], [7], [7], [0.0])["geomean"] == 1.0
    failed = metrics.summarise_picks([0.0], [-1], [0], [0])
    assert failed["geomean"] == pytest.approx(0.01) and math.isnan(failed["mape"]) and math.isnan(failed["within_1"])
    assert metrics.summarise_picks([], [], [], [])["tasks"] == 0
