"""From float or QDQ graphs to integers: symmetric int8 with powers of two as scales, one for each tensor.

Sums are 32 bits wide; a right shift by the difference of the exponents makes int8 of them. The shift floors, and half a
step that the bias holds makes that rounding half up; half to even takes passes more, and is exact as well. Whatever the
VTA can do carries a workload; sums that are no layer's (additions, averages, rescaling) are depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize import losses
from oneshot_ml2.models.quantize.integer import IntegerBuilder
from oneshot_ml2.models.quantize.losses import LayerError, Loss, Reference
from oneshot_ml2.models.quantize.qdq import calibrated, strip_qdq
from oneshot_ml2.models.quantize.sampling import RANDOM_SAMPLES, random_samples, split_samples
from oneshot_ml2.models.quantize.scales import observed_exponents

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array, Sample

# How rounding treats exact ties: up, by the VTA's shift alone, or to the even neighbour.
ROUNDINGS = ("shift", "half_even")


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, what was changed on the way, and what it costs.

    ``kind``: ``float`` (quantized here) or ``qdq``; ``changes``: lines; ``tensors``: int8 value -> the tensor of the
    model's file that it is, where known; ``errors``, ``losses``: see `LayerError` and `Loss`; ``rounding``: one of
    ``ROUNDINGS``.
    """

    graph: Graph
    kind: str
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    tensors: Mapping[str, str]
    errors: tuple[LayerError, ...]
    rounding: str = "shift"
    losses: tuple[Loss, ...] = ()


def quantize(
    graph: Graph,
    calibration: Array | Sample | Sequence[Sample] | None = None,
    seed: int = 0,
    rounding: str = "shift",
) -> Quantized:
    """Quantize a graph to int8; one that is quantized already (QDQ) keeps its scales, to the nearest power of two.

    Args:
        calibration: what `split_samples` takes, from which the scales of a float model follow; none: seeded standard
            normal inputs, with a warning. The errors are those on the first of them, see `losses.samples_of`.
        seed: of the random inputs.
        rounding: one of ``ROUNDINGS``.

    Raises:
        ModelError: calibration data that does not fit, an unknown rounding, or a quantization that is not supported.
    """
    if rounding not in ROUNDINGS:
        raise ModelError(f"rounding is {rounding!r}; allowed: {', '.join(ROUNDINGS)}")
    qdq = any(node.op == "quantize" for node in graph.nodes)
    warned: list[str] = []
    if calibration is None:
        samples = random_samples(graph, RANDOM_SAMPLES, seed)
        if not qdq:
            warned.append(
                "scales follow from random inputs: give calibration data (--calibration) before trusting the accuracy"
            )
    else:
        samples = split_samples(graph, calibration)
        if not samples:
            raise ModelError("calibration data is empty; give at least one input")
    if qdq:
        plain, exponents, changes, tensors = strip_qdq(graph)
        _, first = observed_exponents(graph, samples[:1])
    else:
        plain, changes, tensors = graph, [], {}
        chosen, first = observed_exponents(graph, samples)
        exponents = calibrated(graph, chosen)
    builder = IntegerBuilder(plain, exponents, qdq, rounding == "half_even")
    integer = builder.build()
    measured = losses.samples_of(integer, samples)
    errors, lost = losses.measure(integer, measured, _references(graph, tensors if qdq else None, measured, first))
    warned += losses.warnings(lost)
    labels = {value: graph.labels[tensor] for value, tensor in tensors.items() if tensor in graph.labels}
    kind, all_changes = "qdq" if qdq else "float", (*graph.notes, *changes, *builder.changes)
    return Quantized(integer, kind, all_changes, tuple(warned), labels, errors, rounding, lost)


def _references(
    graph: Graph, tensors: Mapping[str, str] | None, samples: Sequence[Sample], first: dict[str, Array]
) -> Iterator[Reference]:
    """What a graph computes of each sample, ``first`` of the first one.

    ``tensors``: of a QDQ graph, see `_strip`; None: every tensor is the float one of its name.
    """
    quantizers = {node.output: node.attrs for node in graph.nodes if node.op == "quantize"}

    def real(tensor: str, array: Array) -> Array:
        attrs = quantizers[tensor]
        return (array.astype(np.int32) - attrs["zero"]).astype(np.float32) * attrs["scale"]

    for index, sample in enumerate(samples):
        values = first if index == 0 else {}
        if index:
            execute.execute(graph, sample, values.__setitem__)
        own: Mapping[str, Array] = values
        if tensors is not None:
            known = {value: tensor for value, tensor in tensors.items() if tensor in values}
            own = {value: real(tensor, values[tensor]) for value, tensor in known.items()}
        yield Reference(own, [values[name] for name in graph.outputs])
        # The tensors of one sample at a time.
        values.clear()
