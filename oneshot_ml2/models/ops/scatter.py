"""Elements written into places of a tensor: at constant places data only moves, at others the host writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Read, Shapes
from oneshot_ml2.models.ops.importing import OWN

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader

# How ONNX reduces what meets what is there: Relax's operator, and numpy's.
_REDUCTIONS = {"add": "add", "mul": "multiply", "max": "maximum", "min": "minimum"}
# Elements for one place, of which each costs a pass over the tensor.
_MOST = 64


def flat_places(node: OnnxNode, index: Expr, shape: Sequence[int]) -> Expr:
    """Places in a tensor of ``shape`` as a line, from indices along its first axes: the last axis of ``index``.

    The result has ``index``'s shape without its last axis, behind which stand the axes that no index is along.
    """
    op, emit = node.op, node.emit
    count = node.shape(index)[-1]
    inner = math.prod(shape[count:])
    sizes = node.constant(shape[:count], "int64")
    index = emit(op.astype(index, "int64"))
    from_end = emit(op.less(index, node.constant(0, "int64")))
    index = emit(op.where(from_end, emit(op.add(index, sizes)), index))
    steps = [math.prod(shape[axis + 1 :]) for axis in range(count)]
    first = emit(op.sum(emit(op.multiply(index, node.constant(steps, "int64"))), -1))
    if inner == 1:
        return first
    before = node.shape(first)
    column = emit(op.reshape(first, (*before, *[1] * len(shape[count:]))))
    return emit(op.add(column, node.constant(np.arange(inner).reshape(shape[count:]), "int64")))


def flat_constant_places(index: Array, shape: Sequence[int]) -> Array:
    """As `flat_places`, of constants.

    Raises:
        ModelError: one is outside of the tensor.
    """
    sizes = shape[: index.shape[-1]]
    if np.any((index < -np.array(sizes)) | (index >= sizes)):
        raise ModelError(f"has indices outside of a tensor of shape {tuple(shape)}")
    source = np.arange(math.prod(shape)).reshape(tuple(shape))
    return np.asarray(source[tuple(np.moveaxis(index % np.array(sizes), -1, 0))])


def _import_nd(node: OnnxNode) -> Expr:
    shape, index = node.shape(), node.input(1)
    if node.is_constant(1):
        return _written(node, flat_constant_places(np.asarray(node.array(1)), shape))
    return _own(node, flat_places(node, index, shape))


def _import_elements(node: OnnxNode) -> Expr:
    shape = node.shape()
    axis = int(node.attribute("axis", 0)) % len(shape)
    made = node.shape(node.input(1))
    grid = np.indices(made)
    steps = np.array([math.prod(shape[i + 1 :]) for i in range(len(shape))])
    others = sum(grid[i] * steps[i] for i in range(len(shape)) if i != axis) + np.zeros(made, np.int64)
    if node.is_constant(1):
        index = np.asarray(node.array(1))
        if np.any((index < -shape[axis]) | (index >= shape[axis])):
            raise ModelError(f"has indices outside of an axis of {shape[axis]}")
        return _written(node, others + index % shape[axis] * steps[axis])
    column = node.emit(node.op.reshape(node.input(1), (*made, 1)))
    along = node.emit(
        node.op.multiply(flat_places(node, column, shape[axis : axis + 1]), node.constant(steps[axis], "int64"))
    )
    return _own(node, node.emit(node.op.add(along, node.constant(others, "int64"))))


def _line(node: OnnxNode, x: Expr) -> Expr:
    return node.emit(node.op.reshape(x, (math.prod(node.shape(x)),)))


def _written(node: OnnxNode, places: Array) -> Expr:
    """Elements in constant places: of several in one place the last one, or reduced in as many turns."""
    op, emit, shape = node.op, node.emit, node.shape()
    count, places = math.prod(shape), places.reshape(-1)
    data, updates = _line(node, node.input(0)), _line(node, node.input(2))
    reduction = node.text("reduction", "none")
    if reduction == "none":
        source = np.arange(count)
        source[places] = count + np.arange(len(places))
        both = emit(op.concat([data, updates], 0))
        return op.reshape(emit(op.take(both, node.constant(source, "int64"), 0)), shape)
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    turns = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    if turns.max(initial=0) >= _MOST:
        raise ModelError(f"reduces {turns.max() + 1} elements in one place; at most {_MOST} are supported")
    neutral = {"add": 0.0, "mul": 1.0}.get(reduction)
    fill = data if neutral is None else node.constant([neutral], "float32")
    both = emit(op.concat([updates, fill], 0))
    for turn in range(int(turns.max(initial=-1)) + 1):
        source = len(places) + (np.arange(count) if neutral is None else np.zeros(count, np.int64))
        here = turns == turn
        source[ordered[here]] = order[here]
        taken = emit(op.take(both, node.constant(source, "int64"), 0))
        data = emit(getattr(op, _REDUCTIONS[reduction])(data, taken))
    return op.reshape(data, shape)


def _own(node: OnnxNode, places: Expr) -> Expr:
    shape, reduction = node.shape(), node.text("reduction", "none")
    line = _line(node, places)
    # What is outside of the tensor is written nowhere else in memory.
    last = node.constant(math.prod(shape) - 1, "int64")
    inside = node.emit(node.op.minimum(node.emit(node.op.maximum(line, node.constant(0, "int64"))), last))
    lines = _line(node, node.input(0)), inside, _line(node, node.input(2))
    made = node.own(f"scatter.{reduction}", lines, node.shape(lines[0]))
    return node.op.reshape(made, shape)


def _read(reduction: str) -> Read:
    def read(reader: Reader, call: Any) -> str:
        operands = [reader.operand(field) for field in call.args[1].fields]
        return reader.add("scatter", operands, reader.static(call), reduction=reduction)

    return read


def _scatter(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    result, places = args[0].copy(), args[1].astype(np.int64)
    if attrs["reduction"] == "none":
        result[places] = args[2]
    else:
        getattr(np, _REDUCTIONS[attrs["reduction"]]).at(result, places, args[2])
    return result


def _scatter_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    places = host.emit(host.op.astype(args[1], "int64"))
    return host.op.scatter_elements(args[0], places, args[2], 0, node.attrs["reduction"].replace("none", "update"))


OPS = (
    Op(
        "scatter",
        relax={f"{OWN}scatter.{reduction}": _read(reduction) for reduction in ("none", *_REDUCTIONS)},
        onnx=("ScatterElements", "ScatterND"),
        onnx_import={"ScatterElements": _import_elements, "ScatterND": _import_nd, "Scatter": _import_elements},
        compute=_scatter,
        host=_scatter_host,
        moves_data=True,
        reason="writes single elements",
    ),
)
