"""Biases that the ALU has to add since offsets make them large: what they cost, and their budget."""

from __future__ import annotations

import numpy as np
import pytest
from graph_models import needs
from test_equalize import CONV, Net, samples_of

from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize.channels import channels_of
from oneshot_ml2.models.quantize.observe import observed
from oneshot_ml2.models.quantize.qdq import calibrated
from oneshot_ml2.models.quantize.steps import Steps
from oneshot_ml2.models.quantize.ways import MOVED, SCALED, Tried, Ways
from oneshot_ml2.vta.nest import bias_gemm_fits

needs("tvm")


def graph_of(others: int, bias: float = 0.0) -> Graph:
    """A ReLU of 64 channels and two layers that read it, one of positive weights; a product of so many columns."""
    net = Net()
    x = net.add("relu", net.conv("x", 64))
    outputs = []
    for weight in (np.abs(net.rng.standard_normal((16, 64))), net.rng.standard_normal((16, 64))):
        names = net.constant(weight.reshape(16, 64, 1, 1) / 64), net.constant(np.full(16, bias))
        outputs.append(net.add("conv2d", x, *names, shape=(1, 16, 8, 8), **(CONV | {"pads": (0, 0, 0, 0)})))
    return net.graph(*outputs, net.dense(net.add("reshape", "x", shape=(64, 16)), others))


def made(graph: Graph, kind: str) -> Tried:
    quantized = calibrated(graph, dict.fromkeys(graph.values, 0))
    channels = channels_of(graph, quantized)
    seen = observed(graph, samples_of(graph), lambda text: None, channels.ids)
    return Ways(graph, channels, quantized, Steps(), False).made(kind, seen)


def wide(tried: Tried) -> int:
    """How many layers have biases that are no product of int8 weights."""
    bits = [node.attrs["workload"].epilogue.bias_bits for node in tried.graph.nodes if node.attrs.get("workload")]
    return sum(not bias_gemm_fits(number, 16) for number in bits)


@pytest.mark.parametrize(("others", "budget", "kept"), [(16, 0.01, False), (16, 1.0, True), (1024, 0.01, True)])
def test_offsets_that_make_biases_dear_have_a_budget(
    others: int, budget: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oneshot_ml2.models.quantize.biases._BUDGET", budget)
    tried = made(graph_of(others), MOVED)
    # 64 blocks of results, a cycle each; the layers take some thousand, the product of 1024 columns 16 more.
    assert ("relu1" in tried.way.affine.offsets, wide(tried)) == (kept, int(kept))


def test_biases_that_are_large_without_offsets_cost_no_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneshot_ml2.models.quantize.biases._BUDGET", 0.0)
    graph = graph_of(16, 40.0)
    assert wide(made(graph, SCALED)) == 2
    assert "relu1" in made(graph, MOVED).way.affine.offsets
