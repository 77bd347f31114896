"""Activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shapes
from oneshot_ml2.models.ops.elementwise import function, plain
from oneshot_ml2.models.ops.importing import OWN

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader


_erf = np.vectorize(math.erf, otypes=[np.float32])


def _sigmoid(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    # Far below 0 the exponential is infinite, and the result 0.
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-args[0]))


def _gelu(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.float32(0.5) * args[0] * (np.float32(1) + _erf(args[0] / np.float32(math.sqrt(2))))


def _gelu_tanh(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x = args[0]
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))


def _softplus(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.logaddexp(args[0], np.float32(0))


def _prelu(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.where(args[0] < 0, args[0] * args[1], args[0])


def _read_prelu(reader: Reader, call: Any) -> str:
    x, slope = reader.tensors(call)
    shape = reader.static(call)
    column = tuple(-1 if axis == int(call.attrs.axis) % len(shape) else 1 for axis in range(len(shape)))
    return reader.add("prelu", [x, reader.reshape(slope, column)], shape)


def _read_own_prelu(reader: Reader, call: Any) -> str:
    return reader.add("prelu", [reader.operand(part) for part in call.args[1].fields], reader.static(call))


def _read_leaky_relu(reader: Reader, call: Any) -> str:
    slope = reader.constant(np.array(float(call.attrs.alpha), dtype=np.float32))
    return reader.add("prelu", [*reader.tensors(call), slope], reader.static(call))


def _read_softplus(reader: Reader, call: Any) -> str:
    (x,), shape, beta = reader.tensors(call), reader.static(call), float(call.attrs.beta)
    if beta == 1.0:
        return reader.add("softplus", [x], shape)
    scaled = reader.add("multiply", [x, reader.constant(np.array(beta, dtype=np.float32))], shape)
    soft = reader.add("softplus", [scaled], shape)
    return reader.add("multiply", [soft, reader.constant(np.array(1 / beta, dtype=np.float32))], shape)


def _import_prelu(node: OnnxNode) -> Expr:
    return node.own("prelu", node.inputs, node.shape())


def _import_softplus(node: OnnxNode) -> Expr:
    return node.op.nn.softplus(node.input(0))


def _import_mish(node: OnnxNode) -> Expr:
    soft = node.emit(node.op.nn.softplus(node.input(0)))
    return node.op.multiply(node.input(0), node.emit(node.op.tanh(soft)))


def _exponential(emit: Callable[[Expr], Expr], x: Expr, gamma: float, alpha: float, slope: float = 1.0) -> Expr:
    """``gamma * (max(x, 0) + alpha * (exp(slope * min(x, 0)) - 1))``, which all of that kind are."""
    from tvm import relax

    op = relax.op

    def constant(number: float) -> Expr:
        return relax.const(np.float32(number))

    low = emit(op.minimum(x, constant(0)))
    if slope != 1:
        low = emit(op.multiply(low, constant(slope)))
    below = emit(op.subtract(emit(op.exp(low)), constant(1)))
    above = emit(op.multiply(emit(op.nn.relu(x)), constant(gamma)))
    return emit(op.add(above, emit(op.multiply(below, constant(gamma * alpha)))))


def _import_elu(node: OnnxNode) -> Expr:
    return _exponential(node.emit, node.input(0), 1.0, float(node.attribute("alpha", 1.0)))


def _import_selu(node: OnnxNode) -> Expr:
    gamma = float(node.attribute("gamma", 1.0507009873554805))
    return _exponential(node.emit, node.input(0), gamma, float(node.attribute("alpha", 1.6732632423543772)))


def _import_celu(node: OnnxNode) -> Expr:
    alpha = float(node.attribute("alpha", 1.0))
    return _exponential(node.emit, node.input(0), 1.0, alpha, 1 / alpha)


def _import_torch_elu(node: Any, importer: Any) -> Expr:
    """PyTorch's, of which it makes its selu and celu, too."""
    given = list(node.args)
    x, alpha, scale, slope = given + [1.0] * (4 - len(given))
    return _exponential(importer.block_builder.emit, importer.env[x], float(scale), float(alpha), float(slope))


def _prelu_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    below = host.emit(host.op.less(args[0], host.relax.const(np.float32(0))))
    return host.op.where(below, host.emit(host.op.multiply(*args)), args[0])


OPS = (
    function("sigmoid", "relax.sigmoid", _sigmoid, onnx=("Sigmoid",)),
    function("gelu", "relax.nn.gelu", _gelu, onnx=("Gelu",), torch_layers=("gelu.default",)),
    function("gelu_tanh", "relax.nn.gelu_tanh", _gelu_tanh),
    function("silu", "relax.nn.silu", lambda args, attrs, out: args[0] * _sigmoid(args, attrs, out)),
    function("softplus", "relax.nn.softplus", _softplus, onnx=("Softplus", "Mish"),
              onnx_import={"Softplus": _import_softplus, "Mish": _import_mish},
              relax={"relax.nn.softplus": _read_softplus}),
    function("prelu", "", _prelu, onnx=("LeakyRelu", "PRelu"), onnx_import={"PRelu": _import_prelu}, host=_prelu_host,
              relax={"relax.nn.prelu": _read_prelu, "relax.nn.leakyrelu": _read_leaky_relu,
                     OWN + "prelu": _read_own_prelu}),
    Op("elu", onnx=("Elu", "Selu", "Celu"),
       onnx_import={"Elu": _import_elu, "Selu": _import_selu, "Celu": _import_celu},
       torch_import=dict.fromkeys(("elu.default", "elu_.default"), _import_torch_elu)),
    plain("erf", "Erf", _erf),
)  # fmt: skip
