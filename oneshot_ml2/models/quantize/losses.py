"""What int8 loses of a model: the error of every tensor, and of the parts that the error of a whole tensor hides.

The float model and the integer graph run on the same inputs. A part whose values are small beside those of another one
that has the same scale can be lost entirely while the tensor as a whole is off by a percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import execute, partition
from oneshot_ml2.models.ir import Graph, Node

Array: TypeAlias = NDArray[Any]
Sample: TypeAlias = Mapping[str, Array]

# Relative error, root mean square, from which on a tensor or a part of one is warned of. A quarter is a signal of 12 dB
# above its noise, 2 bits of the 8. The worst tensor of the models that `models.model_names` lists is off by 9 % (deep
# transformers; convolutional networks: 2 to 9 %), so this is far from what rounding adds up to in a sound model.
ERROR_BOUND = 0.25
# Inputs that the errors are taken over, the first ones, as each costs a run of both graphs: as many as take so many
# multiplications in all, but at least one, whose run serves the calibration too, and at most four.
_WORK, _MOST = 3e8, 4
# Channels of an output belong to one group if their sizes are within this factor of each other.
_BAND = 8.0
# A channel's size is known from so many values; that of a few may be small by chance.
_FEWEST = 16
# Warnings of each kind; the others are counted.
_SHOWN = 3
TENSOR, PART, OUTPUT = "tensor", "part", "output"
_ADVICE = {
    TENSOR: "one scale serves all channels of a tensor and of a weight: make the ranges of its channels, and of its "
    "inputs', alike in the float model (equalization), and calibrate with inputs like those of later use",
    PART: "all parts of a concatenation have one scale: make their ranges alike, or make each an output of its own",
    OUTPUT: "all channels of an output have one scale: make their ranges alike, or make outputs of their own of them",
}
# Of an output that is lost as a whole: the reason is in front of it.
_WHOLE = "the errors of the layers say where it arises"


@dataclass(frozen=True)
class LayerError:
    """How far a tensor of the integer graph is from the model's own, on the same inputs of the whole model.

    ``rms``: root mean square of the difference, relative to that of the model's tensor; ``exponent``: of its scale;
    ``alone``: as ``rms``, of what its layer makes of exact operands, see `alone`; None where unknown.
    """

    name: str
    exponent: int
    rms: float
    alone: float | None = None


@dataclass(frozen=True)
class Loss:
    """A tensor, or a part of one, whose error passes ``ERROR_BOUND``.

    ``kind``: ``TENSOR``, ``PART`` of a concatenation, or ``OUTPUT``, a whole one or a group of its channels; ``name``:
    of the layer or output; ``what``: which part of it, empty for all; ``error``: as `LayerError.rms`, of that part.
    """

    kind: str
    name: str
    what: str
    error: float


@dataclass(frozen=True)
class Reference:
    """What the model itself computes of an input.

    ``tensors``: by the integer graph's name; ``outputs``: in order; ``real``: (name, a tensor of the integer graph in
    real numbers) -> it as the model has it, without what its channels are scaled by.
    """

    tensors: Mapping[str, Array]
    outputs: Sequence[Array]
    real: Callable[[str, Array], Array]


class _Sums:
    """Sums of squares of differences and of what is expected, scalars or arrays, and counts of elements, by key."""

    def __init__(self) -> None:
        self.sums: dict[Any, tuple[Array, Array]] = {}
        self.counts: dict[Any, int] = {}

    def add(self, key: Any, found: Array, expected: Array, axes: tuple[int, ...] | None = None) -> None:
        new = np.square(found - expected).sum(axes), np.square(expected).sum(axes)
        old = self.sums.get(key, (0.0, 0.0))
        self.sums[key] = (old[0] + new[0], old[1] + new[1])
        self.counts[key] = self.counts.get(key, 0) + found.size

    def error(self, key: Any) -> float:
        """Relative; of what is expected to be 0 everywhere: 1 if it is not."""
        return _relative(*(float(part) for part in self.sums[key]))


def _relative(difference: float, expected: float) -> float:
    return float((difference / expected) ** 0.5) if expected else float(difference > 0)


def samples_of(graph: Graph, samples: Sequence[Sample]) -> Sequence[Sample]:
    """The inputs among ``samples`` that an integer graph's errors are taken over."""
    macs = sum(partition.node_macs(graph, node) for node in graph.nodes)
    return samples[: min(max(int(_WORK // max(macs, 1)), 1), _MOST)]


class Comparison:
    """An integer graph beside the model itself, sample by sample."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.makers, self.sums = graph, graph.producers(), _Sums()

    def add(self, sample: Sample, reference: Reference) -> None:
        """Run the integer graph on an input, of which the model computes ``reference``."""
        _compare(self.graph, self.makers, sample, reference, self.sums)

    def errors(self) -> tuple[LayerError, ...]:
        """Those of its int8 tensors, in their order."""
        tensors = [key for key in self.sums.sums if isinstance(key, str)]
        return tuple(
            LayerError(self.makers[name].name, _exponent(self.graph, name), self.sums.error(name)) for name in tensors
        )

    def losses(self) -> tuple[Loss, ...]:
        """What of it passes ``ERROR_BOUND``."""
        graph, sums = self.graph, self.sums
        return (*_parts(graph, self.makers, sums), *_tensors(graph, sums), *_outputs(graph, sums))


def measure(graph: Graph, samples: Sequence[Sample], references: Iterable[Reference]) -> Comparison:
    """An integer graph beside the model itself on inputs of the model; ``references``: what it computes of each."""
    comparison = Comparison(graph)
    for sample, reference in zip(samples, references):
        comparison.add(sample, reference)
    return comparison


def _exponent(graph: Graph, name: str) -> int:
    exponent = graph.values[name].exponent
    assert exponent is not None
    return exponent


def _compare(graph: Graph, makers: Mapping[str, Node], sample: Sample, reference: Reference, sums: _Sums) -> None:
    """Add a run of the integer graph to the sums.

    Keys: a value's name; (its name, number of a concatenation's operand); (number of an output, axis), by channel;
    (number of an output, None), whole.
    """

    def observe(name: str, array: Array) -> None:
        value = graph.values[name]
        # The result of a layer that takes a matrix or images goes by the name of the tensor that it is.
        known = name.removesuffix(".flat").removesuffix(".image")
        if value.exponent is None or known not in reference.tensors or name not in makers:
            return
        expected = reference.tensors[known].astype(np.float64)
        found = np.ldexp(array.astype(np.float64), value.exponent).reshape(expected.shape)
        found, expected = (part.reshape(array.shape) for part in (reference.real(known, found), expected))
        sums.add(name, found, expected)
        if makers[name].op == "concat":
            for index, part in enumerate(_slices(graph, makers[name])):
                sums.add((name, index), found[part], expected[part])

    results = execute.execute(graph, sample, observe)
    for number, (name, own) in enumerate(zip(graph.outputs, reference.outputs, strict=True)):
        found, expected = results[name].astype(np.float64), own.astype(np.float64)
        sums.add((number, None), found, expected)
        for axis in _channel_axes(found.shape):
            sums.add((number, axis), found, expected, tuple(i for i in range(found.ndim) if i != axis))


def _channel_axes(shape: Sequence[int]) -> list[int]:
    """The axes of an output that may be its channels: the second, and the last one but where that is a map's width."""
    if len(shape) < 2:
        return []
    is_map = len(shape) == 4 and (shape[1] == 1 or shape[2] == shape[3])
    return [1] if is_map else sorted({1, len(shape) - 1})


def _slices(graph: Graph, concat: Node) -> list[tuple[slice, ...]]:
    """Where each operand is in the result."""
    axis = int(concat.attrs["axis"]) % len(graph.shape(concat.output))
    ends = np.cumsum([graph.shape(name)[axis] for name in concat.inputs]).tolist()
    return [(*[slice(None)] * axis, slice(begin, end)) for begin, end in zip([0, *ends], ends)]


def _parts(graph: Graph, makers: Mapping[str, Node], sums: _Sums) -> list[Loss]:
    """Operands of concatenations that the common scale is too coarse for."""
    found = []
    for node in graph.nodes:
        for index, name in enumerate(node.inputs if node.op == "concat" else ()):
            if _lost_part(graph, sums, node, index):
                part = _slices(graph, node)[index][-1]
                what = f"{part.start} to {part.stop - 1} of axis {node.attrs['axis']}, from {_source(makers, name)}"
                found.append(Loss(PART, node.name, what, sums.error((node.output, index))))
    return found


def _lost_part(graph: Graph, sums: _Sums, node: Node, index: int) -> bool:
    """The error of a concatenation's operand passes the bound, and rounding to the common scale is most of it."""
    key = (node.output, index)
    if node.op != "concat" or key not in sums.sums or sums.error(key) <= ERROR_BOUND:
        return False
    difference, count = float(sums.sums[key][0]), sums.counts[key]
    # A step's error is evenly spread; values below half a step are lost themselves.
    rounding = min(2.0 ** _exponent(graph, node.output) * 12**-0.5, float(sums.sums[key][1] / count) ** 0.5)
    return rounding > 0.5 * (difference / count) ** 0.5


def _source(makers: Mapping[str, Node], name: str) -> str:
    """The layer that a tensor comes from, past changes of its scale and shape."""
    while name in makers and makers[name].op in ("int_requantize", "reshape"):
        name = makers[name].inputs[0]
    return makers[name].name if name in makers else name


def _tensors(graph: Graph, sums: _Sums) -> list[Loss]:
    """Tensors whose error passes the bound, none of whose operands' does: where it arises."""
    lost: set[str] = set()
    found, users = [], graph.users()
    for node in graph.nodes:
        # What is not measured (a float operator's result, a move) hands on what its operands are.
        behind = any(name in lost for name in node.inputs)
        own = node.output in sums.sums and sums.error(node.output) > ERROR_BOUND
        if own or (behind and node.output not in sums.sums):
            lost.add(node.output)
        told = any(_lost_part(graph, sums, user, user.inputs.index(node.output)) for user in users[node.output])
        if own and not behind and not told:
            found.append(Loss(TENSOR, node.name, "", sums.error(node.output)))
    return found


def _outputs(graph: Graph, sums: _Sums) -> list[Loss]:
    """Outputs whose error passes the bound, or of which a group of channels of one size does."""
    found = []
    for number, (title, name) in enumerate(zip(graph.output_names, graph.outputs)):
        groups: list[Loss] = []
        for axis in _channel_axes(graph.shape(name)):
            if (number, axis) not in sums.sums:
                continue
            difference, expected = sums.sums[number, axis]
            whole = _relative(float(difference.sum()), float(expected.sum()))
            if whole > ERROR_BOUND:
                groups = [Loss(OUTPUT, title, "", whole)]
                break
            if sums.counts[number, axis] >= _FEWEST * len(expected):
                groups += _group(title, axis, difference, expected)
        found += sorted(groups, key=lambda loss: -loss.error)[:1]
    return found


def _group(title: str, axis: int, difference: Array, expected: Array) -> list[Loss]:
    """The channels of an output along an axis that are lost in groups of those of about one root mean square."""
    size = np.sqrt(expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        band = np.floor(np.log(size.max(initial=0) / size) / np.log(_BAND))
    lost = np.zeros(len(size), dtype=bool)
    for number in np.unique(band[np.isfinite(band)]):
        chosen = band == number
        lost |= chosen & (_relative(float(difference[chosen].sum()), float(expected[chosen].sum())) > ERROR_BOUND)
    if not lost.any():
        return []
    names = np.flatnonzero(lost)
    listed = ", ".join(map(str, names[:4])) + (", ..." if len(names) > 4 else "")
    what = f"{len(names)} of {len(size)} channels of axis {axis} ({listed})"
    return [Loss(OUTPUT, title, what, _relative(float(difference[lost].sum()), float(expected[lost].sum())))]


def warnings(losses: Sequence[Loss]) -> list[str]:
    """A line for each of the worst losses of a kind, and one that counts the others."""
    lines = []
    for kind, advice in _ADVICE.items():
        of_kind = sorted((loss for loss in losses if loss.kind == kind), key=lambda loss: -loss.error)
        told = []
        for loss in of_kind[:_SHOWN]:
            name = f"output {loss.name}" if kind == OUTPUT else loss.name
            told.append(
                f"{name}{', ' if loss.what else ''}{loss.what}: int8 is {loss.error:.0%} off the model's own values "
                f"(bound: {ERROR_BOUND:.0%}); {_WHOLE if kind == OUTPUT and not loss.what else advice}"
            )
        lines += said_once(told)
        if len(of_kind) > _SHOWN:
            more = len(of_kind) - _SHOWN
            lines.append(f"{more} more {kind}s pass that bound; report.json lists them as losses")
    return lines


def said_once(advice: Sequence[str]) -> list[str]:
    """Lines of advice, of which what would help stands in the first one that it is for."""
    lines: list[str] = []
    said: set[str] = set()
    for line in advice:
        cause, _, help_ = line.rpartition("; ")
        lines.append(cause if cause and help_ in said else line)
        said.add(help_)
    return lines
