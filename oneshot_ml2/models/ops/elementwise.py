"""Functions of single elements, and additions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Expr, Function, HostCode, Import, Op, Read, Shape, Shapes
from oneshot_ml2.models.ops.numeric import shifted

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader


def _int_add(args: Sequence[Array], node: Node, out: Shape) -> Array:
    first, second = (x.astype(np.int64) << shift for x, shift in zip(args, node.attrs["left"], strict=True))
    return shifted(first + second, -node.attrs["shift"], node.attrs)


def _int_add_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    first, second = (host.left(host.wide(x), shift) for x, shift in zip(args, node.attrs["left"]))
    return host.shifted(host.emit(host.op.add(first, second)), -node.attrs["shift"], node.attrs)


def read_plain(name: str) -> Read:
    """How an operator is read that has no attributes."""

    def read(reader: Reader, call: Any) -> str:
        shape, operands = reader.static(call), reader.tensors(call)
        if name in ("add", "multiply") and operands[0] in reader.constants:
            operands = operands[::-1]
        result = reader.add(name, operands, shape)
        # A quotient of whole numbers is rounded towards 0.
        return reader.add("trunc", [result], shape) if name == "divide" and result in reader.whole else result

    return read


def _read_negative(reader: Reader, call: Any) -> str:
    # A factor goes into the layer before it.
    factor = reader.constant(np.array(-1, dtype=np.float32))
    return reader.add("multiply", [*reader.tensors(call), factor], reader.static(call))


def _read_bound(reader: Reader, call: Any) -> str:
    """The larger or smaller of two tensors; a clip, if one of them is a constant number."""
    shape, operands, name = reader.static(call), reader.tensors(call), call.op.name.removeprefix("relax.")
    if operands[0] in reader.constants:
        operands = operands[::-1]
    constant = reader.constants.get(operands[1])
    if constant is None or constant.size != 1 or operands[0] in reader.constants or reader.shape(operands[0]) != shape:
        return reader.add(name, operands, shape)
    bound = float(constant.reshape(()))
    low, high = (bound, math.inf) if name == "maximum" else (-math.inf, bound)
    source = reader.nodes[-1] if reader.nodes else None
    if source is not None and source.op == "clip" and source.output == operands[0]:
        # The other half came just before: one clip, with the upper bound over the lower one as ONNX has it.
        operands = [source.inputs[0]]
        low, high = min(max(low, source.attrs["low"]), high), min(source.attrs["high"], high)
    return reader.add("clip", operands[:1], shape, low=low, high=high)


def _import_clip(node: OnnxNode) -> Expr:
    # Bounds are attributes up to opset 6, operands later.
    result = node.input(0)
    for index, (bound, name) in enumerate((("min", "maximum"), ("max", "minimum"))):
        given = node.attribute(bound, None)
        limit = node.input(index + 1) if given is None else node.constant(given)
        if limit is not None:
            result = node.emit(getattr(node.op, name)(result, limit))
    return result


def _import_many(name: str) -> Import:
    """An operator of any number of operands, from that of two."""

    def make(node: OnnxNode) -> Expr:
        return functools.reduce(lambda first, second: node.emit(getattr(node.op, name)(first, second)), node.inputs)

    return make


def _import_mean(node: OnnxNode) -> Expr:
    return node.op.multiply(_import_many("add")(node), node.constant(1 / len(node.inputs)))


def host_code(relax_name: str) -> HostCode:
    """The code of an operator that Relax has."""

    def code(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
        return functools.reduce(getattr, relax_name.split(".")[1:], host.op)(*args)

    return code


def function(name: str, relax_name: str, compute: Function, **more: Any) -> Op:
    more.setdefault("relax", {relax_name: read_plain(name)})
    more.setdefault("host", host_code(relax_name))
    return Op(name, compute=compute, elementwise=True, **more)


def plain(name: str, onnx: str, of_arrays: Callable[..., Array]) -> Op:
    """An operator that numpy and Relax know by one name and the other."""
    return function(name, f"relax.{name}", lambda args, attrs, out: of_arrays(*args), onnx=(onnx,) if onnx else ())


OPS = (
    function(
        "relu", "relax.nn.relu", lambda args, attrs, out: np.maximum(args[0], 0),
        onnx=("Relu",), onnx_layers=("Relu",), torch_layers=("relu.default", "relu_.default"),
        bounds=lambda attrs: (0.0, math.inf), scales=True,
    ),
    function(
        "add", "relax.add", lambda args, attrs, out: args[0] + args[1],
        onnx=("Add", "Sum"), onnx_layers=("Add",), torch_layers=("add.Tensor", "add_.Tensor"),
        onnx_import={"Sum": _import_many("add")}, integer=_int_add, integer_host=_int_add_host,
    ),
    function(
        "multiply", "relax.multiply", lambda args, attrs, out: args[0] * args[1], onnx=("Mul", "Mean", "Neg"),
        onnx_import={"Mean": _import_mean},
        relax={"relax.multiply": read_plain("multiply"), "relax.negative": _read_negative},
    ),
    plain("subtract", "Sub", np.subtract),
    plain("divide", "Div", np.divide),
    plain("power", "Pow", np.power),
    plain("floor_mod", "Mod", np.mod),
    plain("mod", "", np.fmod),
    plain("floor_divide", "", np.floor_divide),
    plain("abs", "Abs", np.abs),
    plain("sign", "Sign", np.sign),
    plain("floor", "Floor", np.floor),
    plain("ceil", "Ceil", np.ceil),
    plain("round", "Round", np.rint),
    plain("trunc", "", np.trunc),
    plain("sqrt", "Sqrt", np.sqrt),
    plain("rsqrt", "", lambda x: np.float32(1) / np.sqrt(x)),
    plain("square", "", np.square),
    plain("exp", "Exp", np.exp),
    plain("log", "Log", np.log),
    plain("sin", "Sin", np.sin),
    plain("cos", "Cos", np.cos),
    plain("tan", "Tan", np.tan),
    plain("atan", "Atan", np.arctan),
    plain("tanh", "Tanh", np.tanh),
    function("maximum", "relax.maximum", lambda args, attrs, out: np.maximum(*args), onnx=("Max",),
              onnx_import={"Max": _import_many("maximum"), "Clip": _import_clip}, relax={"relax.maximum": _read_bound}),
    function("minimum", "relax.minimum", lambda args, attrs, out: np.minimum(*args), onnx=("Min",),
              onnx_import={"Min": _import_many("minimum")}, relax={"relax.minimum": _read_bound}),
)  # fmt: skip
