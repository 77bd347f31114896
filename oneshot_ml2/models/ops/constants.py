"""What is computed of constants and shapes while a model is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Expr, Op
from oneshot_ml2.models.ops.importing import static

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader


def _filled(reader: Reader, call: Any, fill: float) -> str:
    return reader.constant(np.broadcast_to(np.array(fill, dtype=str(call.ty.dtype)), reader.static(call)))


def _read_zeros(reader: Reader, call: Any) -> str:
    return _filled(reader, call, 0.0)


def _read_ones(reader: Reader, call: Any) -> str:
    return _filled(reader, call, 1.0)


def _read_full(reader: Reader, call: Any) -> str:
    return _filled(reader, call, float(reader.constants[reader.operand(call.args[1])]))


def _read_range(reader: Reader, call: Any) -> str:
    begin, end, step = (float(part.value) for part in call.args)
    return reader.constant(np.arange(begin, end, step).astype(str(call.ty.dtype)))


def _read_shape(reader: Reader, call: Any) -> str:
    return reader.constant(np.array(static(call.args[0].ty, reader.where), dtype=np.int64))


def _read_same(reader: Reader, call: Any) -> Any:
    return reader.operand(call.args[0])


def _read_cast(reader: Reader, call: Any) -> str:
    """A change of type: all real numbers are float32, and so are whole numbers and truth values."""
    shape, operand, kind = reader.static(call), reader.operand(call.args[0]), str(call.attrs.dtype)
    if operand in reader.constants:
        return reader.constant(reader.constants[operand].astype(kind))
    if kind == "bool":
        zero = reader.constant(np.array(0, dtype=np.float32))
        return reader.add("not_equal", [operand, zero], shape)
    if kind in ("float16", "float32", "float64") or (kind.startswith(("int", "uint")) and operand in reader.whole):
        return operand
    if kind in ("int32", "int64"):
        return reader.add("trunc", [operand], shape)
    raise reader.refused(f"casts to {kind}, which is not supported; tensors are real or whole numbers, or truth values")


def _import_cast(node: OnnxNode) -> Expr:
    from onnx import helper

    kind, x = str(helper.tensor_dtype_to_np_dtype(int(node.attribute("to", 1)))), node.input(0)
    if node.is_constant(0):
        return node.constant(node.array(0), kind)
    if not hasattr(getattr(x, "ty", None), "dtype"):
        x = node.emit(node.op.shape_to_tensor(x))
    return node.op.astype(x, kind)


OPS = (
    Op(
        "constant",
        relax={
            "relax.zeros_like": _read_zeros,
            "relax.ones_like": _read_ones,
            "relax.full_like": _read_full,
            "relax.full": _read_full,
            "relax.zeros": _read_zeros,
            "relax.ones": _read_ones,
            "relax.arange": _read_range,
            "relax.shape_of": _read_shape,
            "relax.shape_to_tensor": _read_same,
            "relax.astype": _read_cast,
        },
        onnx_import={"Cast": _import_cast},
        proposed=False,
    ),
)
