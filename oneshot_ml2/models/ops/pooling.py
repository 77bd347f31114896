"""Pooling: the largest element and the average of windows, and means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError, WorkloadError
from oneshot_ml2.models.ir import Value
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shape, Shapes
from oneshot_ml2.models.ops.numeric import INT8, TOO_LARGE, windows
from oneshot_ml2.models.ops.reading import ints, layout, pads
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import LARGEST_RESIDUAL_SHIFT, LARGEST_SHIFT
from oneshot_ml2.workload.max_pool2d import MaxPool2d

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.reading import Reader
    from oneshot_ml2.models.partition import Composite
    from oneshot_ml2.models.quantize.integer import IntegerBuilder
    from oneshot_ml2.workload.base import Workload


# How far, in steps, an average whose divisor is no power of two may be off on the VTA, root mean square over random
# inputs: as far as rounding takes every result anyway.
_AVERAGE_ERROR = 12**-0.5


def _max_pool2d(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    low = -np.inf if args[0].dtype.kind == "f" else INT8[0]
    result = windows(args[0], attrs, attrs["size"], out[2:], low)
    return np.maximum.reduce(result)


def _counts(shape: Sequence[int], attrs: Attrs, out: Sequence[int]) -> Array:
    """How many elements each output of an average pool divides by, (OH, OW)."""
    if attrs["count_include_pad"]:
        return np.full(tuple(out[2:]), math.prod(attrs["size"]), dtype=np.int64)
    ones = np.ones((1, 1, *shape[2:]), dtype=np.int64)
    return np.sum(windows(ones, attrs, attrs["size"], out[2:], 0), axis=0)[0, 0]


def _sum_pool(x: Array, attrs: Attrs, out: Sequence[int], kind: Any) -> Array:
    taps = windows(x, attrs, attrs["size"], out[2:], 0)
    total = np.zeros(tuple(out), dtype=kind)
    for tap in taps:
        total += tap
    return total


def _avg_pool2d(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    counts = _counts(args[0].shape, attrs, out).astype(np.float32)
    return _sum_pool(args[0], attrs, out, np.float32) / counts


def _int_avg_pool2d(args: Sequence[Array], node: Node, out: Sequence[int]) -> Array:
    left = node.attrs["left"]
    total = _sum_pool(args[0], node.attrs, out, np.int64) << max(left, 0)
    counts = _counts(args[0].shape, node.attrs, out) << max(-left, 0)
    result, rest = np.divmod(2 * total + counts, 2 * counts)
    if node.attrs["half_even"]:
        result = result - ((rest == 0) & (result & 1 == 1))
    return np.clip(result, *node.attrs["clip"]).astype(np.int8)


def _adaptive_avg_pool2d(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x = args[0]
    result = np.empty(tuple(out), dtype=np.float32)
    for i in range(out[2]):
        rows = slice(i * x.shape[2] // out[2], -(-(i + 1) * x.shape[2] // out[2]))
        for j in range(out[3]):
            columns = slice(j * x.shape[3] // out[3], -(-(j + 1) * x.shape[3] // out[3]))
            result[:, :, i, j] = x[:, :, rows, columns].mean((2, 3), dtype=np.float32)
    return result


def _max_pool_layer(attrs: Attrs, data: Shape, out: Shape) -> Workload:
    """The workload of a max_pool2d of int8 images.

    Raises:
        WorkloadError: VTA's layers cannot be that; says why.
    """
    n, c, h, w = data
    r, s = attrs["size"]
    for ceil_mode in (False, True):
        workload = MaxPool2d(n, c, h, w, r, s, attrs["strides"], attrs["pads"], ceil_mode)
        if workload.output_shape == tuple(out):
            return workload
    raise WorkloadError(f"its output is {tuple(out)}; the VTA's would be {workload.output_shape}")


def _pool(attrs: Any, op: str) -> dict[str, Any]:
    layout(attrs, op, kernel=False)
    if ints(attrs.dilation) != (1, 1):
        raise ModelError(f"{op} with dilation {ints(attrs.dilation)} is not supported; only 1")
    return {
        "size": ints(attrs.pool_size),
        "strides": ints(attrs.strides),
        "pads": pads(attrs.padding),
        "dilation": (1, 1),
    }


def _read_max(reader: Reader, call: Any) -> str:
    shape, operands = reader.static(call), reader.tensors(call)
    return reader.add("max_pool2d", operands, shape, **_pool(call.attrs, reader.where))


def _read_avg(reader: Reader, call: Any) -> str:
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    if attrs.ceil_mode:
        raise reader.refused("with ceil_mode is not supported; pad the image instead")
    return reader.add(
        "avg_pool2d", operands, shape, **_pool(attrs, reader.where),
        count_include_pad=bool(attrs.count_include_pad),
    )  # fmt: skip


def _global_pool(
    reader: Reader, operand: str, shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int]
) -> str:
    n, c = reader.values[operand].shape[:2]
    spatial = tuple((reader.values[operand].shape[i + 2] - size[i]) // stride[i] + 1 for i in range(2))
    pooled = reader.add(
        "avg_pool2d", [operand], (n, c, *spatial), size=size, strides=stride, pads=(0, 0, 0, 0), dilation=(1, 1),
        count_include_pad=True,
    )  # fmt: skip
    return reader.reshape(pooled, shape)


def _read_adaptive(reader: Reader, call: Any) -> str:
    shape, operands = reader.static(call), reader.tensors(call)
    layout(call.attrs, reader.where, kernel=False)
    image = reader.values[operands[0]].shape
    if image == shape:
        return operands[0]
    if image[2] % shape[2] == 0 and image[3] % shape[3] == 0:
        step = (image[2] // shape[2], image[3] // shape[3])
        return _global_pool(reader, operands[0], shape, step, step)
    return reader.add("adaptive_avg_pool2d", operands, shape)


def _read_mean(reader: Reader, call: Any) -> str:
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    image = reader.values[operands[0]].shape
    axes = tuple(sorted(int(axis) % len(image) for axis in attrs.axis)) if attrs.axis else tuple(range(len(image)))
    if len(image) == 4 and axes == (2, 3):
        return _global_pool(reader, operands[0], shape, image[2:], (1, 1))
    return reader.add("mean", operands, shape, axes=axes, keepdims=bool(attrs.keepdims))


def _bottom_right(node: Node, before: Sequence[int], out: Sequence[int]) -> list[int]:
    """A pool's pads as (top, left, bottom, right), with what makes a window in ceil_mode complete."""
    top, bottom, left, right = node.attrs["pads"]
    reach = [(out[axis + 2] - 1) * node.attrs["strides"][axis] + node.attrs["size"][axis] for axis in range(2)]
    return [top, left, max(bottom, reach[0] - before[2] - top), max(right, reach[1] - before[3] - left)]


def _max_pool2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    pads = _bottom_right(node, shapes[0], value.shape)
    return host.op.nn.max_pool2d(args[0], node.attrs["size"], node.attrs["strides"], pads)


def _avg_pool2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    top, bottom, left, right = node.attrs["pads"]
    return host.op.nn.avg_pool2d(
        args[0], node.attrs["size"], node.attrs["strides"], (top, left, bottom, right),
        count_include_pad=node.attrs["count_include_pad"],
    )  # fmt: skip


def _int_avg_pool2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    attrs, (shape,) = node.attrs, shapes
    if tuple(attrs["size"]) == tuple(shape[2:]) and not any(attrs["pads"]):
        total = host.emit(host.op.sum(host.wide(args[0]), axis=[2, 3], keepdims=True))
    else:
        ones = np.ones((shape[1], 1, *attrs["size"]), dtype=np.int8)
        total = host.convolution(node, args[0], host.relax.const(ones), "int32", groups=shape[1])
    counts = _counts(shape, attrs, value.shape) << max(-attrs["left"], 0)
    counts = counts.reshape(1, 1, *counts.shape)
    doubled = host.emit(host.op.add(host.left(total, max(attrs["left"], 0) + 1), host.integer(counts)))
    result = host.emit(host.op.floor_divide(doubled, host.integer(2 * counts)))
    if attrs["half_even"]:
        rest = host.op.subtract(doubled, host.emit(host.op.multiply(result, host.integer(2 * counts))))
        tie = host.emit(host.op.astype(host.op.equal(rest, host.integer(0)), "int32"))
        result = host.emit(host.op.subtract(result, host.op.bitwise_and(result, tie)))
    return host.narrow(result, attrs["clip"])


def _adaptive_avg_pool2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.nn.adaptive_avg_pool2d(args[0], value.shape[2:])


def _mean_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.mean(args[0], list(node.attrs["axes"]), node.attrs["keepdims"])


def _quantize_average(builder: IntegerBuilder, composite: Composite) -> None:
    """An average of images: a depthwise convolution, exact if the divisor is a power of two."""
    (node,) = composite.nodes
    source, exponent, shape = node.inputs[0], builder.exponents[node.output], builder.graph.shape(node.output)
    left = builder.exponents[source] - exponent
    count = math.prod(node.attrs["size"])
    if count.bit_length() + abs(left) > 20:
        builder.floating(node, TOO_LARGE)
        return
    clip = INT8
    attrs = {**node.attrs, "left": left, "clip": clip, "half_even": builder.half_even, "workload": None}
    arrays: dict[str, Array] = {}
    try:
        kernel, shift = average_kernel(node.attrs["size"], left)
        off = kernel / 2.0**shift - 2.0**left / count
        worst, usual = float(np.abs(off).sum()) * 128, float(np.sqrt(np.square(off).sum())) * 128 / 3**0.5
        if any(node.attrs["pads"]) and not node.attrs["count_include_pad"]:
            raise WorkloadError("its divisor differs at the border, where padding does not count")
        if worst and (builder.fixed or builder.half_even):
            why = "half to even is exact" if builder.half_even else "the scales are the model's"
            raise WorkloadError(f"its divisor {count} is no power of two, and {why}")
        if usual > _AVERAGE_ERROR:
            raise WorkloadError(f"its divisor {count} is no power of two; int8 weights would be off by {usual:.1f}")
        n, c, h, w = builder.graph.shape(source)
        r, s = node.attrs["size"]
        bias = np.full(c, 1 << shift >> 1, dtype=np.int32)
        workload = Conv2d(
            n, c, h, w, c, r, s, node.attrs["strides"], node.attrs["pads"],
            epilogue=builder.epilogue(bias, None, shift, clip), groups=c,
        )  # fmt: skip
        if workload.output_shape != shape:
            raise WorkloadError(f"its output is {shape}; the VTA's would be {workload.output_shape}")
        attrs["workload"] = workload
        arrays = {"weight": np.broadcast_to(kernel, (c, 1, *kernel.shape)).copy(), "bias": bias}
        if worst:
            builder.changes.append(
                f"{node.name} divides by {count}, no power of two: weights of {kernel.min()} to {kernel.max()} and "
                f"a shift of {shift} instead, off by {usual:.2f} steps of int8 for random inputs and never by more "
                f"than {worst:.1f}"
            )
    except WorkloadError as error:
        attrs["reason"] = str(error)
    value = Value(node.output, shape, exponent)
    builder.emit(node.name, "int_avg_pool2d", [builder.int_name(source)], value, attrs, arrays)


def average_kernel(size: Sequence[int], left: int) -> tuple[NDArray[np.int8], int]:
    """Weights of a window and a right shift that average int8 numbers, times ``2**left``.

    Exact where the number of weights is a power of two; else the weights differ by one, spread evenly, so that their
    sum is what it should be.

    Raises:
        WorkloadError: no int8 weights do it.
    """
    count = math.prod(size)
    if count & (count - 1) == 0:
        shift = count.bit_length() - 1 - left
        if shift < -LARGEST_RESIDUAL_SHIFT:
            raise WorkloadError(f"its result is shifted left by {-shift}; int8 weights allow up to 6")
        return np.full(tuple(size), 1 << max(-shift, 0), dtype=np.int8), max(shift, 0)
    shift = min(math.floor(math.log2(127 * count)) - left, LARGEST_SHIFT)
    if shift < 0 or 2.0 ** (left + shift) < count:
        raise WorkloadError(f"its divisor {count} is no power of two, and its scales differ by 2**{abs(left)}")
    total = 1 << (left + shift)
    # Whole parts of a line from 0 to the sum.
    edges = np.arange(count + 1) * total // count
    return np.diff(edges).astype(np.int8).reshape(tuple(size)), shift


OPS = (
    Op(
        "max_pool2d",
        relax={"relax.nn.max_pool2d": _read_max},
        onnx=("MaxPool",),
        onnx_layers=("MaxPool",),
        torch_layers=("max_pool2d.default",),
        compute=_max_pool2d,
        host=_max_pool2d_host,
        keeps_type=True,
        keeps_scale=True,
        plain_layer=_max_pool_layer,
    ),
    Op(
        "avg_pool2d",
        relax={"relax.nn.avg_pool2d": _read_avg},
        onnx=("AveragePool", "GlobalAveragePool"),
        onnx_layers=("AveragePool", "GlobalAveragePool"),
        torch_layers=("adaptive_avg_pool2d.default",),
        compute=_avg_pool2d,
        integer=_int_avg_pool2d,
        host=_avg_pool2d_host,
        integer_host=_int_avg_pool2d_host,
        scales=True,
        quantize=_quantize_average,
    ),
    Op(
        "adaptive_avg_pool2d",
        relax={"relax.nn.adaptive_avg_pool2d": _read_adaptive},
        compute=_adaptive_avg_pool2d,
        host=_adaptive_avg_pool2d_host,
    ),
    Op(
        "mean",
        relax={"relax.mean": _read_mean},
        onnx=("ReduceMean",),
        compute=lambda args, attrs, out: args[0].mean(attrs["axes"], keepdims=attrs["keepdims"], dtype=np.float32),
        host=_mean_host,
    ),
)
