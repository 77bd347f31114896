"""What operators share in the code that runs on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Expr

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node


class Host:
    """Relax expressions of single nodes; integers are 32 bits wide between the int8 tensors."""

    def __init__(self, builder: Any) -> None:
        from tvm import relax

        self.builder = builder
        self.emit: Callable[[Expr], Expr] = builder.emit
        self.relax = relax
        self.op = relax.op

    def integer(self, value: Any) -> Expr:
        return self.relax.const(np.asarray(value, dtype=np.int32))

    def wide(self, x: Expr) -> Expr:
        return self.emit(self.op.astype(x, "int32"))

    def narrow(self, x: Expr, clip: tuple[int, int]) -> Expr:
        bounded = self.emit(self.op.minimum(self.op.maximum(x, self.integer(clip[0])), self.integer(clip[1])))
        return self.op.astype(bounded, "int8")

    def rounded(self, x: Expr, shift: int, attrs: Mapping[str, Any]) -> Expr:
        """As `numeric.rounded`."""
        if shift and attrs["half_even"]:
            floor = self.emit(self.op.right_shift(x, self.integer(shift)))
            x = self.emit(self.op.subtract(x, self.op.bitwise_and(floor, self.integer(1))))
        if shift:
            x = self.emit(self.op.right_shift(x, self.integer(shift)))
        return self.narrow(x, attrs["clip"])

    def left(self, x: Expr, shift: int) -> Expr:
        return self.emit(self.op.left_shift(x, self.integer(shift))) if shift > 0 else x

    def shifted(self, x: Expr, left: int, attrs: Mapping[str, Any]) -> Expr:
        """As `numeric.shifted`."""
        if left < 0:
            x = self.emit(self.op.add(x, self.integer(1 << (-left - 1))))
        return self.rounded(self.left(x, left), max(-left, 0), attrs)

    def finished(self, node: Node, sums: Expr, residual: list[Expr], column: tuple[int, ...]) -> Expr:
        """A layer's epilogue; its bias holds the half step already."""
        total = self.emit(self.op.add(sums, self.relax.const(node.arrays["bias"].reshape(column))))
        for operand in residual:
            total = self.emit(self.op.add(total, self.left(self.wide(operand), node.attrs["residual_shift"])))
        return self.rounded(total, node.attrs["shift"], node.attrs)

    def convolution(self, node: Node, x: Expr, weight: Expr, kind: str, groups: int | None = None) -> Expr:
        attrs = node.attrs
        top, bottom, left, right = attrs["pads"]
        return self.emit(
            self.op.nn.conv2d(
                x, weight, strides=attrs["strides"], padding=(top, left, bottom, right), dilation=attrs["dilation"],
                groups=attrs.get("groups", 1) if groups is None else groups, out_dtype=kind,
            )
        )  # fmt: skip
