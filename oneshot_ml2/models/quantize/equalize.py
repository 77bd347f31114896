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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.quantize.channels import FIXED, Channels, Ids
from oneshot_ml2.models.quantize.observe import Moments
from oneshot_ml2.models.quantize.scales import HIGH

Array = NDArray[np.float64]
# The largest magnitude that a scaled channel has: with the exponent -7 it is 127 exactly.
_TOP = HIGH / 128
# A step of such a value.
_STEP = 1 / 128
# A channel's largest magnitude counts as at least this part of its tensor's: what it does beyond calibration is unknown.
_LEAST = 2.0**-10
# A channel reaches so many root mean squares, and of these so many elements of the whole tensor are part.
_DEVIATIONS, _PRIOR = 4.0, 16
# Sweeps over all layers; halvings of a weight's step that are tried.
_SWEEPS, _HALVINGS = 2, 10


@dataclass(frozen=True)
class Equalized:
    """``graph``: the rewritten one; ``factors``: value of it -> what it is multiplied by, of its rank, where not by 1;
    ``originals``: value that is new -> the one that it is a scaled copy of.
    """

    graph: Graph
    factors: Mapping[str, Array]
    originals: Mapping[str, str]


class _Layer:
    """A layer's weight as (groups, outputs, inputs): largest magnitudes and sums of squares of its kernels."""

    def __init__(self, graph: Graph, node: Node, channels: Channels) -> None:
        self.node, self.axis = node, op_of(node.op).weight_outputs
        weight = graph.constants[node.inputs[1]]
        self.groups = int(node.attrs.get("groups", 1))
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        if self.axis == 1:
            parts = parts.swapaxes(1, 2)
        self.taps = parts.shape[3]
        self.largest = np.maximum(parts.max(3), -parts.min(3)).astype(np.float64)
        self.squares = np.einsum("gkct,gkct->gkc", parts, parts).astype(np.float64)
        self.inputs: Ids = channels.ids[node.inputs[0]].reshape(self.groups, 1, -1)
        self.outputs: Ids = channels.ids[node.output].reshape(self.groups, -1, 1)

    def scaled(self, weight: NDArray[np.float32], factors: Array) -> NDArray[np.float32]:
        """The weight with the factors of its outputs, and without those of its inputs."""
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        ratio = (factors[self.outputs] / factors[self.inputs])[..., None]
        if self.axis == 1:
            ratio = ratio.swapaxes(1, 2)
        return (parts * ratio).astype(np.float32).reshape(weight.shape)


def equalized(
    graph: Graph, channels: Channels, moments: Mapping[str, Moments], quantized: Collection[str]
) -> Equalized:
    """Rewrite a float graph so that int8 loses less of it.

    Args:
        moments: of the values that `channels` numbers, by channel, on calibration data.
        quantized: the values that are to be int8.
    """
    layers = [
        _Layer(graph, node, channels)
        for node in graph.nodes
        if node.output in channels.taken and op_of(node.op).weight_outputs is not None
    ]
    peaks = _peaks(channels, moments, quantized)
    weights = _importance(graph, channels, moments, {layer.node.output: layer for layer in layers})
    factors = _TOP / peaks
    factors[FIXED] = 1.0
    least = np.zeros(channels.count)
    for number, bound in channels.bounds.items():
        least[number] = _TOP / bound
    least = np.minimum(least, factors)
    power = _powers(channels, moments)
    entries = {name for name in channels.entries}
    for _ in range(_SWEEPS):
        for layer in layers:
            _fit_inputs(layer, layers, factors, weights, power, peaks, channels, entries)
            _fit_rows(layer, factors, least, weights, power)
    return _rewritten(graph, channels, {layer.node.output: layer for layer in layers}, factors)


def _peaks(channels: Channels, moments: Mapping[str, Moments], quantized: Collection[str]) -> Array:
    """The largest magnitude of each number's elements."""
    peaks = np.zeros(channels.count)
    for name in channels.ids:
        if name in quantized:
            np.maximum.at(peaks, channels.ids[name], reach(moments[name]))
    peaks[peaks == 0] = 1.0
    return peaks


def reach(moments: Moments) -> Array:
    """How large a channel's elements may be: as on calibration, or what so few elements as it has there leave open."""
    square = moments.square
    known = (moments.count * square + _PRIOR * square.mean()) / (moments.count + _PRIOR)
    return np.maximum(moments.peak, np.minimum(_DEVIATIONS * np.sqrt(known), moments.peak.max(initial=0.0)))


def _powers(channels: Channels, moments: Mapping[str, Moments]) -> dict[str, Array]:
    return {name: moments[name].square for name in channels.ids}


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
                shares.append((layer.squares * weights[layer.outputs]).sum(1).reshape(ids.shape))
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
    rows = (layer.largest * back).max(2, keepdims=True)
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
    square = np.broadcast_to(power[layer.node.inputs[0]].reshape(layer.groups, 1, -1), layer.inputs.shape)
    return (square * factors[layer.inputs] ** 2).sum(2, keepdims=True) * layer.taps


def _fit_inputs(
    layer: _Layer, layers: list[_Layer], factors: Array, weights: Array, power: Mapping[str, Array], peaks: Array,
    channels: Channels, entries: set[str],
) -> None:  # fmt: skip
    """Let the channels of what a float operator makes differ in range where the columns of the weights behind do."""
    name = layer.node.inputs[0]
    if name not in entries or (layer.inputs == FIXED).any():
        return
    readers = [other for other in layers if other.node.inputs[0] == name]
    if readers[0] is not layer:
        return
    ids = channels.ids[name].reshape(-1)
    start = _TOP / peaks[ids]
    columns = [(other.largest * factors[other.outputs]).max(1).reshape(-1) for other in readers]
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
            square = power[name].reshape(-1)
            spread = float((square * wanted**2).sum()) * other.taps / other.groups
            signal = float((other.squares.sum(1).reshape(-1) * square).sum()) or 1.0
            noise += step**2 * spread * float((1 / factors[other.outputs] ** 2).sum()) / signal
        best = min(best, (noise, wanted), key=lambda pair: pair[0])
    factors[ids] = best[1]


def _rewritten(graph: Graph, channels: Channels, layers: Mapping[str, _Layer], factors: Array) -> Equalized:
    values, constants = dict(graph.values), dict(graph.constants)
    users = graph.users()
    of = {name: factors[ids] for name, ids in channels.ids.items() if (factors[ids] != 1).any()}
    inside, outside = dict[str, str](), dict[str, str]()
    nodes: list[Node] = []

    def multiplied(name: str, suffix: str, factor: Array) -> str:
        made, constant = f"{name}.{suffix}", f"{name}.{suffix}.factor"
        values[made] = Value(made, graph.shape(name))
        constants[constant] = factor.astype(np.float32)
        nodes.append(Node(made, "multiply", (name, constant), made))
        return made

    def crossed(name: str) -> None:
        """Scale a value where integers begin, or take it back where they end."""
        if name not in of:
            return
        if name in channels.entries:
            inside[name] = multiplied(name, "scaled", of[name])
        elif name in graph.outputs or any(user.output not in channels.taken for user in users[name]):
            outside[name] = multiplied(name, "real", 1 / of[name])

    for name in graph.inputs:
        crossed(name)
    for node in graph.nodes:
        names = inside if node.output in channels.taken else outside
        node = dataclasses.replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
        if node.output in layers:
            node = _layer(graph, node, layers[node.output], factors, constants)
        elif node.output in channels.taken and node.output in of and node.op == "clip":
            # What a channel's own range leaves out, int8 does.
            high = float((node.attrs["high"] * of[node.output]).max())
            node = dataclasses.replace(node, attrs={**node.attrs, "high": high})
        nodes.append(node)
        crossed(node.output)
    outputs = tuple(outside.get(name, name) for name in graph.outputs)
    made = {inside.get(name, name): factor for name, factor in of.items()}
    rewritten = dataclasses.replace(graph, nodes=tuple(nodes), values=values, constants=constants, outputs=outputs)
    return Equalized(rewritten, made, {scaled: name for name, scaled in (*inside.items(), *outside.items())})


def _layer(graph: Graph, node: Node, layer: _Layer, factors: Array, constants: dict[str, NDArray[np.float32]]) -> Node:
    """A layer with its factors in its weight and bias."""
    data, weight, *bias = node.inputs
    inputs = [data, f"{node.output}.weight"]
    constants[inputs[1]] = layer.scaled(graph.constants[weight], factors)
    if bias:
        inputs.append(f"{node.output}.bias")
        constants[inputs[2]] = (graph.constants[bias[0]] * factors[layer.outputs].reshape(-1)).astype(np.float32)
    attrs = {name: value for name, value in node.attrs.items() if name != "weight_scale"}
    return dataclasses.replace(node, inputs=tuple(inputs), attrs=attrs)


__all__ = ["Equalized", "equalized", "partition"]
