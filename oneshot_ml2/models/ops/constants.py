"""What is computed of constants and shapes while a model is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Op
from oneshot_ml2.models.ops.reading import static

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.reading import Reader


def _filled(reader: Reader, call: Any, fill: float) -> str:
    return reader.constant(np.broadcast_to(np.array(fill, dtype=str(call.ty.dtype)), reader.static(call)))


def _read_zeros(reader: Reader, call: Any) -> str:
    return _filled(reader, call, 0.0)


def _read_ones(reader: Reader, call: Any) -> str:
    return _filled(reader, call, 1.0)


def _read_full(reader: Reader, call: Any) -> str:
    return _filled(reader, call, float(reader.constants[reader.operand(call.args[1])]))


def _read_shape(reader: Reader, call: Any) -> str:
    return reader.constant(np.array(static(call.args[0].ty, reader.where), dtype=np.int64))


def _read_same(reader: Reader, call: Any) -> Any:
    return reader.operand(call.args[0])


def _read_choice(reader: Reader, call: Any) -> str:
    """Conditions, and choices by them, as far as they are constants: all tensors of the model are finite."""
    op, operands, attrs = call.op.name, [reader.operand(arg) for arg in call.args], call.attrs
    arrays = [reader.constants.get(name) for name in operands]
    first, *others = arrays
    if op == "relax.equal" and first is None and others[0] is not None and np.isneginf(others[0]).all():
        # Nothing of an attention without a mask is.
        return reader.constant(np.broadcast_to(np.array(False), reader.shape(operands[0])))
    if op == "relax.less" and operands[0] in reader.integers and others[0] is not None and not others[0].any():
        return reader.constant(np.broadcast_to(np.array(False), reader.shape(operands[0])))
    if op == "relax.where" and first is not None and first.size and (first.all() or not first.any()):
        chosen = operands[1 if first.all() else 2]
        return reader.broadcast(chosen, np.broadcast_shapes(first.shape, reader.shape(chosen)))
    if first is None or any(other is None for other in others):
        raise reader.refused("is supported on constants only; remove it from the model")
    if op == "relax.max":
        axes = None if attrs.axis is None else tuple(int(axis) for axis in attrs.axis)
        return reader.constant(np.asarray(first.max(axis=axes, keepdims=bool(attrs.keepdims))))
    functions: dict[str, Callable[..., Any]] = {
        "isnan": np.isnan, "equal": np.equal, "less": np.less, "logical_not": np.logical_not, "where": np.where,
    }  # fmt: skip
    return reader.constant(np.asarray(functions[op.removeprefix("relax.")](*arrays)))


def _read_cast(reader: Reader, call: Any) -> str:
    """A change of type: of constants any, of indices to another integer one."""
    reader.static(call)
    operand, kind = reader.operand(call.args[0]), str(call.attrs.dtype)
    if operand in reader.constants:
        return reader.constant(reader.constants[operand].astype(kind))
    if (operand in reader.integers) == kind.startswith("int") and kind in ("float32", "int32", "int64"):
        return operand
    raise reader.refused(f"casts to {kind}, which is not supported; tensors are float32, or integers as indices")


# TVM writes ONNX's Clip and Gather and the masks of PyTorch's attention with them.
_CHOICES = ("relax.isnan", "relax.equal", "relax.less", "relax.logical_not", "relax.where", "relax.max")

OPS = (
    Op(
        "constant",
        relax={
            "relax.zeros_like": _read_zeros,
            "relax.ones_like": _read_ones,
            "relax.full_like": _read_full,
            "relax.shape_of": _read_shape,
            "relax.shape_to_tensor": _read_same,
            "relax.astype": _read_cast,
            **dict.fromkeys(_CHOICES, _read_choice),
        },
        proposed=False,
    ),
)
