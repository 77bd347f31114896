"""What calibration data says of a float graph's values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize.sampling import drawn_places
from oneshot_ml2.models.quantize.scales import best_exponent

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.channels import Ids
    from oneshot_ml2.models.quantize.sampling import Array, Sample


@dataclass(frozen=True)
class Moments:
    """Of a value's elements, those of a channel together: largest magnitude, mean, mean square, and their number."""

    peak: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    count: int


@dataclass
class Observed:
    """``largest``: a value's largest magnitude; ``drawn``: some of its elements, with ``places``: where they are drawn
    from; ``moments``: by channel, of values that have any; ``first``: all values of the first sample.
    """

    largest: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, list[Array]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    first: dict[str, Array] = field(default_factory=dict)
    samples: int = 1

    def exponents(self) -> dict[str, int]:
        """The best exponent of every value."""
        return {name: best_exponent(np.concatenate(parts), self.largest[name]) for name, parts in self.drawn.items()}

    def scaled(self, graph: Graph, factors: Mapping[str, Array], originals: Mapping[str, str]) -> dict[str, int]:
        """The best exponents of a graph's values that are scaled ones of these."""
        found = {}
        for value in graph.values.values():
            name = originals.get(value.name, value.name)
            if name not in self.drawn:
                continue
            parts, largest = self.drawn[name], self.largest[name]
            factor = factors.get(value.name)
            if factor is not None:
                coordinates = np.unravel_index(drawn_places(value.shape, self.samples), value.shape)
                place = tuple(at if size > 1 else 0 for at, size in zip(coordinates, factor.shape, strict=True))
                parts = [part * factor[place] for part in parts]
                largest = float((self.moments[name].peak * factor).max(initial=0.0))
            found[value.name] = best_exponent(np.concatenate(parts), largest)
        return found


def observed(
    graph: Graph, samples: Sequence[Sample], tell: Callable[[str], None], ids: Mapping[str, Ids] | None = None
) -> Observed:
    """Run a float graph on all samples.

    Args:
        tell: told which sample is looked at.
        ids: of which values moments are wanted, and along which axes they are apart, those not 1 long.

    Raises:
        ModelError: a value is not finite.
    """
    seen = Observed(samples=len(samples))
    sums: dict[str, list[NDArray[np.float64]]] = {}
    for index, sample in enumerate(samples):
        tell(f"quantize: sample {index + 1} of {len(samples)}")

        def observe(name: str, array: Array, index: int = index) -> None:
            if index == 0:
                seen.first[name] = array
            if array.dtype == np.float32:
                _add(seen, name, array, len(samples))
                if ids is not None and name in ids:
                    _add_moments(sums, name, array, ids[name])

        execute.execute(graph, sample, observe)
    for name, (peak, mean, square) in sums.items():
        seen.moments[name] = Moments(
            peak, mean / len(samples), square / len(samples), len(samples) * math.prod(graph.shape(name)) // peak.size
        )
    return seen


def _add(seen: Observed, name: str, array: Array, samples: int) -> None:
    # Minus infinity is what masks leave out; int8 has its least number for it.
    kept = array[array > -np.inf] if np.isneginf(array).any() else array
    if not np.isfinite(kept).all():
        raise ModelError(f"the model's tensor {name!r} is not finite on the calibration data")
    seen.largest[name] = max(seen.largest.get(name, 0.0), float(np.abs(kept).max(initial=0.0)))
    values = kept.reshape(-1)[drawn_places(kept.shape, samples)] if kept.size else np.zeros(1, np.float32)
    seen.drawn.setdefault(name, []).append(values)


def _add_moments(sums: dict[str, list[NDArray[np.float64]]], name: str, array: Array, ids: Ids) -> None:
    axes = tuple(axis for axis, size in enumerate(ids.shape) if size == 1)
    peak = np.maximum(array.max(axes, keepdims=True), -array.min(axes, keepdims=True)).astype(np.float64)
    mean = array.mean(axes, keepdims=True, dtype=np.float32).astype(np.float64)
    square = np.square(array).mean(axes, keepdims=True, dtype=np.float32).astype(np.float64)
    if name not in sums:
        sums[name] = [peak, mean, square]
        return
    old = sums[name]
    sums[name] = [np.maximum(old[0], peak), old[1] + mean, old[2] + square]
