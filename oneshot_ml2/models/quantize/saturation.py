"""Where functions behind a value end to change: int8 need not reach further.

A hard-swish is 0 below -3, a sigmoid 1 above 8, and the sums that they read often go much further. What float operators
make of a value by elements is followed up to what reads more than elements of it; between which of its numbers all that
changes by more than a part of a step of int8 is where the value matters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import operators, partition

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph, Node
    from oneshot_ml2.models.quantize.channels import Channels
    from oneshot_ml2.models.quantize.observe import Observed

Array = NDArray[np.float64]
# From where to where a value matters, by channel; infinite where there is no end.
Limits = tuple[Array, Array]
# Functions whose small results matter as little as they are small.
_FOLLOWED = (
    "add", "subtract", "multiply", "maximum", "minimum", "relu", "clip", "prelu", "sigmoid", "tanh", "erf", "silu",
    "gelu", "gelu_tanh", "softplus",
)  # fmt: skip
# Numbers of each channel that are looked at, the part of a function's range that is no change, and how many numbers
# without one are an end.
_POINTS, _NONE, _FEWEST = 129, 2.0**-9, 8


def limits(graph: Graph, channels: Channels, seen: Observed, quantized: Collection[str]) -> dict[str, Limits]:
    """Where the values of ``quantized`` matter that only float operators read, if not everywhere that they reach."""
    users = graph.users()
    order = {node.output: index for index, node in enumerate(graph.nodes)}
    found = {}
    for name in channels.ids:
        if name not in quantized or not (seen.moments[name].high > seen.moments[name].low).any():
            continue
        low, high = seen.moments[name].low, seen.moments[name].high
        points = low.reshape(-1, 1) + (high - low).reshape(-1, 1) * np.linspace(0, 1, _POINTS)
        results = _followed(graph, channels, users, order, name, points.astype(np.float32))
        if results is not None:
            below, above = _ends(points, results)
            if np.isfinite(below).any() or np.isfinite(above).any():
                found[name] = below.reshape(low.shape), above.reshape(low.shape)
    return found


def _followed(
    graph: Graph, channels: Channels, users: Mapping[str, Sequence[Node]], order: Mapping[str, int], name: str,
    points: NDArray[np.float32],
) -> list[NDArray[np.float32]] | None:  # fmt: skip
    """What is made of numbers of a value where it is no function of single elements any more; None: of itself."""
    known = {name: points}
    results = dict[str, NDArray[np.float32]]()
    waiting = {order[user.output]: user for user in users[name]}
    while waiting:
        node = waiting.pop(min(waiting))
        own = [known.get(x, graph.constants.get(x)) for x in node.inputs]
        alone = all(x in known or (x in graph.constants and graph.constants[x].size == 1) for x in node.inputs)
        if node.op in partition.MOVES and node.op != "pad":
            known[node.output] = known[node.inputs[0]]
        elif alone and node.op in _FOLLOWED and node.output not in channels.taken:
            known[node.output] = operators.compute(node, [np.asarray(x) for x in own], points.shape)
        else:
            results |= {x: known[x] for x in node.inputs if x in known}
            continue
        waiting |= {order[user.output]: user for user in users[node.output]}
    results |= {x: array for x, array in known.items() if x in graph.outputs}
    return None if any(array is points for array in results.values()) else list(results.values())


def _ends(points: Array, results: Sequence[NDArray[np.float32]]) -> Limits:
    """By row the numbers below and above which no function changes; without such, infinite."""
    first, last = np.full(len(points), _POINTS - 1), np.zeros(len(points), dtype=np.int64)
    for result in results:
        change = _NONE * np.ptp(result, axis=1, keepdims=True)
        first = np.minimum(first, _flat(result, change))
        last = np.maximum(last, _POINTS - 1 - _flat(result[:, ::-1], change))
    rows = np.arange(len(points))
    # What changes nowhere has no ends.
    inside = first < last
    return (
        np.where(inside & (first >= _FEWEST), points[rows, first], -np.inf),
        np.where(inside & (last < _POINTS - _FEWEST), points[rows, last], np.inf),
    )


def _flat(results: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.int64]:
    """By row, up to which place the results differ by no more than ``change``."""
    apart = np.maximum.accumulate(results, axis=1) - np.minimum.accumulate(results, axis=1)
    return (apart <= change).sum(1) - 1
