"""Exponents of the powers of two that stand for scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import execute
from oneshot_ml2.models.ir import Graph, Value
from oneshot_ml2.models.quantize.sampling import drawn_values

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array, Sample

LOW, HIGH = -128, 127
# Of normally distributed values that reach four standard deviations, clipping more costs more than finer steps give.
_COVERED = 0.85


# Exponents -------------------------------------------------------------------------------------
def best_exponent(values: Array, largest: float) -> int:
    """The exponent whose int8 grid has the least mean square error on float values, with or without clipping.

    ``largest``: the largest magnitude of the tensor that the values are from.
    """
    if largest == 0 or not math.isfinite(largest):
        return 0
    top = math.ceil(math.log2(largest / HIGH) - 1e-9)
    errors = []
    for exponent in (top, top - 1):
        step = 2.0**exponent
        # What masks add may be the least number that there is.
        with np.errstate(over="ignore"):
            square = np.square(np.clip(np.rint(values / step), LOW, HIGH) * step - values)
            errors.append((float(square.mean()), exponent))
    return min(errors)[1]


def observed_exponents(
    graph: Graph, samples: Sequence[Sample], tell: Callable[[str], None]
) -> tuple[dict[str, int], dict[str, Array]]:
    """The best exponent of every value over all samples, and all values of the first one.

    ``tell``: told which sample is looked at.
    """
    largest: dict[str, float] = {}
    drawn: dict[str, list[Array]] = {}
    first: dict[str, Array] = {}
    for index, sample in enumerate(samples):
        tell(f"quantize: sample {index + 1} of {len(samples)}")

        def observe(name: str, array: Array, index: int = index) -> None:
            if index == 0:
                first[name] = array
            if array.dtype == np.float32:
                # Minus infinity is what masks leave out; int8 has its least number for it.
                kept = array[array > -np.inf] if np.isneginf(array).any() else array
                if not np.isfinite(kept).all():
                    raise ModelError(f"the model's tensor {name!r} is not finite on the calibration data")
                largest[name] = max(largest.get(name, 0.0), float(np.abs(kept).max(initial=0.0)))
                values = drawn_values(kept, len(samples)) if kept.size else np.zeros(1, np.float32)
                drawn.setdefault(name, []).append(values)

        execute.execute(graph, sample, observe)
    exponents = {name: best_exponent(np.concatenate(parts), largest[name]) for name, parts in drawn.items()}
    return exponents, first


# QDQ -------------------------------------------------------------------------------------------
def nearest_exponent(scale: float) -> int:
    """The exponent of the power of two nearest to a scale, in ratio."""
    return round(math.log2(scale))


def covering_exponent(largest: float) -> int:
    """The least exponent whose int8 numbers reach what has to be of a range's ``largest`` magnitude."""
    return math.ceil(math.log2(_COVERED * largest / HIGH))


def int8(array: Array, exponent: int) -> NDArray[np.int8]:
    # Exact in float32: the scale is a power of two, and what is clipped away may as well be infinite.
    scaled = np.ldexp(array.astype(np.float32, copy=False), -exponent)
    np.clip(np.rint(scaled, out=scaled), LOW, HIGH, out=scaled)
    return scaled.astype(np.int8)


def exponent_of(value: Value) -> int:
    assert value.exponent is not None
    return value.exponent


def integer_bounds(low: float, high: float, exponent: int) -> tuple[int, int]:
    """Real bounds as those of int8 numbers of a scale 2**exponent."""
    step = 2.0**exponent
    bound_low = LOW if low == -math.inf else int(np.clip(np.rint(low / step), LOW, HIGH))
    bound_high = HIGH if high == math.inf else int(np.clip(np.rint(high / step), LOW, HIGH))
    return bound_low, bound_high
