"""Dimensions that an ONNX file leaves free: the batch is 1, and others are asked for by a command that can be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from graph_models import needs
from onnx_models import Shape, write

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.from_onnx import import_onnx

needs("tvm", "onnx")

RELU = [("Relu", ["x"], ["y"], {})]
SUM = [("Add", ["a", "b"], ["y"], {})]


def inputs(graph: Any) -> dict[str, tuple[int, ...]]:
    return {name: graph.values[name].shape for name in graph.inputs}


@pytest.mark.parametrize("batch", ["N", None, 0])
def test_a_free_batch_becomes_one_and_that_is_said(batch: Any, tmp_path: Path) -> None:
    graph = import_onnx(write(tmp_path / "m.onnx", RELU, {"x": (batch, 3, 8, 8)}))
    assert inputs(graph) == {"x": (1, 3, 8, 8)}
    (note,) = graph.notes
    assert note == f"the batch of input 'x' ({batch or '?'}, 3, 8, 8) is free, and was fixed at 1"
    fixed = import_onnx(tmp_path / "m.onnx", {"x": (4, 3, 8, 8)})
    assert inputs(fixed) == {"x": (4, 3, 8, 8)} and fixed.notes == ()


def test_a_batch_that_two_inputs_share(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", SUM, {"a": ("N", 4), "b": ("N", 4)})
    assert inputs(import_onnx(path)) == {"a": (1, 4), "b": (1, 4)}
    # What is given for one of them serves the other.
    assert inputs(import_onnx(path, {"b": (2, 4)})) == {"a": (2, 4), "b": (2, 4)}


def test_question_marks_are_no_name(tmp_path: Path) -> None:
    """Paddle's exporter calls every free dimension so."""
    path = write(tmp_path / "m.onnx", RELU, {"x": ("?", 3, "?", "?")})
    assert inputs(import_onnx(path, {"x": (1, 3, 48, 192)})) == {"x": (1, 3, 48, 192)}


FREE: list[tuple[dict[str, Shape], str]] = [
    (
        {"x": ("N", 3, "height", None)},
        "dimensions 2 and 3 of input 'x' (1, 3, height, ?) are free; give sizes in place of the names in: "
        "oneshot-ml2 compile {path} --shape x=1,3,HEIGHT,N1",
    ),
    ({"x": (1, "s0")}, "dimension 1 of input 'x' (1, s0) is free; give sizes"),
    # A first dimension that is another one's length is no batch.
    (
        {"a": ("length", 1), "b": (1, "length")},
        "dimension 0 of input 'a' (length, 1) and dimension 1 of input 'b' (1, length) are free; give sizes in place "
        "of the names in: oneshot-ml2 compile {path} --shape a=LENGTH,1 --shape b=1,LENGTH",
    ),
    ({"x": None}, "input 'x' has no shape, not even a number of dimensions"),
]


@pytest.mark.parametrize(("shapes", "says"), FREE)
def test_other_free_dimensions_are_asked_for(shapes: dict[str, Shape], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", RELU if "x" in shapes else SUM, shapes)
    with pytest.raises(ModelError) as caught:
        import_onnx(path)
    assert str(caught.value).startswith(f"{path}: {says.format(path=path)}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"z": (1, 3)}, "no input 'z'. There are: x"),
        ({"x": (1, 3, 8)}, "has 3 axes; the model's (N, 3, H, H)"),
        ({"x": (1, 4, 8, 8)}, "does not fit: the model's is (1, 3, H, H)"),
        ({"x": (1, 3, 8, 9)}, "does not fit: its H is 8 elsewhere"),
        ({"x": (1, 3, 0, 0)}, "is none; allowed: numbers above 0"),
    ],
)
def test_shapes_that_do_not_fit(given: dict[str, tuple[int, ...]], says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", RELU, {"x": ("N", 3, "H", "H")})
    with pytest.raises(ModelError) as caught:
        import_onnx(path, given)
    assert says in str(caught.value)


def test_no_shape_of_its_own_is_given_one(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", RELU, {"x": None})
    assert inputs(import_onnx(path, {"x": (1, 3)})) == {"x": (1, 3)}


def test_stale_shapes_inside_are_inferred_anew(tmp_path: Path) -> None:
    import onnx

    nodes = [("Shape", ["x"], ["s"], {}), ("Reshape", ["x", "s"], ["y"], {})]
    path = write(tmp_path / "m.onnx", nodes, {"x": ("N", 3, "H", "W")})
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    graph = import_onnx(path, {"x": (2, 3, 4, 5)})
    assert graph.values[graph.outputs[0]].shape == (2, 3, 4, 5)


def test_the_command_takes_shapes(tmp_path: Path, run_command: RunCommand) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
    nodes = [("Conv", ["input:0", "w"], ["y"], {"pads": [1] * 4})]
    path = write(tmp_path / "m.onnx", nodes, {"input:0": ("N", 16, "H", "W")}, {"w": weight})
    code, _, err = run_command("compile", path)
    assert code == 2 and "--shape input:0=1,16,H,W" in err
    for given, says in (
        (["x"], "--shape is 'x'; allowed: an input and its sizes"),
        (["x=1,a"], "--shape is 'x=1,a'"),
        (["x=1", "x=2"], "--shape is given twice for input 'x'"),
    ):
        options = [part for shape in given for part in ("--shape", shape)]
        code, _, err = run_command("compile", path, *options)
        assert code == 2 and says in err
    code, _, err = run_command("compile", "resnet18", "--shape", "x=1,3,32,32")
    assert code == 2 and "shapes are those of an ONNX file's inputs" in err
    code, out, err = run_command("compile", path, "--shape", "input:0=1,16,8,8")
    assert code == 0, err
    code, out, err = run_command("compile", write(path, nodes, {"input:0": ("N", 16, 8, 8)}, {"w": weight}))
    assert code == 0 and "the batch of input 'input:0' (N, 16, 8, 8) is free, and was fixed at 1" in out
