"""How far the channels of a value reach: as on calibration data, and as much further as its samples differ.

A few samples do not show all that a channel does, and a range that is too narrow clips. How far off the ranges are is
seen on calibration itself: those of all samples but some are judged on these. What is chosen for a value is how much
wider or narrower its channels' ranges are made, and how narrow one may be beside the widest, so that clipping and
rounding lose least together, each channel weighed by what an error in it does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import partition
from oneshot_ml2.models.quantize.observe import Moments, Observed, together
from oneshot_ml2.models.quantize.sampling import drawn_places
from oneshot_ml2.models.quantize.scales import HIGH

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph
    from oneshot_ml2.models.quantize.channels import Channels
    from oneshot_ml2.models.quantize.saturation import Limits

Array = NDArray[np.float64]
# A channel reaches so many root mean squares; one of few elements, less than so many, what others of its tensor do.
_DEVIATIONS, _ENOUGH = 4.0, 16
# A moved channel grows about its middle, or about 0: what a SiLU makes ends just below 0, on all inputs.
Anchor: TypeAlias = Literal["middle", "zero"]
MIDDLE: Anchor = "middle"
ZERO: Anchor = "zero"
# What the ranges are multiplied by, and the least parts of the widest one: what is not tried of another count.
_WIDER = 2.0 ** (np.arange(-4, 9) / 4)
_LEAST = 2.0 ** -np.array([10.0, 6, 5, 4, 3, 2, 1, 0])


def reach(moments: Moments, before: Moments) -> tuple[Array, Array]:
    """From where to where a channel's elements are: as on calibration, or what so few of them leave open.

    ``before``: of what a bound is given to, whose spread is not cut off yet; else the same.
    """
    low, high = float(moments.low.min(initial=0.0)), float(moments.high.max(initial=0.0))
    around = _DEVIATIONS * np.sqrt(before.variance)
    unknown = max(1 - moments.count / _ENOUGH, 0.0)
    return (
        np.minimum(np.minimum(moments.low, low * unknown), np.maximum(before.mean - around, low)),
        np.maximum(np.maximum(moments.high, high * unknown), np.minimum(before.mean + around, high)),
    )


def spans(
    graph: Graph, channels: Channels, seen: Observed, quantized: Collection[str], weights: Array,
    moved: Mapping[str, str | None], limits: Mapping[str, Limits],
) -> dict[str, tuple[Array, Array]]:  # fmt: skip
    """From where to where the channels of every value of ``quantized`` are taken to be.

    Args:
        weights: by number of `Channels.ids`, what an error in an element does.
        moved: see `equalize._movable`.
        limits: where values matter, see `saturation`.
    """
    makers = graph.producers()
    found = {}
    for name in channels.ids:
        if name in quantized:
            maker = makers.get(name)
            clipped = maker is not None and name in channels.taken and partition.bounds(maker) is not None
            before = maker.inputs[0] if clipped and maker is not None else name
            least, most = limits.get(name, (-np.inf, np.inf))
            folds = [
                dataclasses.replace(part, low=np.clip(part.low, least, most), high=np.clip(part.high, least, most))
                for part in seen.folds[name]
            ]
            value = _Value(folds, seen.folds[before], name in moved, moved.get(name) is not None)
            low, high = value.span()
            if len(value.folds) > 1:
                shape = graph.shape(name)
                # A scalar has no axes to be unravelled along.
                places = np.unravel_index(drawn_places(shape, seen.samples), shape) if shape else ()
                drawn = seen.drawn[name]
                if name in limits:
                    ends = [np.broadcast_to(end, shape)[places] for end in limits[name]]
                    drawn = [np.clip(values, *ends) for values in drawn]
                chosen = value.judged(drawn, places, weights[channels.ids[name]])
                low, high = value.widened(low, high, chosen, channels.bounds.get(name, np.inf))
            found[name] = np.clip(low, least, most), np.clip(high, least, most)
    return found


@dataclass(frozen=True)
class _Value:
    """A value: its moments by parts of the samples, and those of what a bound makes it of (``before``); ``moved``: it
    has an offset; ``from_zero``: that for which its least element is 0.
    """

    folds: list[Moments]
    before: list[Moments]
    moved: bool
    from_zero: bool

    def span(self, without: int | None = None) -> tuple[Array, Array]:
        """Its channels' reach on all samples, or on those of all parts but one."""
        own, before = (
            together([part for index, part in enumerate(parts) if index != without])
            for parts in (self.folds, self.before)
        )
        return reach(own, before)

    def ends(self, low: Array, high: Array, about: Anchor) -> tuple[Array, Array, Array]:
        """What ranges grow about, and how far elements may be below and above it."""
        if self.moved and not self.from_zero:
            anchor = (low + high) / 2 if about == MIDDLE else np.clip(0.0, low, high)
            return anchor, anchor - low, high - anchor
        end = np.maximum(-low, high)
        return np.zeros_like(low), end, end

    def judged(
        self, drawn: Sequence[NDArray[Any]], places: Sequence[NDArray[Any]], weights: Array
    ) -> tuple[Anchor, float, float]:
        """What ranges grow about, and of ``_WIDER`` and ``_LEAST`` what loses least on each part of the samples by the
        ranges of the others.
        """
        anchors: tuple[Anchor, ...] = (MIDDLE, ZERO) if self.moved and not self.from_zero else (MIDDLE,)
        losses = np.stack([self._losses(about, drawn, places, weights) for about in anchors])
        which, row, column = np.unravel_index(int(losses.argmin()), losses.shape)
        return anchors[which], float(_WIDER[column]), float(_LEAST[row])

    def _losses(
        self, about: Anchor, drawn: Sequence[NDArray[Any]], places: Sequence[NDArray[Any]], weights: Array
    ) -> Array:
        losses = np.zeros((len(_LEAST), len(_WIDER)))
        weights = np.broadcast_to(weights if weights.any() else np.ones_like(weights), self.folds[0].low.shape)
        place = tuple(at if size > 1 else 0 for at, size in zip(places, weights.shape, strict=True))
        step = (0.5 if self.from_zero else 1.0) / HIGH
        for fold in range(len(self.folds)):
            anchor, below, above = self.ends(*self.span(fold), about)
            for values in drawn[fold :: len(self.folds)]:
                off = values - np.broadcast_to(anchor, weights.shape)[place]
                up, off = off > 0, np.abs(off)
                side = np.where(up, *(np.broadcast_to(end, weights.shape)[place] for end in (above, below)))
                far = off > side * _WIDER[0]
                of = tuple(at[far] if isinstance(at, np.ndarray) else at for at in place)
                for number, least in enumerate(_LEAST):
                    lower, upper = _grown(below, above, least)
                    rounded = float((weights * (lower + upper) ** 2).mean()) * step**2 / 48
                    end = np.where(up[far], *(np.broadcast_to(side[of], off[far].shape) for side in (upper, lower)))
                    clipped = np.maximum(off[far] - np.outer(_WIDER, end), 0)
                    losses[number] += rounded * _WIDER**2
                    losses[number] += (weights[of] * clipped**2).sum(1) / max(off.size, 1)
        return losses

    def widened(
        self, low: Array, high: Array, chosen: tuple[Anchor, float, float], bound: float
    ) -> tuple[Array, Array]:
        """A span with its ends further apart, none of which passes a bound."""
        about, wider, least = chosen
        anchor, below, above = self.ends(low, high, about)
        below, above = (wider * end for end in _grown(below, above, least))
        if self.moved and not self.from_zero:
            return anchor - below, anchor + above
        above = np.minimum(above, bound)
        return np.where(low < 0, -above, 0.0), above


def _grown(below: Array, above: Array, least: float) -> tuple[Array, Array]:
    """How far channels reach if half of each one's range is at least that part of the widest's."""
    half = (below + above) / 2
    wide = np.maximum(half, least * half.max(initial=0.0))
    by = wide / np.where(half > 0, half, 1.0)
    return np.where(half > 0, below * by, wide), np.where(half > 0, above * by, wide)
