"""Two-dimensional convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shape, Shapes
from oneshot_ml2.models.ops.numeric import layer_sums, windows
from oneshot_ml2.models.ops.pad import padded
from oneshot_ml2.models.ops.reading import ints, layout, pads
from oneshot_ml2.workload.conv2d import Conv2d

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader
    from oneshot_ml2.workload.epilogue import Epilogue
    from oneshot_ml2.workload.registry import Workload


def convolution(x: Array, weight: Array, attrs: Attrs, out: Sequence[int]) -> Array:
    """Sums of a convolution, (N, K, OH, OW), in the operands' type."""
    groups = attrs.get("groups", 1)
    k, c, r, s = weight.shape
    taps = windows(x, attrs, (r, s), out[2:], 0)
    sums = np.zeros((x.shape[0], groups, k // groups, out[2] * out[3]), dtype=x.dtype)
    kernel = weight.reshape(groups, k // groups, c, r * s)
    for tap, window in enumerate(taps):
        columns = np.ascontiguousarray(window).reshape(x.shape[0], groups, c, -1)
        sums += kernel[..., tap] @ columns
    return sums.reshape(tuple(out))


def _conv2d(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    sums = convolution(args[0], args[1], attrs, out)
    return sums + args[2].reshape(1, -1, 1, 1) if len(args) > 2 else sums


def read_weight(reader: Reader, operands: Sequence[str]) -> None:
    """Refuse a layer whose weight is not constant."""
    if not reader.is_constant(operands[1]):
        raise reader.refused("has a weight that the model computes; only constants are supported")


def _read(reader: Reader, call: Any) -> str:
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    layout(attrs, reader.where)
    read_weight(reader, operands)
    dilation, kernel = ints(attrs.dilation), reader.shape(operands[1])[2:]
    reach = [(k - 1) * apart for k, apart in zip(kernel, dilation, strict=True)]
    x, around = padded(reader, operands[0], pads(attrs.padding), reach)
    return reader.add(
        "conv2d", [x, *operands[1:]], shape, strides=ints(attrs.strides), pads=around,
        dilation=dilation, groups=int(attrs.groups),
    )  # fmt: skip


def _import(node: OnnxNode) -> Expr:
    rank = len(node.shape()) - 2
    if rank not in (1, 2):
        raise ModelError(f"has {rank} dimensions; only one or two are supported")
    strides, around, dilation = node.window(node.shape(node.input(1))[2:])
    sums = node.emit(
        getattr(node.op.nn, f"conv{rank}d")(
            node.input(0), node.input(1), strides=strides, padding=around, dilation=dilation,
            groups=int(node.attribute("group", 1)),
        )
    )  # fmt: skip
    return with_bias(node, sums, rank)


def with_bias(node: OnnxNode, sums: Expr, rank: int) -> Expr:
    """The sums of a convolution of ``rank`` dimensions, and the third operand, if there is one."""
    bias = node.input(2)
    if bias is None:
        return sums
    return node.op.add(sums, node.emit(node.op.reshape(bias, [1, -1] + [1] * rank)))


def _layer(attrs: Attrs, data: Shape, weight: Shape, epilogue: Epilogue) -> Workload:
    n, c, h, w = data
    k, _, r, s = weight
    return Conv2d(n, c, h, w, k, r, s, attrs["strides"], attrs["pads"], attrs["dilation"], epilogue, attrs["groups"])


def _int_conv2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    sums = host.convolution(node, args[0], host.relax.const(node.arrays["weight"]), "int32")
    return host.finished(node, sums, args[1:], (1, -1, 1, 1))


def _conv2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    sums = host.convolution(node, args[0], args[1], "float32")
    return host.op.add(sums, host.op.reshape(args[2], (1, value.shape[1], 1, 1))) if len(args) > 2 else sums


OPS = (
    Op(
        "conv2d",
        relax={"relax.nn.conv2d": _read},
        onnx=("Conv",),
        onnx_import={"Conv": _import},
        onnx_layers=("Conv",),
        torch_layers=("conv2d.default",),
        compute=_conv2d,
        integer=layer_sums(_conv2d, (-1, 1, 1)),
        host=_conv2d_host,
        integer_host=_int_conv2d_host,
        layer=_layer,
        weight_outputs=0,
        macs=lambda out, data, weight: out * math.prod(weight[1:]),
    ),
)
