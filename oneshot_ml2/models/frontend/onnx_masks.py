"""Masks of attention in ONNX graphs: constants of minus infinity in front of a softmax, and what exporters write for
rows that are masked as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.base import Array

# What stands for minus infinity, and for all that is below: softmax makes 0 of it, and it has a square in float32.
_MASKED = np.float32(-1e9)
_FLOAT = 1


class _Masks:
    """The nodes of a graph by what they read and make, and its constants."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.graph, self.numpy = graph, numpy_helper
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def array(self, name: str) -> Array | None:
        """A constant; None: the model computes it."""
        return np.asarray(self.numpy.to_array(self.tensors[name])) if name in self.tensors else None

    def constant(self, array: Array, name: str) -> str:
        self.tensors[name] = self.numpy.from_array(np.asarray(array), name)
        self.graph.initializer.append(self.tensors[name])
        return name


def bound_masks(graph: Any) -> None:
    """Make constants finite that mask a softmax, in place, and drop the question whether what it makes is NaN.

    A row of which all is masked is NaN in ONNX, and a Where on IsNaN behind it makes it 0; here it is multiplied by 0.
    All inputs of a model are finite, so that nothing is NaN if no constant is infinite.
    """
    masks = _Masks(graph)
    lost: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type in ("Add", "Where"):
            lost |= _bound(masks, node)
    arrays = [masks.array(name) for name, tensor in masks.tensors.items() if tensor.data_type == _FLOAT]
    read = {name for node in graph.node for name in node.input}
    infinite = any(
        not np.isfinite(array).all() for name, array in zip(masks.tensors, arrays) if name in read and array is not None
    )
    for node in graph.node:
        if node.op_type != "Where" or infinite:
            continue
        condition = masks.makers.get(node.input[0])
        if condition is None or condition.op_type != "IsNaN" or condition.input[0] != node.input[2]:
            continue
        fill, tensor = masks.array(node.input[1]), node.input[2]
        kept = 1.0 - lost.get(tensor, np.zeros(1))
        if fill is None or (fill.any() and not kept.all()):
            continue
        node.op_type = "Identity" if kept.all() else "Mul"
        factors = [] if kept.all() else [masks.constant(kept.astype(np.float32), f"{node.output[0]}.kept")]
        node.input[:] = [tensor, *factors]


def _bound(masks: _Masks, node: Any) -> dict[str, Array]:
    """Bound the constant that a node in front of a softmax masks with.

    Returns:
        The softmax's result, and 1 for each of its rows of which all is masked, else 0.
    """
    constants = [index for index, name in enumerate(node.input) if name in masks.tensors]
    index = next((index for index in constants if index or node.op_type == "Add"), None)
    users = masks.users.get(node.output[0], [])
    array = None if index is None else masks.array(node.input[index])
    if index is None or array is None or array.dtype != np.float32 or not (array < _MASKED).any():
        return {}
    if not users or not all(user.op_type == "Softmax" and _over_rows(user, array.ndim) for user in users):
        return {}
    masked = np.isneginf(array)
    if node.op_type == "Where":
        choice = masks.array(node.input[0])
        if choice is None:
            return {}
        masked = masked & (choice if index == 1 else ~choice)
    rows = np.asarray(masked.all(-1, keepdims=True))
    asked = {reader.op_type for user in users for reader in masks.users.get(user.output[0], [])}
    if rows.any() and "IsNaN" not in asked:
        # It is NaN in the file, too.
        return {}
    bounded = masks.constant(np.maximum(array, _MASKED), f"{node.output[0]}.mask")
    node.input[index] = bounded
    return dict.fromkeys((user.output[0] for user in users if rows.any()), rows.astype(np.float32))


def _over_rows(softmax: Any, rank: int) -> bool:
    """Whether a softmax is over the last axis, for all that can be told; ``rank``: of the mask in front of it."""
    axis = next((int(entry.i) for entry in softmax.attribute if entry.name == "axis"), -1)
    return axis == -1 or axis == rank - 1 == 3
