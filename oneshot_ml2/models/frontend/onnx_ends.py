"""The end of a detector: operators whose results have sizes that depend on the data, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Of ONNX's, those whose results have as many elements as the data says.
_DATA_SIZED = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
# Those that multiply: with one of them it is no mere end of the model.
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


def cut_ends(model: Any) -> list[str]:
    """Leave out, in place, what has no fixed size, where nothing behind it multiplies: its operands become outputs.

    Returns:
        A line on what is left out, and which outputs stand for it.
    """
    import onnx

    graph = model.graph
    lost: set[str] = set()
    left = []
    for node in graph.node:
        if node.op_type in _DATA_SIZED or not lost.isdisjoint(node.input):
            lost.update(node.output)
            left.append(node)
    if not left or any(node.op_type in _PRODUCTS for node in left):
        return []
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {entry.name for entry in graph.input}
    read = dict.fromkeys(name for node in left for name in node.input if name)
    ends = [name for name in read if name not in lost | constants | inputs]
    kept = [entry for entry in graph.output if entry.name not in lost]
    if not ends and not kept:
        return []
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {entry.name: entry.type.tensor_type.elem_type for entry in inferred}
    known = {entry.name for entry in kept}
    made = [onnx.helper.make_tensor_value_info(name, types.get(name, 1), None) for name in ends if name not in known]
    del graph.output[:]
    graph.output.extend([*kept, *made])
    kept_nodes = _needed(graph.node, {entry.name for entry in graph.output})
    # The first of them is of unknown size, the others follow from it.
    what = f"{left[0].op_type} ({left[0].name or left[0].output[0]!r})"
    more = f" and {len(left) - 1} more behind it were" if len(left) > 1 else " was"
    del graph.node[:]
    graph.node.extend(kept_nodes)
    return [
        f"{what}{more} left out, for want of a size that does not depend on the data: the outputs are what it reads, "
        f"{', '.join(entry.name for entry in graph.output)}; apply it to what `run` gives"
    ]


def _needed(nodes: Sequence[Any], outputs: set[str]) -> list[Any]:
    """The nodes that any output depends on, copies, in their order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            copy = type(node)()
            copy.CopyFrom(node)
            kept.append(copy)
    return kept[::-1]
