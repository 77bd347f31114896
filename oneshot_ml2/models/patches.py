"""Layers of few channels that read what the host makes, over patches: see `models.unfold`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.unfold import unfolded

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator


def over_patches(graph: Graph, chip: Accelerator) -> Graph:
    """An integer graph that computes the same, its convolutions of few channels as products with patches.

    Only where the VTA makes none of their inputs, and where the engine bound gets smaller by it. Equal patches are made
    once.
    """
    on_vta = {node.output for node in graph.nodes if node.attrs.get("workload") is not None}
    values, nodes = dict(graph.values), list[Node]()
    for node in graph.nodes:
        workload = node.attrs.get("workload")
        other = None if workload is None or node.inputs[0] in on_vta else unfolded(workload, chip)
        if other is None:
            nodes.append(node)
            continue
        data, window = node.inputs[0], {name: node.attrs[name] for name in ("strides", "pads", "dilation")}
        size = node.arrays["weight"].shape[2:]
        name = f"{data}.patches{size[0]}x{size[1]}." + ".".join(str(n) for pair in window.values() for n in pair)
        if name not in values:
            values[name] = Value(name, other.tensor_specs["data"][0], graph.values[data].exponent)
            nodes.append(Node(f"{node.name}.patches", "int_patches", (data,), name, {**window, "size": size}))
        weight = np.ascontiguousarray(node.arrays["weight"].reshape(other.tensor_specs["weight"][0]))
        attrs = {**node.attrs, "strides": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "workload": other}
        inputs = (name, *node.inputs[1:])
        nodes.append(dataclasses.replace(node, inputs=inputs, attrs=attrs, arrays={**node.arrays, "weight": weight}))
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values)
