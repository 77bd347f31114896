"""A compiled model held against its integer reference, launch by launch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models import execute, operators
from oneshot_ml2.models.compiled import Checked
from oneshot_ml2.models.executable import Executable
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.launcher import watched
from oneshot_ml2.models.layout import Segment
from oneshot_ml2.models.runtime import LayerProgram

# Float operators without rounding; what the others' last bits change, an int8 step that flips amplifies.
_EXACT = {*operators.SHAPING, "max_pool2d", "relu", "clip"}
_FLOAT_TOLERANCE = 0.05


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
    inexact = any(node.op in operators.FLOAT and node.op not in _EXACT for node in graph.nodes)
    flips = steps = 0

    def force(number: int, operands: Sequence[NDArray[Any]], results: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        nonlocal flips, steps
        for (name, _), operand in zip(segments[number].inputs, operands, strict=True):
            apart = np.abs(operand.astype(np.int16) - seen[name])
            flips += int(np.count_nonzero(apart))
            steps = max(steps, int(apart.max(initial=0)))
        return [seen[name] for name in segments[number].outputs]

    with watched(compiled.identity, force) if inexact else contextlib.nullcontext():
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
        allowed=_FLOAT_TOLERANCE * scale if inexact else 0.0,
        flips=flips,
        steps=steps,
    )
