"""Biases that are too large for VTA to multiply into its sums: the ALU adds them, a cycle more a block of results.

A layer that reads what is moved takes the offset times the sums of its weights into its bias, and so does one whose
result is moved. Most such biases fit all the same; those that do not have a budget, in cycles by the engine bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.models import partition, patches
from oneshot_ml2.models.quantize.scales import exponent_of
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.nest import bias_gemm_fits

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph, Node
    from oneshot_ml2.models.quantize.equalize import Equalized

# Of the cycles of all layers; the borders of what is moved have twice that, see `borders`.
_BUDGET = 0.01
# VTA's usual size: what a graph is compiled for is not known yet.
_USUAL = "pynq"


def too_dear(graph: Graph, way: Equalized, original: Graph) -> frozenset[str]:
    """Values of the ``original`` float graph that are moved in an integer ``graph``, and that the budget is not for.

    Those that cost the layers behind them least come first, relative to what these take.
    """
    if not way.affine.offsets:
        return frozenset()
    chip = Accelerator.load(_USUAL)
    # A convolution of few channels takes less over patches.
    bounds = {
        node.output: engine_bound(node.attrs["workload"], chip).bound
        for node in patches.over_patches(graph, chip).nodes
        if node.attrs.get("workload") is not None
    }
    makers = graph.producers()
    heads = {node.name: node for node in original.nodes if node.op in partition.HEADS}
    more, taken = dict[str, float](), dict[str, float]()
    for node in graph.nodes:
        if node.output not in bounds or node.name not in heads:
            continue
        epilogue = node.attrs["workload"].epilogue
        if not epilogue.bias or bias_gemm_fits(epilogue.bias_bits, chip.block):
            continue
        cause = _cause(node, way, makers)
        if cause is None or not bias_gemm_fits(_own_bits(graph, node, way, original, heads[node.name]), chip.block):
            continue
        blocks = math.prod(graph.shape(node.output)) / (chip.batch * chip.block)
        more[cause] = more.get(cause, 0.0) + blocks
        taken[cause] = taken.get(cause, 0.0) + bounds[node.output]
    left, found = _BUDGET * sum(bounds.values()), set[str]()
    for name in sorted(more, key=lambda name: (more[name] / taken[name], name)):
        if more[name] > left:
            found.add(way.affine.originals.get(name, name))
        else:
            left -= more[name]
    return frozenset(found)


def _cause(node: Node, way: Equalized, makers: dict[str, Node]) -> str | None:
    """The moved value that a layer's bias takes an offset of: its operand, or else its result."""
    name = node.inputs[0]
    while name not in way.affine.offsets and name in makers and makers[name].op == "reshape":
        (name,) = makers[name].inputs
    return next((name for name in (name, node.output.removesuffix(".flat")) if name in way.affine.offsets), None)


def _own_bits(graph: Graph, node: Node, way: Equalized, original: Graph, head: Node) -> int:
    """The bits of a layer's bias without offsets."""
    if len(head.inputs) < 3:
        return 0
    bias, factors = original.constants[head.inputs[2]], np.ravel(way.affine.factor(head.output))
    # Where another layer has its channels along another axis, the factors are not those of the bias, but alike.
    own = bias * (factors if factors.size in (1, bias.size) else factors.max())
    sums = exponent_of(graph.values[node.output]) - node.attrs["shift"]
    return int(np.abs(np.ldexp(own.astype(np.float64), -sums)).max(initial=0.0)).bit_length()
