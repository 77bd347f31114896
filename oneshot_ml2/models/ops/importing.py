"""ONNX nodes that become Relax by an operator's own record, not by TVM's importer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Expr, TorchImport

# What operators that Relax lacks are called in it.
OWN = "oneshot_ml2."


def static(ty: Any, what: str) -> tuple[int, ...]:
    """The shape of a Relax tensor type.

    Raises:
        ModelError: no tensor, or a dynamic shape.
    """
    from tvm import tirx

    shape = getattr(ty, "shape", None)
    if shape is None:
        raise ModelError(f"{what} has no tensor of a known shape; dynamic shapes are not supported")
    if not all(isinstance(dim, (int, tirx.IntImm)) for dim in shape):
        dims = "x".join(str(getattr(dim, "value", dim)) for dim in shape)
        raise ModelError(f"{what} has the dynamic shape {dims}; export the model with fixed shapes")
    return tuple(int(dim) for dim in shape)


def left_to_onnx(why: str) -> TorchImport:
    """The import of what TVM's importer of PyTorch mistakes, so that it comes through ONNX; ``why``: what it does."""

    def refuse(node: Any, importer: Any) -> Expr:
        raise ModelError(f"TVM's importer of PyTorch {why}")

    return refuse


class OnnxNode:
    """A node at import: its operands as Relax expressions, its attributes, and what makes expressions of them.

    Attributes:
        relax, op: TVM's modules.
        opset: of the model.
        outputs: how many the node has.
    """

    def __init__(self, builder: Any, inputs: list[Expr], attributes: dict[str, Any], opset: int, outputs: int) -> None:
        from tvm import relax

        self.relax, self.op, self.opset, self.outputs = relax, relax.op, opset, outputs
        self._builder, self._attributes = builder, attributes
        # What is left out at the end is like what is left out in between.
        self._inputs = inputs + [None] * 8

    @property
    def inputs(self) -> list[Expr]:
        """The operands that are there."""
        return [operand for operand in self._inputs if operand is not None]

    def input(self, index: int) -> Expr | None:
        return self._inputs[index]

    def emit(self, expr: Expr) -> Expr:
        """A variable for an expression; constants and variables stay what they are."""
        from tvm import ir

        return expr if isinstance(expr, (self.relax.Var, ir.GenericConst)) else self._builder.emit(expr)

    def is_constant(self, index: int) -> bool:
        """Whether an operand is there and constant."""
        from tvm import ir

        return isinstance(self._inputs[index], ir.GenericConst)

    def array(self, index: int) -> Array | None:
        """A constant operand; None: there is no such operand.

        Raises:
            ModelError: the model computes it.
        """
        operand = self._inputs[index]
        if operand is None:
            return None
        if not self.is_constant(index):
            raise ModelError(f"has operand {index} that the model computes; only a constant is supported there")
        return np.asarray(operand.value.numpy())

    def number(self, index: int) -> int:
        """A constant operand that is one whole number.

        Raises:
            ModelError: the model computes it, or it is not there.
        """
        array = self.array(index)
        if array is None or array.size != 1:
            raise ModelError(f"has no single number as operand {index}")
        return int(array.reshape(()))

    def numbers(self, index: int, attribute: str) -> list[int] | None:
        """Whole numbers that are an operand or, in older opsets, an attribute; None: neither is there."""
        array = self.array(index) if index >= 0 else None
        if array is None:
            given = self.attribute(attribute, None)
            return None if given is None else [int(number) for number in given]
        return [int(number) for number in array.reshape(-1)]

    def shape(self, expr: Expr | None = None) -> tuple[int, ...]:
        """The shape of an expression; none: of the first operand."""
        return static((self._inputs[0] if expr is None else expr).ty, "an operand")

    def attribute(self, name: str, default: Any) -> Any:
        return self._attributes.get(name, default)

    def text(self, name: str, default: str) -> str:
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def constant(self, array: Any, dtype: str = "float32") -> Expr:
        # Without a type it makes int32 of int64.
        return self.relax.const(np.asarray(array, dtype=dtype), dtype)

    def own(self, name: str, operands: Sequence[Expr], shape: Sequence[int]) -> Expr:
        """A float32 operator that Relax lacks, read by the record that lists it in ``relax``."""
        kind = self.relax.TensorType(tuple(shape), "float32")
        return self.emit(self.relax.call_dps_packed(OWN + name, self.relax.Tuple(list(operands)), out_ty=kind))

    def window(self, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Strides, pads (all begins, then all ends) and dilation of a window that slides, ``auto_pad`` resolved."""
        count = len(kernel)
        strides, dilation = ([int(n) for n in self.attribute(name, [1] * count)] for name in ("strides", "dilations"))
        auto = self.text("auto_pad", "NOTSET")
        if not auto.startswith("SAME"):
            given = self.attribute("pads", [0] * 2 * count) if auto == "NOTSET" else [0] * 2 * count
            return strides, [int(n) for n in given], dilation
        total = [
            max((-(-size // step) - 1) * step + (k - 1) * apart + 1 - size, 0)
            for size, step, k, apart in zip(self.shape()[2:], strides, kernel, dilation, strict=True)
        ]
        return strides, [*shared(total, auto)], dilation


def shared(total: Sequence[int], auto: str) -> list[int]:
    """Padding along each axis as begins and ends; an odd row is at the end for SAME_UPPER, at the begin for LOWER."""
    first = [(n + (auto == "SAME_LOWER")) // 2 for n in total]
    return [*first, *(n - begin for n, begin in zip(total, first, strict=True))]
