"""Models that were quantized elsewhere: the scales of their QDQ nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.ops.registry import ops
from oneshot_ml2.models.quantize.scales import nearest_exponent


def calibrated(graph: Graph, chosen: Mapping[str, int]) -> dict[str, int]:
    """Values to quantize with their exponents, from the best ones of all values.

    Operators that only move data or pick the largest element keep the exponent. What follows from float operators only
    is quantized where a layer reads it. A ReLU's operand is not quantized apart from it.
    """
    heads, moves = partition.HEADS, partition.KEEP_SCALE
    integer_ops = (*heads, *moves, *(op.name for op in ops().values() if op.scales))
    users, producers = graph.users(), graph.producers()
    exponents: dict[str, int] = {}
    for name in graph.inputs:
        if graph.values[name].limit is None and any(node.op in (*integer_ops, "add") for node in users[name]):
            exponents[name] = chosen[name]
    for node in graph.nodes:
        feeds_a_layer = any(user.op in heads for user in users[node.output])
        constant = any(name in graph.constants for name in node.inputs) and node.op not in heads
        known = [name in exponents for name in node.inputs]
        if node.op in moves:
            if all(known):
                exponents[node.output] = exponents[node.inputs[0]]
            elif feeds_a_layer:
                exponents[node.output] = chosen[node.output]
        elif node.op == "add" and not constant and any(known):
            # A layer can add what is quantized, too.
            for name in (*node.inputs, node.output):
                exponents.setdefault(name, chosen[name])
        elif feeds_a_layer or (node.op in integer_ops and not constant and (node.op in heads or all(known))):
            exponents[node.output] = chosen[node.output]
    for node in graph.nodes:
        # conv2d/dense/add -> ReLU: one rounding, and one clip.
        if partition.bounds(node) is not None and single(graph, users, node.inputs[0]):
            producer = producers.get(node.inputs[0])
            if producer is not None and producer.op in (*heads, "add") and node.output in exponents:
                exponents.pop(node.inputs[0], None)
    for node in graph.nodes:
        # What only a concatenation reads takes its scale at once.
        for name in node.inputs if node.op == "concat" and node.output in exponents else ():
            producer = producers.get(name)
            if producer is not None and producer.op in (*heads, "add", "relu", "clip") and single(graph, users, name):
                exponents[name] = exponents[node.output]
    return exponents


def single(graph: Graph, users: Mapping[str, list[Node]], name: str) -> bool:
    return len(users[name]) == 1 and name not in graph.outputs


def strip_qdq(graph: Graph) -> tuple[Graph, dict[str, int], list[str], dict[str, str]]:
    """A QDQ graph without quantize and dequantize nodes: (graph, exponents, changes, value -> quantize's output)."""
    users = graph.users()
    alias: dict[str, str] = {}
    scales: dict[str, float] = {}
    tensors: dict[str, str] = {}
    kept: list[Node] = []
    values = dict(graph.values)
    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        if node.op == "quantize":
            scale, (x,) = float(node.attrs["scale"]), inputs
            same = [user.op == "quantize" and float(user.attrs["scale"]) == scale for user in users[node.inputs[0]]]
            if scales.get(x) == scale:
                alias[node.output] = x
            elif x not in scales and all(same) and node.inputs[0] not in graph.outputs:
                scales[x] = scale
                tensors[x] = node.output
                alias[node.output] = x
            else:
                kept.append(dataclasses.replace(node, op="identity", inputs=inputs, attrs={}))
                scales[node.output] = scale
                tensors[node.output] = node.output
        elif node.op == "dequantize":
            scale = float(np.ravel(node.attrs["scale"])[0])
            if scales.get(inputs[0]) != scale:
                raise ModelError(
                    f"a dequantize has the scale {scale:g}, but its int8 operand was quantized with "
                    f"{scales.get(inputs[0], 0.0):g}; quantize the model anew"
                )
            alias[node.output] = inputs[0]
        else:
            kept.append(dataclasses.replace(node, inputs=inputs))
    outputs = tuple(alias.get(name, name) for name in graph.outputs)
    constants = dict(graph.constants)
    plain = dataclasses.replace(graph, nodes=tuple(kept), values=values, constants=constants, outputs=outputs)

    changes = []
    exponents = {name: nearest_exponent(scale) for name, scale in scales.items()}
    odd = {name: scale / 2.0 ** exponents[name] for name, scale in scales.items() if scale != 2.0 ** exponents[name]}
    if odd:
        worst = max(abs(math.log2(ratio)) for ratio in odd.values())
        changes.append(
            f"{len(odd)} of {len(scales)} scales of activations are no powers of two and were rounded to the nearest "
            f"(by at most {2**worst - 1:.0%}); the layers' errors say what that costs"
        )
    plain_users = plain.users()
    producers = plain.producers()
    for node in plain.nodes:
        x = node.inputs[0] if node.inputs else ""
        producer = producers.get(x)
        if partition.bounds(node) is None or x not in exponents or node.output not in exponents:
            continue
        if producer is None or producer.op not in (*partition.HEADS, "add") or not single(plain, plain_users, x):
            continue
        if exponents[x] != exponents[node.output]:
            changes.append(f"{producer.name} takes the scale 2**{exponents[node.output]} of the ReLU behind it")
        # With one scale, rounding and clipping before and after the ReLU are the same thing.
        del exponents[x]
        tensors.pop(x, None)
    # Around products there are moves that have no scales of their own in the file.
    for node in plain.nodes:
        if node.op in partition.MOVES and node.inputs[0] in exponents:
            exponents.setdefault(node.output, exponents[node.inputs[0]])
    for node in reversed(plain.nodes):
        if node.op in ("reshape", "permute") and node.output in exponents:
            if single(plain, plain_users, node.inputs[0]) and node.inputs[0] in producers:
                exponents.setdefault(node.inputs[0], exponents[node.output])
    return plain, exponents, changes, tensors
