"""Rows that the host makes go into int8 at one size, and what is made of them takes their sizes back.

A row of a softmax sums to one, so over many columns its elements may be smaller than a step of int8 where the row is
flat, while another row's largest is near one. Over its length (root of the sum of squares) every row is a unit vector,
and what a product makes of unit rows differs less in size too. What a few tokens of a transformer have in front of a
layer is a hundred times what the others have, and one scale would serve them all: there every row goes over its
largest magnitude, so that nothing is clipped either, whatever calibration has seen. The windows of a signal that a
convolution of one channel reads are such rows: quiet ones are rounded by steps of their own. That takes float operators
around the layer, so it is done where there are some on both sides.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize.qdq import calibrated, integer_ops, only_floats_read

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array

# Adds a node: its operator, its output, what it reads, its shape, its attributes; -> its output.
Add: TypeAlias = Callable[..., str]
# Ends the names of what is over its row's size.
_UNIT = ".unit"
# The size of a row of zeros.
_LEAST = 1e-12
_POOLS = ("max_pool2d", "avg_pool2d")
# Windows of a signal of which no more overlap anywhere.
_OVERLAPPING = 8


def unit_rows(graph: Graph) -> Graph:
    """A float graph that computes the same, whose products take the rows of a softmax at length one, and whose layers
    between float operators take rows, or windows of a signal, at largest magnitudes of one.
    """
    makers = graph.producers()
    graph = _rewritten(graph, {node.output for node in graph.nodes if _of_softmax(graph, makers, node)}, _length)
    host = _Host.of(graph)
    graph = _rewritten(graph, {node.output for node in graph.nodes if _is_between(host, node)}, _largest)
    return _framed(graph, {node.output for node in graph.nodes if _is_framed(host, node)})


@dataclass(frozen=True)
class _Work:
    """What a graph is rewritten to, node by node."""

    values: dict[str, Value]
    constants: dict[str, Array]
    nodes: list[Node]

    @classmethod
    def of(cls, graph: Graph) -> _Work:
        return cls(dict(graph.values), dict(graph.constants), [])

    def add(self, op: str, made: str, inputs: tuple[str, ...], shape: tuple[int, ...], **attrs: Any) -> str:
        """See `Add`."""
        self.values[made] = Value(made, shape)
        self.nodes.append(Node(made, op, inputs, made, attrs))
        return made


def _rewritten(graph: Graph, chosen: Collection[str], sizes: Callable[..., str]) -> Graph:
    """The graph, of whose ``chosen`` layers and products each takes its rows over their ``sizes``."""
    if not chosen:
        return graph
    work = _Work.of(graph)
    add, values, constants, nodes = work.add, work.values, work.constants, work.nodes
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
    return _largest_along(add, constants, rows, shape, len(shape) - 1)


def _largest_along(add: Add, constants: dict[str, Array], name: str, shape: tuple[int, ...], axis: int) -> str:
    """The largest magnitude of what lies along an axis, above 0; that axis is 1 long."""
    over = (*shape[:axis], 1, *shape[axis + 1 :])
    magnitudes = add("abs", f"{name}.magnitudes", (name,), shape)
    largest = add("reduce_max", f"{name}.maxima", (magnitudes,), over, axes=(axis,), keepdims=True)
    constants[f"{name}.least"] = np.full(1, _LEAST, np.float32)
    return add("maximum", f"{name}.largest", (largest, f"{name}.least"), over)


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


@dataclass(frozen=True)
class _Host:
    """What the host has of a float graph: ``int8``: the values that are to be that; ``floats``: those that only float
    operators read.
    """

    graph: Graph
    makers: Mapping[str, Node]
    users: Mapping[str, list[Node]]
    int8: Set[str]
    floats: Set[str]

    @classmethod
    def of(cls, graph: Graph) -> _Host:
        int8 = frozenset(calibrated(graph, defaultdict(int)))
        return cls(graph, graph.producers(), graph.users(), int8, only_floats_read(graph))

    def around(self, node: Node) -> bool:
        """Whether the host makes what a layer reads, and it alone reads what the layer makes."""
        return node.output in self.floats and not self.pooled(node.output) and self.makes(node.inputs[0])

    def pooled(self, name: str) -> bool:
        """Whether a pool reads a value, moved or bounded or not: the VTA has more to do with it than to make it."""
        waiting = [name]
        while waiting:
            for user in self.users[waiting.pop()]:
                if user.op in partition.MOVES or partition.bounds(user) is not None:
                    waiting.append(user.output)
                elif user.op in _POOLS:
                    return True
        return False

    def makes(self, name: str) -> bool:
        """Whether a value is made by float operators, or by whoever runs the model."""
        waiting = [name]
        while waiting:
            maker = self.makers.get(waiting.pop())
            if maker is None or maker.op not in (*integer_ops(), "add", "concat", "relu", "clip"):
                continue
            # These compute with what their operands are; of moves alone it does not matter.
            if maker.op in partition.HEADS:
                return False
            if maker.op not in partition.MOVES and not self.int8.isdisjoint(maker.inputs):
                return False
            waiting += maker.inputs
        return True


def _is_between(host: _Host, node: Node) -> bool:
    """Whether a node is a layer of several rows that the host makes, and that it reads."""
    return node.op == "dense" and math.prod(host.graph.shape(node.output)[:-1]) > 1 and host.around(node)


# Windows of a signal ---------------------------------------------------------------------------
def _is_framed(host: _Host, node: Node) -> bool:
    """Whether a node is a convolution of windows of one signal, as of a Fourier transform of short times."""
    if node.op != "conv2d" or not host.around(node):
        return False
    image, kernel = host.graph.shape(node.inputs[0]), host.graph.shape(node.inputs[1])
    axis = _along(host.graph, node)
    line = image[1] == kernel[1] == 1 and image[5 - axis] == kernel[5 - axis] == 1
    around = node.attrs["pads"][:2] if axis == 3 else node.attrs["pads"][2:]
    few = kernel[axis] <= _OVERLAPPING * node.attrs["strides"][axis - 2]
    few = few and node.attrs["dilation"][axis - 2] == 1
    return line and few and kernel[axis] > 1 and host.graph.shape(node.output)[axis] > 1 and not any(around)


def _along(graph: Graph, node: Node) -> int:
    """The axis on which a convolution's kernel is longer."""
    return 2 if graph.shape(node.inputs[1])[2] > graph.shape(node.inputs[1])[3] else 3


def _framed(graph: Graph, chosen: Collection[str]) -> Graph:
    """The graph, whose ``chosen`` convolutions take each window of their signal over its largest magnitude, as the
    channels of an element.
    """
    if not chosen:
        return graph
    work = _Work.of(graph)
    add, values, constants, nodes = work.add, work.values, work.constants, work.nodes
    # Real and imaginary parts share their windows, whatever forms the signal is given for them.
    known, makers = dict[tuple[Any, ...], tuple[str, str]](), graph.producers()
    for node in graph.nodes:
        if node.output not in chosen:
            nodes.append(node)
            continue
        signal, weight, *bias = node.inputs
        length = max(graph.shape(signal)[2:])
        while signal in makers and makers[signal].op == "reshape":
            signal = makers[signal].inputs[0]
        axis, result, made = _along(graph, node), graph.shape(node.output), node.output
        taps, stride = graph.shape(weight)[axis], node.attrs["strides"][axis - 2]
        ends = node.attrs["pads"][2 * axis - 4 : 2 * axis - 2]
        kind = (signal, axis, taps, stride, ends)
        if kind not in known:
            form = (result[0], taps, *result[2:])
            windows = _windows(add, signal, length, made, (form, max(result[2:]), stride, ends))
            size = _largest_along(add, constants, windows, form, 1)
            known[kind] = add("divide", f"{size}.rows", (windows, size), form), size
        unit, size = known[kind]
        constants[f"{made}.kernel"] = graph.constants[weight].reshape(-1, taps, 1, 1)
        values[f"{made}{_UNIT}"] = Value(f"{made}{_UNIT}", result)
        attrs = {**node.attrs, "strides": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1)}
        inputs, unscaled = (unit, f"{made}.kernel"), f"{made}{_UNIT}"
        nodes.append(dataclasses.replace(node, inputs=inputs, output=unscaled, attrs=attrs))
        product = add("multiply", f"{made}.product" if bias else made, (unscaled, size), result)
        if bias:
            constants[f"{made}.bias"] = graph.constants[bias[0]].reshape(1, -1, 1, 1)
            add("add", made, (product, f"{made}.bias"), result)
    # What gave the signal its form may be left without a reader.
    read, kept = set(graph.outputs), list[Node]()
    for node in reversed(nodes):
        if node.output in read:
            kept.append(node)
            read.update(node.inputs)
    return dataclasses.replace(graph, nodes=tuple(reversed(kept)), values=values, constants=constants)


def _windows(
    add: Add, signal: str, size: int, made: str, cut: tuple[tuple[int, ...], int, int, tuple[int, int]]
) -> str:  # fmt: skip
    """The windows of signals of ``size`` as channels: blocks of a stride's length side by side, no table of places.

    ``cut``: the shape of the result, the number of windows, the stride, and how many zeros are before and behind.
    """
    form, count, stride, ends = cut
    taps = form[1]
    blocks = -(-taps // stride)
    line = size + ends[0]
    behind = max((count + blocks - 1) * stride - line, 0)
    flat = add("reshape", f"{made}.signal", (signal,), (form[0], size))
    if ends[0] or behind:
        width = ((0, 0), (ends[0], behind))
        flat = add("pad", f"{made}.padded", (flat,), (form[0], line + behind), width=width)
    parts = list[str]()
    for block in range(blocks):
        begin = block * stride
        part = ((0, form[0], 1), (begin, begin + count * stride, 1))
        line_of = add("slice", f"{made}.from{block}", (flat,), (form[0], count * stride), parts=part)
        parts.append(add("reshape", f"{made}.block{block}", (line_of,), (form[0], count, stride)))
    wide = (form[0], count, blocks * stride)
    joined = add("concat", f"{made}.blocks", tuple(parts), wide, axis=2) if blocks > 1 else parts[0]
    if taps < blocks * stride:
        kept = ((0, form[0], 1), (0, count, 1), (0, taps, 1))
        joined = add("slice", f"{made}.taps", (joined,), (form[0], count, taps), parts=kept)
    turned = add("permute", f"{made}.turned", (joined,), (form[0], taps, count), axes=(0, 2, 1))
    return add("reshape", f"{made}.windows", (turned,), form)
