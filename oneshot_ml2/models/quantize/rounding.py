"""Which of its two neighbours in int8 each weight is rounded to, so that the layer's sums change least.

Rounded one by one, the errors of a layer's weights add up where its inputs are alike: a filter for high tones next to a
loud low one, as in a Fourier transform, keeps less than its errors let through of that one. So weights are rounded in
turn, and those that are not yet take over what the sums lose, by the covariance of what they multiply (optimal brain
compression, Frantar and Alistarh, arXiv:2208.11580; in this order and by Cholesky factors: arXiv:2210.17323). Nothing
is computed otherwise for it. How far covariances of a few samples are to be trusted is chosen by half of them, on the
other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.quantize.scales import HIGH, LOW, int8

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph, Node
    from oneshot_ml2.models.quantize.observe import Affine

Rows = NDArray[np.float32]
Halves = tuple[Rows, Rows]
# Layers of how many operations at most, and the numbers that are kept of what each of them reads.
_LARGEST, _KEPT = 1 << 27, 1 << 19
# What is added to variances, as parts of their mean: more where the samples say less.
_DAMPINGS = (0.01, 0.1, 1.0)
# Weights of so many taps are rounded before all others take over what is lost.
_TOGETHER = 32


def is_fit(graph: Graph, node: Node) -> bool:
    """Whether the weights of a node are rounded so: those of layers that are not too large."""
    if node.op not in ("conv2d", "dense") or node.inputs[1] not in graph.constants:
        return False
    weight = graph.shape(node.inputs[1])
    taps = int(np.prod(weight[1:]))
    return taps > 1 and weight[0] * taps**2 <= _LARGEST


def rows_of(graph: Graph, node: Node, array: NDArray[np.float32], samples: int) -> Rows:
    """Some of what a layer multiplies its weights by, (rows, groups, inputs * taps), at even distances.

    Args:
        array: what it reads of a sample; ``samples``: of how many that is.
    """
    weight, groups = graph.shape(node.inputs[1]), int(node.attrs.get("groups", 1))
    taps = int(np.prod(weight[1:]))
    most = max(_KEPT // (groups * taps * samples), 1)
    if node.op == "dense":
        lines = array.reshape(-1, taps)
        return lines[:: -(-len(lines) // most)][:, None].astype(np.float32)
    (n, _, height, width), (r, s) = graph.shape(node.output), weight[2:]
    top, _, left, _ = node.attrs["pads"]
    (sh, sw), (dh, dw) = node.attrs["strides"], node.attrs["dilation"]
    places = np.arange(0, n * height * width, -(-n * height * width // most))
    image, y, x = np.unravel_index(places, (n, height, width))
    # Where a window passes the border it reads zeros.
    rows, columns = (
        (at * step - before)[:, None] + np.arange(count) * apart
        for at, step, before, count, apart in ((y, sh, top, r, dh), (x, sw, left, s, dw))
    )
    ends = array.shape[2:]
    inside = ((rows >= 0) & (rows < ends[0]))[:, :, None] & ((columns >= 0) & (columns < ends[1]))[:, None]
    rows, columns = np.clip(rows, 0, ends[0] - 1), np.clip(columns, 0, ends[1] - 1)
    found = array[image[:, None, None], :, rows[:, :, None], columns[:, None]] * inside[..., None]
    return found.transpose(0, 3, 1, 2).reshape(len(places), groups, taps).astype(np.float32)


def inputs_by_weight(graph: Graph, rows: Mapping[str, Sequence[Rows]], affine: Affine) -> dict[str, Halves]:
    """What the weights of a rewritten graph are multiplied by, about its mean by channel, by the weights' names: of
    every second sample, and of the others.

    Equal weights have all of what any of them is multiplied by, the very same arrays, so that they stay equal.
    ``rows``: by layer and sample, those of the original graph's values.
    """
    found, names = dict[bytes, list[list[Rows]]](), dict[str, bytes]()
    for node in graph.nodes:
        if node.output not in rows:
            continue
        samples, inputs = rows[node.output], graph.shape(node.inputs[1])[1]
        groups, taps = samples[0].shape[1:]
        factor, form = affine.factor(node.inputs[0]), (groups, inputs, taps // inputs)
        if factor.size not in (1, groups * inputs):
            continue
        along = np.broadcast_to(factor.reshape(-1), (groups * inputs,)).astype(np.float32).reshape(groups, inputs, 1)
        # The mean is what the bias takes back.
        own = np.concatenate(samples)
        mean = own.reshape(-1, *form).mean((0, 3), keepdims=True, dtype=np.float64)[0].astype(np.float32)
        weight = node.inputs[1]
        if weight not in names:
            names[weight] = graph.fingerprint(weight)
        halves = found.setdefault(names[weight], [[], []])
        for number, part in enumerate(samples):
            halves[number % 2].append(((part.reshape(-1, *form) - mean) * along).reshape(part.shape))
    joined = {key: (np.concatenate(even), np.concatenate(odd)) for key, (even, odd) in found.items() if odd}
    return {name: joined[key] for name, key in names.items() if key in joined}


def rounded(node: Node, weight: NDArray[np.float32], exponent: int, rows: Halves) -> NDArray[np.int8]:
    """A layer's weight in int8, of the scale 2**exponent, so that its products with ``rows`` change least."""
    assert op_of(node.op).weight_outputs == 0
    groups, taps = rows[0].shape[1:]
    parts = np.ldexp(weight.astype(np.float32), -exponent).reshape(groups, -1, taps)
    nearest = int8(weight, exponent)
    plain = nearest.reshape(parts.shape).astype(np.float32)
    grams = [_gram(half) for half in rows]
    if not all(np.isfinite(gram).all() for gram in grams):
        return nearest
    losses = {0.0: sum(_loss(parts - plain, gram) for gram in grams)}
    for damping in _DAMPINGS:
        made = [_compensated(parts, gram, damping) for gram in grams]
        losses[damping] = sum(_loss(parts - own, gram) for own, gram in zip(made, reversed(grams), strict=True))
    damping = min(losses, key=lambda key: losses[key])
    if not damping:
        return nearest
    return _compensated(parts, grams[0] + grams[1], damping).astype(np.int8).reshape(weight.shape)


def _gram(rows: Rows) -> NDArray[np.float32]:
    """(groups, taps, taps)."""
    along = rows.transpose(1, 2, 0)
    return along @ along.transpose(0, 2, 1)


def _loss(apart: NDArray[np.float32], gram: NDArray[np.float32]) -> float:
    return float(np.einsum("gok,gkl,gol->", apart, gram, apart, optimize=True))


def _compensated(parts: NDArray[np.float32], gram: NDArray[np.float32], damping: float) -> NDArray[np.float32]:
    """Whole numbers for weights (groups, outputs, taps), in turn from the taps of the largest inputs on."""
    taps = parts.shape[2]
    power = np.diagonal(gram, axis1=1, axis2=2)
    order = np.argsort(-power.sum(0), kind="stable")
    damped = gram[:, order][:, :, order]
    damped[:, range(taps), range(taps)] += damping * power.mean(1, keepdims=True) + 1e-12
    back = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    # A tap's weights lie together.
    left = np.ascontiguousarray(parts[:, :, order].transpose(0, 2, 1))
    whole = np.empty_like(left)
    for begin in range(0, taps, _TOGETHER):
        end = min(begin + _TOGETHER, taps)
        lost = np.empty_like(left[:, begin:end])
        for tap in range(begin, end):
            whole[:, tap] = np.clip(np.rint(left[:, tap]), LOW, HIGH)
            lost[:, tap - begin] = (left[:, tap] - whole[:, tap]) / back[:, tap, tap, None]
            left[:, tap + 1 : end] -= back[:, tap, tap + 1 : end, None] * lost[:, tap - begin, None]
        left[:, end:] -= back[:, begin:end, end:].transpose(0, 2, 1) @ lost
    found = np.empty_like(parts)
    found[:, :, order] = whole.transpose(0, 2, 1)
    return found
