"""ONNX's If whose condition depends on the data: both branches are computed, and the results of one are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.onnx_file import without_weights


def take_branches(model: Any) -> list[str]:
    """Put the nodes of both branches and a Where in the place of every If, in place; those inside of branches too.

    Returns:
        A line on them, if there are any.

    Raises:
        ModelError: the results of two branches differ in type or shape, or have no fixed shape.
    """
    graph, names, chosen = model.graph, list[str](), list[Any]()
    while any(map(_is_if, graph.node)):
        nodes = []
        for node in graph.node:
            if _is_if(node):
                names.append(node.name or node.output[0])
                made, wheres = _both(node)
                chosen += wheres
                nodes += [*made, *wheres]
            else:
                nodes.append(_copy(node))
        for tensor in (tensor for node in graph.node if _is_if(node) for tensor in _constants(node)):
            graph.initializer.append(tensor)
        del graph.node[:]
        graph.node.extend(nodes)
    if not names:
        return []
    _check(model, chosen)
    listed = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return [f"both branches of {len(names)} conditions (If {listed}) are computed, and the results of one are taken"]


def _is_if(node: Any) -> bool:
    return bool(node.op_type == "If" and node.domain in ("", "ai.onnx"))


def _copy(node: Any) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    return copy


def _branches(node: Any) -> list[tuple[Any, dict[str, str]]]:
    """The branches of an If, that which is taken where its condition is true first, and new names of what they make."""
    graphs = {attribute.name: attribute.g for attribute in node.attribute}
    found = []
    for kind in ("then_branch", "else_branch"):
        graph = graphs[kind]
        made = [
            *(tensor.name for tensor in graph.initializer),
            *(name for inner in graph.node for name in inner.output),
        ]
        # Both may have the same names.
        found.append((graph, {name: f"{node.output[0]}.{kind}.{name}" for name in made if name}))
    return found


def _constants(node: Any) -> list[Any]:
    """The constants of an If's branches, by their new names."""
    found = []
    for graph, names in _branches(node):
        for tensor in graph.initializer:
            own = _copy(tensor)
            own.name = names[tensor.name]
            found.append(own)
    return found


def _both(node: Any) -> tuple[list[Any], list[Any]]:
    """(Nodes of both branches by their new names and of the condition, those that choose)."""
    from onnx import helper, numpy_helper

    made, results = [], []
    for graph, names in _branches(node):
        for inner in graph.node:
            own = _copy(inner)
            _rename(own, names)
            made.append(own)
        results.append([names.get(entry.name, entry.name) for entry in graph.output])
    # A condition is one element of any rank; without axes it leaves the results theirs.
    condition, scalar = f"{node.output[0]}.condition", f"{node.output[0]}.scalar"
    value = numpy_helper.from_array(np.zeros(0, np.int64))
    made.append(helper.make_node("Constant", [], [scalar], value=value))
    made.append(helper.make_node("Reshape", [node.input[0], scalar], [condition]))
    wheres = [
        helper.make_node("Where", [condition, first, second], [output], name=node.name)
        for output, first, second in zip(node.output, *results, strict=True)
    ]
    return made, wheres


def _rename(node: Any, names: Mapping[str, str]) -> None:
    """Give what a node reads and makes its new names, also in graphs inside of it."""
    for ends in (node.input, node.output):
        ends[:] = [names.get(name, name) for name in ends]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename(inner, names)
            for entry in graph.output:
                entry.name = names.get(entry.name, entry.name)


def _check(model: Any, chosen: Sequence[Any]) -> None:
    """Raise ModelError unless both operands of each Where are of one type and one fixed shape."""
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(without_weights(model)).graph
    types = {
        entry.name: (entry.type.tensor_type.elem_type, [dim.dim_value for dim in entry.type.tensor_type.shape.dim])
        for entry in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    types |= {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in inferred.initializer}
    for where in chosen:
        first, second = (types.get(name) for name in where.input[1:])
        if first is None or first != second or 0 in first[1]:
            raise ModelError(
                f"operator If (node {where.name or where.output[0]!r}) gives {where.output[0]!r} of a shape or type "
                "that depends on its condition; replace it by one of its branches in the model"
            )
