"""Scales for each channel, as a rewrite of the float graph that does not change what it computes.

VTA has one power of two for a tensor. A value between layers may be multiplied by a factor for each channel all the
same: the layer that makes it takes the factors into its weight's rows and its bias, those that read it take them back
in their columns (`channels` says where). So every channel can fill the range of int8, and the ratio of a real scale to
a power of two goes into weights before these are rounded. What a channel gains in its activations its weights lose:
the choice makes the sum of both errors small, each weighed by what it does to the layers behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.quantize import borders, headroom, saturation
from oneshot_ml2.models.quantize.channels import FIXED, Channels, Ids
from oneshot_ml2.models.quantize.observe import Affine, Moments, Observed
from oneshot_ml2.models.quantize.scales import HIGH

Array = NDArray[np.float64]
# The largest magnitude that a scaled channel has: with the exponent -7 it is 127 exactly.
_TOP = HIGH / 128
# A step of such a value.
_STEP = 1 / 128
# A channel's largest magnitude counts as at least this part of its tensor's: calibration does not show all.
_LEAST = 2.0**-10
# A channel is moved if calibration shows so many of its elements; those of one image are alike.
_MOVED = 64
# Sweeps over all layers; halvings of a weight's step that are tried.
_SWEEPS, _HALVINGS = 2, 10


@dataclass(frozen=True)
class Equalized:
    """``graph``: the rewritten one; ``affine``: how its values follow from those of the original; ``entries``: its
    values of float operators where integers begin.
    """

    graph: Graph
    affine: Affine = field(default_factory=Affine)
    entries: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """What a user should know of it, as lines."""
        if not self.affine.factors:
            return ()
        scaled, moved = len(self.affine.factors), len(self.affine.offsets)
        return (
            f"the channels of {scaled} tensors are scaled so that each fills int8, {moved} of them also moved; "
            "weights and biases take that back",
        )


class _Layer:
    """A layer's weight by kernel (groups, outputs, inputs), and its numbers in `Channels.ids`."""

    def __init__(self, graph: Graph, node: Node, channels: Channels) -> None:
        self.node, self.axis = node, op_of(node.op).weight_outputs
        self.groups = int(node.attrs.get("groups", 1))
        parts = self.weight = self.parts(graph.constants[node.inputs[1]])
        self.taps = parts.shape[3]
        self.inputs: Ids = self.along(channels.ids[node.inputs[0]], parts.shape[2]).reshape(self.groups, 1, -1)
        self.outputs: Ids = self.along(channels.ids[node.output], parts.shape[1]).reshape(self.groups, -1, 1)

    @property
    def largest(self) -> NDArray[np.float32]:
        """The largest magnitude by kernel; made anew each time, as of a matrix it is as large as the weight."""
        magnitudes = np.abs(self.weight)
        return magnitudes[..., 0] if self.taps == 1 else magnitudes.max(3)

    def along(self, values: NDArray[Any], count: int) -> NDArray[Any]:
        """What belongs to each channel, ``count`` a group, of what is of the form of `Channels.ids`.

        Where another layer has its channels along another axis, all channels of this one have the first's.
        """
        axis = op_of(self.node.op).channels % values.ndim
        first = values[tuple(slice(None) if at == axis else slice(0, 1) for at in range(values.ndim))]
        return np.broadcast_to(first.reshape(-1), (self.groups * count,))

    def parts(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """A weight as (groups, outputs, inputs, taps)."""
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return parts.swapaxes(1, 2) if self.axis == 1 else parts

    def scaled(self, weight: NDArray[np.float32], factors: Array) -> NDArray[np.float32]:
        """The weight with the factors of its outputs, and without those of its inputs."""
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        outputs, inputs = (factors[ids][..., None].astype(np.float32) for ids in (self.outputs, self.inputs))
        if self.axis == 1:
            outputs, inputs = outputs.swapaxes(1, 2), inputs.swapaxes(1, 2)
        scaled = parts * outputs
        scaled /= inputs
        return scaled.reshape(weight.shape)


def equalized(
    graph: Graph, channels: Channels, seen: Observed, quantized: Collection[str], offsets: bool = True,
    still: Collection[str] = (),
) -> Equalized:  # fmt: skip
    """A float graph rewritten so that int8 loses less of it: with channels scaled, and, where any can be, also moved.

    Args:
        seen: what calibration data says of the values that `channels` numbers.
        quantized: the values that are to be int8.
        offsets: channels may be moved.
        still: values whose channels may not.
    """
    layers = {
        node.output: _Layer(graph, node, channels)
        for node in graph.nodes
        if node.output in channels.taken and op_of(node.op).weight_outputs is not None
    }
    weights = _importance(graph, channels, seen.moments, layers)
    power = {name: seen.moments[name].variance for name in channels.ids}
    moved = _movable(graph, channels, seen, quantized, layers) if offsets else {}
    moved = {name: source for name, source in moved.items() if name not in still}
    moved, around = borders.affordable(graph, channels, [layer.node for layer in layers.values()], moved)
    limits = saturation.limits(graph, channels, seen, quantized)
    spans = headroom.spans(graph, channels, seen, quantized, weights, moved, limits)
    for name in around:
        spans[name] = np.minimum(spans[name][0], 0.0), np.maximum(spans[name][1], 0.0)
    way = _with_moved(graph, channels, layers, spans, weights, power, moved, around)
    return dataclasses.replace(way, affine=dataclasses.replace(way.affine, limits=limits))


def _with_moved(
    graph: Graph, channels: Channels, layers: Mapping[str, _Layer], spans: Mapping[str, tuple[Array, Array]],
    weights: Array, power: Mapping[str, Array], moved: Mapping[str, str | None], around: Mapping[str, tuple[int, ...]],
) -> Equalized:  # fmt: skip
    """The graph with its channels scaled, and those of `_movable` values ``moved`` also moved."""
    peaks = _peaks(channels, spans, moved)
    factors = _TOP / peaks
    factors[FIXED] = 1.0
    # Where a bound is, as a number of the scaled value.
    tops = {name: _TOP + (name in moved) for name in channels.bounds}
    least = np.zeros(channels.count)
    for name, bound in channels.bounds.items():
        np.maximum.at(least, channels.ids[name], tops[name] / bound)
    least = np.minimum(least, factors)
    _join_bounded(channels, factors, tops)
    for _ in range(_SWEEPS):
        for layer in layers.values():
            _fit_inputs(layer, list(layers.values()), factors, weights, power, peaks, channels)
            _fit_rows(layer, factors, least, weights, power)
        _join_bounded(channels, factors, tops)
    shifts = {}
    for name, source in moved.items():
        if source is None:
            shifts[name] = -factors[channels.ids[name]] * sum(spans[name]) / 2
        else:
            # The bound at 0 becomes the least number of int8.
            shifts[name] = shifts[source] = np.full(channels.ids[name].shape, -1.0)
    return _rewritten(graph, channels, layers, factors, shifts, spans, around)


def _movable(
    graph: Graph, channels: Channels, seen: Observed, quantized: Collection[str], layers: Mapping[str, _Layer]
) -> dict[str, str | None]:
    """Values that an offset may be added to, as of what is scaled only layers read them, and none of these pads. What a
    float operator makes may be read by layers with one border: the host pads it before it adds the offset.

    Calibration has to show enough of a channel to tell where it is.

    -> None: of a float operator or a layer; what a ReLU behind a layer makes -> the layer's result.
    """
    users, producers = graph.users(), graph.producers()
    sharing = np.zeros(channels.count, dtype=np.int64)
    for name in channels.ids:
        if name in quantized:
            sharing[np.unique(channels.ids[name])] += 1
    found: dict[str, str | None] = {}
    for name, ids in channels.ids.items():
        inside = [user for user in users[name] if user.output in channels.taken]
        if name not in quantized or (ids == FIXED).any() or (sharing[ids] > 1).any():
            continue
        if any(user.output not in layers or user.inputs[0] != name for user in inside):
            continue
        border = borders.border_of(inside)
        if border is None or (any(border) and not (name in channels.entries and borders.one_sided(seen.moments[name]))):
            continue
        # Along another axis than a layer's channels an offset is no bias.
        if any(layers[user.output].inputs.size != ids.size for user in inside):
            continue
        maker = producers.get(name)
        if (name in layers and layers[name].outputs.size == ids.size) or (inside and name in channels.entries):
            if seen.moments[name].count >= _MOVED:
                found[name] = None
        elif maker is not None and partition.bounds(maker) is not None:
            source = maker.inputs[0]
            alone = source not in quantized and len(users[source]) == 1 and source not in graph.outputs
            if alone and source in layers and layers[source].outputs.size == ids.size:
                found[name] = source
    return found


def _join_bounded(channels: Channels, factors: Array, tops: Mapping[str, float]) -> None:
    """Give what is clipped one factor for all channels, unless int8 ends no later than the bound (``tops``)."""
    while True:
        before = factors.copy()
        for name, bound in channels.bounds.items():
            ids = channels.ids[name]
            if not _saturates(factors[ids], bound, tops[name]):
                factors[ids] = 1.0 if (ids == FIXED).any() else factors[ids].min()
        if np.array_equal(before, factors):
            return


def _saturates(factors: Array, bound: float, top: float) -> bool:
    """Whether what is scaled so ends where int8 does before it reaches a bound."""
    return bool((factors * bound >= top * (1 - 1e-6)).all())


def _peaks(channels: Channels, spans: Mapping[str, tuple[Array, Array]], moved: Mapping[str, str | None]) -> Array:
    """The magnitude of each number's elements that has to be below the end of int8."""
    peaks = np.zeros(channels.count)
    for name, (low, high) in spans.items():
        if name not in moved:
            peak = np.maximum(-low, high)
        elif moved[name] is None:
            peak = (high - low) / 2
        else:
            peak = high * (_TOP / (1 + _TOP))
        np.maximum.at(peaks, channels.ids[name], np.maximum(peak, _LEAST * peak.max(initial=0.0)))
    peaks[peaks <= 0] = 1.0
    return peaks


def _importance(
    graph: Graph, channels: Channels, moments: Mapping[str, Moments], layers: Mapping[str, _Layer]
) -> Array:
    """What an error in an element of each number does to the operators behind it, relative to what these make."""
    users = graph.users()
    weights = np.zeros(channels.count)
    for name in reversed([*graph.inputs, *(node.output for node in graph.nodes)]):
        if name not in channels.ids:
            continue
        ids, power = channels.ids[name], moments[name].square
        outside = name in graph.outputs or any(user.output not in channels.taken for user in users[name])
        shares = [np.ones(ids.shape)] if outside else []
        for user in users[name]:
            layer = layers.get(user.output)
            if layer is not None and user.inputs[0] == name:
                outputs = weights[layer.outputs][..., 0]
                share = np.einsum("gkct,gkct,gk->gc", layer.weight, layer.weight, outputs)
                # Of another form: all elements have one number.
                shares.append(share.reshape(ids.shape) if share.size == ids.size else np.full(ids.shape, share.mean()))
        for share in shares:
            total = float((share * power).mean())
            if total > 0:
                np.add.at(weights, ids, share / total)
    return weights


def _fit_rows(layer: _Layer, factors: Array, least: Array, weights: Array, power: Mapping[str, Array]) -> None:
    """Make the factors of a layer's outputs less where a row's large weights would make the step coarse for all."""
    outputs = layer.outputs
    if (outputs == FIXED).all():
        return
    back = 1 / factors[layer.inputs]
    largest = layer.largest
    largest *= back.astype(np.float32)
    rows = largest.max(2, keepdims=True).astype(np.float64)
    del largest
    spread = _spread(layer, factors, power)
    now = factors[outputs]
    free = outputs != FIXED
    best = (np.inf, now)
    top = np.ceil(np.log2(max(float((rows * now).max()) / HIGH, 1e-30)))
    for exponent in top - np.arange(_HALVINGS):
        step = 2.0**exponent
        with np.errstate(divide="ignore"):
            most = np.where(rows > 0, HIGH * step / np.where(rows > 0, rows, 1), np.inf)
        wanted = np.where(free, np.maximum(np.minimum(now, most), np.minimum(least[outputs], now)), now)
        if (wanted > most * (1 + 1e-9)).any():
            break
        noise = float(((_STEP**2 + step**2 * spread) * weights[outputs] / wanted**2).sum())
        best = min(best, (noise, wanted), key=lambda pair: pair[0])
    np.minimum.at(factors, outputs, best[1])


def _spread(layer: _Layer, factors: Array, power: Mapping[str, Array]) -> Array:
    """By group, the square of a layer's sums for weights that are all off by one."""
    square = layer.along(power[layer.node.inputs[0]], layer.inputs.shape[2]).reshape(layer.inputs.shape)
    return (square * factors[layer.inputs] ** 2).sum(2, keepdims=True) * layer.taps


def _fit_inputs(
    layer: _Layer, layers: list[_Layer], factors: Array, weights: Array, power: Mapping[str, Array], peaks: Array,
    channels: Channels,
) -> None:  # fmt: skip
    """Let the channels of what a float operator makes differ in range where the columns of the weights behind do."""
    name = layer.node.inputs[0]
    if name not in channels.entries or (layer.inputs == FIXED).any():
        return
    readers = [other for other in layers if other.node.inputs[0] == name]
    ids = channels.ids[name].reshape(-1)
    if readers[0] is not layer or any(other.inputs.size != ids.size for other in readers):
        return
    start = _TOP / peaks[ids]
    columns = [
        (other.largest * factors[other.outputs].astype(np.float32)).max(1).reshape(-1).astype(np.float64)
        for other in readers
    ]
    best: tuple[float, Array] = (np.inf, factors[ids])
    for halving in range(_HALVINGS):
        wanted = start
        for column in columns:
            limit = float((column / start).max()) * 2.0**-halving
            wanted = np.maximum(wanted, column / limit) if limit > 0 else wanted
        wanted = wanted / float((wanted / start).max())
        noise = _STEP**2 * float((weights[ids] / wanted**2).mean())
        for other, column in zip(readers, columns, strict=True):
            step = float((column / wanted).max()) / HIGH
            square = (power[name].reshape(-1) * wanted**2).reshape(other.groups, 1, -1)
            spread = square.sum(2, keepdims=True) * other.taps
            noise += step**2 * float((spread * weights[other.outputs] / factors[other.outputs] ** 2).mean())
        best = min(best, (noise, wanted), key=lambda pair: pair[0])
    factors[ids] = best[1]


def _rewritten(
    graph: Graph, channels: Channels, layers: Mapping[str, _Layer], factors: Array, shifts: Mapping[str, Array],
    spans: Mapping[str, tuple[Array, Array]], around: Mapping[str, tuple[int, ...]],
) -> Equalized:  # fmt: skip
    values, constants = dict(graph.values), dict(graph.constants)
    users = graph.users()
    of = {name: factors[ids] for name, ids in channels.ids.items() if (factors[ids] != 1).any() or name in shifts}
    inside, outside = dict[str, str](), dict[str, str]()
    nodes, shared = list[Node](), dict[Any, str]()

    def applied(op: str, name: str, made: str, operand: Array) -> str:
        values[made], constant = Value(made, values[name].shape), f"{made}.{op}"
        constants[constant] = operand.astype(np.float32)
        nodes.append(Node(made, op, (name, constant), made))
        return made

    def affine(name: str, made: str, factor: Array, shift: Array | None) -> str:
        if shift is None:
            return applied("multiply", name, made, factor)
        # Moved first: what is near the offset stays exact.
        return applied("multiply", applied("add", name, f"{name}.moved", shift / factor), made, factor)

    def crossed(name: str) -> None:
        """Scale a value where integers begin, or take it back where they end."""
        if name not in of:
            return
        factor, shift = of[name], shifts.get(name)
        if name in channels.entries:
            padded = name if name not in around else borders.padded(name, around[name], values, nodes)
            inside[name] = affine(padded, f"{name}.scaled", factor, shift)
        elif name in graph.outputs or any(user.output not in channels.taken for user in users[name]):
            outside[name] = affine(name, f"{name}.real", 1 / factor, None if shift is None else -shift / factor)

    for name in graph.inputs:
        crossed(name)
    for node in graph.nodes:
        names = inside if node.output in channels.taken else outside
        before = shifts.get(node.inputs[0]) if node.inputs else None
        node = dataclasses.replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
        if node.output in layers:
            layer = layers[node.output]
            if layer.node.inputs[0] in around:
                node = dataclasses.replace(node, attrs={**node.attrs, "pads": borders.NONE})
            node = _layer(graph, node, layer, factors, before, shifts.get(node.output), constants, shared)
        elif node.output in channels.taken and node.output in of and (limits := partition.bounds(node)) is not None:
            node = _bounded(node, limits[1], of[node.output], node.output in shifts)
        nodes.append(node)
        crossed(node.output)
    outputs = tuple(outside.get(name, name) for name in graph.outputs)
    rewritten = dataclasses.replace(graph, nodes=tuple(nodes), values=values, constants=constants, outputs=outputs)
    originals = {new: old for old, new in (*inside.items(), *outside.items())}
    scales, offsets = ({inside.get(name, name): part for name, part in parts.items()} for parts in (of, shifts))
    ends = {
        inside.get(name, name): _reach(*(end * of[name] + shifts.get(name, 0.0) for end in spans[name]))
        for name in of
        if name in spans
    }
    own = {inside[name]: border for name, border in around.items()}
    return Equalized(rewritten, Affine(scales, offsets, originals, ends, own), tuple(inside.values()))


def _reach(low: Array, high: Array) -> float:
    """The largest magnitude that int8 has to hold; below 0 it has a number more."""
    return max(float(high.max(initial=0.0)), -float(low.min(initial=0.0)) * _TOP)


def _bounded(node: Node, bound: float, factor: Array, moved: bool) -> Node:
    """A ReLU or clip of what is scaled; it ends where int8 does, or the factors are one."""
    top = _TOP + moved
    if bound < np.inf:
        bound = top if _saturates(factor, bound, top) else bound * float(factor.min())
    if not moved and bound == np.inf:
        return node
    return dataclasses.replace(node, op="clip", attrs={"low": -1.0 if moved else 0.0, "high": bound - moved})


def _layer(
    graph: Graph, node: Node, layer: _Layer, factors: Array, before: Array | None, after: Array | None,
    constants: dict[str, NDArray[np.float32]], shared: dict[Any, str],
) -> Node:  # fmt: skip
    """A layer with its factors in its weight and bias; offsets of its operand and its result are in its bias.

    ``shared``: names of scaled weights; layers that have one weight and equal factors have one of these.
    """
    data, weight, *bias = node.inputs
    own = (weight, node.op, *(factors[ids].tobytes() for ids in (layer.outputs, layer.inputs)))
    name = shared.setdefault(own, f"{node.output}.weight")
    if name not in constants:
        constants[name] = layer.scaled(graph.constants[weight], factors)
    scaled = constants[name]
    total = np.zeros(layer.outputs.size)
    if bias:
        total += graph.constants[bias[0]].astype(np.float64) * factors[layer.outputs].reshape(-1)
    if after is not None:
        total += after.reshape(-1)
    if before is not None:
        sums = layer.parts(scaled).sum(3, dtype=np.float64)
        total -= np.einsum("gkc,gc->gk", sums, before.reshape(layer.groups, -1)).reshape(-1)
    inputs = [data, name]
    if total.any():
        inputs.append(f"{node.output}.bias")
        constants[inputs[2]] = total.astype(np.float32)
    attrs = {name: value for name, value in node.attrs.items() if name != "weight_scale"}
    return dataclasses.replace(node, inputs=tuple(inputs), attrs=attrs)
