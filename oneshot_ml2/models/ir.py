"""A small graph of operators at fixed shapes, before and after quantization, and how numpy executes it.

A value is float32, or int8 with a power of two as its scale: real = integer * 2**exponent. `operators` says what each
operator computes; a graph executed there is the reference that programs and TVM's code are held against.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError

# Whole numbers below it are exact in float32.
WHOLE = 1 << 24


@dataclass(frozen=True)
class Value:
    """A tensor between operators; ``exponent`` is that of an int8 tensor's scale, None for float32.

    ``limit``: of an input that holds whole numbers, 0 to one less than it (token ids, or `WHOLE` where they
    are no indices); they cross the border to the compiled code as float32, which is exact.
    """

    name: str
    shape: tuple[int, ...]
    exponent: int | None = None
    limit: int | None = None

    @property
    def dtype(self) -> str:
        return "float32" if self.exponent is None else "int8"


@dataclass(frozen=True)
class Node:
    """An operator: ``inputs`` are values or constants of its graph, ``output`` is the value that it makes.

    ``attrs``: its parameters by name; ``arrays``: those that are tensors (int8 weights, int32 biases).
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can be executed.

    ``values``: every input and node output by name; ``constants``: float32 tensors that nodes read;
    ``labels``: value -> what the model's file calls it, where it has a name there; ``output_names``: those of the
    outputs, in their order; ``notes``: lines on what the import changed.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict, repr=False)
    output_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def users(self) -> dict[str, list[Node]]:
        """Value or constant -> the nodes that read it, in order; a node that reads it twice counts twice."""
        found: dict[str, list[Node]] = {name: [] for name in (*self.values, *self.constants)}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found

    def producers(self) -> dict[str, Node]:
        """Value -> the node that makes it; inputs are missing."""
        return {node.output: node for node in self.nodes}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value or constant."""
        return self.values[name].shape if name in self.values else tuple(self.constants[name].shape)

    def fingerprint(self, name: str) -> bytes:
        """What constants of equal shape and content have in common, and others have not."""
        array = self.constants[name]
        return repr(array.shape).encode() + hashlib.sha256(array.tobytes()).digest()


def check_inputs(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """The inputs as contiguous float32 arrays.

    Raises:
        ModelError: one is missing, unknown, of another shape, no number, not finite, or no index where it has to be.
    """
    return check_tensors({name: (graph.values[name].shape, graph.values[name].limit) for name in graph.inputs}, inputs)


def check_tensors(
    expected: Mapping[str, tuple[tuple[int, ...], int | None]], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    """As :func:`check_inputs`, for shapes and limits by name."""
    if set(inputs) != set(expected):
        raise ModelError(f"inputs are {', '.join(inputs) or 'none'}; the model takes {', '.join(expected)}")
    arrays = {}
    for name, (shape, limit) in expected.items():
        array = np.asarray(inputs[name])
        # Masks may be truth values.
        if array.dtype.kind not in ("fiu" if limit is None else "fiub"):
            raise ModelError(f"input {name!r} is {array.dtype}; the model takes float32")
        if array.shape != shape:
            raise ModelError(f"input {name!r} has shape {array.shape}; the model was compiled for {shape}")
        # ``ascontiguousarray`` gives a scalar an axis.
        array = np.asarray(array, dtype=np.float32, order="C")
        if not np.isfinite(array).all():
            raise ModelError(f"input {name!r} has infinite values or NaN")
        if limit is not None and not ((array >= 0) & (array < limit) & (array == np.rint(array))).all():
            raise ModelError(f"input {name!r} holds other values than the whole numbers 0 to {limit - 1}")
        arrays[name] = array
    return arrays
