"""Functions of single elements, and additions."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ir import Value
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Function, HostCode, Op, Read, Shape, Shapes
from oneshot_ml2.models.ops.numeric import shifted

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.reading import Reader
    from oneshot_ml2.models.partition import Composite
    from oneshot_ml2.models.quantize.integer import IntegerBuilder


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _sigmoid(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-args[0]))


def _gelu(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.float32(0.5) * args[0] * (np.float32(1) + _erf(args[0] / np.float32(math.sqrt(2))))


def _gelu_tanh(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x = args[0]
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def _int_add(args: Sequence[Array], node: Node, out: Shape) -> Array:
    first, second = (x.astype(np.int64) << shift for x, shift in zip(args, node.attrs["left"], strict=True))
    return shifted(first + second, -node.attrs["shift"], node.attrs)


def _int_add_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    first, second = (host.left(host.wide(x), shift) for x, shift in zip(args, node.attrs["left"]))
    return host.shifted(host.emit(host.op.add(first, second)), -node.attrs["shift"], node.attrs)


def _quantize_add(builder: IntegerBuilder, composite: Composite) -> None:
    """An addition and what bounds it."""
    head = composite.nodes[0]
    names = [builder.int_name(name) for name in head.inputs]
    exponents = [builder.exponents[name] for name in head.inputs]
    low, out = min(exponents), builder.exponents[composite.output]
    if max(*exponents, out) - low > 20 or builder.graph.shape(head.inputs[0]) != builder.graph.shape(head.inputs[1]):
        builder.refused(composite, "its operands differ in shape, or too much in scale")
        return
    # The finer operand is the convolution's data, so that only the other one is shifted far.
    low = min(low, out)
    pairs = sorted((exponent - low, name) for exponent, name in zip(exponents, names))
    lefts = tuple(left for left, _ in pairs)
    attrs = {
        "left": lefts, "shift": out - low, "clip": builder.clip(composite),
        "half_even": builder.half_even,
    }  # fmt: skip
    value = Value(composite.output, builder.graph.shape(composite.output), out)
    builder.pixelwise(head.name, "int_add", [name for _, name in pairs], value, attrs, lefts, out - low)


def _read(name: str, compute: Function) -> Read:
    """How an operator is read whose constant operands can be computed at once."""

    def read(reader: Reader, call: Any) -> str:
        shape, operands = reader.static(call), reader.tensors(call)
        if name == "add" and not reader.integers.isdisjoint(operands):
            # ONNX's Gather counts negative indices from the end; ours are none. A use of them is not supported.
            return "a sum of integers"
        if all(operand in reader.constants for operand in operands):
            array = compute([reader.constants[operand] for operand in operands], {}, shape)
            return reader.constant(np.asarray(array, dtype=np.float32))
        if name in ("add", "multiply") and operands[0] in reader.constants:
            operands = operands[::-1]
        return reader.add(name, operands, shape)

    return read


def _host(relax_name: str) -> HostCode:
    """The code of an operator that Relax has."""

    def code(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
        return functools.reduce(getattr, relax_name.split(".")[1:], host.op)(*args)

    return code


def _function(name: str, relax_name: str, compute: Function, **more: Any) -> Op:
    read = _read(name, compute)
    return Op(name, relax={relax_name: read}, compute=compute, host=_host(relax_name), elementwise=True, **more)


OPS = (
    _function(
        "relu", "relax.nn.relu", lambda args, attrs, out: np.maximum(args[0], 0),
        onnx=("Relu",), onnx_layers=("Relu",), torch_layers=("relu.default", "relu_.default"),
        bounds=lambda attrs: (0.0, math.inf), scales=True,
    ),
    _function(
        "add", "relax.add", lambda args, attrs, out: args[0] + args[1],
        onnx=("Add",), onnx_layers=("Add",), torch_layers=("add.Tensor", "add_.Tensor"),
        integer=_int_add, integer_host=_int_add_host, quantize=_quantize_add,
    ),
    _function("subtract", "relax.subtract", lambda args, attrs, out: args[0] - args[1], onnx=("Sub",)),
    _function("multiply", "relax.multiply", lambda args, attrs, out: args[0] * args[1], onnx=("Mul",)),
    _function("divide", "relax.divide", lambda args, attrs, out: args[0] / args[1], onnx=("Div",)),
    _function("sigmoid", "relax.sigmoid", _sigmoid, onnx=("Sigmoid",)),
    _function("tanh", "relax.tanh", lambda args, attrs, out: np.tanh(args[0]), onnx=("Tanh",)),
    _function("gelu", "relax.nn.gelu", _gelu, onnx=("Gelu",), torch_layers=("gelu.default",)),
    _function("gelu_tanh", "relax.nn.gelu_tanh", _gelu_tanh),
    _function("erf", "relax.erf", lambda args, attrs, out: _erf(args[0]), onnx=("Erf",)),
    _function("exp", "relax.exp", lambda args, attrs, out: np.exp(args[0]), onnx=("Exp",)),
    _function("sqrt", "relax.sqrt", lambda args, attrs, out: np.sqrt(args[0]), onnx=("Sqrt",)),
    _function("power", "relax.power", lambda args, attrs, out: np.power(args[0], args[1]), onnx=("Pow",)),
    _function("silu", "relax.nn.silu", lambda args, attrs, out: args[0] * _sigmoid(args, attrs, out)),
)  # fmt: skip
