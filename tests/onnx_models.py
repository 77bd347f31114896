"""Small ONNX models for tests, written node by node, and what they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models.execute import execute
from oneshot_ml2.models.ir import Graph

Array: TypeAlias = NDArray[Any]
# Of numbers, names of free dimensions, and None for those that have no name; None: not even a number of dimensions.
Shape: TypeAlias = Sequence[Any] | None
# Operator, operands, results, attributes.
Nodes: TypeAlias = Sequence[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]]


def write(
    path: Path,
    nodes: Nodes,
    inputs: Mapping[str, Shape],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    kinds: Mapping[str, int] | None = None,
    outputs: Sequence[str] = ("y",),
    functions: Sequence[Any] = (),
) -> Path:
    """Save a model; ``kinds``: types of inputs and outputs (TensorProto's) that are not float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def info(name: str, shape: Shape) -> Any:
        return helper.make_tensor_value_info(name, (kinds or {}).get(name, TensorProto.FLOAT), shape)

    made = []
    for op, operands, results, attributes in nodes:
        domain, _, kind = op.rpartition("::")
        name = f"/{results[0]}/{kind}"
        made.append(helper.make_node(kind, operands, results, name, domain=domain, **attributes))
    graph = helper.make_graph(
        made,
        "g",
        [info(name, shape) for name, shape in inputs.items()],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    domains = {"": opset, "com.microsoft": 1} | {function.domain: 1 for function in functions}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions)), path)
    return path


def wanted(path: Path, inputs: Mapping[str, Array]) -> list[Array]:
    """The outputs by ONNX's own evaluator."""
    from onnx.reference import ReferenceEvaluator

    return [np.asarray(array) for array in ReferenceEvaluator(str(path)).run(None, dict(inputs))]


def computed(graph: Graph, inputs: Mapping[str, Array]) -> list[Array]:
    """The outputs of a graph of floats or integers."""
    return list(execute(graph, inputs).values())


def relative(found: Array, expected: Array) -> float:
    """Root mean square of the difference, relative to what is expected."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
