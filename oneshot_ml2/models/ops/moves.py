"""Operators that move data only, of any type."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ir import Value
from oneshot_ml2.models.ops.base import Array, Expr, Op, Shapes
from oneshot_ml2.models.ops.scatter import flat_places

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader
    from oneshot_ml2.models.partition import Composite
    from oneshot_ml2.models.quantize.integer import IntegerBuilder


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


def _read_tile(reader: Reader, call: Any) -> str:
    shape, x = reader.static(call), reader.operand(call.args[0])
    before = reader.shape(x)
    x = reader.reshape(x, (1,) * (len(shape) - len(before)) + before)
    for axis, (old, new) in enumerate(zip(reader.shape(x), shape, strict=True)):
        if old != new:
            x = picked(reader, x, np.arange(new) % old, axis)
    return x


def _read_repeat(reader: Reader, call: Any) -> str:
    x, attrs = reader.operand(call.args[0]), call.attrs
    if attrs.axis is None:
        x = reader.reshape(x, (math.prod(reader.shape(x)),))
    axis = 0 if attrs.axis is None else int(attrs.axis) % len(reader.shape(x))
    return picked(reader, x, np.arange(reader.shape(x)[axis]).repeat(int(attrs.repeats)), axis)


def _read_flip(reader: Reader, call: Any) -> str:
    x = reader.operand(call.args[0])
    axis = int(call.attrs.axis) % len(reader.shape(x))
    return picked(reader, x, np.arange(reader.shape(x)[axis])[::-1], axis)


def _read_stack(reader: Reader, call: Any) -> str:
    shape = reader.static(call)
    axis = int(call.attrs.axis or 0) % len(shape)
    line = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [reader.reshape(part, line) for part in reader.operand(call.args[0])]
    return reader.add("concat", parts, shape, axis=axis)


def _read_gather_elements(reader: Reader, call: Any) -> str:
    shape, (x, index) = reader.static(call), reader.tensors(call)
    axis = int(call.attrs.axis) % len(shape)
    numbers = reader.constants.get(index)
    if numbers is None:
        return reader.add("take_along", [x, index], shape, axis=axis)
    source = np.arange(math.prod(reader.shape(x))).reshape(reader.shape(x))
    return _scattered(reader, x, np.take_along_axis(source, numbers, axis), shape)


def _read_gather_nd(reader: Reader, call: Any) -> str:
    shape, (x, index) = reader.static(call), reader.tensors(call)
    numbers, batch = reader.constants.get(index), int(call.attrs.batch_dims)
    if numbers is None:
        raise reader.refused("has indices that the model computes; only constants are supported")
    before = reader.shape(x)
    source = np.arange(math.prod(before)).reshape(-1, *before[batch:])
    places = [
        part[tuple(np.moveaxis(at, -1, 0))]
        for part, at in zip(source, numbers.reshape(len(source), *numbers.shape[batch:]), strict=True)
    ]
    return _scattered(reader, x, np.stack(places), shape)


def _read_index(reader: Reader, call: Any) -> str:
    """PyTorch's indexing of the first axes by tensors that are broadcast."""
    shape, x = reader.static(call), reader.operand(call.args[0])
    numbers = [reader.constants.get(name) for name in reader.operand(call.args[1])]
    if any(array is None for array in numbers):
        raise reader.refused("has indices that the model computes; only constants are supported")
    source = np.arange(math.prod(reader.shape(x))).reshape(reader.shape(x))
    return _scattered(reader, x, source[tuple(numbers)], shape)


def _scattered(reader: Reader, x: str, places: Array, shape: tuple[int, ...]) -> str:
    """Elements of a tensor by their places in it as a line."""
    line = reader.reshape(x, (math.prod(reader.shape(x)),))
    return reader.reshape(picked(reader, line, places.reshape(-1), 0), shape)


def _read_shuffle(reader: Reader, call: Any) -> str:
    """PyTorch's pixel_shuffle: channels become blocks of pixels."""
    (n, c, height, width), x = reader.static(call), reader.operand(call.args[0])
    step = int(call.attrs.upscale_factor)
    parts = reader.reshape(x, (n, c, step, step, height // step, width // step))
    turned = (n, c, height // step, step, width // step, step)
    return reader.reshape(reader.add("permute", [parts], turned, axes=(0, 1, 4, 2, 5, 3)), (n, c, height, width))


def _read_triangle(reader: Reader, call: Any) -> str:
    shape, x = reader.static(call), reader.operand(call.args[0])
    offset = int(call.args[1])
    kept = (np.tril if call.op.name.endswith("tril") else np.triu)(np.ones(shape[-2:]), offset)
    return reader.add("select", [reader.constant(kept), x, reader.constant(np.zeros(()))], shape)


def _import_slice(node: OnnxNode) -> Expr:
    shape = node.shape()
    begins, ends = (node.numbers(index, name) or [] for index, name in ((1, "starts"), (2, "ends")))
    axes, steps = node.numbers(3, "axes") or list(range(len(begins))), node.numbers(4, "steps") or [1] * len(begins)
    spans = [slice(*span[1:]).indices(shape[span[0]]) for span in zip(axes, begins, ends, steps, strict=True)]
    result = node.input(0)
    for axis, span in zip(axes, spans, strict=True):
        if span[2] < 0:
            places = node.constant(np.arange(*span), "int64")
            result = node.emit(node.op.take(result, places, axis % len(shape)))
    forward = [(axis, span) for axis, span in zip(axes, spans, strict=True) if span[2] > 0]
    if forward:
        begin, end, step = zip(*(span for _, span in forward), strict=True)
        result = node.emit(node.op.strided_slice(result, [axis for axis, _ in forward], begin, end, step))
    return result


def _import_gather_nd(node: OnnxNode) -> Expr:
    shape, batch = node.shape(), int(node.attribute("batch_dims", 0))
    if node.is_constant(1):
        return node.op.gather_nd(node.input(0), node.input(1), batch)
    if batch:
        raise ModelError("has indices that the model computes, of each sample its own; only constants are supported")
    line = node.emit(node.op.reshape(node.input(0), (math.prod(shape),)))
    return node.op.take(line, flat_places(node, node.input(1), shape), 0)


def _import_tile(node: OnnxNode) -> Expr:
    repeats = node.numbers(1, "")
    return node.op.tile(node.input(0), repeats)


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


def _take_along_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.gather_elements(args[0], host.emit(host.op.astype(args[1], "int64")), node.attrs["axis"])


def _concat_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.concat(args, node.attrs["axis"])


# Relax operators that keep all elements in their order.
_RESHAPES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
_MOVES = "moves data only"


def _quantize_concat(builder: IntegerBuilder, composite: Composite) -> None:
    """Parts of one scale."""
    (node,) = composite.nodes
    exponent, parts = builder.exponents[node.output], []
    for index, name in enumerate(node.inputs):
        part = builder.int_name(name)
        if builder.exponents[name] != exponent:
            part = builder.rescaled(part, exponent, f"{node.output}.part{index}", f"{node.name}.rescale{index}")
        parts.append(part)
    value = Value(node.output, builder.graph.shape(node.output), exponent)
    builder.emit(node.name, "concat", parts, value, node.attrs)


# What passes on elements of one operand as they are.
_move = functools.partial(Op, moves_data=True, one_source=True, keeps_scale=True, reason=_MOVES)

OPS = (
    _move(
        "reshape",
        relax=dict.fromkeys(_RESHAPES, _read_reshape),
        onnx=("Flatten", "Reshape", "Squeeze", "Unsqueeze"),
        onnx_layers=("Flatten",),
        compute=lambda args, attrs, out: args[0].reshape(tuple(out)),
        host=_reshape_host,
    ),
    _move(
        "permute",
        relax={"relax.permute_dims": _read_permute, "relax.nn.pixel_shuffle": _read_shuffle},
        onnx=("DepthToSpace", "SpaceToDepth", "Transpose"),
        compute=lambda args, attrs, out: np.ascontiguousarray(args[0].transpose(attrs["axes"])),
        host=_permute_host,
    ),
    _move(
        "slice",
        relax={"relax.strided_slice": _read_strided, "relax.split": _read_split},
        onnx=("Slice", "Split"),
        onnx_import={"Slice": _import_slice},
        compute=lambda args, attrs, out: np.ascontiguousarray(args[0][tuple(slice(*part) for part in attrs["parts"])]),
        host=_slice_host,
    ),
    _move(
        "broadcast",
        relax={"relax.broadcast_to": _read_broadcast},
        onnx=("Expand",),
        compute=lambda args, attrs, out: np.ascontiguousarray(np.broadcast_to(args[0], tuple(out))),
        host=_broadcast_host,
    ),
    Op(
        "concat",
        relax={"relax.concat": _read_concat, "relax.stack": _read_stack},
        onnx=("Concat",),
        compute=lambda args, attrs, out: np.concatenate(args, attrs["axis"]),
        host=_concat_host,
        scales=True,
        quantize=_quantize_concat,
        moves_data=True,
        reason=_MOVES,
    ),
    _move(
        "gather",
        relax={
            "relax.tile": _read_tile,
            "relax.repeat": _read_repeat,
            "relax.flip": _read_flip,
            "relax.gather_elements": _read_gather_elements,
            "relax.gather_nd": _read_gather_nd,
            "relax.index_tensor": _read_index,
        },
        onnx=("Gather", "GatherElements", "GatherND", "Tile"),
        onnx_import={"Tile": _import_tile, "GatherND": _import_gather_nd},
        compute=lambda args, attrs, out: args[0].take(attrs["places"], attrs["axis"]),
        host=_gather_host,
    ),
    Op(
        "take_along",
        compute=lambda args, attrs, out: np.take_along_axis(args[0], args[1].astype(np.int64), attrs["axis"]),
        host=_take_along_host,
        moves_data=True,
        reason=_MOVES,
    ),
    # Read as other operators.
    Op("triangle", relax=dict.fromkeys(("relax.tril", "relax.triu"), _read_triangle), onnx=("Trilu",)),
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
