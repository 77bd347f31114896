"""What calibration data says of a float graph's values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.quantize import rounding
from oneshot_ml2.models.quantize.sampling import drawn_values
from oneshot_ml2.models.quantize.scales import best_exponent, holding_exponent

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.channels import Ids
    from oneshot_ml2.models.quantize.sampling import Array, Sample


# Parts of the samples whose moments are kept apart, so that what some show can be judged on the others.
_FOLDS = 8


@dataclass(frozen=True)
class Moments:
    """Of a value's elements, those of a channel together: the least, the largest, mean, mean square, their number."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    count: int

    @property
    def variance(self) -> NDArray[np.float64]:
        return np.maximum(self.square - self.mean**2, 0.0)


def together(parts: Sequence[Moments]) -> Moments:
    """The moments of several sets of elements as one."""
    count = sum(part.count for part in parts)
    mean, square = (
        np.sum([getattr(part, name) * (part.count / count) for part in parts], axis=0) for name in ("mean", "square")
    )
    low = np.min([part.low for part in parts], axis=0)
    return Moments(low, np.max([part.high for part in parts], axis=0), mean, square, count)


@dataclass(frozen=True)
class Affine:
    """How the values of a rewritten graph follow from those of the original: times a factor, plus an offset.

    ``factors``, ``offsets``: of values of the new graph, of their rank, where they are not 1 and 0; what has an offset
    has a factor; ``originals``: value that is new -> the one that it follows from, if not from that of its name;
    ``ends``: of values with a factor, the largest magnitude that int8 has to hold; ``borders``: of values that have
    zeros around their images first, how many (top, bottom, left, right); ``limits``: of values of the original graph,
    from where to where they matter, see `saturation`.
    """

    factors: Mapping[str, Array] = field(default_factory=dict)
    offsets: Mapping[str, Array] = field(default_factory=dict)
    originals: Mapping[str, str] = field(default_factory=dict)
    ends: Mapping[str, float] = field(default_factory=dict)
    borders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    limits: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)

    def factor(self, name: str) -> Array:
        return self.factors.get(name, np.ones(()))

    def offset(self, name: str) -> Array:
        return self.offsets.get(name, np.zeros(()))

    def model(self, name: str, array: Array) -> Array:
        """What the model has of a value of the new graph, of what the original has: as far as it matters, padded."""
        array = self._limited(self.originals.get(name, name), array)
        top, bottom, left, right = self.borders.get(name, (0, 0, 0, 0))
        return np.pad(array, ((0, 0), (0, 0), (top, bottom), (left, right))) if name in self.borders else array

    def real(self, name: str, array: Array) -> Array:
        """A value of the new graph as that of the original, as far as it matters."""
        real = array if name not in self.factors else (array - self.offset(name)) / self.factors[name]
        return self._limited(self.originals.get(name, name), real)

    def matters(self, name: str, array: Array) -> Array:
        """A value of the new graph, as far as it matters."""
        limits = self.limits.get(self.originals.get(name, name))
        if limits is None:
            return array
        ends = (end * self.factor(name) + self.offset(name) for end in limits)
        return np.clip(array, *ends).astype(array.dtype)

    def _limited(self, name: str, array: Array) -> Array:
        return np.clip(array, *self.limits[name]).astype(array.dtype) if name in self.limits else array


@dataclass
class Observed:
    """``largest``: a value's largest magnitude in each sample; ``drawn``: some of its elements, of each sample;
    ``moments``: by channel, of values that have any; ``folds``: those of some of the samples each, sample n in part
    n % their number; ``first``: values of the first sample that are kept; ``outputs``: those of the graph, of some
    samples by their places; ``samples``: how many were looked at; ``rows``: by layer and sample, see `rounding`.
    """

    largest: dict[str, list[float]] = field(default_factory=dict)
    drawn: dict[str, list[Array]] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    folds: dict[str, list[Moments]] = field(default_factory=dict)
    first: dict[str, Array] = field(default_factory=dict)
    outputs: dict[int, list[Array]] = field(default_factory=dict)
    samples: int = 1
    rows: dict[str, list[Array]] = field(default_factory=dict)

    def without(self, fold: int, number: int) -> Observed:
        """What all samples say but every ``number``th from ``fold`` on; ``number`` divides that of the parts, or is
        that of the samples if these are fewer.
        """

        def kept(parts: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            return {name: [at for index, at in enumerate(of) if index % number != fold] for name, of in parts.items()}

        folds = kept(self.folds)
        moments = {name: together(parts) for name, parts in folds.items()}
        return Observed(
            kept(self.largest), kept(self.drawn), moments, folds, self.first, self.outputs, self.samples,
            kept(self.rows),
        )  # fmt: skip

    def means(self, way: Affine) -> dict[str, Array]:
        """The means of the values of a rewritten graph, by channel."""
        names = {name: name for name in self.moments}
        names |= {new: old for new, old in way.originals.items() if old in self.moments}
        return {new: self.moments[old].mean * way.factor(new) + way.offset(new) for new, old in names.items()}

    def exponents(self, graph: Graph, way: Affine) -> dict[str, int]:
        """The best exponents of a rewritten graph's values."""
        found = {}
        for value in graph.values.values():
            name = way.originals.get(value.name, value.name)
            if name not in self.drawn:
                continue
            if value.name in way.ends:
                found[value.name] = holding_exponent(way.ends[value.name])
            else:
                found[value.name] = best_exponent(np.concatenate(self.drawn[name]), max(self.largest[name]))
        return found


def observed(
    graph: Graph, samples: Sequence[Sample], tell: Callable[[str], None], ids: Mapping[str, Ids] | None = None,
    kept: Collection[str] = (), places: Collection[int] = (), fine: bool = False,
) -> Observed:  # fmt: skip
    """Run a float graph on all samples.

    Args:
        tell: told which sample is looked at.
        ids: of which values moments are wanted, and along which axes they are apart, those not 1 long.
        kept: of which values the first sample's are.
        places: of which samples the outputs are kept.
        fine: some of what layers read is kept, too, see `rounding`.

    Raises:
        ModelError: a value is not finite.
    """
    seen = Observed(samples=len(samples))
    layers: dict[str, list[Node]] = {}
    for node in graph.nodes if fine else ():
        if rounding.is_fit(graph, node):
            layers.setdefault(node.inputs[0], []).append(node)
    for index, sample in enumerate(samples):
        tell(f"quantize: sample {index + 1} of {len(samples)}")

        def observe(name: str, array: Array, index: int = index) -> None:
            if index == 0 and name in kept:
                seen.first[name] = array
            if array.dtype == np.float32:
                _add(seen, name, array, len(samples))
                for node in layers.get(name, ()):
                    rows = rounding.rows_of(graph, node, array, len(samples))
                    seen.rows.setdefault(node.output, []).append(rows)
                if ids is not None and name in ids:
                    parts, own = seen.folds.setdefault(name, []), _moments(array, ids[name])
                    if index < _FOLDS:
                        parts.append(own)
                    else:
                        parts[index % _FOLDS] = together([parts[index % _FOLDS], own])

        outputs = execute.execute(graph, sample, observe)
        if index in places:
            seen.outputs[index] = [outputs[name] for name in graph.outputs]
    seen.moments = {name: together(parts) for name, parts in seen.folds.items()}
    return seen


def _add(seen: Observed, name: str, array: Array, samples: int) -> None:
    # Minus infinity is what masks leave out; int8 has its least number for it.
    kept = array[array > -np.inf] if np.isneginf(array).any() else array
    if not np.isfinite(kept).all():
        raise ModelError(f"the model's tensor {name!r} is not finite on the calibration data")
    seen.largest.setdefault(name, []).append(float(np.abs(kept).max(initial=0.0)))
    values = drawn_values(kept, samples) if kept.size else np.zeros(1, np.float32)
    seen.drawn.setdefault(name, []).append(values)


def _moments(array: Array, ids: Ids) -> Moments:
    """Of an array by channel, along the axes on which ``ids`` is not 1 long."""
    axes = tuple(axis for axis, size in enumerate(ids.shape) if size == 1)
    low, high = (end(axes, keepdims=True).astype(np.float64) for end in (array.min, array.max))
    mean = array.mean(axes, keepdims=True, dtype=np.float32).astype(np.float64)
    square = np.square(array).mean(axes, keepdims=True, dtype=np.float32).astype(np.float64)
    return Moments(low, high, mean, square, array.size // low.size)
