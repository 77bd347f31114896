"""Comparisons, logic and choices: truth values are the numbers 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, HostCode, Op, Read, Shapes
from oneshot_ml2.models.ops.elementwise import function, host_code

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.reading import Reader


def _select(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.where(args[0] != 0, args[1], args[2])


def _truth_host(relax_name: str) -> HostCode:
    """The code of an operator whose results are truth values, as are the operands of those that are logical."""

    def code(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
        if "logical" in relax_name:
            args = [host.emit(host.op.astype(x, "bool")) for x in args]
        return host.op.astype(host.emit(host_code(relax_name)(host, node, args, shapes, value)), "float32")

    return code


def _select_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.where(host.emit(host.op.astype(args[0], "bool")), *args[1:])


def _truth(name: str, onnx: str, of_arrays: Callable[..., Array]) -> Op:
    """As `_plain`, of those whose results are 0 and 1."""
    relax_name = f"relax.{name}"
    return function(
        name, relax_name, lambda args, attrs, out: np.asarray(of_arrays(*args), dtype=np.float32),
        onnx=(onnx,) if onnx else (), host=_truth_host(relax_name), relax={relax_name: _read_truth(name)},
    )  # fmt: skip


def _read_truth(name: str) -> Read:
    """How a condition is read; of what it is known already, it is a constant."""

    def read(reader: Reader, call: Any) -> str:
        shape, operands = reader.static(call), reader.tensors(call)
        first, *others = operands
        other = reader.constants.get(others[0]) if others else None
        # ONNX's Gather asks for indices below 0; those of the model's inputs are none.
        index = name == "less" and reader.source(first) is not None and first in reader.whole and other is not None
        finite = not reader.infinite.difference(others) and first not in reader.constants
        never = (
            (index and not np.any(other))
            or (name in ("isnan", "isinf") and finite)
            or (name == "equal" and finite and other is not None and bool(np.isinf(other).all()))
        )
        if never:
            return reader.constant(np.broadcast_to(np.array(False), shape))
        return reader.add(name, operands, shape)

    return read


def _read_select(reader: Reader, call: Any) -> str:
    shape, operands = reader.static(call), reader.tensors(call)
    condition = reader.constants.get(operands[0])
    if condition is not None and condition.size and (condition.all() or not condition.any()):
        return reader.broadcast(operands[1 if condition.all() else 2], shape)
    return reader.add("select", operands, shape)


OPS = (
    function("select", "relax.where", _select, onnx=("Where",), host=_select_host,
             relax={"relax.where": _read_select}),
    _truth("equal", "Equal", np.equal),
    _truth("not_equal", "", np.not_equal),
    _truth("less", "Less", np.less),
    _truth("less_equal", "LessOrEqual", np.less_equal),
    _truth("greater", "Greater", np.greater),
    _truth("greater_equal", "GreaterOrEqual", np.greater_equal),
    _truth("logical_and", "And", np.logical_and),
    _truth("logical_or", "Or", np.logical_or),
    _truth("logical_xor", "Xor", np.logical_xor),
    _truth("logical_not", "Not", np.logical_not),
    _truth("isnan", "IsNaN", np.isnan),
    _truth("isinf", "IsInf", np.isinf),
)  # fmt: skip
