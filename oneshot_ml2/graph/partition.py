"""Which operators go to the VTA: composites of a layer with its epilogue, and why the rest stays on the host."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from oneshot_ml2.errors import WorkloadError
from oneshot_ml2.graph.ir import Graph, Node
from oneshot_ml2.workload import Conv2d, Dense, Epilogue, Workload

# What an `Epilogue` can do.
LARGEST_SHIFT, LARGEST_RESIDUAL_SHIFT, LARGEST_BIAS_BITS = 15, 6, 30


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
    if node.op == "relu":
        return (0.0, float("inf"))
    return (node.attrs["low"], node.attrs["high"]) if node.op == "clip" else None


def composites(graph: Graph, quantized: Container[str]) -> list[Composite]:
    """The layers and additions of a float graph with what follows each of them, up to a quantized value.

    A value that is quantized (in ``quantized``), that several operators read, or that the graph returns ends a
    composite. The residual must be quantized itself. A composite whose result is not quantized is left out.
    """
    users = graph.users()
    found = []
    taken: set[str] = set()
    for node in graph.nodes:
        if node.op not in ("conv2d", "dense", "add") or node.output in taken:
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
            if user.op != "add" or node.op == "add" or residual is not None or len(others) != 1:
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
    """The workload of a conv2d or dense node with inputs of the shapes ``data`` and ``weight``.

    Raises:
        WorkloadError: VTA's layers cannot be that, or not yet; says why.
    """
    if node.op == "dense":
        return Dense(data[0], data[1], weight[0], epilogue)
    attrs = node.attrs
    if attrs["groups"] != 1:
        raise WorkloadError(f"grouped convolutions ({attrs['groups']} groups) are not lowered to the VTA")
    n, c, h, w = data
    k, _, r, s = weight
    return Conv2d(n, c, h, w, k, r, s, attrs["strides"], attrs["pads"], attrs["dilation"], epilogue)


def host_reason(node: Node) -> str | None:
    """Why a node of an integer graph is computed on the host; None: the VTA does it."""
    if node.op in ("int_conv2d", "int_dense"):
        return None if node.attrs["workload"] is not None else str(node.attrs["reason"])
    if "reason" in node.attrs:
        return str(node.attrs["reason"])
    return _REASONS.get(node.op, "computed in float32")


_REASONS = {
    "to_int8": "float32 meets int8",
    "to_float": "int8 meets float32",
    "reshape": "moves data only",
    "permute": "moves data only",
    "concat": "moves data only",
    "max_pool2d": "pooling is not lowered to the VTA",
    "int_avg_pool2d": "pooling is not lowered to the VTA",
    "int_add": "an addition outside of a layer's epilogue is not lowered to the VTA",
    "int_requantize": "rescaling outside of a layer's epilogue is not lowered to the VTA",
}
