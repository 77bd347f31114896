"""From float or QDQ graphs to integers: symmetric int8 with powers of two as scales, one for each tensor.

Sums are 32 bits wide; a right shift by the difference of the exponents makes int8 of them. The shift floors, and half a
step that the bias holds makes that rounding half up; half to even takes passes more, and is exact as well. Whatever the
VTA can do carries a workload; sums that are no layer's (additions, averages, rescaling) are depthwise convolutions.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import execute, partition, samples
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize import alone, losses, recurrences
from oneshot_ml2.models.quantize.alone import Hurt
from oneshot_ml2.models.quantize.channels import channels_of
from oneshot_ml2.models.quantize.integer import IntegerBuilder
from oneshot_ml2.models.quantize.losses import Comparison, LayerError, Loss, Reference
from oneshot_ml2.models.quantize.observe import observed
from oneshot_ml2.models.quantize.qdq import calibrated, strip_qdq
from oneshot_ml2.models.quantize.sampling import RANDOM_SAMPLES, random_samples
from oneshot_ml2.models.quantize.steps import ALL_STEPS, Steps
from oneshot_ml2.models.quantize.unit_rows import unit_rows
from oneshot_ml2.models.quantize.ways import Tried, Ways, best, jury_of, score

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array, Sample
    from oneshot_ml2.models.samples import Given

# How rounding treats exact ties: up, by the VTA's shift alone, or to the even neighbour.
ROUNDINGS = ("shift", "half_even")
# The error from which recurrent layers are tried in float32.
_TOO_MUCH = 0.05


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, what was changed on the way, and what it costs.

    ``kind``: ``float`` (quantized here) or ``qdq``; ``changes``: lines; ``tensors``: int8 value -> the tensor of the
    model's file that it is, where known; ``errors``, ``losses``, ``hurt``: see `LayerError`, `Loss` and `Hurt`;
    ``rounding``: one of ``ROUNDINGS``; ``samples``: how many inputs were looked at; ``source``: what these are;
    ``sample``: the first of them.
    """

    graph: Graph
    kind: str
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    tensors: Mapping[str, str]
    errors: tuple[LayerError, ...]
    rounding: str = "shift"
    losses: tuple[Loss, ...] = ()
    samples: int = 0
    source: str = ""
    sample: Sample = field(default_factory=dict, repr=False)
    hurt: tuple[Hurt, ...] = ()


def quantize(
    graph: Graph,
    calibration: Given | None = None,
    seed: int = 0,
    rounding: str = "shift",
    tell: Callable[[str], None] = lambda text: None,
    steps: Steps = ALL_STEPS,
) -> Quantized:
    """Quantize a graph to int8; one that is quantized already (QDQ) keeps its scales, to the nearest power of two.

    Args:
        calibration: what `samples.find` takes, from which the scales of a float model follow; none: seeded standard
            normal inputs, with a warning. The errors are those on the first of them, see `losses.samples_of`.
        seed: of the random inputs.
        rounding: one of ``ROUNDINGS``.
        tell: told which sample is looked at.

    Raises:
        ModelError: calibration data that does not fit, an unknown rounding, or a quantization that is not supported.
    """
    if rounding not in ROUNDINGS:
        raise ModelError(f"rounding is {rounding!r}; allowed: {', '.join(ROUNDINGS)}")
    qdq = any(node.op == "quantize" for node in graph.nodes)
    warned: list[str] = []
    source, given = calibration_of(graph, calibration, seed)
    if calibration is None and not qdq:
        warned.append(
            "scales follow from random inputs: give calibration data (--calibration) before trusting the accuracy"
        )
    half_even = rounding == "half_even"
    if qdq:
        plain, exponents, changes, tensors = strip_qdq(graph)
        first = observed(graph, given[:1], tell, kept={*tensors.values(), *graph.outputs}).first
        builder = IntegerBuilder(plain, exponents, qdq, half_even)
        integer = builder.build()
        changes += builder.changes
        real = matters = _as_it_is
        measured = losses.samples_of(integer, given)
        compared = losses.measure(integer, measured, _references(graph, tensors, measured, first))
    else:
        made, compared = _calibrated(graph, given, half_even, tell, steps)
        integer, changes, tensors = made.graph, made.changes, {}
        plain, affine = made.way.graph, made.way.affine
        real, matters = affine.real, affine.matters
    errors, lost = compared.errors(), compared.losses()
    warned += losses.warnings(lost)
    single = alone.find(integer, plain, given[0], real, matters)
    errors = tuple(dataclasses.replace(error, alone=single.errors.get(error.name)) for error in errors)
    labels = {value: graph.labels[tensor] for value, tensor in tensors.items() if tensor in graph.labels}
    kind, all_changes = "qdq" if qdq else "float", (*graph.notes, *changes)
    return Quantized(
        integer, kind, all_changes, tuple(warned), labels, errors, rounding, lost, len(given), source, given[0],
        single.hurt,
    )  # fmt: skip


@dataclass(frozen=True)
class _Best:
    """A float graph quantized in the way that loses least; ``graph``: what was quantized; ``first``: what it computes
    of the first sample; ``outputs``: of the samples that judge, by their places."""

    made: Tried
    graph: Graph
    first: dict[str, Array]
    outputs: Mapping[int, list[Array]]

    def error(self, given: Sequence[Sample]) -> float:
        """The relative error on the samples that judge, their geometric mean."""
        scores = [score(self.made.graph, given[place], outputs) for place, outputs in self.outputs.items()]
        return math.exp(sum(scores) / len(scores))


def _calibrated(
    graph: Graph, given: Sequence[Sample], half_even: bool, tell: Callable[[str], None], steps: Steps
) -> tuple[Tried, Comparison]:
    """Quantize a float graph by what it computes of samples."""
    found = _best(graph, given, half_even, tell, steps)
    loops = recurrences.steps(graph) if steps.floats else frozenset()
    if loops and (error := found.error(given)) > _TOO_MUCH:
        tell("quantize: steps of recurrent layers in float32")
        other = _best(recurrences.in_float(graph, loops), given, half_even, tell, steps)
        if (left := other.error(given)) < error / 2:
            note = (
                f"{len(loops)} products of recurrent layers are the host's, in float32: in int8, step after step, the"
                f" outputs would be {error:.0%} off, so {left:.1%}"
            )
            found = dataclasses.replace(
                other, made=dataclasses.replace(other.made, changes=[*other.made.changes, note])
            )
    made = found.made
    measured = losses.samples_of(made.graph, given)
    references = _references(found.graph, None, measured, found.first)
    return made, losses.measure(made.graph, measured, (_rewritten(made, reference) for reference in references))


def _best(graph: Graph, given: Sequence[Sample], half_even: bool, tell: Callable[[str], None], steps: Steps) -> _Best:
    """A float graph in the way that loses least of what it computes of samples."""
    graph = unit_rows(graph) if steps.rows else graph
    quantized = calibrated(graph, defaultdict(int), steps)
    channels = channels_of(graph, quantized)
    # Layers whose residual is added apart get an int8 result, too.
    heads = (node.output for node in graph.nodes if node.op in partition.HEADS)
    jury = jury_of(sum(partition.node_macs(graph, node) for node in graph.nodes), len(given))
    seen = observed(graph, given, tell, channels.ids, {*quantized, *heads, *graph.outputs}, jury.places, steps.fine)
    ways = Ways(graph, channels, quantized, steps, half_even)
    tell("quantize: judging ways to do it")
    kind, fine = best(ways, seen, given, jury)
    return _Best(ways.made(kind, seen, fine), graph, seen.first, seen.outputs)


def _rewritten(made: Tried, reference: Reference) -> Reference:
    """What a float graph computes, by the names of the values of that which it was rewritten to."""
    affine, tensors = made.way.affine, reference.tensors
    named = {new: tensors[old] for new, old in affine.originals.items() if old in tensors}
    own = {name: affine.model(name, array) for name, array in {**tensors, **named}.items()}
    return Reference(own, reference.outputs, affine.real)


def calibration_of(graph: Graph, calibration: Given | None, seed: int) -> tuple[str, Sequence[Sample]]:
    """What calibration data is called, and its samples; none given: random ones.

    Raises:
        ModelError: it is empty, or does not fit the model.
    """
    if calibration is None:
        return "random inputs", random_samples(graph, RANDOM_SAMPLES, seed)
    found = samples.find(calibration)
    try:
        given = samples.fit(found, samples.expected_of(graph.values[name] for name in graph.inputs))
    except ModelError as error:
        raise ModelError(f"calibration data: {error}") from error
    if not given:
        raise ModelError("calibration data is empty; give at least one input")
    return found.source, given


def _references(
    graph: Graph,
    tensors: Mapping[str, str] | None,
    samples: Sequence[Sample],
    first: dict[str, Array],
) -> Iterator[Reference]:
    """What a graph computes of each sample, of the values that ``first`` holds of the first one.

    ``tensors``: of a QDQ graph, see `_strip`; None: every tensor is the float one of its name.
    """
    quantizers = {node.output: node.attrs for node in graph.nodes if node.op == "quantize"}

    def real(tensor: str, array: Array) -> Array:
        attrs = quantizers[tensor]
        return (array.astype(np.int32) - attrs["zero"]).astype(np.float32) * attrs["scale"]

    for index, sample in enumerate(samples):
        values = first if index == 0 else _values(graph, sample, first)
        own: Mapping[str, Array] = values
        if tensors is not None:
            known = {value: tensor for value, tensor in tensors.items() if tensor in values}
            own = {value: real(tensor, values[tensor]) for value, tensor in known.items()}
        yield Reference(own, [values[name] for name in graph.outputs], _as_it_is)


def _values(graph: Graph, sample: Sample, kept: Collection[str]) -> dict[str, Array]:
    """What a graph computes of a sample, of some of its values."""
    values: dict[str, Array] = {}

    def observe(name: str, array: Array) -> None:
        if name in kept:
            values[name] = array

    execute.execute(graph, sample, observe)
    return values


def _as_it_is(name: str, array: Array) -> Array:
    return array
