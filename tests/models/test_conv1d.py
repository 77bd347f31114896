"""One-dimensional convolutions: on the VTA as images of height 1, with what follows them fused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_models import needs

import oneshot_ml2 as o2
from oneshot_ml2.models import partition
from oneshot_ml2.models.execute import execute
from oneshot_ml2.models.frontend.importer import import_model
from oneshot_ml2.models.quantize.quantize import quantize

needs("tvm", "torch", "onnx", "onnxruntime")


def net() -> Any:
    """Keyword spotting in small: a strided, a dilated and a depthwise convolution, a residual, a dense layer."""
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(4, 16, 5, stride=2, padding=2, bias=False)
            self.norm = nn.BatchNorm1d(16)
            self.wide = nn.Conv1d(16, 16, 3, padding=2, dilation=2)
            self.deep = nn.Conv1d(16, 16, 3, padding=1, groups=16)
            self.head = nn.Linear(16 * 20, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.stem(x)))
            x = torch.relu(self.wide(x) + x)
            return self.head(self.deep(x).flatten(1))  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Net().eval()
        nn.init.uniform_(model.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(model.norm.running_var, 0.5, 2.0)
    return model


X = np.random.default_rng(0).standard_normal((8, 4, 40), dtype=np.float32)


@pytest.fixture(scope="module")
def module() -> Any:
    return net()


def test_its_layers_are_the_vtas(module: Any) -> None:
    import torch

    graph = import_model(module, (torch.from_numpy(X[:1]),))
    with torch.no_grad():
        wanted = module(torch.from_numpy(X[:1])).numpy()
    (found,) = execute(graph, {graph.inputs[0]: X[:1]}).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    integer = quantize(graph, calibration=X).graph
    on_vta = [node.name for node in integer.nodes if partition.host_reason(node) is None]
    assert on_vta == ["stem", "wide", "deep", "head"]
    # Where integers begin and end the host scales the channels.
    others = {partition.host_reason(node) for node in integer.nodes if node.op != "multiply"} - {None}
    assert others <= {"float32 meets int8", "int8 meets float32", "moves data only"}
    # Bias, normalization, residual and ReLU are theirs.
    stem, wide, *_ = (node for node in integer.nodes if node.name in on_vta)
    assert stem.attrs["clip"][0] == wide.attrs["clip"][0] == 0
    assert wide.attrs["residual_shift"] is not None


def test_a_compiled_one_runs(module: Any, tmp_path: Path) -> None:
    import onnxruntime
    import torch

    path = tmp_path / "m.onnx"
    with torch.no_grad():
        torch.onnx.export(module, (torch.from_numpy(X[:1]),), path, input_names=["x"], dynamo=False)
    (wanted,) = onnxruntime.InferenceSession(path).run(None, {"x": X[:1]})
    model = o2.compile(path, "pynq", calibration=X)
    (found,) = model.run({"x": X[:1]}).values()
    (reference,) = execute(model.graph, {"x": X[:1]}).values()
    np.testing.assert_array_equal(found, reference)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)
