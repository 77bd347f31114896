"""Float graphs made smaller: constants, layers and moves folded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.models import operators, partition
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.ops.registry import op_of, ops
from oneshot_ml2.models.turning import permutes, sink_permutes

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.base import Array

# Those whose weights' scales are kept; products with constant matrices become dense.
_SCALED = ("matmul", *(op.name for op in ops().values() if op.weight_outputs is not None and op.relax))
# Those that have no module of their own in PyTorch.
_NAMELESS = ("batch_matmul", "add", "softmax")


def in_module(path: str, op: str) -> str:
    """What an operator in a module of PyTorch is called; empty: it is in the outermost one."""
    return f"{path}.{op}" if path and op in _NAMELESS else path


def simplify(graph: Graph, names: Mapping[str, list[tuple[str, str]]]) -> Graph:
    """Fold constants into layers, name nodes as the model does, and drop what nothing reads."""
    for op in ops().values():
        rewritten = graph if op.rewrite is None else op.rewrite(graph)
        graph = graph if rewritten is graph else drop_unused(rewritten)
    graph = drop_unused(fold_constants(graph))
    graph = _fewest_permutes(graph)
    renamed, labels = [], {}
    taken: set[str] = set()
    kinds: dict[str, int] = {}
    for node in graph.nodes:
        kinds[node.op] = kinds.get(node.op, 0) + 1
    seen: dict[str, int] = {}
    for node in graph.nodes:
        index = seen.get(node.op, 0)
        seen[node.op] = index + 1
        known = names.get(node.op, [])
        # Only if every operator of that kind has come through, so that none takes another one's name.
        if len(known) == kinds[node.op]:
            label, tensor = known[index]
            labels[node.output] = tensor
            if node.op in _NAMELESS and label in taken:
                label = next(name for n in itertools.count(1) if (name := f"{label}_{n}") not in taken)
            if label and label not in taken:
                taken.add(label)
                node = dataclasses.replace(node, name=label)
        renamed.append(node)
    return dataclasses.replace(graph, nodes=tuple(renamed), labels=labels)


def _fewest_permutes(graph: Graph) -> Graph:
    """The graph with its constants folded, permutes as they are or moved to where there are fewer of them."""
    as_is = _folded(graph)
    if not permutes(as_is):
        # Folding copies weights: not for nothing.
        return as_is
    turned = _folded(drop_unused(sink_permutes(graph)))
    return turned if permutes(turned) < permutes(as_is) else as_is


def _folded(graph: Graph) -> Graph:
    return drop_unused(fold_moves(hoist_scales(fold_layers(graph))))


def fold_constants(graph: Graph) -> Graph:
    """Replace dequantized, reshaped and permuted constants by their values.

    A dequantized constant's scale is kept: see ``attrs['scales']`` of the layers that read it.
    """
    constants = dict(graph.constants)
    scales: dict[str, tuple[Array, int]] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        if node.inputs and all(name in constants for name in node.inputs) and node.op in operators.FLOAT:
            out = graph.values[node.output].shape
            array = operators.FLOAT[node.op]([constants[name] for name in node.inputs], node.attrs, out)
            constants[node.output] = np.asarray(array, dtype=np.float32)
            if node.op == "dequantize" and not np.any(node.attrs["zero"]):
                scales[node.output] = (node.attrs["scale"], node.attrs["axis"] % max(array.ndim, 1))
            elif node.inputs[0] in scales:
                scale, axis = scales[node.inputs[0]]
                if node.op == "permute":
                    axis = tuple(node.attrs["axes"]).index(axis)
                if node.op == "permute" or scale.ndim == 0:
                    scales[node.output] = (scale, axis)
            continue
        kept.append(node)
    values = {name: value for name, value in graph.values.items() if name not in constants}
    nodes = [
        dataclasses.replace(node, attrs={**node.attrs, "weight_scale": scales[node.inputs[1]]})
        if len(node.inputs) > 1 and node.inputs[1] in scales and node.op in _SCALED
        else node
        for node in kept
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes), constants=constants, values=values)


def fold_layers(graph: Graph) -> Graph:
    """Products with constant matrices become ``dense``; scales and biases after a layer go into it."""
    constants = dict(graph.constants)
    users = graph.users()
    made: dict[str, Node] = {}
    # Value that a folded node made -> the value that now stands for it.
    alias: dict[str, str] = {}
    order: list[str] = []

    # Weight of a product -> the same, transposed.
    turned: dict[str, str] = {}

    def constant(array: Array) -> str:
        name = f"folded_{len(constants)}"
        constants[name] = np.ascontiguousarray(array, dtype=np.float32)
        return name

    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        alone = bool(inputs) and len(users[node.inputs[0]]) == 1 and node.inputs[0] not in graph.outputs
        node = dataclasses.replace(node, inputs=inputs)
        source = made.get(inputs[0]) if inputs else None
        if node.op == "matmul" and inputs[1] in constants and constants[inputs[1]].ndim == 2:
            if inputs[1] not in turned:
                turned[inputs[1]] = constant(constants[inputs[1]].T)
            attrs = dict(node.attrs)
            if "weight_scale" in attrs:
                scale, axis = attrs["weight_scale"]
                attrs["weight_scale"] = (scale, 1 - axis)
            node = dataclasses.replace(node, op="dense", inputs=(inputs[0], turned[inputs[1]]), attrs=attrs)
        elif (
            node.op in ("add", "multiply")
            and source is not None
            and op_of(source.op).weight_outputs is not None
            and alone
            and len(inputs) == 2
            and inputs[1] in constants
        ):
            shape = graph.values[node.output].shape
            channels = _per_channel(constants[inputs[1]], shape, source.op)
            scales = node.op == "multiply"
            layer = op_of(source.op)
            grouped = layer.ungrouped is not None and source.attrs["groups"] > 1
            if channels is not None and not (scales and ("weight_scale" in source.attrs or grouped)):
                weight = constants[source.inputs[1]]
                bias = constants[source.inputs[2]] if len(source.inputs) > 2 else np.zeros(len(channels), np.float32)
                if node.op == "add":
                    bias = bias + channels
                else:
                    outer = (1,) * (layer.weight_outputs or 0)
                    weight = weight * channels.reshape((*outer, -1) + (1,) * (weight.ndim - 1 - len(outer)))
                    bias = bias * channels
                folded = (source.inputs[0], source.inputs[1] if node.op == "add" else constant(weight), constant(bias))
                made[source.output] = dataclasses.replace(source, inputs=folded)
                alias[node.output] = source.output
                continue
        made[node.output] = node
        order.append(node.output)
    outputs = tuple(alias.get(name, name) for name in graph.outputs)
    return dataclasses.replace(graph, nodes=tuple(made[name] for name in order), constants=constants, outputs=outputs)


def hoist_scales(graph: Graph) -> Graph:
    """Scalars that multiply the operands of a batch_matmul, as attention has them, multiply its result instead."""
    users, producers = graph.users(), graph.producers()
    values, constants = dict(graph.values), dict(graph.constants)
    # Value of a multiplication that moves -> its operand; product -> what multiplies it now.
    alias: dict[str, str] = {}
    factors: dict[str, float] = {}
    for node in graph.nodes:
        for name in node.inputs if node.op == "batch_matmul" else ():
            source = producers.get(name)
            while source is not None and len(users[source.output]) == 1 and source.output not in graph.outputs:
                if source.op == "multiply" and constants.get(source.inputs[1], np.zeros(2)).size == 1:
                    alias[source.output] = source.inputs[0]
                    scalar = float(constants[source.inputs[1]].reshape(()))
                    factors[node.output] = factors.get(node.output, 1.0) * scalar
                elif source.op not in partition.MOVES:
                    break
                source = producers.get(source.inputs[0])
    nodes = []
    for node in graph.nodes:
        if node.output in alias:
            continue
        inputs = []
        for name in node.inputs:
            while name in alias:
                name = alias[name]
            inputs.append(name)
        node = dataclasses.replace(node, inputs=tuple(inputs))
        if node.output not in factors:
            nodes.append(node)
            continue
        product, factor = f"{node.output}.product", f"{node.output}.factor"
        values[product] = dataclasses.replace(values[node.output], name=product)
        constants[factor] = np.array(factors[node.output], dtype=np.float32)
        nodes.append(dataclasses.replace(node, output=product))
        nodes.append(Node(f"{node.name}.scale", "multiply", (product, factor), node.output))
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values, constants=constants)


def fold_moves(graph: Graph) -> Graph:
    """Compose reshapes with reshapes and permutes with permutes, and drop those that change nothing.

    Dense layers take tensors as they are, without a reshape to a matrix before and one back after them. The permute of
    a product's operand meets the one before it, past the reshape between them.
    """
    graph = _unflattened(graph)
    values = dict(graph.values)
    made: dict[str, Node] = {}
    alias: dict[str, str] = {}
    kept: list[Node] = []

    def keep(node: Node) -> str:
        made[node.output] = node
        kept.append(node)
        return node.output

    def permuted(x: str, axes: tuple[int, ...], name: str) -> str:
        """``x`` with its axes in another order, as the value ``name``; what it is anyway, if that changes nothing."""
        source, shape = made.get(x), values[x].shape
        if source is not None and source.op == "permute":
            return permuted(source.inputs[0], tuple(source.attrs["axes"][axis] for axis in axes), name)
        if axes == tuple(range(len(axes))):
            return x
        if source is not None and source.op == "reshape" and axes == (0, 2, 1):
            before = values[source.inputs[0]].shape
            if len(before) > 3 and before[-2:] == shape[-2:]:
                # The reshape merges leading axes only: turn the last two before it.
                rank = len(before)
                swapped = (*range(rank - 2), rank - 1, rank - 2)
                inner = permuted(source.inputs[0], swapped, f"{name}.permuted")
                return reshaped(inner, (shape[0], shape[2], shape[1]), name)
        values[name] = dataclasses.replace(values[x], name=name, shape=tuple(shape[axis] for axis in axes))
        return keep(Node(name, "permute", (x,), name, {"axes": axes}))

    def reshaped(x: str, shape: tuple[int, ...], name: str) -> str:
        source = made.get(x)
        if source is not None and source.op == "reshape":
            return reshaped(source.inputs[0], shape, name)
        if values[x].shape == shape:
            return x
        values[name] = dataclasses.replace(values[x], name=name, shape=shape)
        return keep(Node(name, "reshape", (x,), name))

    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        if node.op == "permute" and inputs[0] in values:
            alias[node.output] = permuted(inputs[0], tuple(node.attrs["axes"]), node.output)
        elif node.op == "reshape" and inputs[0] in values:
            alias[node.output] = reshaped(inputs[0], values[node.output].shape, node.output)
        else:
            keep(dataclasses.replace(node, inputs=inputs))
    outputs = tuple(alias.get(name, name) for name in graph.outputs)
    return drop_unused(dataclasses.replace(graph, nodes=tuple(kept), values=values, outputs=outputs))


def _unflattened(graph: Graph) -> Graph:
    """Dense layers between a reshape to a matrix and reshapes back, without the first one."""
    users, producers = graph.users(), graph.producers()
    values = dict(graph.values)
    nodes = []
    for node in graph.nodes:
        source = producers.get(node.inputs[0]) if node.op == "dense" else None
        if source is not None and source.op == "reshape" and node.output not in graph.outputs:
            before, after = graph.shape(source.inputs[0]), graph.shape(source.output)
            back = all(user.op == "reshape" for user in users[node.output])
            if back and len(before) > 2 and len(after) == 2 and before[-1] == after[-1]:
                node = dataclasses.replace(node, inputs=(source.inputs[0], *node.inputs[1:]))
                shape = (*before[:-1], graph.shape(node.output)[-1])
                values[node.output] = dataclasses.replace(values[node.output], shape=shape)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values)


def _per_channel(array: Array, shape: tuple[int, ...], op: str) -> Array | None:
    """A constant as one number per output channel (K,), or None if it is not that."""
    axis = op_of(op).channels % len(shape)
    full = (1,) * (len(shape) - array.ndim) + tuple(array.shape)
    if len(full) != len(shape) or any(size != 1 for i, size in enumerate(full) if i != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (shape[axis],)).astype(np.float32)


def drop_unused(graph: Graph) -> Graph:
    """Without nodes, values and constants that no output depends on."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    kept.reverse()
    return dataclasses.replace(
        graph,
        nodes=tuple(kept),
        values={name: value for name, value in graph.values.items() if name in needed or name in graph.inputs},
        constants={name: array for name, array in graph.constants.items() if name in needed},
    )
