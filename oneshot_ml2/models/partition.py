"""Which operators go to the VTA: composites of a layer with its epilogue, and why the rest stays on the host."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.ops.registry import op_of, ops
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue

# Operators with sums of products, which the VTA is for.
HEADS = tuple(op.name for op in ops().values() if op.layer is not None)
# Operators that keep every element, or pick some.
MOVES = tuple(op.name for op in ops().values() if op.one_source)
# Those of int8 results that have the scale of their operand.
KEEP_SCALE = tuple(op.name for op in ops().values() if op.keeps_scale)


@dataclass(frozen=True)
class Composite:
    """A float layer and the operators after it that become one integer operator.

    ``nodes``: the layer, then what is fused into it; ``residual``: the value that is added to its sums;
    ``low``, ``high``: bounds of the result, in real numbers; ``output``: the value that the last node makes.
    """

    nodes: tuple[Node, ...]
    residual: str | None
    low: float
    high: float

    @property
    def output(self) -> str:
        return self.nodes[-1].output


def bounds(node: Node) -> tuple[float, float] | None:
    """The bounds that a ReLU or clip gives its operand; None for other operators."""
    # What stands for a second quantization has no record.
    limits = ops()[node.op].bounds if node.op in ops() else None
    return None if limits is None else limits(node.attrs)


def composites(graph: Graph, quantized: Container[str]) -> list[Composite]:
    """The layers and additions of a float graph with what follows each of them, up to a quantized value.

    A value that is quantized (in ``quantized``), that several operators read, or that the graph returns ends a
    composite. The residual must be quantized itself. A composite whose result is not quantized is left out.
    """
    users = graph.users()
    found = []
    taken: set[str] = set()
    for node in graph.nodes:
        if node.op not in (*HEADS, "add") or node.output in taken:
            continue
        if node.op == "add" and not all(name in quantized for name in node.inputs):
            continue
        chain, residual, low, high = [node], None, float("-inf"), float("inf")
        while chain[-1].output not in quantized and len(users[chain[-1].output]) == 1:
            if chain[-1].output in graph.outputs:
                break
            (user,) = users[chain[-1].output]
            limits = bounds(user)
            if limits is not None:
                low, high = limits
                chain.append(user)
                break
            others = [name for name in user.inputs if name != chain[-1].output]
            if user.op != "add" or node.op in ("add", "batch_matmul") or residual is not None or len(others) != 1:
                break
            if others[0] not in quantized or graph.shape(others[0]) != graph.shape(user.output):
                break
            residual = others[0]
            chain.append(user)
        if chain[-1].output in quantized:
            found.append(Composite(tuple(chain), residual, low, high))
            taken.update(member.output for member in chain)
    return found


def layer_workload(node: Node, data: tuple[int, ...], weight: tuple[int, ...], epilogue: Epilogue) -> Workload:
    """The workload of one of ``HEADS`` with operands of the shapes ``data`` and ``weight``.

    Raises:
        WorkloadError: VTA's layers cannot be that; says why.
    """
    layer = op_of(node.op).layer
    assert layer is not None
    return layer(node.attrs, data, weight, epilogue)


def pixelwise_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """A tensor's shape as that of images, their channels where VTA has them: those of a matrix are its columns."""
    if len(shape) == 4:
        return (shape[0], shape[1], shape[2], shape[3])
    return (math.prod(shape[:-1]), shape[-1] if shape else 1, 1, 1)


def pixelwise_workload(shape: Sequence[int], epilogue: Epilogue) -> Conv2d:
    """The depthwise 1x1 convolution that scales every element of a tensor and finishes it by the epilogue."""
    n, c, h, w = pixelwise_shape(shape)
    return Conv2d(n, c, h, w, c, 1, 1, epilogue=epilogue, groups=c)


def operand_names(node: Node) -> tuple[str, ...]:
    """What the workload of a node calls its inputs, in their order; its other tensors are the node's ``arrays``."""
    return tuple(name for name in node.attrs["workload"].tensor_specs if name not in node.arrays)


def node_macs(graph: Graph, node: Node) -> int:
    """Multiplications of a node whose sums are products of its operands, on the VTA or the host; 0 for the others."""
    macs = op_of(node.op).macs
    if macs is None:
        return 0
    weight: tuple[int, ...] = ()
    if "weight" in node.arrays:
        weight = node.arrays["weight"].shape
    elif len(node.inputs) > 1:
        weight = graph.shape(node.inputs[1])
    return macs(math.prod(graph.values[node.output].shape), graph.shape(node.inputs[0]), weight)


def host_shares(graph: Graph) -> dict[str, float]:
    """Share of the model's multiplications by node, of those on the host."""
    macs = {node.name: node_macs(graph, node) for node in graph.nodes}
    total = max(sum(macs.values()), 1)
    return {node.name: macs[node.name] / total for node in graph.nodes if host_reason(node) and macs[node.name]}


def host_reason(node: Node) -> str | None:
    """Why a node of an integer graph is computed on the host; None: the VTA does it."""
    if node.attrs.get("workload") is not None:
        return None
    if "reason" in node.attrs:
        return str(node.attrs["reason"])
    return op_of(node.op).reason
