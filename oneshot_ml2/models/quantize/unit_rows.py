"""Products of a softmax: its rows go into int8 at length one, and the product takes their lengths back.

A row of a softmax sums to one, so over many columns its elements may be smaller than a step of int8 where the row is
flat, while another row's largest is near one. Over its length (root of the sum of squares) every row is a unit vector,
and what a product makes of unit rows differs less in size too. Softmax is a float operator, so the host has the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from oneshot_ml2.models.ir import Graph, Node, Value

# Ends the names of what is over its row's length.
_UNIT = ".unit"


def unit_rows(graph: Graph) -> Graph:
    """A float graph that computes the same, whose products take the rows of a softmax at length one."""
    makers = graph.producers()
    if not any(_rows(graph, makers, node) for node in graph.nodes):
        return graph
    values, nodes = dict(graph.values), list[Node]()

    def add(op: str, made: str, inputs: tuple[str, ...], shape: tuple[int, ...], attrs: Mapping[str, object]) -> str:
        values[made] = Value(made, shape)
        nodes.append(Node(made, op, inputs, made, attrs))
        return made

    for node in graph.nodes:
        if not _rows(graph, makers, node):
            nodes.append(node)
            continue
        rows, other = node.inputs
        shape, made = graph.shape(rows), node.output
        last = len(shape) - 1
        square = add("square", f"{made}.squares", (rows,), shape, {})
        summed = add("reduce_sum", f"{made}.sums", (square,), (*shape[:-1], 1), {"axes": (last,), "keepdims": True})
        length = add("sqrt", f"{made}.lengths", (summed,), (*shape[:-1], 1), {})
        unit = add("divide", f"{made}.rows", (rows, length), shape, {})
        values[f"{made}{_UNIT}"] = Value(f"{made}{_UNIT}", graph.shape(made))
        nodes.append(dataclasses.replace(node, inputs=(unit, other), output=f"{made}{_UNIT}"))
        add("multiply", made, (f"{made}{_UNIT}", length), graph.shape(made), {})
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values)


def _rows(graph: Graph, makers: Mapping[str, Node], node: Node) -> bool:
    """Whether a node is a product whose first operand's rows are those of a softmax."""
    if node.op != "batch_matmul":
        return False
    name = node.inputs[0]
    while (maker := makers.get(name)) is not None and maker.op == "reshape":
        if graph.shape(maker.inputs[0])[-1] != graph.shape(name)[-1]:
            return False
        name = maker.inputs[0]
    return (
        maker is not None
        and maker.op == "softmax"
        and maker.attrs["axis"] % len(graph.shape(name)) == (len(graph.shape(name)) - 1)
    )
