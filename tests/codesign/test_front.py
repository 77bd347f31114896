"""The front: what no other beats."""

from __future__ import annotations

import numpy as np
import pytest

from oneshot_ml2.codesign.fpga import FPGAS
from oneshot_ml2.codesign.front import pareto, score, share_of
from oneshot_ml2.codesign.resources import Resources


def test_the_front_is_what_no_other_beats() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs = rng.integers(0, 6, (40, 3)).astype(float)
        front = set(pareto(costs).tolist())
        for i, one in enumerate(costs):
            beaten = any((other <= one).all() and (other < one).any() for other in costs)
            twin = any((costs[j] == one).all() for j in front)
            assert (i in front) <= (not beaten) and (not beaten) <= twin
        assert (np.diff(costs[pareto(costs), 0]) >= 0).all()


def test_what_cannot_run_is_not_on_the_front() -> None:
    assert pareto(np.array([[np.inf, 1.0], [2.0, 3.0]])).tolist() == [1]
    assert pareto(np.empty((0, 2))).tolist() == []


def test_scores() -> None:
    fpga, taken = FPGAS["xc7z020"], Resources(70.0, 60.0, 55, 5_320)
    assert share_of(taken, fpga) == 0.5
    assert score("latency", 3.0, taken, fpga) == score("throughput", 3.0, taken, fpga) == 3.0
    assert score("edp-like", 3.0, taken, fpga) == pytest.approx(4.5)
