"""Softmax and normalizations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shapes

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.reading import Reader


def _softmax(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    shifted = np.exp(args[0] - args[0].max(attrs["axis"], keepdims=True))
    return shifted / shifted.sum(attrs["axis"], keepdims=True)


def _layer_norm(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x, axes = args[0], tuple(attrs["axes"])
    centred = x - x.mean(axes, keepdims=True)
    normal = centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + np.float32(attrs["epsilon"]))
    return normal * args[1] + args[2]


def _read_softmax(reader: Reader, call: Any) -> str:
    shape = reader.static(call)
    return reader.add("softmax", reader.tensors(call), shape, axis=int(call.attrs.axis) % len(shape))


def _read_layer_norm(reader: Reader, call: Any) -> str:
    shape, attrs = reader.static(call), call.attrs
    axes = tuple(int(axis) % len(shape) for axis in attrs.axes)
    return reader.add("layer_norm", reader.tensors(call), shape, axes=axes, epsilon=float(attrs.epsilon))


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


def _layer_norm_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.nn.layer_norm(*args, axes=list(node.attrs["axes"]), epsilon=node.attrs["epsilon"])


OPS = (
    Op(
        "softmax",
        relax={"relax.nn.softmax": _read_softmax},
        onnx=("Softmax",),
        torch_layers=("softmax.int",),
        compute=_softmax,
        host=_softmax_host,
    ),
    Op(
        "layer_norm",
        relax={"relax.nn.layer_norm": _read_layer_norm},
        onnx=("LayerNormalization",),
        torch_layers=("layer_norm.default",),
        compute=_layer_norm,
        host=_layer_norm_host,
    ),
    # Read as other operators, or as none.
    Op("batch_norm", relax={"relax.nn.batch_norm": _read_batch_norm}, onnx=("BatchNormalization",)),
    Op("dropout", relax={"relax.nn.dropout": _read_dropout}, onnx=("Dropout",)),
)
