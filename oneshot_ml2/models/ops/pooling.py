"""Pooling: the largest element and the average of windows, and means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError, WorkloadError
from oneshot_ml2.models.ir import Value
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Import, Op, Shape, Shapes
from oneshot_ml2.models.ops.numeric import INT8, TOO_LARGE, windows
from oneshot_ml2.models.ops.pad import padded
from oneshot_ml2.models.ops.reading import ints, layout, pads
from oneshot_ml2.models.ops.reductions import reduced_axes
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import LARGEST_RESIDUAL_SHIFT, LARGEST_SHIFT
from oneshot_ml2.workload.max_pool2d import MaxPool2d

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
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


def counts(shape: Sequence[int], attrs: Attrs, out: Sequence[int]) -> Array:
    """How many elements each output of an average pool divides by, (OH, OW)."""
    ones = np.ones((1, 1, *shape[2:]), dtype=np.int64)
    if attrs["count_include_pad"]:
        # Padding counts, but not what a last window in ceil_mode reaches beyond it.
        top, bottom, left, right = attrs["pads"]
        ones = np.pad(ones, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=1)
        attrs = {**attrs, "pads": (0, 0, 0, 0)}
    return np.sum(windows(ones, attrs, attrs["size"], out[2:], 0), axis=0)[0, 0]


def _sum_pool(x: Array, attrs: Attrs, out: Sequence[int], kind: Any) -> Array:
    taps = windows(x, attrs, attrs["size"], out[2:], 0)
    total = np.zeros(tuple(out), dtype=kind)
    for tap in taps:
        total += tap
    return total


def _avg_pool2d(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    divisors = counts(args[0].shape, attrs, out).astype(np.float32)
    return _sum_pool(args[0], attrs, out, np.float32) / divisors


def _int_avg_pool2d(args: Sequence[Array], node: Node, out: Sequence[int]) -> Array:
    left = node.attrs["left"]
    total = _sum_pool(args[0], node.attrs, out, np.int64) << max(left, 0)
    divisors = counts(args[0].shape, node.attrs, out) << max(-left, 0)
    result, rest = np.divmod(2 * total + divisors, 2 * divisors)
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
    if tuple(attrs["dilation"]) != (1, 1):
        raise WorkloadError(f"its window has the dilation {tuple(attrs['dilation'])}; the VTA's layers have 1")
    for ceil_mode in (False, True):
        workload = MaxPool2d(n, c, h, w, r, s, attrs["strides"], attrs["pads"], ceil_mode)
        if workload.output_shape == tuple(out):
            return workload
    raise WorkloadError(f"its output is {tuple(out)}; the VTA's would be {workload.output_shape}")


def _read_window(reader: Reader, call: Any, op: str) -> str:
    """A pool of images, or of lines as images of height 1; its own padding and what a Pad before it gives."""
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    if attrs.layout not in ("NCHW", "NCW"):
        raise reader.refused(f"in layout {attrs.layout} is not supported; only NCHW is")
    line = len(shape) == 3
    more: dict[str, Any] = {} if op == "max_pool2d" else {"count_include_pad": bool(attrs.count_include_pad)}
    inner = ints(attrs.padding)
    if line:
        begin, end = inner * 2 if len(inner) == 1 else inner
        inner = (0, 0, begin, end)
    else:
        inner = pads(inner)
    size, strides, dilation = (
        ((1,) if line else ()) + ints(given) for given in (attrs.pool_size, attrs.strides, attrs.dilation)
    )
    x, around = operands[0], inner
    if not any(inner) or more.get("count_include_pad", True):
        reach = [(k - 1) * apart for k, apart in zip(size, dilation, strict=True)]
        x, around = padded(reader, x, inner, reach, lowest=op == "max_pool2d")
    if around != inner and more:
        # Zeros that are part of the image count.
        more["count_include_pad"] = True
    image = (*reader.shape(x)[:2], 1, reader.shape(x)[2]) if line else reader.shape(x)
    pooled = reader.add(
        op, [reader.reshape(x, image)], (*shape[:2], 1, shape[2]) if line else shape, size=size, strides=strides,
        pads=around, dilation=dilation, **more,
    )  # fmt: skip
    return reader.reshape(pooled, shape)


def _read_max(reader: Reader, call: Any) -> str:
    return _read_window(reader, call, "max_pool2d")


def _read_avg(reader: Reader, call: Any) -> str:
    return _read_window(reader, call, "avg_pool2d")


def _import(name: str) -> Import:
    def make(node: OnnxNode) -> Expr:
        if node.outputs > 1:
            raise ModelError("has a second output, of indices; it is not supported: remove it from the model")
        size = [int(n) for n in node.attribute("kernel_shape", ())]
        strides, around, dilation = node.window(size)
        x, shape = node.input(0), node.shape()
        if len(size) > 2:
            # PyTorch writes LRN as a pool of volumes along their first axis alone.
            inner = len(size) - 1
            if (
                size[1:] != [1] * inner
                or strides[1:] != [1] * inner
                or any(around[1 : inner + 1] + around[inner + 2 :])
            ):
                raise ModelError(f"has {len(size)} dimensions; only one or two are supported")
            x = node.emit(node.op.reshape(x, (*shape[:3], math.prod(shape[3:]))))
            around = [around[0], 0, around[inner + 1], 0]
            size, strides, dilation = ([*values[:1], 1] for values in (size, strides, dilation))
        ceil_mode = bool(node.attribute("ceil_mode", 0))
        if ceil_mode:
            # The last window has to begin in the image, or in the padding before it; with that, all axes may be even.
            last = [
                -(-(n + begin + end - (k - 1) * apart - 1) // step) * step < n + begin
                for n, k, step, apart, begin, end in zip(
                    node.shape(x)[2:], size, strides, dilation, around, around[len(size) :], strict=False
                )
            ]
            ceil_mode = all(last)
            if not ceil_mode and any(last):
                raise ModelError("with ceil_mode has windows that begin behind the image in one axis only; pad it")
        pool, counted = getattr(node.op.nn, f"{name}{len(size)}d"), bool(node.attribute("count_include_pad", 0))
        made = node.emit(pool(x, size, strides, around, dilation, ceil_mode, counted))
        return node.op.reshape(made, (*node.shape(made)[:3], *shape[3:])) if len(shape) > 4 else made

    return make


def _import_global_max(node: OnnxNode) -> Expr:
    return node.op.max(node.input(0), list(range(2, len(node.shape()))), True)


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
    axes = reduced_axes(attrs.axis, len(image))
    if len(image) == 4 and axes == (2, 3):
        return _global_pool(reader, operands[0], shape, image[2:], (1, 1))
    return reader.add("mean", operands, shape, axes=axes, keepdims=bool(attrs.keepdims))


def _bottom_right(node: Node, before: Sequence[int], out: Sequence[int]) -> list[int]:
    """A pool's pads as (top, left, bottom, right), with what makes a window in ceil_mode complete."""
    top, bottom, left, right = node.attrs["pads"]
    strides, size, dilation = (node.attrs[name] for name in ("strides", "size", "dilation"))
    reach = [(out[axis + 2] - 1) * strides[axis] + (size[axis] - 1) * dilation[axis] + 1 for axis in range(2)]
    return [top, left, max(bottom, reach[0] - before[2] - top), max(right, reach[1] - before[3] - left)]


def _max_pool2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    pads = _bottom_right(node, shapes[0], value.shape)
    return host.op.nn.max_pool2d(args[0], node.attrs["size"], node.attrs["strides"], pads, node.attrs["dilation"])


def _avg_pool2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    attrs, (shape,) = node.attrs, shapes
    around = _bottom_right(node, shape, value.shape)
    top, bottom, left, right = attrs["pads"]
    plain = around == [top, left, bottom, right]
    average = host.op.nn.avg_pool2d(
        args[0], attrs["size"], attrs["strides"], around, attrs["dilation"],
        count_include_pad=attrs["count_include_pad"] or not plain,
    )  # fmt: skip
    if plain:
        return average
    # Of windows that reach behind the image, the average is of fewer elements.
    factors = math.prod(attrs["size"]) / counts(shape, attrs, value.shape)
    return host.op.multiply(host.emit(average), host.relax.const(factors.astype(np.float32)))


def _int_avg_pool2d_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    attrs, (shape,) = node.attrs, shapes
    if tuple(attrs["size"]) == tuple(shape[2:]) and not any(attrs["pads"]):
        total = host.emit(host.op.sum(host.wide(args[0]), axis=[2, 3], keepdims=True))
    else:
        ones = np.ones((shape[1], 1, *attrs["size"]), dtype=np.int8)
        top, left, bottom, right = _bottom_right(node, shape, value.shape)
        reaching = dataclasses.replace(node, attrs={**attrs, "pads": (top, bottom, left, right)})
        total = host.convolution(reaching, args[0], host.relax.const(ones), "int32", groups=shape[1])
    divisors = counts(shape, attrs, value.shape)[None, None] << max(-attrs["left"], 0)
    doubled = host.emit(host.op.add(host.left(total, max(attrs["left"], 0) + 1), host.integer(divisors)))
    result = host.emit(host.op.floor_divide(doubled, host.integer(2 * divisors)))
    if attrs["half_even"]:
        rest = host.op.subtract(doubled, host.emit(host.op.multiply(result, host.integer(2 * divisors))))
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
        if np.any(counts(builder.graph.shape(source), node.attrs, shape) != count):
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
            n, c, h, w, c, r, s, node.attrs["strides"], node.attrs["pads"], node.attrs["dilation"],
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
        relax={"relax.nn.max_pool2d": _read_max, "relax.nn.max_pool1d": _read_max},
        onnx=("MaxPool",),
        onnx_import={"MaxPool": _import("max_pool"), "GlobalMaxPool": _import_global_max},
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
        relax={"relax.nn.avg_pool2d": _read_avg, "relax.nn.avg_pool1d": _read_avg},
        onnx=("AveragePool", "GlobalAveragePool"),
        onnx_import={"AveragePool": _import("avg_pool")},
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
