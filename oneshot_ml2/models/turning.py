"""Permutes past operators that compute element by element, so that those of channels-last models meet and go."""

from __future__ import annotations

import dataclasses

import numpy as np

from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.ops.registry import op_of, ops


def sink_permutes(graph: Graph) -> Graph:
    """A float graph whose elementwise operators come before the permutes of their operands, not behind them.

    One on activations that are all permuted alike takes them as they were, and its result is permuted. Constants are
    permuted themselves. The permutes that then stand in a row are left to who folds moves.
    """
    values, constants = dict(graph.values), dict(graph.constants)
    made: dict[str, Node] = {}

    def axes_of(node: Node) -> tuple[int, ...] | None:
        """The order in which all activations that a node reads were permuted, if it can go before that."""
        shape = values[node.output].shape
        found = set()
        for name in node.inputs:
            if name in constants:
                continue
            maker = made.get(name)
            if maker is None or maker.op != "permute" or values[name].shape != shape:
                return None
            found.add(tuple(maker.attrs["axes"]))
        return found.pop() if len(found) == 1 and _elementwise(node) else None

    for node in graph.nodes:
        axes = axes_of(node)
        if axes is None:
            made[node.output] = node
            continue
        inverse, inputs = tuple(int(axis) for axis in np.argsort(axes)), []
        for name in node.inputs:
            array = constants.get(name)
            if array is None:
                inputs.append(made[name].inputs[0])
            elif array.ndim == 0:
                inputs.append(name)
            else:
                turned = f"{name}.{'-'.join(map(str, inverse))}"
                constants[turned] = array.reshape((1,) * (len(axes) - array.ndim) + array.shape).transpose(inverse)
                inputs.append(turned)
        before = f"{node.output}.turned"
        shape = tuple(values[node.output].shape[axis] for axis in inverse)
        values[before] = dataclasses.replace(values[node.output], name=before, shape=shape)
        made[before] = dataclasses.replace(node, inputs=tuple(inputs), output=before)
        made[node.output] = Node(f"{node.output}.permute", "permute", (before,), node.output, {"axes": axes})
    return dataclasses.replace(graph, nodes=tuple(made.values()), values=values, constants=constants)


def permutes(graph: Graph) -> int:
    """How many permutes a graph has."""
    return sum(node.op == "permute" for node in graph.nodes)


def _elementwise(node: Node) -> bool:
    if node.op not in ops() or not op_of(node.op).elementwise:
        return False
    # A scale of each channel is along an axis.
    return bool(np.ndim(node.attrs.get("scale", 0.0)) == 0)
