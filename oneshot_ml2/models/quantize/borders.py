"""Zeros around images that a layer reads moved: the host puts them there before it adds the offset.

VTA's loads pad with the number 0, which stands for something else once an offset is added. What a float operator makes
can be padded by the host. The layer then computes with the zeros that it passed over before, so that has a budget.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.models.ir import Node, Value

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph
    from oneshot_ml2.models.quantize.channels import Channels
    from oneshot_ml2.models.quantize.observe import Moments

# Zeros above, below, left and right of images.
NONE = (0, 0, 0, 0)
# Of what is padded, a channel's half range is at most that part of its largest magnitude.
_ONE_SIDED = 0.75
# Products with zeros, of all products of the model, in blocks of VTA's usual size.
_BUDGET, _BLOCK = 0.02, 16


def border_of(readers: Sequence[Node]) -> tuple[int, ...] | None:
    """The padding (top, bottom, left, right) of all layers that read a value; None: they differ, or one is of a kind
    whose sums do not all take its whole kernel.
    """
    if any(node.op not in ("dense", "conv2d") for node in readers):
        return None
    borders = {tuple(node.attrs.get("pads", NONE)) for node in readers} or {NONE}
    return borders.pop() if len(borders) == 1 else None


def one_sided(moments: Moments) -> bool:
    """Whether the middle of most channels is so far from 0 that a moved channel has much finer steps."""
    low, high = np.minimum(moments.low, 0.0), np.maximum(moments.high, 0.0)
    reach = np.maximum(-low, high)
    return bool(np.median((high - low) / np.where(reach > 0, 2 * reach, 1.0)) < _ONE_SIDED)


def affordable(
    graph: Graph, channels: Channels, layers: Collection[Node], moved: Mapping[str, str | None]
) -> tuple[dict[str, str | None], dict[str, tuple[int, ...]]]:
    """Of values that may be moved those that the budget is for, and the borders that are to be put around them.

    Borders that cost their layers least come first, relative to what these take.
    """
    users = graph.users()
    total = sum(sum(_products(graph, node)) for node in layers)
    left = _BUDGET * total
    borders, dear = dict[str, tuple[int, ...]](), list[tuple[float, float, str, tuple[int, ...]]]()
    for name in moved:
        readers = [user for user in users[name] if user.output in channels.taken]
        border = border_of(readers)
        if border is not None and any(border):
            zeros, real = np.sum([_products(graph, node) for node in readers], axis=0).tolist()
            dear.append((zeros / max(real, 1), zeros, name, border))
    for _, zeros, name, border in sorted(dear):
        if zeros <= left:
            left -= zeros
            borders[name] = border
    lost = {name for *_, name, _ in dear} - set(borders)
    return {name: source for name, source in moved.items() if name not in lost}, borders


def _products(graph: Graph, node: Node) -> tuple[float, float]:
    """How many products of blocks a layer has with zeros around its images, and with elements of them."""
    if node.op != "conv2d":
        return 0.0, float(np.prod(graph.shape(node.output))) * graph.shape(node.inputs[0])[-1] / _BLOCK**2
    (_, _, *sizes), (n, outputs, *results) = graph.shape(node.inputs[0]), graph.shape(node.output)
    _, inputs, *kernel = graph.shape(node.inputs[1])
    first = (node.attrs["pads"][0], node.attrs["pads"][2])
    real = 1.0
    for size, count, taps, before, stride, dilation in zip(
        sizes, results, kernel, first, node.attrs["strides"], node.attrs["dilation"]
    ):
        places = np.arange(count)[:, None] * stride + np.arange(taps) * dilation - before
        real *= float(((places >= 0) & (places < size)).sum())
    blocks = n * np.ceil(outputs / _BLOCK) * np.ceil(inputs / _BLOCK)
    return float(blocks * (np.prod(results) * np.prod(kernel) - real)), float(blocks * real)


def padded(name: str, border: Sequence[int], values: dict[str, Value], nodes: list[Node]) -> str:
    """Add a float value with zeros around its images to a graph's ``values`` and ``nodes``; its name."""
    top, bottom, left, right = border
    width, made = ((0, 0), (0, 0), (top, bottom), (left, right)), f"{name}.padded"
    shape = tuple(size + sum(pair) for size, pair in zip(values[name].shape, width, strict=True))
    values[made] = Value(made, shape)
    nodes.append(Node(made, "pad_value", (name,), made, {"width": width, "value": 0.0}))
    return made
