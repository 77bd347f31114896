"""Rows that the host makes go into int8 at one size, and what is made of them takes their sizes back.

A row of a softmax sums to one, so over many columns its elements may be smaller than a step of int8 where the row is
flat, while another row's largest is near one. Over its length (root of the sum of squares) every row is a unit vector,
and what a product makes of unit rows differs less in size too. What a few tokens of a transformer have in front of a
layer is a hundred times what the others have, and one scale would serve them all: there every row goes over its
largest magnitude, so that nothing is clipped either, whatever calibration has seen. That takes float operators around
the layer, so it is done where there are some on both sides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize.qdq import integer_ops, only_floats_read

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array

# Adds a node: its operator, its output, what it reads, its shape, its attributes; -> its output.
Add: TypeAlias = Callable[..., str]
# Ends the names of what is over its row's size.
_UNIT = ".unit"
# The size of a row of zeros.
_LEAST = 1e-12


def unit_rows(graph: Graph) -> Graph:
    """A float graph that computes the same, whose products take the rows of a softmax at length one, and whose layers
    between float operators take rows at largest magnitudes of one.
    """
    makers = graph.producers()
    graph = _rewritten(graph, {node.output for node in graph.nodes if _of_softmax(graph, makers, node)}, _length)
    makers, floats = graph.producers(), only_floats_read(graph)
    return _rewritten(graph, {node.output for node in graph.nodes if _between(graph, makers, floats, node)}, _largest)


def _rewritten(graph: Graph, chosen: Collection[str], sizes: Callable[..., str]) -> Graph:
    """The graph, of whose ``chosen`` layers and products each takes its rows over their ``sizes``."""
    if not chosen:
        return graph
    values, constants, nodes = dict(graph.values), dict(graph.constants), list[Node]()

    def add(op: str, made: str, inputs: tuple[str, ...], shape: tuple[int, ...], **attrs: Any) -> str:
        values[made] = Value(made, shape)
        nodes.append(Node(made, op, inputs, made, attrs))
        return made

    # Layers that read the same rows share them.
    known = dict[str, tuple[str, str]]()
    for node in graph.nodes:
        if node.output not in chosen:
            nodes.append(node)
            continue
        rows, other, *bias = node.inputs
        shape, made, result = graph.shape(rows), node.output, graph.shape(node.output)
        if rows not in known:
            size = sizes(add, constants, rows, shape)
            known[rows] = add("divide", f"{size}.rows", (rows, size), shape), size
        unit, size = known[rows]
        values[f"{made}{_UNIT}"] = Value(f"{made}{_UNIT}", result)
        nodes.append(dataclasses.replace(node, inputs=(unit, other), output=f"{made}{_UNIT}"))
        product = add("multiply", f"{made}.product" if bias else made, (f"{made}{_UNIT}", size), result)
        if bias:
            add("add", made, (product, *bias), result)
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values, constants=constants)


def _length(add: Add, constants: dict[str, Array], rows: str, shape: tuple[int, ...]) -> str:
    """The root of the sum of squares of each row."""
    over = {"axes": (len(shape) - 1,), "keepdims": True}
    square = add("square", f"{rows}.squares", (rows,), shape)
    summed = add("reduce_sum", f"{rows}.sums", (square,), (*shape[:-1], 1), **over)
    return add("sqrt", f"{rows}.lengths", (summed,), (*shape[:-1], 1))


def _largest(add: Add, constants: dict[str, Array], rows: str, shape: tuple[int, ...]) -> str:
    """The largest magnitude of each row, above 0."""
    over = {"axes": (len(shape) - 1,), "keepdims": True}
    magnitudes = add("abs", f"{rows}.magnitudes", (rows,), shape)
    largest = add("reduce_max", f"{rows}.maxima", (magnitudes,), (*shape[:-1], 1), **over)
    constants[f"{rows}.least"] = np.full(1, _LEAST, np.float32)
    return add("maximum", f"{rows}.largest", (largest, f"{rows}.least"), (*shape[:-1], 1))


def _of_softmax(graph: Graph, makers: Mapping[str, Node], node: Node) -> bool:
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


def _between(graph: Graph, makers: Mapping[str, Node], floats: Collection[str], node: Node) -> bool:
    """Whether a node is a layer of several rows that a float operator makes, and that only such operators read."""
    if node.op != "dense" or node.output not in floats or math.prod(graph.shape(node.output)[:-1]) < 2:
        return False
    maker = makers.get(node.inputs[0])
    while maker is not None and maker.op in partition.MOVES:
        maker = makers.get(maker.inputs[0])
    return maker is not None and maker.op not in (*integer_ops(), "add", "concat", "relu", "clip")
