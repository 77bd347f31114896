"""How a compiled model's task is judged: data with labels or outputs beside the inputs, and figures of known values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from graph_models import needs

import oneshot_ml2 as o2
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import task
from oneshot_ml2.models.task import Data, OutputTask

EXPECTED: dict[str, tuple[tuple[int, ...], int | None]] = {"x": ((1, 3), None)}
SHAPES = {"y": (1, 4), "z": (1, 2, 5)}
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def fit(given: Any) -> Data:
    return task.fit(given, EXPECTED, SHAPES)


def judged(own: Any, real: Any, labels: Any = None, right: Any = None, shape: tuple[int, ...] = (1, 4)) -> OutputTask:
    """The figures of one output, of so many samples' values."""
    inputs = [{"x": np.full((1, 1), index, np.float32)} for index in range(len(own))]

    def taken(values: Any) -> Any:
        return lambda sample: {"y": np.array(values[int(sample["x"][0, 0])], np.float32).reshape(shape)}

    parts = None if labels is None else [np.array(label) for label in labels]
    expected = None if right is None else [{"y": np.array(of, np.float32).reshape(shape)} for of in right]
    data = Data("data", inputs, parts, expected)
    found = task.judge(data, {"y": shape}, taken(own), taken(real), {})
    assert (found.samples, found.source, found.calibrated) == (len(own), "data", False)
    return found.outputs[0]


def test_figures_of_a_classifier() -> None:
    real = [[3, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 2, 1]]
    own = [[3, 1, 0, 0], [0, 2, 0, 0], [0, 2, 1, 0], [0, 0, 1, 2]]
    found = judged(own, real, labels=[[0], [1], [2], [3]])
    assert (found.agreement, found.accuracy, found.float_accuracy) == (0.5, 0.75, 0.75)
    # 4 of the third sample, 1 + 1 of the last; of 10 + 4 + 1 + 5.
    assert found.error == pytest.approx((6 / 20) ** 0.5)
    assert found.least == pytest.approx(1 / 5**0.5) and found.cosine == pytest.approx((2 + 1 / 5**0.5 + 4 / 5) / 4)
    assert found.expected is None


def test_figures_against_what_is_right() -> None:
    found = judged([[1, 0, 0, 0]], [[2, 0, 0, 0]], right=[[4, 0, 0, 0]])
    assert (found.expected, found.float_expected, found.error) == (0.75, 0.5, 0.5)
    assert found.accuracy is None


@pytest.mark.parametrize(("shape", "labels"), [((1, 2, 3), [[2, 0]]), ((1, 3, 2), [[2, 0]])])
def test_labels_of_rows_along_either_axis(shape: tuple[int, ...], labels: list[list[int]]) -> None:
    """One class a row: of the second axis, or of the last."""
    scores = np.array([[0, 1, 2], [3, 1, 0]], np.float32)
    values = scores if shape[2] == 3 else scores.T
    found = judged([values], [values], labels=labels, shape=shape)
    assert (found.accuracy, found.float_accuracy) == (1.0, 1.0)


def test_an_output_of_zeros() -> None:
    same, other = judged([[0] * 4], [[0] * 4]), judged([[1, 0, 0, 0]], [[0] * 4])
    assert (same.error, same.cosine, other.error, other.cosine) == (0.0, 1.0, 1.0, 0.0)


def test_data_of_every_form(tmp_path: Path) -> None:
    labels, z = np.array([0, 1, 2, 3]), np.arange(40, dtype=np.float32).reshape(4, 2, 5)
    plain = fit(X)
    assert len(plain.inputs) == 4 and plain.labels is None and plain.expected is None
    np.savez(tmp_path / "d.npz", x=X, labels=labels, z=z)
    for given in (tmp_path / "d.npz", {"x": X, "labels": labels, "z": z}, _listed(labels, z)):
        found = fit(given)
        assert [int(label.item()) for label in found.labels or ()] == [0, 1, 2, 3]
        assert [int(part["z"][0, 0, 0]) for part in found.expected or ()] == [0, 10, 20, 30]
        assert np.array_equal(found.inputs[3]["x"], X[3:])


def _listed(labels: Any, z: Any) -> list[Mapping[str, Any]]:
    return [{"x": X[[i]], "labels": labels[[i]], "z": z[[i]]} for i in range(4)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": X, "label": [0]}, "data to evaluate: 'label' is no input and no output; allowed: x, labels, y, z"),
        ({"x": X, "labels": [0, 1, 2]}, r"data to evaluate: labels has shape \(3,\) for 4 samples; give one for each"),
        ({"x": X, "labels": [0, 1, 2, 0.5]}, "labels hold other values than whole numbers from 0 on"),
        ({"x": X, "labels": ["a"] * 4}, "data to evaluate: labels is <U1; allowed: numbers"),
        ({"x": X, "y": np.zeros((4, 3))}, r"y has shape \(4, 3\) for 4 samples; one has \(1, 4\)"),
        ({"labels": [1]}, "data to evaluate: inputs are none; the model takes x"),
        ([{"x": X[:1], "labels": [1]}, {"x": X[:1]}], "come with some samples only; give them with all or none"),
        ([], "data to evaluate is empty; give at least one sample"),
    ],
)
def test_data_that_does_not_fit(given: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        fit(given)


def test_labels_that_fit_no_output() -> None:
    with pytest.raises(ModelError, match=r"3 labels a sample fit none of the outputs \(y 1x4\)"):
        judged([[0] * 4], [[0] * 4], labels=[[0, 1, 2]])
    with pytest.raises(ModelError, match="a label is 4; the output 'y' has the classes 0 to 3"):
        judged([[0] * 4], [[0] * 4], labels=[[4]])


def test_a_task_is_what_its_report_holds() -> None:
    found = task.judge(Data("d", [{"x": X}]), {"y": (1, 4)}, lambda x: {"y": X}, lambda x: {"y": X}, {"x": X})
    assert found.calibrated
    again = task.from_dict(json.loads(json.dumps(dataclasses.asdict(found))))
    assert again == found
    assert task.lines(found) == [
        "Task: 1 sample of d, beside the float model.",
        "  y: same largest element 100.00%; relative error 0.00%, cosine 1.0000 (least 1.0000).",
        "  A sample of the calibration is among these: judge by others, or the figures are too good.",
    ]


def test_compile_judges(tmp_path: Path, run_command: RunCommand) -> None:
    """By command and from Python, in every report; judged is what runs, beside the float model."""
    needs("tvm", "onnx")
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5)).eval()
    x = np.random.default_rng(0).standard_normal((12, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        real = net(torch.from_numpy(x[8:])).numpy()
    path = tmp_path / "m.onnx"
    torch.onnx.export(net, (torch.from_numpy(x[:1]),), str(path), input_names=["x"], output_names=["y"], dynamo=False)
    np.save(tmp_path / "calibration.npy", x[:8])
    np.savez(tmp_path / "judged.npz", x=x[8:], labels=real.argmax(1), y=real)
    out = tmp_path / "build"
    code, text, err = run_command(
        "compile", path, "--calibration", tmp_path / "calibration.npy", "--evaluate", tmp_path / "judged.npz", "-o", out
    )
    assert code == 0, err
    report = json.loads((out / "report.json").read_text())
    found = task.from_dict(report["task"])
    (output,) = found.outputs
    assert (found.samples, output.name, output.float_accuracy, found.calibrated) == (4, "y", 1.0, False)
    assert output.float_expected is not None and output.float_expected < 1e-5
    model = o2.load(out)
    own = np.concatenate([model.run(image[None])["y"] for image in x[8:]])
    assert output.error == pytest.approx(float(np.linalg.norm(own - real) / np.linalg.norm(real)), rel=1e-4)
    assert output.accuracy == float((own.argmax(1) == real.argmax(1)).mean())
    assert "evaluate" in report["seconds"]
    assert all(line in text for line in task.lines(found))
    assert "Task: 4 samples of " in (out / "report.html").read_text()
    code, _, err = run_command("compile", path, "--layers", "*", "--evaluate", tmp_path / "judged.npz")
    assert code == 2 and "layers have no task; evaluate a whole model" in err
