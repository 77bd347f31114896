"""Layers that hurt a model most: what each loses alone, its operands being exact, and what that does to the outputs.

The error that a tensor of the whole integer graph has says little of its layer: most of it may come from layers before.
So each layer runs once more on the model's own tensors, rounded to the scales of its operands. What it loses then goes
into the float model, in place of the layer's result, and how far the outputs move is what the layer costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.models import execute, operators, partition
from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.quantize.scales import HIGH, LOW, int8

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph, Node
    from oneshot_ml2.models.quantize.sampling import Array, Sample

# Layers whose cost at the outputs is found, each by a run of what follows it: of models up to so many multiplications,
# and of larger ones.
_TRIED, _TRIED_OF_LARGE, _LARGE = 6, 3, 1e9
# Layers that are told of.
SHOWN = 3
# A channel of a range so many times the median's takes the steps of the others.
_UNEVEN = 4.0
# Values whose largest is so many times their root mean square hold few that are large.
_PEAKED = 16.0
# Ends of the names that values of the integer graph have beside those of the float graph.
_FORMS = (".flat", ".image", ".float")
_CLIPPED = "limit it in the float model (a clip, ReLU6), or calibrate with inputs like those of later use"
_SPREAD = "8 bits are all there is: train the model with quantization and compile its QDQ file"


@dataclass(frozen=True)
class Hurt:
    """A layer that costs much: ``alone``: the error of its int8 result, its operands being exact, relative, root mean
    square; ``outputs``: how far that alone moves the output that it moves most, likewise; ``advice``: what causes it,
    and what would help.
    """

    layer: str
    alone: float
    outputs: float
    advice: str


@dataclass(frozen=True)
class Alone:
    """``errors``: layer -> that of its int8 result, its operands being exact; ``hurt``: the worst, the worst first."""

    errors: Mapping[str, float]
    hurt: tuple[Hurt, ...]


def known_as(name: str, tensors: Mapping[str, Array]) -> str | None:
    """What a value of the integer graph is called in the model, of which ``tensors`` are known; None: it is not."""
    while name not in tensors:
        form = next((form for form in _FORMS if name.endswith(form)), None)
        if form is None:
            return None
        name = name.removesuffix(form)
    return name


def run_alone(graph: Graph, sample: Sample, tensors: Mapping[str, Array], found: Callable[[str, Array], None]) -> None:
    """Execute an integer graph, every node on exact operands: the model's ``tensors``, rounded to their scales.

    ``found``: told each int8 value whose tensor is known, and what its node makes of those.
    """

    def step(node: Node, operands: Sequence[Array]) -> Array:
        value = graph.values[node.output]
        result = operators.compute(node, operands, value.shape)
        known = known_as(node.output, tensors)
        if known is None or tensors[known].size != result.size:
            return result
        exact = tensors[known].reshape(value.shape)
        if value.exponent is None:
            return exact
        found(node.output, result)
        return int8(exact, value.exponent)

    execute.execute(graph, sample, step=step)


def find(
    graph: Graph, plain: Graph, sample: Sample, real: Callable[[str, Array], Array],
    matters: Callable[[str, Array], Array],
) -> Alone:  # fmt: skip
    """What each layer of an integer graph loses alone on a sample, and what the worst of them cost.

    Args:
        plain: the float graph that the integer one was made of.
        real: as that of `losses.Reference`.
        matters: (name, a tensor of ``plain``) -> it as far as its readers tell numbers apart.
    """
    values: dict[str, Array] = {}

    def observe(name: str, array: Array) -> None:
        values[name] = matters(name, array)

    execute.execute(plain, sample, observe)
    errors: dict[str, float] = {}
    results: dict[str, Array] = {}

    def found(name: str, array: Array) -> None:
        known, exponent = known_as(name, values), graph.values[name].exponent
        assert known is not None and exponent is not None
        results[name] = array
        exact = values[known]
        own = np.ldexp(array.astype(np.float32), exponent).reshape(exact.shape)
        errors[name] = relative(real(known, own), real(known, exact))

    run_alone(graph, sample, values, found)
    makers = graph.producers()
    # What moves elements only loses what its operand's scale does.
    layers = [name for name in errors if makers[name].op not in operators.SHAPING or makers[name].op == "concat"]
    macs = sum(partition.node_macs(graph, node) for node in graph.nodes)
    tried = sorted(layers, key=lambda name: -errors[name])[: _TRIED_OF_LARGE if macs > _LARGE else _TRIED]
    costs = {name: _cost(graph, plain, sample, values, name, results[name]) for name in tried}
    worst = sorted((name for name in costs if costs[name]), key=lambda name: -costs[name])[:SHOWN]
    hurt = [
        Hurt(makers[name].name, errors[name], costs[name], _advice(graph, plain, values, makers[name], errors[name]))
        for name in worst
    ]
    return Alone({makers[name].name: error for name, error in errors.items()}, tuple(hurt))


def _cost(graph: Graph, plain: Graph, sample: Sample, values: Mapping[str, Array], name: str, array: Array) -> float:
    """How far the float graph's outputs move if a value is what the integer layer makes of exact operands."""
    known, exponent = known_as(name, values), graph.values[name].exponent
    if known is None or exponent is None:
        return 0.0
    moved = {known}
    own = np.ldexp(array.astype(np.float32), exponent).reshape(values[known].shape)

    def step(node: Node, operands: Sequence[Array]) -> Array:
        if node.output == known:
            return own
        if moved.isdisjoint(node.inputs):
            return values[node.output]
        moved.add(node.output)
        return operators.compute(node, operands, plain.values[node.output].shape)

    outputs = execute.execute(plain, sample, step=step)
    return max(relative(outputs[output], values[output]) for output in plain.outputs)


def relative(found: Array, expected: Array) -> float:
    """Root mean square of a difference relative to that of what is expected; 1 where that is 0 and the other is not."""
    # Masks hold the least numbers that there are, on both sides.
    kept = np.abs(expected) < np.finfo(np.float32).max / 2
    wanted = np.where(kept, expected, 0).astype(np.float64)
    apart = float(np.square(np.where(kept, found, 0) - wanted).sum())
    size = float(np.square(wanted).sum())
    return float((apart / size) ** 0.5) if size else float(apart > 0)


# Advice ----------------------------------------------------------------------------------------
def _advice(graph: Graph, plain: Graph, values: Mapping[str, Array], node: Node, alone: float) -> str:
    """What most of a layer's own error comes from, with its ranges, and what would help."""
    errors: dict[str, tuple[float, Array, int]] = {}
    for name in dict.fromkeys((*node.inputs, node.output)):
        exponent = graph.values[name].exponent if name in graph.values else None
        known = known_as(name, values)
        if exponent is not None and known is not None:
            array = values[known]
            rounded = np.ldexp(int8(array, exponent).astype(np.float32), exponent)
            errors[name] = (relative(rounded, array), array, exponent)
    worst = max(errors, key=lambda name: errors[name][0])
    # Rounding of tensors and of weights add up by their squares.
    rest = max(alone**2 - sum(error**2 for error, _, _ in errors.values()), 0.0) ** 0.5
    weight = _weight(plain, node)
    if weight is not None and rest > errors[worst][0]:
        return _weight_advice(weight, values.get(known_as(node.inputs[0], values) or ""))
    what = "its result" if worst == node.output else f"its operand {known_as(worst, values)}"
    return _tensor_advice(what, *errors[worst][1:])


def _weight(plain: Graph, node: Node) -> Array | None:
    """A layer's weight in the float model, (outputs, ...)."""
    own = next((other for other in plain.nodes if other.name == node.name and len(other.inputs) > 1), None)
    if own is None or own.inputs[1] not in plain.constants or "weight" not in node.arrays:
        return None
    axis = op_of(own.op).weight_outputs
    return None if axis is None else np.moveaxis(plain.constants[own.inputs[1]], axis, 0)


def _weight_advice(weight: Array, operand: Array | None = None) -> str:
    for side, what in ((weight, "output"), (np.moveaxis(weight, 1, 0), "input")):
        uneven = _uneven(side)
        if uneven is not None:
            channel, largest, median = uneven
            return (
                f"{what} channel {channel} of its weight reaches {largest:.3g}, the median channel {median:.3g}, and "
                f"one scale serves both: {_equalize(largest / median)}"
            )
    uneven = None if operand is None or operand.ndim < 2 else _uneven(_by_channel(operand))
    if uneven is not None:
        channel, largest, median = uneven
        return (
            f"channel {channel} of its operand reaches {largest:.3g}, the median channel {median:.3g}, so the weights "
            f"that read it are small beside the others, and round away: {_equalize(largest / median)}"
        )
    return f"its weight is rounded (largest {np.abs(weight).max():.3g}, its channels alike); {_SPREAD}"


def _tensor_advice(what: str, array: Array, exponent: int) -> str:
    largest, step = float(np.abs(array).max(initial=0.0)), 2.0**exponent
    scale = f"the scale 2**{exponent}"
    steps = array / np.float32(step)
    clipped = float(np.mean((steps > HIGH + 0.5) | (steps < LOW - 0.5)))
    uneven = _uneven(_by_channel(array)) if array.ndim > 1 else None
    if uneven is not None:
        channel, most, median = uneven
        return (
            f"channel {channel} of {what} reaches {most:.3g}, the median channel {median:.3g}, and {scale} serves "
            f"both: {_equalize(most / median)}"
        )
    rms = float(np.sqrt(np.square(array, dtype=np.float64).mean())) if array.size else 0.0
    # A value just beyond the last step loses no more than one between steps.
    if largest > min(_PEAKED * rms, 2 * HIGH * step):
        cut = f", of which {scale} clips {clipped:.2%}" if clipped else ""
        return f"{what} has few large values (up to {largest:.3g}, root mean square {rms:.3g}{cut}): {_CLIPPED}"
    return f"{what} is rounded to {scale} (largest {largest:.3g}, root mean square {rms:.3g}); {_SPREAD}"


def _by_channel(array: Array) -> Array:
    """A tensor (channels, ...): images have them second, all else last."""
    return np.moveaxis(array, 1 if array.ndim == 4 else -1, 0)


def _uneven(channels: Array) -> tuple[int, float, float] | None:
    """The widest of channels (n, ...), its largest magnitude and the median channel's, if these are far apart."""
    if len(channels) < 2 or not channels.size:
        return None
    largest = np.abs(channels.reshape(len(channels), -1)).max(1)
    widest = int(largest.argmax())
    used = largest[largest > 0]
    if not used.size or largest[widest] < _UNEVEN * np.median(used):
        return None
    return widest, float(largest[widest]), float(np.median(used))


def _equalize(ratio: float) -> str:
    factor = 2 ** round(float(np.log2(ratio)))
    return f"divide that channel by about {factor:,} in the float model, and multiply what reads it (equalization)"
