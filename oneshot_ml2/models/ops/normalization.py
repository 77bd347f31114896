"""Softmax and normalizations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Import, Op, Read, Shapes

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader


def _softmax(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    shifted = np.exp(args[0] - args[0].max(attrs["axis"], keepdims=True))
    return shifted / shifted.sum(attrs["axis"], keepdims=True)


def _layer_norm(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x, axes = args[0], tuple(attrs["axes"])
    centred = x - x.mean(axes, keepdims=True)
    normal = centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + np.float32(attrs["epsilon"]))
    return normal * args[1] + args[2]


def _log_softmax(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    shifted = args[0] - args[0].max(attrs["axis"], keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(attrs["axis"], keepdims=True))


def _group_norm(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x = args[0].reshape(out[0], attrs["groups"], -1)
    centred = x - x.mean(2, keepdims=True)
    normal = centred / np.sqrt((centred * centred).mean(2, keepdims=True) + np.float32(attrs["epsilon"]))
    gamma, beta = (array.reshape(1, -1, *(1,) * (len(out) - 2)) for array in args[1:])
    return normal.reshape(tuple(out)) * gamma + beta


def _rms_norm(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    square = (args[0] * args[0]).mean(tuple(attrs["axes"]), keepdims=True)
    return args[0] / np.sqrt(square + np.float32(attrs["epsilon"])) * args[1]


def _read_softmax(name: str) -> Read:
    def read(reader: Reader, call: Any) -> str:
        shape = reader.static(call)
        return reader.add(name, reader.tensors(call), shape, axis=int(call.attrs.axis) % len(shape))

    return read


def _read_layer_norm(reader: Reader, call: Any) -> str:
    shape, attrs = reader.static(call), call.attrs
    axes = tuple(int(axis) % len(shape) for axis in attrs.axes)
    return reader.add("layer_norm", reader.tensors(call), shape, axes=axes, epsilon=float(attrs.epsilon))


def _read_groups(reader: Reader, call: Any) -> str:
    """Relax's group_norm, and instance_norm, whose groups are single channels."""
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    groups = int(getattr(attrs, "num_groups", shape[1]))
    axes = sorted(int(axis) % len(shape) for axis in attrs.axes)
    # TVM lists the images, too, where there is one.
    axes = axes[1:] if axes[0] == 0 and shape[0] == 1 else axes
    behind = int(attrs.channel_axis) % len(shape) == 1 and axes == list(range(2, len(shape)))
    if not (behind and attrs.center and attrs.scale):
        raise reader.refused("along other axes than those behind the channels, axis 1, is not supported")
    return reader.add("group_norm", operands, shape, groups=groups, epsilon=float(attrs.epsilon))


def _read_rms_norm(reader: Reader, call: Any) -> str:
    shape, attrs = reader.static(call), call.attrs
    axes = tuple(int(axis) % len(shape) for axis in attrs.axes)
    return reader.add("rms_norm", reader.tensors(call), shape, axes=axes, epsilon=float(attrs.epsilon))


def _import_softmax(relax_name: str) -> Import:
    def make(node: OnnxNode) -> Expr:
        shape, function = node.shape(), getattr(node.op.nn, relax_name)
        if node.opset >= 13:
            return function(node.input(0), int(node.attribute("axis", -1)))
        # Then, all axes from the given one on were one.
        axis = int(node.attribute("axis", 1)) % len(shape)
        flat = (math.prod(shape[:axis]), math.prod(shape[axis:]))
        matrix = node.emit(node.op.reshape(node.input(0), flat))
        return node.op.reshape(node.emit(function(matrix, -1)), shape)

    return make


def _grouped(node: OnnxNode, groups: int, gamma: Expr, beta: Expr) -> Expr:
    axes = list(range(2, len(node.shape())))
    return node.op.nn.group_norm(node.input(0), gamma, beta, groups, 1, axes, float(node.attribute("epsilon", 1e-5)))


def _import_instance(node: OnnxNode) -> Expr:
    return _grouped(node, node.shape()[1], node.input(1), node.input(2))


def _import_group(node: OnnxNode) -> Expr:
    groups, channels = int(node.attribute("num_groups", 1)), node.shape()[1]
    gamma, beta = node.input(1), node.input(2)
    if node.opset < 21 and groups != channels:
        # Then, there was one for each group.
        gamma, beta = (node.emit(node.op.repeat(part, channels // groups, 0)) for part in (gamma, beta))
    return _grouped(node, groups, gamma, beta)


def _import_local_response(node: OnnxNode) -> Expr:
    """Each element over a power of the sum of squares of its neighbours among the channels."""
    op, x, shape = node.op, node.input(0), node.shape()
    size = int(node.attribute("size", 1))
    alpha, beta, bias = (float(node.attribute(*pair)) for pair in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    lines = node.emit(op.reshape(node.emit(op.square(x)), (shape[0], 1, shape[1], math.prod(shape[2:]))))
    around = [(size - 1) // 2, 0, size // 2, 0]
    mean = node.emit(op.nn.avg_pool2d(lines, (size, 1), (1, 1), around, count_include_pad=True))
    scaled = node.emit(op.multiply(node.emit(op.reshape(mean, shape)), node.constant(alpha)))
    return op.divide(x, node.emit(op.power(node.emit(op.add(scaled, node.constant(bias))), node.constant(beta))))


def _import_mean_variance(node: OnnxNode) -> Expr:
    op, x, axes = node.op, node.input(0), [int(axis) for axis in node.attribute("axes", (0, 2, 3))]
    centred = node.emit(op.subtract(x, node.emit(op.mean(x, axes, True))))
    spread = node.emit(op.sqrt(node.emit(op.mean(node.emit(op.square(centred)), axes, True))))
    return op.divide(centred, node.emit(op.add(spread, node.constant(1e-9))))


def _import_unit(node: OnnxNode) -> Expr:
    op, x, axis = node.op, node.input(0), [int(node.attribute("axis", -1))]
    if int(node.attribute("p", 2)) == 1:
        return op.divide(x, node.emit(op.sum(node.emit(op.abs(x)), axis, True)))
    return op.divide(x, node.emit(op.sqrt(node.emit(op.sum(node.emit(op.square(x)), axis, True)))))


def _read_dropout(reader: Reader, call: Any) -> tuple[str, ...]:
    return (reader.operand(call.args[0]),) * 2


def _read_batch_norm(reader: Reader, call: Any) -> tuple[str, ...]:
    attrs = call.attrs
    x, *arrays = [reader.operand(arg) for arg in call.args]
    gamma, beta, mean, variance = (reader.constants[name].astype(np.float64) for name in arrays)
    if int(attrs.axis) != 1:
        raise reader.refused(f"works along axis {int(attrs.axis)}; only axis 1 is supported")
    scale = (gamma if attrs.scale else 1.0) / np.sqrt(variance + float(attrs.epsilon))
    offset = (beta if attrs.center else 0.0) - mean * scale
    shape = reader.values[x].shape
    column = (-1,) + (1,) * (len(shape) - 2)
    scaled = reader.add("multiply", [x, reader.constant(scale.astype(np.float32).reshape(column))], shape)
    return (reader.add("add", [scaled, reader.constant(offset.astype(np.float32).reshape(column))], shape),) * 3


def _softmax_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.nn.softmax(args[0], node.attrs["axis"])


def _log_softmax_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.nn.log_softmax(args[0], node.attrs["axis"])


def _group_norm_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    axes = list(range(2, len(value.shape)))
    return host.op.nn.group_norm(*args, node.attrs["groups"], 1, axes, node.attrs["epsilon"])


def _rms_norm_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.nn.rms_norm(*args, axes=list(node.attrs["axes"]), epsilon=node.attrs["epsilon"])


def _layer_norm_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.nn.layer_norm(*args, axes=list(node.attrs["axes"]), epsilon=node.attrs["epsilon"])


OPS = (
    Op(
        "softmax",
        relax={"relax.nn.softmax": _read_softmax("softmax")},
        onnx=("Softmax",),
        onnx_import={"Softmax": _import_softmax("softmax")},
        torch_layers=("softmax.int",),
        compute=_softmax,
        host=_softmax_host,
    ),
    Op(
        "log_softmax",
        relax={"relax.nn.log_softmax": _read_softmax("log_softmax")},
        onnx=("LogSoftmax",),
        onnx_import={"LogSoftmax": _import_softmax("log_softmax")},
        compute=_log_softmax,
        host=_log_softmax_host,
    ),
    Op(
        "group_norm",
        relax={"relax.nn.group_norm": _read_groups, "relax.nn.instance_norm": _read_groups},
        onnx=("GroupNormalization", "InstanceNormalization"),
        onnx_import={"GroupNormalization": _import_group, "InstanceNormalization": _import_instance},
        torch_layers=("group_norm.default", "instance_norm.default"),
        compute=_group_norm,
        host=_group_norm_host,
    ),
    Op(
        "rms_norm",
        relax={"relax.nn.rms_norm": _read_rms_norm},
        onnx=("RMSNormalization",),
        compute=_rms_norm,
        host=_rms_norm_host,
    ),
    Op(
        "layer_norm",
        relax={"relax.nn.layer_norm": _read_layer_norm},
        onnx=("LayerNormalization",),
        torch_layers=("layer_norm.default",),
        compute=_layer_norm,
        host=_layer_norm_host,
    ),
    # Made of other operators at import.
    Op(
        "unit_norm",
        onnx=("LRN", "LpNormalization", "MeanVarianceNormalization"),
        onnx_import={
            "LRN": _import_local_response,
            "LpNormalization": _import_unit,
            "MeanVarianceNormalization": _import_mean_variance,
        },
    ),
    # Read as other operators, or as none.
    Op("batch_norm", relax={"relax.nn.batch_norm": _read_batch_norm}, onnx=("BatchNormalization",)),
    Op("dropout", relax={"relax.nn.dropout": _read_dropout}, onnx=("Dropout",)),
)
