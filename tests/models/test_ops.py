"""Every operator that a model may have: as ONNX defines it, what quantization costs, and groups of them compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_models import needs
from op_cases import GROUPS, Case, written

import oneshot_ml2 as o2
from oneshot_ml2.models import partition
from oneshot_ml2.models.execute import execute
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.quantize.quantize import quantize

needs("tvm", "onnx", "onnxruntime")

CASES = {name: case for group in GROUPS.values() for name, case in group.items()}
# Where a rounding turns a result over, or squares and exponentials magnify it.
ROUGH = {
    "Floor", "Ceil", "Round", "Sign", "Mod", "Mod of whole", "Div of whole", "Cast to whole", "Cast to truth", "Exp",
    "Greater, Where", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "And", "Or", "Xor", "Not", "ArgMax",
    "ArgMax without", "ArgMin", "OneHot", "Hardmax", "TopK", "TopK least", "Gather computed", "ReduceProd ",
    "ReduceProd kept", "ReduceProd 18", "CumSum", "CumSum backwards", "ThresholdedRelu", "Shrink",
}  # fmt: skip


def samples(case: Case, count: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((count * case.shape[0], *case.shape[1:]), dtype=np.float32)


def wanted(model: Any, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(array, dtype=np.float64) for array in session.run(None, {"x": x})]


def error(found: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(found - right) / max(float(np.linalg.norm(right)), 1e-9))


@pytest.mark.parametrize("name", CASES)
def test_as_onnx_defines_it(name: str, tmp_path: Path) -> None:
    import onnx

    case = CASES[name]
    model, x = written([case]), samples(case, 4)
    onnx.save(model, tmp_path / "m.onnx")
    graph = import_onnx(tmp_path / "m.onnx")
    first = x[: case.shape[0]]
    right = wanted(model, first)
    found = list(execute(graph, {"x": first}).values())
    for array, other in zip(found, right, strict=True):
        assert array.shape == other.shape
        np.testing.assert_allclose(array, other, rtol=1e-3, atol=1e-4)
    integer = quantize(graph, x).graph
    assert partition.host_shares(integer) == {}
    if name not in ROUGH:
        found = list(execute(integer, {"x": first}).values())
        assert max(error(array, other) for array, other in zip(found, right, strict=True)) < 0.12


# Cases that are compiled together, behind one convolution.
TOGETHER = {
    name: [case for case in group.values() if case.opset == 17 and case.image]
    for name, group in GROUPS.items()
    if name not in ("layers", "recurrent")
}


@pytest.mark.slow
@pytest.mark.parametrize("group", TOGETHER)
def test_compiled_as_the_reference_computes(group: str, tmp_path: Path) -> None:
    import onnx

    cases = TOGETHER[group]
    onnx.save(written(cases), tmp_path / "m.onnx")
    x = samples(cases[0], 4)
    model = o2.compile(tmp_path / "m.onnx", "pynq", calibration=x)
    assert all(not layer.wrong for layer in model.layers)
    found, right = model.run(x[:1]), execute(model.graph, {"x": x[:1]})
    for title, name in zip(model.graph.output_names, model.graph.outputs, strict=True):
        if group == "moves":
            np.testing.assert_array_equal(found[title], right[name])
        else:
            assert error(found[title], right[name]) < 0.02, title
