"""Layers that read, in the end, what they have made before, as the steps of a recurrent layer do.

What a step loses the next ones lose again. Where each forgets the last that is little; where it does not, a hundred
steps of int8 lose all. Which it is, samples say (`quantize`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.models.ir import Graph, Node, Value

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array

# A step has no more rows: products of many are what a VTA is for, and blocks of one weight are no steps.
_ROWS = 8


def steps(graph: Graph) -> frozenset[str]:
    """Outputs of the dense layers of a float graph whose weight some of them reads the product of before."""
    dense = [node for node in graph.nodes if node.op == "dense" and node.inputs[1] in graph.constants]
    few = [node for node in dense if math.prod(graph.shape(node.output)[:-1]) <= _ROWS]
    shapes = Counter(graph.shape(node.inputs[1]) for node in few)
    alike = defaultdict[bytes, list[str]](list)
    for node in few:
        # Large weights that no other can equal are not read through.
        if shapes[graph.shape(node.inputs[1])] > 1:
            alike[graph.fingerprint(node.inputs[1])].append(node.output)
    groups = [members for members in alike.values() if len(members) > 1]
    group_of = {name: number for number, members in enumerate(groups) for name in members}
    behind, again = dict[str, frozenset[int]](), set[int]()
    for node in graph.nodes:
        known = frozenset[int]().union(*(behind.get(name, frozenset()) for name in node.inputs))
        own = group_of.get(node.output)
        if own in known:
            again.add(own)
        behind[node.output] = known if own is None else known | {own}
    return frozenset(name for number in again for name in groups[number])


def in_float(graph: Graph, chosen: Collection[str]) -> Graph:
    """A float graph that computes the same, whose ``chosen`` dense layers are the host's products."""
    values, constants, nodes = dict(graph.values), dict(graph.constants), list[Node]()
    turned: dict[bytes, Array] = {}
    for node in graph.nodes:
        if node.output not in chosen:
            nodes.append(node)
            continue
        rows, weight, *bias = node.inputs
        made, shape = node.output, graph.shape(node.output)
        key = graph.fingerprint(weight)
        if key not in turned:
            turned[key] = np.ascontiguousarray(graph.constants[weight].T)
        constants[f"{made}.turned"] = turned[key]
        product = f"{made}.product" if bias else made
        values[product] = Value(product, shape)
        nodes.append(dataclasses.replace(node, op="matmul", inputs=(rows, f"{made}.turned"), output=product, attrs={}))
        if bias:
            nodes.append(Node(made, "add", (product, *bias), made, {}))
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values, constants=constants)
