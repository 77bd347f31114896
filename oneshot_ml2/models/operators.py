"""What every operator of a graph computes, in numpy.

Float operators follow PyTorch and ONNX. Integer ones round half up: half a step is added before the arithmetic shift,
which floors, as VTA's does; with the attribute ``half_even``, exact ties go to the even neighbour. Names of operators
that only shape data serve both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Node

Array: TypeAlias = NDArray[Any]
Attrs: TypeAlias = Mapping[str, Any]

INT8 = (-128, 127)


def windows(x: Array, attrs: Attrs, size: Sequence[int], out: Sequence[int], fill: float) -> list[Array]:
    """The (N, C, OH, OW) view of a padded image for every tap of a window of ``size`` (height, width), row by row."""
    top, bottom, left, right = attrs["pads"]
    (sh, sw), (dh, dw) = attrs["strides"], attrs.get("dilation", (1, 1))
    # With ceil_mode the last window may reach past the padding.
    bottom = max(bottom, (out[0] - 1) * sh + (size[0] - 1) * dh + 1 - x.shape[2] - top)
    right = max(right, (out[1] - 1) * sw + (size[1] - 1) * dw + 1 - x.shape[3] - left)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    return [
        padded[:, :, r * dh : r * dh + (out[0] - 1) * sh + 1 : sh, s * dw : s * dw + (out[1] - 1) * sw + 1 : sw]
        for r in range(size[0])
        for s in range(size[1])
    ]


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


def transposed_convolution(x: Array, weight: Array, attrs: Attrs, out: Sequence[int]) -> Array:
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
    sums = transposed_convolution(args[0], args[1], attrs, out)
    return sums + args[2].reshape(1, -1, 1, 1) if len(args) > 2 else sums


def _dense(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    product = args[0] @ args[1].T
    return product + args[2] if len(args) > 2 else product


def _max_pool2d(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    low = -np.inf if args[0].dtype.kind == "f" else INT8[0]
    result = windows(args[0], attrs, attrs["size"], out[2:], low)
    return np.maximum.reduce(result)


def pool_counts(shape: Sequence[int], attrs: Attrs, out: Sequence[int]) -> NDArray[np.int64]:
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
    counts = pool_counts(args[0].shape, attrs, out).astype(np.float32)
    return _sum_pool(args[0], attrs, out, np.float32) / counts


def _adaptive_avg_pool2d(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x = args[0]
    result = np.empty(tuple(out), dtype=np.float32)
    for i in range(out[2]):
        rows = slice(i * x.shape[2] // out[2], -(-(i + 1) * x.shape[2] // out[2]))
        for j in range(out[3]):
            columns = slice(j * x.shape[3] // out[3], -(-(j + 1) * x.shape[3] // out[3]))
            result[:, :, i, j] = x[:, :, rows, columns].mean((2, 3), dtype=np.float32)
    return result


def _softmax(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    shifted = np.exp(args[0] - args[0].max(attrs["axis"], keepdims=True))
    return shifted / shifted.sum(attrs["axis"], keepdims=True)


def _sigmoid(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-args[0]))


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _gelu(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.float32(0.5) * args[0] * (np.float32(1) + _erf(args[0] / np.float32(math.sqrt(2))))


def _gelu_tanh(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x = args[0]
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def _layer_norm(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x, axes = args[0], tuple(attrs["axes"])
    centred = x - x.mean(axes, keepdims=True)
    normal = centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + np.float32(attrs["epsilon"]))
    return normal * args[1] + args[2]


def _quantize(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    scale = along(attrs["scale"], attrs["axis"], args[0].ndim)
    low, high = attrs["range"]
    return np.clip(np.rint(args[0] / scale), low, high).astype(attrs["dtype"])


def _dequantize(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return args[0].astype(np.float32) * along(attrs["scale"], attrs["axis"], args[0].ndim)


def along(scale: Array, axis: int, rank: int) -> Array:
    """A scale per channel (C,) or for the whole tensor (), so that it broadcasts along ``axis``."""
    return scale if scale.ndim == 0 else scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


Function: TypeAlias = Callable[[Sequence[Array], Attrs, Sequence[int]], Array]

# Those that move elements only, of any type.
SHAPING: dict[str, Function] = {
    "reshape": lambda args, attrs, out: args[0].reshape(tuple(out)),
    "permute": lambda args, attrs, out: np.ascontiguousarray(args[0].transpose(attrs["axes"])),
    "concat": lambda args, attrs, out: np.concatenate(args, attrs["axis"]),
    "slice": lambda args, attrs, out: np.ascontiguousarray(args[0][tuple(slice(*part) for part in attrs["parts"])]),
    "broadcast": lambda args, attrs, out: np.ascontiguousarray(np.broadcast_to(args[0], tuple(out))),
    "take": lambda args, attrs, out: args[0].take(args[1].astype(np.int64), attrs["axis"], mode="clip"),
}
FLOAT: dict[str, Function] = SHAPING | {
    "conv2d": _conv2d,
    "conv2d_transpose": _conv2d_transpose,
    "batch_matmul": lambda args, attrs, out: args[0] @ args[1].swapaxes(-1, -2),
    "dense": _dense,
    "matmul": lambda args, attrs, out: args[0] @ args[1],
    "relu": lambda args, attrs, out: np.maximum(args[0], 0),
    "clip": lambda args, attrs, out: np.clip(args[0], np.float32(attrs["low"]), np.float32(attrs["high"])),
    "add": lambda args, attrs, out: args[0] + args[1],
    "subtract": lambda args, attrs, out: args[0] - args[1],
    "multiply": lambda args, attrs, out: args[0] * args[1],
    "divide": lambda args, attrs, out: args[0] / args[1],
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": lambda args, attrs, out: args[0].mean(attrs["axes"], keepdims=attrs["keepdims"], dtype=np.float32),
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "tanh": lambda args, attrs, out: np.tanh(args[0]),
    "silu": lambda args, attrs, out: args[0] * _sigmoid(args, attrs, out),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "erf": lambda args, attrs, out: _erf(args[0]),
    "exp": lambda args, attrs, out: np.exp(args[0]),
    "sqrt": lambda args, attrs, out: np.sqrt(args[0]),
    "power": lambda args, attrs, out: np.power(args[0], args[1]),
    "layer_norm": _layer_norm,
    "quantize": _quantize,
    "dequantize": _dequantize,
}


def rounded(total: NDArray[np.int64], shift: int, attrs: Attrs) -> NDArray[np.int8]:
    """Sums that hold half a step already, shifted right and clipped."""
    if attrs["half_even"] and shift:
        # A tie that was rounded up to an odd number lacks all lower bits.
        total = total - ((total >> shift) & 1)
    return np.clip(total >> shift, *attrs["clip"]).astype(np.int8)


def shifted(x: NDArray[np.int64], left: int, attrs: Attrs) -> NDArray[np.int8]:
    """``x * 2**left`` rounded and clipped: how a tensor changes its exponent by ``-left``."""
    right = max(-left, 0)
    return rounded((x << max(left, 0)) + (1 << right >> 1), right, attrs)


def _int_layer(args: Sequence[Array], node: Node, out: Sequence[int]) -> Array:
    # Sums of int8 products are exact in float64.
    data = args[0].astype(np.float64)
    weight = (args[1] if node.op == "int_batch_matmul" else node.arrays["weight"]).astype(np.float64)
    column = (-1,) if node.op in ("int_dense", "int_batch_matmul") else (-1, 1, 1)
    kind = node.op.removeprefix("int_")
    total = FLOAT[kind]([data, weight], node.attrs, out).astype(np.int64) + node.arrays["bias"].reshape(column)
    if node.attrs["residual_shift"] is not None:
        total += args[1].astype(np.int64) << node.attrs["residual_shift"]
    return rounded(total, node.attrs["shift"], node.attrs)


def _int_add(args: Sequence[Array], node: Node) -> Array:
    first, second = (x.astype(np.int64) << shift for x, shift in zip(args, node.attrs["left"], strict=True))
    return shifted(first + second, -node.attrs["shift"], node.attrs)


def _int_avg_pool2d(args: Sequence[Array], node: Node, out: Sequence[int]) -> Array:
    left = node.attrs["left"]
    total = _sum_pool(args[0], node.attrs, out, np.int64) << max(left, 0)
    counts = pool_counts(args[0].shape, node.attrs, out) << max(-left, 0)
    result, rest = np.divmod(2 * total + counts, 2 * counts)
    if node.attrs["half_even"]:
        result = result - ((rest == 0) & (result & 1 == 1))
    return np.clip(result, *node.attrs["clip"]).astype(np.int8)


def _int_patches(args: Sequence[Array], node: Node, out: Sequence[int]) -> Array:
    taps = np.stack(windows(args[0], node.attrs, node.attrs["size"], out[2:], 0), axis=2)
    return taps.reshape(tuple(out))


def compute(node: Node, args: Sequence[Array], out: Sequence[int]) -> Array:
    """What a node makes of its operands; ``out`` is the shape of the result."""
    op = node.op
    workload = node.attrs.get("workload")
    if workload is not None:
        operands = dict(zip(partition.operand_names(node), args, strict=True))
        return np.asarray(workload.reference({**operands, **node.arrays}))
    if op.removeprefix("int_") in partition.HEADS and op.startswith("int_"):
        return _int_layer(args, node, out)
    if op == "int_add":
        return _int_add(args, node)
    if op == "int_requantize":
        return shifted(args[0].astype(np.int64), node.attrs["left"], node.attrs)
    if op == "int_avg_pool2d":
        return _int_avg_pool2d(args, node, out)
    if op == "int_patches":
        return _int_patches(args, node, out)
    if op == "to_int8":
        # A division by a power of two is exact, and rint is half to even: this is the border, not VTA.
        return np.clip(np.rint(np.ldexp(args[0], -node.attrs["exponent"])), *INT8).astype(np.int8)
    if op == "to_float":
        return np.ldexp(args[0].astype(np.float32), node.attrs["exponent"])
    result = FLOAT[op](args, node.attrs, out)
    return result if op in SHAPING or op in ("max_pool2d", "quantize") else np.asarray(result, dtype=np.float32)
