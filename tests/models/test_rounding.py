"""Weights that are rounded by what they are multiplied by: sums change less, also on inputs that are new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize import rounding
from oneshot_ml2.models.quantize.observe import Affine
from oneshot_ml2.models.quantize.scales import int8

OUTPUTS, TAPS = 12, 32


def convolution(groups: int = 1, pads: tuple[int, ...] = (1, 0, 2, 1), stride: int = 2) -> Graph:
    """One of 4 channels, and a kernel of 3x2."""
    attrs = {"strides": (stride, 1), "pads": pads, "dilation": (1, 2), "groups": groups}
    height, width = (9 + pads[0] + pads[1] - 3) // stride + 1, 7 + pads[2] + pads[3] - 2
    values = {"x": Value("x", (2, 4, 9, 7)), "y": Value("y", (2, 8, height, width))}
    weight = np.random.default_rng(0).standard_normal((8, 4 // groups, 3, 2)).astype(np.float32)
    nodes = (Node("y", "conv2d", ("x", "w"), "y", attrs),)
    return Graph("c", ("x",), ("y",), nodes, values, {"w": weight}, output_names=("y",))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rows_are_what_weights_are_multiplied_by(groups: int) -> None:
    graph = convolution(groups)
    x = np.random.default_rng(1).standard_normal((2, 4, 9, 7)).astype(np.float32)
    rows = rounding.rows_of(graph, graph.nodes[0], x, 1)
    weight = graph.constants["w"].reshape(groups, 8 // groups, -1)
    own = np.einsum("pgk,gok->pgo", rows, weight).reshape(len(rows), 8)
    (want,) = execute.execute(graph, {"x": x}).values()
    np.testing.assert_allclose(own, want.transpose(0, 2, 3, 1).reshape(-1, 8), rtol=1e-4, atol=1e-5)


def test_fewer_rows_of_many_samples() -> None:
    graph = convolution()
    x = np.zeros((2, 4, 9, 7), np.float32)
    assert len(rounding.rows_of(graph, graph.nodes[0], x, 1 << 16)) == 1


def alike(count: int, seed: int) -> rounding.Rows:
    """What a filter reads of a slow signal: neighbours are alike."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((count, TAPS)) / 4
    return (rng.standard_normal((count, 1)) * 3 + steps.cumsum(1))[:, None].astype(np.float32)


def lost(weight: Any, own: Any, exponent: int, rows: rounding.Rows) -> float:
    apart = weight - np.ldexp(own.astype(np.float32), exponent)
    return float(np.linalg.norm(rows[:, 0] @ apart.T) / np.linalg.norm(rows[:, 0] @ weight.T))


def layer(weight: Any, form: tuple[int, ...] = (OUTPUTS, TAPS)) -> Node:
    return Node("y", "dense" if len(form) == 2 else "conv2d", ("x", "w"), "y", {"groups": 1})


def test_sums_of_what_is_alike_change_less() -> None:
    weight = np.random.default_rng(2).uniform(-1, 1, (OUTPUTS, TAPS)).astype(np.float32)
    # As a filter that lets nothing slow through.
    weight -= weight.mean(1, keepdims=True)
    own = rounding.rounded(layer(weight), weight, -6, (alike(100, 3), alike(100, 4)))
    assert own.dtype == np.int8 and own.shape == weight.shape
    assert np.abs(own - weight * 64).max() < 4
    unseen = alike(1000, 5)
    assert lost(weight, own, -6, unseen) < 0.5 * lost(weight, int8(weight, -6), -6, unseen)


def test_what_only_a_sample_shows_is_no_reason() -> None:
    """Without anything in common, rows of one half say nothing of the other."""
    weight = np.random.default_rng(6).uniform(-1, 1, (OUTPUTS, TAPS)).astype(np.float32)
    halves = tuple(np.random.default_rng(seed).standard_normal((8, 1, TAPS)).astype(np.float32) for seed in (7, 8))
    own = rounding.rounded(layer(weight), weight, -6, (halves[0], halves[1]))
    rows = np.random.default_rng(9).standard_normal((1000, 1, TAPS)).astype(np.float32)
    assert lost(weight, own, -6, rows) < 1.1 * lost(weight, int8(weight, -6), -6, rows)


def test_what_is_never_read_and_ends_of_int8() -> None:
    weight = np.array([[3.0, 0.3, -3.0, 0.2]], np.float32)
    nothing = np.zeros((4, 1, 4), np.float32)
    own = rounding.rounded(layer(weight), weight, -5, (nothing, nothing))
    assert own.tolist() == [[96, 10, -96, 6]]
    rows = np.ones((4, 1, 4), np.float32)
    assert rounding.rounded(layer(weight), weight * 2, -5, (rows, rows))[0, [0, 2]].tolist() == [127, -128]


def test_factors_and_means_of_what_is_rewritten() -> None:
    graph = convolution(groups=2)
    rng = np.random.default_rng(10)
    samples = [rng.standard_normal((2, 4, 9, 7)).astype(np.float32) + 5 for _ in range(3)]
    rows = {"y": [rounding.rows_of(graph, graph.nodes[0], x, 3) for x in samples]}
    factor = np.array([1, 2, 4, 8.0]).reshape(1, 4, 1, 1)
    ((name, halves),) = rounding.inputs_by_weight(graph, rows, Affine(factors={"x": factor})).items()
    assert name == "w" and [len(half) for half in halves] == [2 * len(rows["y"][0]), len(rows["y"][0])]
    parts = np.concatenate(halves).reshape(-1, 2, 2, 6)
    np.testing.assert_allclose(parts.mean((0, 3)), 0, atol=1e-4)
    whole = np.concatenate(rows["y"]).reshape(-1, 2, 2, 6)
    np.testing.assert_allclose(parts.std((0, 3)), whole.std((0, 3)) * [[1, 2], [4, 8]], rtol=1e-3)
    # With one sample there is no other half.
    assert rounding.inputs_by_weight(graph, {"y": rows["y"][:1]}, Affine()) == {}


def test_equal_weights_stay_equal() -> None:
    """They have one place in DRAM, so they are rounded by what any of them reads."""
    weight = np.random.default_rng(11).standard_normal((8, 8)).astype(np.float32)
    values = {name: Value(name, (1, 8)) for name in ("x", "y", "z")}
    nodes = (Node("y", "dense", ("x", "v"), "y"), Node("z", "dense", ("y", "w"), "z"))
    graph = Graph("d", ("x",), ("z",), nodes, values, {"v": weight, "w": weight.copy()}, output_names=("z",))
    rng = np.random.default_rng(12)
    rows = {name: [rng.standard_normal((3, 1, 8)).astype(np.float32) for _ in range(2)] for name in "yz"}
    found = rounding.inputs_by_weight(graph, rows, Affine())
    assert found["v"] is found["w"] and [len(half) for half in found["v"]] == [6, 6]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_inputs_that_say_nothing_leave_the_nearest(value: float) -> None:
    weight = np.random.default_rng(3).standard_normal((OUTPUTS, TAPS)).astype(np.float32)
    rows = np.full((8, 1, TAPS), value, np.float32)
    own = rounding.rounded(layer(weight), weight, -5, (rows, rows))
    assert np.array_equal(own, int8(weight, -5))
