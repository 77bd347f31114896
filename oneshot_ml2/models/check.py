"""Compiled layers, and a compiled model launch by launch, held against the integer reference."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import execute, operators
from oneshot_ml2.models.executable import Executable
from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.launcher import watched
from oneshot_ml2.models.layout import Segment
from oneshot_ml2.models.runtime import LayerProgram
from oneshot_ml2.vta import image

if TYPE_CHECKING:
    from oneshot_ml2.network.picking import Pick
    from oneshot_ml2.workload.lists import Layer

# Float operators without rounding; what the others' last bits change, an int8 step that flips amplifies.
_EXACT = {*operators.SHAPING, "max_pool2d", "relu", "clip"}
FLOAT_TOLERANCE = 0.05
# Of int8: what rounding makes of a last bit, and a sum on the host of that.
_STEPS = 2


@dataclass(frozen=True)
class Checked:
    """What a run of the compiled model was held against: the integer reference of the same graph.

    ``layers``: layer -> outputs of its program alone that differ, its operands being the reference's; ``submissions``:
    the same of each submission's joined programs; ``outputs``: elements of the whole model's outputs that differ;
    ``largest``: the largest such difference; ``allowed``: how large it may be, 0 unless the host computes real numbers
    whose last bits depend on its compiler.

    In that case a last bit can decide an int8 step, and what follows from it is no error of anyone; so every submission
    gives the reference's results to the host there. ``flips``: elements that the host hands to submissions and that
    differ all the same; ``steps``: by how many steps of int8 at most.
    """

    layers: Mapping[str, int]
    submissions: tuple[int, ...]
    outputs: int
    largest: float
    allowed: float
    flips: int = 0
    steps: int = 0

    @property
    def ok(self) -> bool:
        """All layers and submissions are exact, and so is the model, as far as it consists of integers."""
        exact = not any((*self.layers.values(), *self.submissions))
        return exact and self.largest <= self.allowed and self.steps <= _STEPS


def check_alone(layer: Layer, pick: Pick, seed: int) -> int:
    """Execute a layer's program on random tensors: how many elements of its result differ from the reference."""
    workload = layer.workload
    tensors = workload.random_inputs(np.random.default_rng([seed, zlib.crc32(layer.name.encode())]))
    expected = workload.reference(tensors)
    result = image.execute(pick.program, workload, tensors)
    if result.shape != expected.shape or result.dtype != expected.dtype:
        return int(expected.size)
    return int(np.count_nonzero(result != expected))


def is_exact(nodes: Iterable[Node]) -> bool:
    """Whether nothing that nodes compute depends on how floats are rounded."""
    return not any(node.op in operators.FLOAT and node.op not in _EXACT for node in nodes)


def check_executable(
    graph: Graph,
    compiled: Executable,
    segments: Sequence[Segment],
    programs: Mapping[str, LayerProgram],
    sample: Mapping[str, NDArray[Any]],
) -> Checked:
    """Hold each layer alone, each submission, and the whole model against the integer reference; see `Checked`.

    ``segments``: what the submissions of ``compiled`` consist of; ``programs``: output of a node -> its layer.
    """
    layers: dict[str, int] = {}
    makers = graph.producers()
    seen: dict[str, NDArray[Any]] = {}
    # What goes between host and VTA stays until the submissions are looked at.
    border = {name for segment in segments for name in (*segment.outputs, *(item[0] for item in segment.inputs))}
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    order = {node.output: index for index, node in enumerate(graph.nodes)}

    def observe(name: str, array: NDArray[Any]) -> None:
        seen[name] = array
        if name in programs:
            node = makers[name]
            (result,) = programs[name].run([seen[operand] for operand in node.inputs])
            layers[node.name] = int(np.count_nonzero(result != array))
        for done in [kept for kept in seen if kept not in border and last.get(kept, -1) <= order.get(name, -1)]:
            del seen[done]

    expected = execute.execute(graph, sample, observe)
    submissions = []
    for segment, program in zip(segments, compiled.segments, strict=True):
        results = program.run([seen[name] for name, _ in segment.inputs])
        wrong = (np.count_nonzero(result != seen[name]) for result, name in zip(results, segment.outputs))
        submissions.append(int(sum(wrong)))
    exact = is_exact(graph.nodes)
    flips = steps = 0

    def force(number: int, operands: Sequence[NDArray[Any]], results: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        nonlocal flips, steps
        for (name, _), operand in zip(segments[number].inputs, operands, strict=True):
            apart = np.abs(operand.astype(np.int16) - seen[name])
            flips += int(np.count_nonzero(apart))
            steps = max(steps, int(apart.max(initial=0)))
        return [seen[name] for name in segments[number].outputs]

    with contextlib.nullcontext() if exact else watched(compiled.identity, force):
        result = compiled.run(sample)
    difference = [
        np.abs(result[title].astype(np.float64) - expected[name])
        for title, name in zip(graph.output_names, graph.outputs)
    ]
    scale = max(float(np.abs(array).max()) for array in expected.values())
    return Checked(
        layers=layers,
        submissions=tuple(submissions),
        outputs=sum(int(np.count_nonzero(part)) for part in difference),
        largest=max(float(part.max()) for part in difference),
        allowed=0.0 if exact else FLOAT_TOLERANCE * scale,
        flips=flips,
        steps=steps,
    )
