"""Calibration data: what users give, or random samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import ir
from oneshot_ml2.models.ir import Graph, Value

Array: TypeAlias = NDArray[Any]
Sample: TypeAlias = Mapping[str, Array]
# Values of a tensor that the choice of its exponent looks at.
_SAMPLED = 1 << 15
# Random inputs that stand in for calibration data.
RANDOM_SAMPLES = 2


def split_samples(graph: Graph, data: Array | Sample | Sequence[Sample]) -> list[dict[str, Array]]:
    """Calibration data as inputs of the model: a list of them, or arrays that hold many along their first axis.

    Raises:
        ModelError: names or shapes that are not the model's.
    """
    if isinstance(data, Sequence):
        return [dict(ir.check_inputs(graph, sample)) for sample in data]
    if not isinstance(data, Mapping):
        if len(graph.inputs) != 1:
            raise ModelError(f"calibration data needs the names of the inputs: {', '.join(graph.inputs)}; use .npz")
        data = {graph.inputs[0]: data}
    if set(data) != set(graph.inputs):
        raise ModelError(f"calibration data has {', '.join(data)}; the model takes {', '.join(graph.inputs)}")
    counts = set()
    for name, array in data.items():
        shape = graph.values[name].shape
        if array.shape[1:] != shape[1:] or not len(array) or len(array) % shape[0]:
            raise ModelError(
                f"calibration data for {name!r} has shape {array.shape}; allowed: a multiple of the first of {shape}"
            )
        counts.add(len(array) // shape[0])
    if len(counts) > 1:
        raise ModelError("calibration data holds different numbers of inputs; give as many of each")
    samples = []
    for index in range(counts.pop()):
        sizes = {name: graph.values[name].shape[0] for name in data}
        part = {name: array[index * sizes[name] : (index + 1) * sizes[name]] for name, array in data.items()}
        samples.append(dict(ir.check_inputs(graph, part)))
    return samples


def random_samples(graph: Graph, count: int, seed: int) -> list[dict[str, Array]]:
    """Standard normal inputs by name; where indices are taken, uniform ones."""
    rng = np.random.default_rng(seed)

    def draw(value: Value) -> Array:
        if value.limit is not None:
            # What is no index is mostly a mask, of zeros and ones.
            return rng.integers(0, 2 if value.limit == ir.WHOLE else value.limit, value.shape)
        return rng.standard_normal(value.shape, dtype=np.float32)

    return [{name: draw(graph.values[name]) for name in graph.inputs} for _ in range(count)]


def drawn_values(array: Array) -> Array:
    """Elements of a tensor at even distances, about as many as a choice of exponents looks at."""
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLED)].copy()
