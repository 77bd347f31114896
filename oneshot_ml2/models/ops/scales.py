"""Changes of scale and type: quantization in the model, and the border between float32 and int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shape, Shapes
from oneshot_ml2.models.ops.numeric import INT8, along, shifted

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.reading import Reader


def _grid(reader: Reader, operands: list[str]) -> tuple[Array, Array]:
    """The scale and the zero point, of a tensor () or of each channel (C,)."""
    scale, zero = (reader.constants.get(name) for name in operands[1:])
    if scale is None or zero is None:
        raise reader.refused("has a scale that the model computes; only constants are supported")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise reader.refused(f"has the scale {float(np.min(scale))}; allowed: above 0")
    shape = () if scale.size == 1 else scale.shape
    zeros = np.broadcast_to(zero.reshape(() if zero.size == 1 else zero.shape), shape)
    return np.asarray(scale, dtype=np.float32).reshape(shape), zeros.astype(np.int32)


def _read_quantize(reader: Reader, call: Any) -> str:
    shape, operands, dtype = reader.static(call), reader.tensors(call), str(call.attrs.out_dtype)
    if dtype not in ("int8", "uint8"):
        raise reader.refused(f"quantizes to {dtype}; only int8 and uint8 are supported (QuantType.QInt8)")
    scale, zero = _grid(reader, operands)
    if scale.ndim:
        raise reader.refused("has a scale per channel on an activation; only one scale is supported")
    limits = np.iinfo(dtype)
    range_ = (int(limits.min), int(limits.max))
    return reader.add("quantize", operands[:1], shape, scale=scale, zero=int(zero), axis=0, range=range_, dtype=dtype)


def _read_dequantize(reader: Reader, call: Any) -> str:
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    scale, zero = _grid(reader, operands)
    x = operands[0]
    if x in reader.constants:
        kind = reader.constants[x].dtype
        if kind not in (np.int8, np.uint8, np.int32):
            raise reader.refused(f"dequantizes {kind} constants; only 8 bits and int32 (biases) are supported")
    return reader.add("dequantize", [x], shape, scale=scale, zero=zero, axis=int(attrs.axis))


def _quantize(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    scale = along(attrs["scale"], attrs["axis"], args[0].ndim)
    low, high = attrs["range"]
    return np.clip(np.rint(args[0] / scale) + attrs["zero"], low, high).astype(attrs["dtype"])


def _dequantize(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    scale, zero = (along(attrs[name], attrs["axis"], args[0].ndim) for name in ("scale", "zero"))
    return (args[0].astype(np.int32) - zero).astype(np.float32) * scale


def _to_int8(args: Sequence[Array], node: Node, out: Shape) -> Array:
    # A division by a power of two is exact, and rint is half to even: this is the border, not VTA.
    return np.clip(np.rint(np.ldexp(args[0], -node.attrs["exponent"])), *INT8).astype(np.int8)


def _to_float(args: Sequence[Array], node: Node, out: Shape) -> Array:
    return np.ldexp(args[0].astype(np.float32), node.attrs["exponent"])


def _requantize(args: Sequence[Array], node: Node, out: Shape) -> Array:
    return shifted(args[0].astype(np.int64), node.attrs["left"], node.attrs)


def _to_int8_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    scale = host.relax.const(np.float32(2.0 ** node.attrs["exponent"]))
    return host.op.quantize(args[0], scale, host.relax.const(np.int8(0)), axis=0, out_dtype="int8")


def _to_float_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    real = host.emit(host.op.astype(args[0], "float32"))
    return host.op.multiply(real, host.relax.const(np.float32(2.0 ** node.attrs["exponent"])))


def _int_requantize_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.shifted(host.wide(args[0]), node.attrs["left"], node.attrs)


OPS = (
    Op(
        "quantize",
        relax={"relax.quantize": _read_quantize},
        onnx=("QuantizeLinear",),
        onnx_layers=("QuantizeLinear",),
        compute=_quantize,
        elementwise=True,
        keeps_type=True,
    ),
    Op(
        "dequantize",
        relax={"relax.dequantize": _read_dequantize},
        onnx=("DequantizeLinear",),
        compute=_dequantize,
        elementwise=True,
    ),
    Op("to_int8", integer=_to_int8, integer_host=_to_int8_host, reason="float32 meets int8"),
    Op("to_float", integer=_to_float, integer_host=_to_float_host, reason="int8 meets float32"),
    Op("requantize", integer=_requantize, integer_host=_int_requantize_host),
)
