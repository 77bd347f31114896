"""Which channels of a float graph's values can be scaled, and which of them together.

A value that int8 stands for may be multiplied by a positive factor for each channel, if what makes it takes the factor
and what reads it takes it back: layers do in their weights, and what moves elements, picks the largest or averages lets
factors through. Elements that share a factor have the same number in `Channels.ids`; factors of 0's are 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.ops.registry import op_of

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array

Ids = NDArray[np.int64]
# Of elements that keep their size.
FIXED = 0
# Elements up to which a reshape is followed one by one.
_FOLLOWED = 1 << 24
_POOLS = ("max_pool2d", "avg_pool2d")


@dataclass(frozen=True)
class Channels:
    """Numbers of what is scaled together.

    ``ids``: value -> numbers, of the value's rank, 1 long along axes that share them; ``count``: of numbers;
    ``entries``: values of float operators that are scaled where integers begin; ``taken``: outputs of nodes that take
    their operands scaled; ``bounds``: value that is clipped between 0 and a bound -> the bound.
    """

    ids: dict[str, Ids]
    count: int
    entries: tuple[str, ...]
    taken: frozenset[str]
    bounds: dict[str, float]


class _Ties:
    """Numbers while they are handed out, and those that turn out to be the same."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ids: dict[str, Ids] = {}
        self.count = 1
        self.pairs: list[tuple[Ids, Ids]] = []
        self.bounded: list[tuple[str, float]] = []
        # Layers by what their weights begin with.
        self.layers: dict[tuple[str, tuple[int, ...], bytes], list[Node]] = {}

    def fresh(self, name: str, axis: int) -> None:
        shape = self.graph.shape(name)
        if not shape:
            self.ids[name] = np.full((), FIXED)
            return
        form = [1] * len(shape)
        form[axis] = shape[axis]
        self.ids[name] = np.arange(self.count, self.count + shape[axis]).reshape(form)
        self.count += shape[axis]

    def tie(self, first: Ids, second: Ids) -> Ids:
        """The numbers of two tensors, element by element, are the same."""
        first, second = np.broadcast_arrays(first, second)
        self.pairs.append((first.reshape(-1), second.reshape(-1)))
        return first

    def along(self, name: str, axes: Collection[int]) -> Ids:
        """A value's numbers, made the same along all axes but some."""
        ids = self.ids[name]
        first = ids[tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(ids.ndim))]
        if first.shape != ids.shape:
            self.tie(ids, first)
            self.ids[name] = first
        return first

    def each(self, name: str, axis: int) -> None:
        """Along an axis a value has a number for every element, along the others one."""
        ids, shape = self.along(name, (axis,)), self.graph.shape(name)
        form = [size if at == axis else 1 for at, size in enumerate(shape)]
        self.ids[name] = np.broadcast_to(ids, form)

    def same_weight(self, node: Node) -> None:
        """A layer has the factors of one before it whose weight is equal, so that one copy in DRAM serves both."""
        weight = self.graph.constants[node.inputs[1]]
        alike = self.layers.setdefault((node.op, weight.shape, weight.reshape(-1)[:16].tobytes()), [])
        for other in alike:
            if np.array_equal(self.graph.constants[other.inputs[1]], weight):
                for name, own in zip((other.inputs[0], other.output), (node.inputs[0], node.output), strict=True):
                    if self.ids[name].shape == self.ids[own].shape:
                        self.tie(self.ids[name], self.ids[own])
                return
        alike.append(node)

    def fix(self, name: str) -> None:
        self.along(name, ())
        self.tie(self.ids[name], np.full((1,) * self.ids[name].ndim, FIXED))

    def resolved(self) -> NDArray[np.int64]:
        """Number -> the least of those that it is tied to, in a dense order."""
        label = np.arange(self.count)
        if self.pairs:
            first, second = (np.concatenate([pair[side] for pair in self.pairs]) for side in (0, 1))
            while True:
                least = np.minimum(label[first], label[second])
                before = label.copy()
                for side in (first, second):
                    np.minimum.at(label, label[side], least)
                    np.minimum.at(label, side, least)
                label = label[label]
                if np.array_equal(label, before):
                    break
        return np.unique(label, return_inverse=True)[1].reshape(-1)


def channels_of(graph: Graph, quantized: Collection[str]) -> Channels:
    """Number what can be scaled of a float graph whose values ``quantized`` are to be int8."""
    ties, users = _Ties(graph), graph.users()
    entries, taken = [], []
    for name in graph.inputs:
        if name in quantized:
            entries.append(name)
            ties.fresh(name, _channel_axis(graph, users[name], name))
    for node in graph.nodes:
        if _follow(ties, node):
            taken.append(node.output)
        elif node.output in quantized:
            entries.append(node.output)
            ties.fresh(node.output, _channel_axis(graph, users[node.output], node.output))
    label = ties.resolved()
    ids = {name: label[numbers] for name, numbers in ties.ids.items()}
    return Channels(ids, int(label.max(initial=0)) + 1, tuple(entries), frozenset(taken), dict(ties.bounded))


def _channel_axis(graph: Graph, users: Sequence[Node], name: str) -> int:
    """Along which a value of a float operator is scaled: that which the layers behind it have channels on."""
    rank = len(graph.shape(name))
    axes = {op_of(user.op).channels % rank for user in users if user.op in partition.HEADS and user.inputs[0] == name}
    return axes.pop() if len(axes) == 1 else 1 if rank == 4 else rank - 1


def _follow(ties: _Ties, node: Node) -> bool:
    """Number the result of a node that takes its operands scaled; False: it does not."""
    data = [name for name in node.inputs if name not in ties.graph.constants]
    op = op_of(node.op)
    if op.layer is not None and op.weight_outputs is not None:
        data = data[:1]
    if not data or any(name not in ties.ids for name in data):
        return False
    source, rank = data[0], len(ties.graph.shape(data[0]))
    if node.op in partition.HEADS:
        if op.weight_outputs is None:
            for name in data:
                ties.fix(name)
            ties.ids[node.output] = np.full((1,) * len(ties.graph.shape(node.output)), FIXED)
        else:
            ties.each(source, op.channels % rank)
            ties.fresh(node.output, op.channels % len(ties.graph.shape(node.output)))
            ties.same_weight(node)
    elif len(data) != len(node.inputs):
        return False
    elif node.op == "add":
        numbers = ties.tie(ties.ids[data[0]], ties.ids[data[1]])
        ties.ids[node.output] = numbers
    elif (limits := partition.bounds(node)) is not None:
        if limits[0] != 0 or limits[1] <= 0:
            ties.fix(source)
        elif limits[1] < math.inf:
            ties.bounded.append((node.output, limits[1]))
        ties.ids[node.output] = ties.ids[source]
    elif node.op in _POOLS:
        ties.ids[node.output] = ties.along(source, (0, 1))
    elif node.op == "concat":
        ties.ids[node.output] = _joined(ties, node)
    elif node.op in partition.MOVES:
        ties.ids[node.output] = _moved(ties, node)
    else:
        return False
    return True


def _joined(ties: _Ties, node: Node) -> Ids:
    axis = int(node.attrs["axis"]) % len(ties.graph.shape(node.output))
    parts = [ties.ids[name] for name in node.inputs]
    form = list(np.broadcast_shapes(*(_without(part.shape, axis) for part in parts)))
    wide = []
    for name, part in zip(node.inputs, parts, strict=True):
        form[axis] = ties.graph.shape(name)[axis]
        wide.append(np.broadcast_to(part, form))
    return _narrow(np.concatenate(wide, axis))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _narrow(ids: Array) -> Ids:
    """Without repetition along axes."""
    for axis in range(ids.ndim):
        first = ids.take([0], axis)
        if ids.shape[axis] > 1 and (ids == first).all():
            ids = first
    return ids


def _moved(ties: _Ties, node: Node) -> Ids:
    """The numbers of what a node moves."""
    (source,) = node.inputs
    ids, attrs = ties.ids[source], node.attrs
    before, after = ties.graph.shape(source), ties.graph.shape(node.output)
    if node.op == "permute":
        return ids.transpose(attrs["axes"])
    if node.op == "slice":
        return ids[
            tuple(slice(*part) if ids.shape[axis] > 1 else slice(None) for axis, part in enumerate(attrs["parts"]))
        ]
    if node.op == "gather":
        return ids.take(attrs["places"], attrs["axis"]) if ids.shape[attrs["axis"]] > 1 else ids
    if node.op == "broadcast":
        return ids.reshape((1,) * (len(after) - len(before)) + ids.shape)
    if node.op == "reshape" and ids.size == 1:
        return ids.reshape((1,) * len(after))
    if node.op == "reshape" and math.prod(before) <= _FOLLOWED:
        return _narrow(np.broadcast_to(ids, before).reshape(after))
    if node.op == "pad" and before != after:
        return ties.along(source, [axis for axis in range(len(before)) if before[axis] == after[axis]])
    if before == after and node.op == "pad":
        return ids
    return ties.along(source, ()).reshape((1,) * len(after))
