"""A graph computed in numpy: the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from oneshot_ml2.models import operators
from oneshot_ml2.models.ir import check_inputs

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph, Node


def execute(
    graph: Graph,
    inputs: Mapping[str, NDArray[Any]],
    observe: Callable[[str, NDArray[Any]], None] | None = None,
    step: Callable[[Node, Sequence[NDArray[Any]]], NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Compute the graph's outputs by name in numpy.

    Args:
        observe: sees every value as soon as it is there.
        step: gives a node's result of its operands; none: `operators.compute` does.

    Raises:
        ModelError: inputs that do not fit the graph.
    """
    alive: dict[str, NDArray[Any]] = dict(check_inputs(graph, inputs))
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    for name, array in list(alive.items()):
        if observe is not None:
            observe(name, array)
    for index, node in enumerate(graph.nodes):
        operands = [alive[name] if name in alive else graph.constants[name] for name in node.inputs]
        array = step(node, operands) if step else operators.compute(node, operands, graph.values[node.output].shape)
        alive[node.output] = array
        if observe is not None:
            observe(node.output, array)
        for name in set(node.inputs):
            if last[name] == index and name not in graph.outputs:
                alive.pop(name, None)
    return {name: alive[name] for name in graph.outputs}
