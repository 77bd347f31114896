"""Random samples in place of calibration data, and what is drawn of a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models.ir import WHOLE, Graph, Value

Array: TypeAlias = NDArray[Any]
Sample: TypeAlias = Mapping[str, Array]
# Values of a tensor that the choice of its exponent looks at.
_SAMPLED = 1 << 15
# Samples up to which so many are drawn of each.
_WHOLE = 8
# Random inputs that stand in for calibration data.
RANDOM_SAMPLES = 2


def random_samples(graph: Graph, count: int, seed: int) -> list[dict[str, Array]]:
    """Standard normal inputs by name; where indices are taken, uniform ones."""
    rng = np.random.default_rng(seed)

    def draw(value: Value) -> Array:
        if value.limit is not None:
            # What is no index is mostly a mask, of zeros and ones.
            return rng.integers(0, 2 if value.limit == WHOLE else value.limit, value.shape)
        return rng.standard_normal(value.shape, dtype=np.float32)

    return [{name: draw(graph.values[name]) for name in graph.inputs} for _ in range(count)]


def drawn_places(shape: Sequence[int], samples: int = 1) -> NDArray[np.int64]:
    """Places in a tensor as a line, at even distances: about as many as a choice of exponents looks at.

    ``samples``: of how many such tensors they are drawn; of many, fewer each, so that memory does not grow with them.
    """
    size = math.prod(shape)
    return np.arange(0, size, max(1, size * max(samples, _WHOLE) // (_WHOLE * _SAMPLED)))


def drawn_values(array: Array, samples: int = 1) -> Array:
    """Elements of a tensor at such places."""
    return array.reshape(-1)[drawn_places(array.shape, samples)]
