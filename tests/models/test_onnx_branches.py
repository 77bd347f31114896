"""Both branches of conditions that depend on the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import computed, wanted, write

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.from_onnx import import_onnx

SHAPE = (1, 16, 4, 4)
X = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
# Whether the input's sum is above a bound, as one element of rank 2.
CONDITION = [("ReduceSum", ["x"], ["n"], {"keepdims": 0}), ("Greater", ["n", "bound"], ["g"], {}),
             ("Reshape", ["g", "two"], ["t"], {})]  # fmt: skip


def branch(operator: str, factor: float, shape: Any = SHAPE, inner: Any = (), names: str = "fmr") -> Any:
    """A factor, and an operator behind it, by one-letter ``names``; ``inner``: nodes behind that."""
    f, m, r = names
    nodes = [helper.make_node("Mul", ["x", f], [m]), helper.make_node(operator, [m], [r]), *inner]
    result = nodes[-1].output[0]
    constant = numpy_helper.from_array(np.float32(factor), f)
    return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(result, 1, shape)], [constant])


def model(path: Path, bound: float, first: Any, second: Any) -> Path:
    nodes = [*CONDITION, ("If", ["t"], ["c"], {"then_branch": first, "else_branch": second}), ("Abs", ["c"], ["y"], {})]
    constants = {"bound": np.float32(bound), "two": np.array([1, 1], dtype=np.int64)}
    return write(path, nodes, {"x": SHAPE}, constants)


@pytest.mark.parametrize("bound", [-1e6, 1e6])
@pytest.mark.parametrize("nested", [False, True])
def test_the_results_of_one_branch_are_taken(bound: float, nested: bool, tmp_path: Path) -> None:
    halves = {
        "then_branch": branch("Neg", 3.0, names="jkl"), "else_branch": branch("Exp", 0.5, names="jkl"),
    }  # fmt: skip
    inner = [helper.make_node("If", ["t"], ["v"], **halves), helper.make_node("Add", ["v", "r"], ["w"])]
    path = model(tmp_path / "m.onnx", bound, branch("Relu", 2.0, inner=inner if nested else ()), branch("Neg", 0.5))
    graph = import_onnx(path)
    np.testing.assert_allclose(computed(graph, {"x": X})[0], wanted(path, {"x": X})[0], rtol=1e-5)
    count = 1 + nested
    assert len(graph.notes) == 1 and graph.notes[0].startswith(f"both branches of {count} conditions (If '/c/If'")


def test_branches_of_different_shapes_are_refused(tmp_path: Path) -> None:
    summed = [helper.make_node("ReduceSum", ["r"], ["s"], keepdims=1)]
    path = model(tmp_path / "m.onnx", 0.0, branch("Relu", 2.0), branch("Neg", 0.5, (1, 1, 1, 1), summed))
    with pytest.raises(ModelError, match=r"operator If \(node '/c/If'\) gives 'c' of a shape or type that depends"):
        import_onnx(path)


def test_a_scalar_condition_of_an_input(tmp_path: Path) -> None:
    nodes = [("If", ["t"], ["y"], {"then_branch": branch("Relu", 2.0), "else_branch": branch("Neg", 0.5)})]
    path = write(tmp_path / "m.onnx", nodes, {"x": SHAPE, "t": ()}, kinds={"t": TensorProto.BOOL})
    graph = import_onnx(path)
    for truth in (False, True):
        given = {"x": X, "t": np.array(truth)}
        np.testing.assert_allclose(computed(graph, given)[0], wanted(path, given)[0], rtol=1e-5)
