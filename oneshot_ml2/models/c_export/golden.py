"""A golden run: an input, what the integer reference makes of it, and what each submission is given and gives."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import operators
from oneshot_ml2.models.check import FLOAT_TOLERANCE, is_exact
from oneshot_ml2.models.executable import Tensor
from oneshot_ml2.models.hostpart import HostPart, Launch
from oneshot_ml2.models.runtime import LayerProgram


@dataclass(frozen=True)
class Golden:
    """``content``: inputs, operands of the submissions from the host, outputs, one after another; ``results``: of each
    submission the checksum of what it gives; ``tolerance``: by how much the outputs may differ."""

    content: bytes
    results: tuple[int, ...]
    tolerance: float


# (number of a submission, its operands) -> its results.
Launcher: TypeAlias = Callable[[int, Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]


def reference(host: HostPart, inputs: Mapping[str, NDArray[Any]], launch: Launcher) -> list[NDArray[np.float32]]:
    """The outputs, by numpy and, of submissions, by ``launch``."""
    alive: dict[str, NDArray[Any]] = {**host.constants, **inputs}
    last = {name: index for index, step in enumerate(host.steps) for name in step.inputs}
    for index, step in enumerate(host.steps):
        operands = [alive[name] for name in step.inputs]
        if isinstance(step, Launch):
            alive |= dict(zip(step.outputs, launch(step.number, operands), strict=True))
        else:
            alive[step.output] = operators.compute(step, operands, host.values[step.output].shape)
        for name in set(step.inputs):
            if last[name] == index and name not in host.outputs:
                alive.pop(name, None)
    return [np.ascontiguousarray(alive[name], dtype=np.float32) for name in host.outputs]


def golden(
    host: HostPart, inputs: Sequence[Tensor], segments: Sequence[LayerProgram], dram: NDArray[np.uint8], seed: int = 0
) -> Golden:
    """Run random inputs through the integer reference and the functional simulator.

    Args:
        dram: the image of all programs, which the run changes.
    """
    rng = np.random.default_rng(seed)
    given = {
        name: rng.standard_normal(tensor.shape, dtype=np.float32)
        if tensor.limit is None
        else rng.integers(0, tensor.limit, tensor.shape).astype(np.float32)
        for name, tensor in zip(host.inputs, inputs, strict=True)
    }
    parts = [array.tobytes() for array in given.values()]
    results: list[int] = []

    def launch(number: int, operands: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        parts.extend(np.ascontiguousarray(operand).tobytes() for operand in operands)
        made = segments[number].launch(dram, operands)
        crc = 0
        for array in made:
            crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
        results.append(crc)
        return made

    outputs = reference(host, given, launch)
    scale = max(float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in outputs)
    tolerance = 0.0 if is_exact(host.nodes) else FLOAT_TOLERANCE * scale
    return Golden(b"".join([*parts, *(array.tobytes() for array in outputs)]), tuple(results), tolerance)
