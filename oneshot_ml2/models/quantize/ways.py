"""Ways to quantize a float graph, and which of them loses least on samples that it has not seen.

Each has a copy of all weights, so they are made one after the other. Half of the samples say how a way does it, and the
other half judges; then the halves change places, unless the model is large. Of few samples half says too little of what
all will: then each is judged by what all others say. What is chosen sees all samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.models import execute
from oneshot_ml2.models.quantize import biases, rounding
from oneshot_ml2.models.quantize.alone import relative
from oneshot_ml2.models.quantize.equalize import Equalized, equalized
from oneshot_ml2.models.quantize.integer import IntegerBuilder
from oneshot_ml2.models.quantize.qdq import calibrated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oneshot_ml2.models.ir import Graph
    from oneshot_ml2.models.quantize.channels import Channels
    from oneshot_ml2.models.quantize.observe import Observed
    from oneshot_ml2.models.quantize.sampling import Array, Sample
    from oneshot_ml2.models.quantize.steps import Steps

# Channels scaled and moved, scaled, as they are: what stands first is taken unless another loses clearly less.
MOVED, SCALED, PLAIN = "moved", "scaled", "plain"
# Samples that judge take so many multiplications together, but are at least two and at most so many.
_WORK, _LEAST, _MOST = 4e9, 2, 16
# Samples that are halved.
_HALVED = 8
# Less error than this is none, as of a softmax that is certain; and by how much the logarithms of errors differ for no
# reason, for one sample.
_NOTHING, _CHANCE = 1e-3, 0.1
# The error of what is not finite, as of the logarithm of what int8 rounds to 0.
_LOST = 1e3
# Means that are so many standard errors apart differ.
_CLEARLY = 2.0


@dataclass(frozen=True)
class Tried:
    """A float graph quantized in a way: the integer graph, and what the builder changed, as lines."""

    graph: Graph
    changes: list[str]
    way: Equalized


@dataclass(frozen=True)
class Ways:
    """All ways to quantize a float graph, whose values ``quantized`` are to be int8."""

    graph: Graph
    channels: Channels
    quantized: Mapping[str, int]
    steps: Steps
    half_even: bool

    def kinds(self, seen: Observed) -> tuple[str, ...]:
        """Those that there are, the first preferred."""
        # What masks set to minus infinity has no spread.
        if not self.steps.equalize or not all(np.isfinite(part.low).all() for part in seen.moments.values()):
            return (PLAIN,)
        return (MOVED, SCALED, PLAIN) if self.steps.offsets else (SCALED, PLAIN)

    def made(self, kind: str, seen: Observed, fine: bool = False) -> Tried:
        """The graph quantized in one of the ways, by what samples say of it; nothing is moved that costs too much.

        ``fine``: its weights are rounded by what they are multiplied by.
        """
        still: frozenset[str] = frozenset()
        while True:
            tried = self._built(kind, seen, still, fine)
            dear = biases.too_dear(tried.graph, tried.way, self.graph)
            if not dear:
                return tried
            del tried
            still |= dear

    def _built(self, kind: str, seen: Observed, still: frozenset[str], fine: bool) -> Tried:
        way = Equalized(self.graph)
        if kind != PLAIN:
            way = equalized(self.graph, self.channels, seen, self.quantized, kind == MOVED, still)
        exponents = calibrated(way.graph, seen.exponents(way.graph, way.affine), self.steps, way.entries)
        means = seen.means(way.affine) if self.steps.bias else {}
        rows = rounding.inputs_by_weight(way.graph, seen.rows, way.affine) if fine else {}
        builder = IntegerBuilder(way.graph, exponents, False, self.half_even, means, rows)
        integer = builder.build()
        return Tried(integer, [*way.changes, *builder.changes], way)


@dataclass(frozen=True)
class Jury:
    """``parts``: what is judged by samples and what these are, by their places: those of every part are all samples
    but every ``number``th from the part's own on; one part, 0 of 0: all see all.
    """

    number: int
    parts: Mapping[int, tuple[int, ...]]

    @property
    def places(self) -> frozenset[int]:
        """The samples that judge."""
        return frozenset(place for places in self.parts.values() for place in places)


def jury_of(macs: int, samples: int) -> Jury:
    """Which samples judge a model of so many multiplications."""
    count = int(min(max(_WORK // max(macs, 1), _LEAST), _MOST))
    if samples < 2:
        return Jury(0, {0: (0,)})
    if count < 2 * _LEAST:
        return Jury(2, {0: tuple(range(0, samples, 2))[:count]})
    parts = 2 if samples >= _HALVED else samples
    most = max(count // parts, 1)
    return Jury(parts, {part: tuple(range(part, samples, parts))[:most] for part in range(min(parts, count))})


def best(ways: Ways, seen: Observed, given: Sequence[Sample], jury: Jury) -> tuple[str, bool]:
    """The way that loses least on samples that it was not made by, of ``given``, and whether it loses less with weights
    that are rounded by what they are multiplied by.

    ``seen.outputs`` holds what the float graph computes of those of ``jury``.
    """

    def scores(kinds: Sequence[str], fine: bool = False) -> dict[str, NDArray[np.float64]]:
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for part, places in jury.parts.items():
            known = seen.without(part, jury.number) if jury.number else seen
            for kind in kinds:
                graph = ways.made(kind, known, fine).graph
                found[kind] += [score(graph, given[place], seen.outputs[place]) for place in places]
                del graph
        return {kind: np.array(of) for kind, of in found.items()}

    kinds = ways.kinds(seen)
    chosen, fine = kinds[0], ways.steps.fine
    if len(kinds) == 1 and not fine:
        return chosen, False
    plain = scores(kinds)
    for kind in kinds[1:]:
        if clearly_less(plain[kind], plain[chosen]):
            chosen = kind
    return chosen, fine and bool(scores([chosen], True)[chosen].mean() < plain[chosen].mean())


def score(graph: Graph, sample: Sample, outputs: Sequence[Array]) -> float:
    """The error of an integer graph on a sample: the mean over its outputs of the logarithms of their errors."""
    found = execute.execute(graph, sample)
    errors = [relative(found[name], own) for name, own in zip(graph.outputs, outputs, strict=True)]
    limited = [min(max(error, _NOTHING), _LOST) if math.isfinite(error) else _LOST for error in errors]
    return float(np.mean(np.log(limited)))


def clearly_less(these: NDArray[np.float64], those: NDArray[np.float64]) -> bool:
    """Whether scores on some samples are less than others on the same samples, by more than chance."""
    apart = these - those
    spread = float(apart.var(ddof=1)) if apart.size > 1 else 0.0
    return float(apart.mean()) < -_CLEARLY * math.sqrt((spread + _CHANCE**2) / apart.size)
