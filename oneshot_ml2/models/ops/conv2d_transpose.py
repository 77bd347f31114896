"""Two-dimensional transposed convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shape, Shapes
from oneshot_ml2.models.ops.conv2d import read_weight, with_bias
from oneshot_ml2.models.ops.importing import shared
from oneshot_ml2.models.ops.numeric import layer_sums
from oneshot_ml2.models.ops.reading import ints, pads
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader
    from oneshot_ml2.workload.epilogue import Epilogue
    from oneshot_ml2.workload.registry import Workload


def _sums(x: Array, weight: Array, attrs: Attrs, out: Sequence[int]) -> Array:
    """Sums of a transposed convolution with weight IOHW, (N, K, OH, OW), in the operands' type."""
    groups = attrs["groups"]
    top, _, left, _ = attrs["pads"]
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilation"]
    n, c, h, w = x.shape
    _, k, r, s = weight.shape
    columns = x.reshape(n, groups, c // groups, h * w)
    kernel = weight.reshape(groups, c // groups, k, r, s)
    # Output padding may reach past the last input's kernel.
    height = max(out[2] + top, (h - 1) * sh + (r - 1) * dh + 1)
    width = max(out[3] + left, (w - 1) * sw + (s - 1) * dw + 1)
    full = np.zeros((n, groups * k, height, width), dtype=x.dtype)
    for i in range(r):
        for j in range(s):
            part = (kernel[..., i, j].transpose(0, 2, 1) @ columns).reshape(n, groups * k, h, w)
            full[:, :, i * dh : i * dh + (h - 1) * sh + 1 : sh, j * dw : j * dw + (w - 1) * sw + 1 : sw] += part
    return np.ascontiguousarray(full[:, :, top : top + out[2], left : left + out[3]])


def _conv2d_transpose(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    sums = _sums(args[0], args[1], attrs, out)
    return sums + args[2].reshape(1, -1, 1, 1) if len(args) > 2 else sums


def _read(reader: Reader, call: Any) -> str:
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    if attrs.data_layout != "NCHW" or attrs.kernel_layout != "IOHW":
        raise reader.refused(f"in layout {attrs.data_layout} is not supported; only NCHW is")
    read_weight(reader, operands)
    operands[1] = undilated(reader, operands[1], ints(attrs.dilation))
    return reader.add(
        "conv2d_transpose", operands, shape, strides=ints(attrs.strides), pads=pads(attrs.padding),
        dilation=(1, 1), groups=int(attrs.groups), output_padding=ints(attrs.output_padding),
    )  # fmt: skip


def undilated(reader: Reader, weight: str, dilation: tuple[int, ...]) -> str:
    """A weight with zeros between its elements, so that it needs no dilation."""
    if max(dilation) == 1:
        return weight
    if weight not in reader.constants:
        raise reader.refused("with dilation is not supported if its weight is quantized; only 1")
    array = reader.constants[weight]
    wide = [(k - 1) * apart + 1 for k, apart in zip(array.shape[2:], dilation, strict=True)]
    full = np.zeros((*array.shape[:2], *wide), dtype=np.float32)
    full[tuple(slice(None, None, apart) for apart in (1, 1, *dilation))] = array
    return reader.constant(full)


def _import(node: OnnxNode) -> Expr:
    """ONNX's, with ``output_shape`` and ``auto_pad`` as pads."""
    size = node.shape()[2:]
    rank = len(size)
    if rank not in (1, 2):
        raise ModelError(f"has {rank} dimensions; only one or two are supported")
    kernel = node.shape(node.input(1))[2:]
    strides, around, dilation = node.window(kernel)
    extra = [int(n) for n in node.attribute("output_padding", [0] * rank)]
    auto, given = node.text("auto_pad", "NOTSET"), node.attribute("output_shape", None)
    if given is not None or auto.startswith("SAME"):
        after = [n * step for n, step in zip(size, strides, strict=True)] if given is None else [int(n) for n in given]
        total = [
            (size[i] - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilation[i] + 1 - after[-rank:][i]
            for i in range(rank)
        ]
        extra = [more + max(-n, 0) for more, n in zip(extra, total, strict=True)]
        around = shared([max(n, 0) for n in total], "SAME_UPPER" if auto == "SAME_UPPER" else "SAME_LOWER")
    sums = node.emit(
        getattr(node.op.nn, f"conv{rank}d_transpose")(
            node.input(0), node.input(1), strides=strides, padding=around, output_padding=extra, dilation=dilation,
            groups=int(node.attribute("group", 1)),
        )
    )  # fmt: skip
    return with_bias(node, sums, rank)


def _layer(attrs: Attrs, data: Shape, weight: Shape, epilogue: Epilogue) -> Workload:
    n, c, h, w = data
    _, k, r, s = weight
    return Conv2dTranspose(n, c, h, w, k, r, s, attrs["strides"], attrs["pads"], attrs["output_padding"], epilogue)


def _one_group(weight: Array, groups: int) -> Array:
    """A grouped IOHW weight as that of one group."""
    c, k, r, s = weight.shape
    full = np.zeros((c, groups * k, r, s), dtype=np.int8)
    for group in range(groups):
        inputs = slice(group * c // groups, (group + 1) * c // groups)
        full[inputs, group * k : (group + 1) * k] = weight[inputs]
    return full


def _sums_host(host: Host, node: Node, x: Expr, weight: Expr, kind: str) -> Expr:
    attrs = node.attrs
    top, bottom, left, right = attrs["pads"]
    return host.emit(
        host.op.nn.conv2d_transpose(
            x, weight, strides=attrs["strides"], padding=(top, left, bottom, right), dilation=attrs["dilation"],
            output_padding=attrs["output_padding"], groups=attrs["groups"], out_dtype=kind,
        )
    )  # fmt: skip


def _int_conv2d_transpose_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    sums = _sums_host(host, node, args[0], host.relax.const(node.arrays["weight"]), "int32")
    return host.finished(node, sums, args[1:], (1, -1, 1, 1))


def _conv2d_transpose_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    sums = _sums_host(host, node, args[0], args[1], "float32")
    return host.op.add(sums, host.op.reshape(args[2], (1, value.shape[1], 1, 1))) if len(args) > 2 else sums


OPS = (
    Op(
        "conv2d_transpose",
        relax={"relax.nn.conv2d_transpose": _read},
        onnx=("ConvTranspose",),
        onnx_import={"ConvTranspose": _import},
        onnx_layers=("ConvTranspose",),
        torch_layers=("conv_transpose2d.input",),
        compute=_conv2d_transpose,
        integer=layer_sums(_conv2d_transpose, (-1, 1, 1)),
        host=_conv2d_transpose_host,
        integer_host=_int_conv2d_transpose_host,
        layer=_layer,
        weight_outputs=1,
        ungrouped=_one_group,
        macs=lambda out, data, weight: math.prod(data) * math.prod(weight[1:]),
    ),
)
