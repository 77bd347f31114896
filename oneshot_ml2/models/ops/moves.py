"""Operators that move data only, of any type."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Expr, Op, Shapes

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.reading import Reader


def _read_reshape(reader: Reader, call: Any) -> str:
    shape = reader.static(call)
    return reader.reshape(reader.operand(call.args[0]), shape)


def _read_broadcast(reader: Reader, call: Any) -> str:
    shape = reader.static(call)
    return reader.broadcast(reader.operand(call.args[0]), shape)


def _read_concat(reader: Reader, call: Any) -> str:
    shape = reader.static(call)
    return reader.add("concat", reader.operand(call.args[0]), shape, axis=int(call.attrs.axis) % len(shape))


def _read_strided(reader: Reader, call: Any) -> str:
    operand, args = reader.operand(call.args[0]), call.args[1:]
    reader.static(call)
    shape = reader.shape(operand)
    axes, begins, ends, *steps = (
        [int(getattr(value, "value", value)) for value in getattr(arg, "fields", arg)] for arg in args
    )
    parts = [(0, size, 1) for size in shape]
    for index, axis in enumerate(axes):
        step = steps[0][index] if steps else 1
        parts[axis % len(shape)] = slice(begins[index], ends[index], step).indices(shape[axis % len(shape)])
    for axis, part in enumerate(parts):
        if part[2] < 0:
            operand = picked(reader, operand, np.arange(*part), axis)
    shape = reader.shape(operand)
    return reader.slice(operand, [(0, n, 1) if part[2] < 0 else part for n, part in zip(shape, parts, strict=True)])


def _read_split(reader: Reader, call: Any) -> tuple[str, ...]:
    operand, attrs = reader.operand(call.args[0]), call.attrs
    shape = reader.shape(operand)
    axis = int(attrs.axis) % len(shape)
    sections, size = attrs.indices_or_sections, shape[axis]
    try:
        # A number of equal parts, the last one maybe shorter.
        each = -(-size // int(sections))
        cuts = list(range(each, size, each))
    except TypeError:
        cuts = [int(cut) for cut in sections]
    edges = [0, *cuts, size]
    return tuple(
        reader.slice(operand, [(0, n, 1) if i != axis else (begin, end, 1) for i, n in enumerate(shape)])
        for begin, end in itertools.pairwise(edges)
    )


def _read_take(reader: Reader, call: Any) -> str:
    shape, (x, index), attrs = reader.static(call), reader.tensors(call), call.attrs
    if attrs.axis is None:
        x, axis = reader.reshape(x, (math.prod(reader.shape(x)),)), 0
    else:
        axis = int(attrs.axis) % len(reader.shape(x))
    if index in reader.constants:
        return reader.reshape(picked(reader, x, reader.constants[index].reshape(-1), axis), shape)
    reader.limited(index, reader.shape(x)[axis])
    return reader.add("take", [x, index], shape, axis=axis)


def picked(reader: Reader, x: str, indices: Array, axis: int) -> str:
    """The elements at some places along an axis; places below 0 count from the end."""
    shape = reader.shape(x)
    places = np.where(indices < 0, indices + shape[axis], indices).astype(np.int64)
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    if step > 0 and np.array_equal(places, places[0] + step * np.arange(len(places))):
        part = (int(places[0]), int(places[-1]) + 1, step)
        return reader.slice(x, [part if i == axis else (0, n, 1) for i, n in enumerate(shape)])
    made = (*shape[:axis], len(places), *shape[axis + 1 :])
    return reader.add("gather", [x], made, places=places, axis=axis)


def _read_permute(reader: Reader, call: Any) -> str:
    shape, operand, attrs = reader.static(call), reader.operand(call.args[0]), call.attrs
    rank = len(shape)
    axes = tuple(int(axis) % rank for axis in attrs.axes) if attrs.axes else tuple(reversed(range(rank)))
    if operand in reader.constants:
        return reader.constant(np.ascontiguousarray(reader.constants[operand].transpose(axes)))
    return reader.add("permute", [operand], shape, axes=axes)


def _reshape_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.reshape(args[0], value.shape)


def _permute_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.permute_dims(args[0], node.attrs["axes"])


def _slice_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    begin, end, step = zip(*node.attrs["parts"], strict=True)
    return host.op.strided_slice(args[0], list(range(len(begin))), begin, end, step)


def _broadcast_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.broadcast_to(args[0], value.shape)


def _take_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.take(args[0], host.emit(host.op.astype(args[1], "int32")), node.attrs["axis"], mode="clip")


def _gather_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.take(args[0], host.integer(node.attrs["places"]), node.attrs["axis"], mode="fast")


def _concat_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.concat(args, node.attrs["axis"])


# Relax operators that keep all elements in their order.
_RESHAPES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
_MOVES = "moves data only"

OPS = (
    Op(
        "reshape",
        relax=dict.fromkeys(_RESHAPES, _read_reshape),
        onnx=("Flatten", "Reshape", "Squeeze", "Unsqueeze"),
        onnx_layers=("Flatten",),
        compute=lambda args, attrs, out: args[0].reshape(tuple(out)),
        host=_reshape_host,
        moves_data=True,
        one_source=True,
        keeps_scale=True,
        reason=_MOVES,
    ),
    Op(
        "permute",
        relax={"relax.permute_dims": _read_permute},
        onnx=("Transpose",),
        compute=lambda args, attrs, out: np.ascontiguousarray(args[0].transpose(attrs["axes"])),
        host=_permute_host,
        moves_data=True,
        one_source=True,
        keeps_scale=True,
        reason=_MOVES,
    ),
    Op(
        "slice",
        relax={"relax.strided_slice": _read_strided, "relax.split": _read_split},
        onnx=("Slice", "Split"),
        compute=lambda args, attrs, out: np.ascontiguousarray(args[0][tuple(slice(*part) for part in attrs["parts"])]),
        host=_slice_host,
        moves_data=True,
        one_source=True,
        keeps_scale=True,
        reason=_MOVES,
    ),
    Op(
        "broadcast",
        relax={"relax.broadcast_to": _read_broadcast},
        onnx=("Expand",),
        compute=lambda args, attrs, out: np.ascontiguousarray(np.broadcast_to(args[0], tuple(out))),
        host=_broadcast_host,
        moves_data=True,
        one_source=True,
        keeps_scale=True,
        reason=_MOVES,
    ),
    Op(
        "concat",
        relax={"relax.concat": _read_concat},
        onnx=("Concat",),
        compute=lambda args, attrs, out: np.concatenate(args, attrs["axis"]),
        host=_concat_host,
        scales=True,
        moves_data=True,
        reason=_MOVES,
    ),
    Op(
        "gather",
        onnx=("Gather",),
        compute=lambda args, attrs, out: args[0].take(attrs["places"], attrs["axis"]),
        host=_gather_host,
        moves_data=True,
        one_source=True,
        keeps_scale=True,
        reason=_MOVES,
    ),
    Op(
        "take",
        relax={"relax.take": _read_take},
        onnx=("Gather",),
        torch_layers=("embedding.default",),
        compute=lambda args, attrs, out: args[0].take(args[1].astype(np.int64), attrs["axis"], mode="clip"),
        host=_take_host,
        moves_data=True,
        reason="looks up rows of a table",
    ),
)
