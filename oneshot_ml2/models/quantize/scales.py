"""Exponents of the powers of two that stand for scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models.ir import Value

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array

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
    top = holding_exponent(largest)
    errors = []
    for exponent in (top, top - 1):
        step = 2.0**exponent
        # What masks add may be the least number that there is.
        with np.errstate(over="ignore"):
            square = np.square(np.clip(np.rint(values / step), LOW, HIGH) * step - values)
            errors.append((float(square.mean()), exponent))
    return min(errors)[1]


def holding_exponent(largest: float) -> int:
    """The least exponent whose int8 numbers reach a magnitude; of 0, and of what is not finite, 0."""
    if largest == 0 or not math.isfinite(largest):
        return 0
    return math.ceil(math.log2(largest / HIGH) - 1e-9)


# QDQ -------------------------------------------------------------------------------------------
def nearest_exponent(scale: float) -> int:
    """The exponent of the power of two nearest to a scale, in ratio."""
    return round(math.log2(scale))


def covering_exponent(largest: float) -> int:
    """The least exponent whose int8 numbers reach what has to be of a range's ``largest`` magnitude."""
    return math.ceil(math.log2(_COVERED * largest / HIGH))


def int8(array: Array, exponent: int) -> NDArray[np.int8]:
    # Exact in float32: the scale is a power of two, and what is clipped away may as well be infinite.
    # Of a scalar, functions of numpy make no array unless they are told where to put it.
    scaled = np.asarray(np.ldexp(array.astype(np.float32, copy=False), -exponent))
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
