"""Reads the bindings of a Relax function as nodes, by what the operators' records say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend import origins
from oneshot_ml2.models.ir import Node, Value
from oneshot_ml2.models.ops.base import Array
from oneshot_ml2.models.ops.importing import static
from oneshot_ml2.models.ops.registry import ops, readers

# Their scales are kept, also of constants.
_QUANTIZERS = ("quantize", "dequantize")


class Reader:
    """Turns the bindings of a Relax function into nodes, one operator at a time."""

    def __init__(self, supported: Sequence[str]) -> None:
        """``supported``: the operators that an error proposes."""
        self.supported = supported
        self.nodes: list[Node] = []
        self.inputs: list[str] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Array] = {}
        # Values that hold whole numbers or truth values (0 and 1), as float32.
        self.whole: set[str] = set()
        # The type of what the call at hand makes.
        self.kind = "float32"
        # Constants that hold infinite values or NaN; without any, nothing that follows from finite inputs is NaN.
        self.infinite: set[str] = set()
        # Values that follow from constants alone (dequantized weights).
        self.fixed: set[str] = set()
        # Relax variable or constant -> name, or a tuple of names.
        self.env: dict[Any, Any] = {}
        # What the operator at hand is called in the model: errors begin with it.
        self.where = ""
        self.counts: dict[str, int] = {}

    def refused(self, why: str) -> ModelError:
        """The error of the operator at hand."""
        return ModelError(f"{self.where} {why}")

    def constant(self, array: Array) -> str:
        name = f"const_{len(self.constants)}"
        if array.dtype.kind == "f":
            array = array.astype(np.float32, copy=False)
            if not np.isfinite(array).all():
                self.infinite.add(name)
        self.constants[name] = array
        return name

    def is_constant(self, name: str) -> bool:
        return name in self.constants or name in self.fixed

    def source(self, name: str) -> str | None:
        """The input of the model that a value holds elements of as they are, if it does."""
        while name not in self.inputs and name in self.values:
            node = self.producer(name)
            if not ops()[node.op].one_source:
                return None
            name = node.inputs[0]
        return name if name in self.inputs else None

    def limited(self, name: str, limit: int) -> None:
        """Note that an index is below ``limit``, if it is an input of the model."""
        source = self.source(name)
        if source is not None:
            known = self.values[source].limit
            self.values[source] = dataclasses.replace(self.values[source], limit=min(limit, known or limit))

    def add(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attrs: Any) -> str:
        """A node, or the constant that it makes of constants."""
        compute = ops()[op].compute
        if compute is not None and op not in _QUANTIZERS and inputs and all(name in self.constants for name in inputs):
            array = compute([self.constants[name] for name in inputs], attrs, shape)
            return self.constant(np.asarray(array, dtype=self.kind))
        number = self.counts.get(op, 0)
        self.counts[op] = number + 1
        name = f"{op}_{number}"
        if self.kind.startswith(("int", "uint", "bool")) and op not in _QUANTIZERS:
            self.whole.add(name)
        if all(self.is_constant(operand) for operand in inputs):
            self.fixed.add(name)
        self.nodes.append(Node(name, op, tuple(inputs), name, attrs))
        self.values[name] = Value(name, tuple(shape))
        return name

    def operand(self, expr: Any) -> Any:
        from tvm import ir, relax

        if isinstance(expr, ir.GenericConst):
            # Blocks that share a weight are not to have a copy each.
            if expr not in self.env:
                self.env[expr] = self.constant(expr.value.numpy())
            return self.env[expr]
        if isinstance(expr, relax.Tuple):
            return tuple(self.operand(field) for field in expr.fields)
        if expr in self.env:
            return self.env[expr]
        raise self.refused(f"has an operand of a kind that is not supported ({type(expr).__name__})")

    def bind(self, var: Any, value: Any) -> None:
        from tvm import relax

        if isinstance(value, relax.TupleGetItem):
            self.env[var] = self.operand(value.tuple_value)[value.index]
        elif isinstance(value, relax.Call):
            self.env[var] = self.call(value)
        else:
            self.env[var] = self.operand(value)

    def call(self, call: Any) -> Any:
        name = getattr(call.op, "name", type(call.op).__name__)
        if name == "relax.call_dps_packed":
            name = str(call.args[0].global_symbol)
        self.kind = str(getattr(next(iter(getattr(call.ty, "fields", ())), call.ty), "dtype", "float32"))
        read = readers().get(name)
        if read is None:
            self.static(call)
            raise self.not_supported()
        return read(self, call)

    def not_supported(self) -> ModelError:
        """The error of an operator at hand that there is no way to compile."""
        return origins.not_supported(self.where, self.supported)

    def static(self, call: Any) -> tuple[int, ...]:
        """The shape of what a call makes.

        Raises:
            ModelError: no tensor, or a dynamic shape.
        """
        return static(call.ty, self.where)

    def tensors(self, call: Any) -> list[str]:
        """The operands of a call, each one tensor."""
        operands = [self.operand(arg) for arg in call.args]
        for operand in operands:
            if not isinstance(operand, str) or (operand not in self.values and operand not in self.constants):
                raise self.refused("has an operand of a kind that is not supported")
        return operands

    def producer(self, name: str) -> Node:
        """The last node that makes a value."""
        return next(node for node in reversed(self.nodes) if node.output == name)

    def shape(self, operand: str) -> tuple[int, ...]:
        return self.values[operand].shape if operand in self.values else self.constants[operand].shape

    def reshape(self, operand: str, shape: tuple[int, ...]) -> str:
        if operand in self.constants:
            return self.constant(self.constants[operand].reshape(shape))
        if self.values[operand].shape == shape:
            return operand
        return self.add("reshape", [operand], shape)

    def broadcast(self, operand: str, shape: tuple[int, ...]) -> str:
        if operand in self.constants:
            return self.constant(np.broadcast_to(self.constants[operand], shape))
        # PyTorch's matmul expands its operands, mostly to what they are.
        return operand if self.values[operand].shape == shape else self.add("broadcast", [operand], shape)

    def slice(self, operand: str, parts: Sequence[tuple[int, int, int]]) -> str:
        """(begin, end, step) along every axis, within the tensor."""
        if operand in self.constants:
            return self.constant(np.ascontiguousarray(self.constants[operand][tuple(slice(*part) for part in parts)]))
        shape = tuple(len(range(*part)) for part in parts)
        if shape == self.values[operand].shape:
            return operand
        return self.add("slice", [operand], shape, parts=tuple(parts))


def ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def pads(values: Any) -> tuple[int, ...]:
    """Relax's (top, left, bottom, right) as (top, bottom, left, right)."""
    pads = ints(values)
    if len(pads) == 2:
        pads = pads * 2
    top, left, bottom, right = pads
    return (top, bottom, left, right)


def layout(attrs: Any, op: str, kernel: bool = True) -> None:
    layout = getattr(attrs, "data_layout", None) or attrs.layout
    if layout != "NCHW" or (kernel and attrs.kernel_layout != "OIHW"):
        raise ModelError(f"{op} in layout {layout} is not supported; only NCHW is")
