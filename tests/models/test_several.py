"""Several files of one model: whose an option is, and a folder for each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCommand
from graph_models import needs

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.models import several

MODELS = {"encoder": "in/encoder.onnx", "decoder": "in/decoder.onnx"}


def test_names() -> None:
    assert several.titles(list(MODELS.values())) == MODELS
    with pytest.raises(OneShotError, match="would both be called m"):
        several.titles(["a/m.onnx", "b/m.onnx"])


def test_whose_an_option_is() -> None:
    values = ["x.npz", "decoder:y.npz", "in/encoder.onnx:z.npz"]
    assert several.assigned(values, MODELS) == {"encoder": ["x.npz", "z.npz"], "decoder": ["x.npz", "y.npz"]}
    inputs = {"encoder": ["image", "mask:0"], "decoder": ["code"]}
    shapes = several.shapes_of(["image=1,2", "mask:0=1", "decoder.onnx:code=3", "code=4"], MODELS, inputs)
    assert shapes == {"encoder": ["image=1,2", "mask:0=1"], "decoder": ["code=4", "code=3"]}
    with pytest.raises(OneShotError, match="no input 'cod'"):
        several.shapes_of(["cod=1"], MODELS, inputs)


def written(folder: Path) -> list[str]:
    """An encoder and a decoder, and samples of both."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    paths = []
    for name, entry, result in (("encoder", "image", "code"), ("decoder", "code", "y")):
        weight = numpy_helper.from_array(0.1 * rng.standard_normal((16, 16, 3, 3), dtype=np.float32), "w")
        ends = [helper.make_tensor_value_info(of, 1, (1, 16, 8, 8)) for of in (entry, result)]
        node = helper.make_node("Conv", [entry, "w"], [result], pads=[1] * 4)
        graph = helper.make_graph([node], name, ends[:1], ends[1:], [weight])
        paths.append(str(folder / f"{name}.onnx"))
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), paths[-1])
    np.savez(folder / "samples.npz", **{of: rng.standard_normal((3, 16, 8, 8)) for of in ("image", "code")})
    return paths


def test_a_folder_for_each(tmp_path: Path, run_command: RunCommand) -> None:
    needs("tvm", "onnx")
    paths, build = written(tmp_path), tmp_path / "build"
    given = ["compile", *paths, "--calibration", str(tmp_path / "samples.npz")]
    code, out, _ = run_command(*given, "-o", build)
    assert code == 0 and "All 2 models: " in out and out.count("Calibration: 3 samples") == 2
    np.save(tmp_path / "x.npy", np.zeros((1, 16, 8, 8), np.float32))
    assert run_command("run", build / "decoder", "--input", tmp_path / "x.npy")[0] == 0
    _, out, _ = run_command(*given, "--json", "--no-check")
    assert [of["model"] for of in json.loads(out)] == ["encoder", "decoder"]


@pytest.mark.parametrize(
    "more, says",
    [
        (["--layers", "x"], "--layers is for one model"),
        (["-o", "x.json"], "several models is a folder"),
        (["--build", "folder", "-o", "x.json"], "several models is a folder"),
        (["--shape", "nope=1"], "no input 'nope'"),
        (["--calibration", "a.npy", "--calibration", "b.npy"], "--calibration is given twice for encoder"),
    ],
)
def test_what_is_for_one_model(more: list[str], says: str, tmp_path: Path, run_command: RunCommand) -> None:
    code, _, error = run_command("compile", *written(tmp_path), *more)
    assert code == 2 and says in error
