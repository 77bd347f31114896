"""What is wrong with an ONNX model is told in its own terms: the operator and the node, never TVM's names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend import from_onnx, importer

SHAPE = (1, 16, 8, 8)
node = helper.make_node
CONV = node("Conv", ["x", "w"], ["c"], pads=[1] * 4, name="/first/Conv")
WEIGHT = {"w": np.zeros((16, 16, 3, 3), np.float32)}


def save(
    path: Path, nodes: list[Any], constants: dict[str, Any], inputs: dict[str, Any] | None = None, opset: int = 17
) -> Path:
    """A model whose output is ``y``, of any shape with the rank of the first input."""
    rank = len(next(iter((inputs or {"x": SHAPE}).values())) or SHAPE)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (inputs or {"x": SHAPE}).items()]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{axis}" for axis in range(rank)])
    content = helper.make_graph(nodes, "g", infos, [output], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.own", 1)]
    onnx.save(helper.make_model(content, opset_imports=opsets, ir_version=8), path)
    return path


BODY = helper.make_graph(
    [node("Relu", ["v"], ["b"]), node("Identity", ["k"], ["l"])], "b",
    [helper.make_tensor_value_info("n", TensorProto.INT64, ()),
     helper.make_tensor_value_info("k", TensorProto.BOOL, ()), helper.make_tensor_value_info("v", 1, SHAPE)],
    [helper.make_tensor_value_info("l", TensorProto.BOOL, ()), helper.make_tensor_value_info("b", 1, SHAPE)],
)  # fmt: skip
HEADS = {"q": (1, 2, 8, 16), "k": (1, 2, 16, 8)}
# What fails at import, in TVM or in our reader -> how the message names the culprit.
CASES: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any] | None, str]] = {
    "unknown to the reader": ([CONV, node("Acosh", ["c"], ["y"], name="n")], WEIGHT, None, "operator Acosh (node 'n')"),
    "of another domain": (
        [CONV, node("Mine", ["c"], ["y"], domain="my.own")], WEIGHT, None, "operator my.own.Mine (the node of 'y')",
    ),
    "with attributes": (
        [CONV, node("LSTM", ["q", "r", "s"], ["y"], hidden_size=4, clip=1.0, name="p")],
        WEIGHT | {"r": np.zeros((1, 16, 16), np.float32), "s": np.zeros((1, 16, 4), np.float32)},
        {"x": SHAPE, "q": (6, 1, 16)}, "operator LSTM (node 'p') with clip",
    ),
    "with a second output": (
        [CONV, node("MaxPool", ["c"], ["y", "i"], kernel_shape=[2, 2], name="s")], WEIGHT, None,
        "operator MaxPool (node 's') has a second output",
    ),
    "of other dimensions": (
        [node("Conv", ["x", "w"], ["y"], name="d")], {"w": np.zeros((16, 16, 1, 1, 1), np.float32)},
        {"x": (1, 16, 4, 4, 4)},
        "operator Conv (node 'd')",
    ),
    "one of several that TVM makes of it": (
        [CONV, node("ArgMax", ["c"], ["i"], axis=0), node("GatherND", ["c", "i"], ["y"], name="g")], WEIGHT, None,
        "operator GatherND (node 'g')",
    ),
    "between others": (
        [node("MatMul", ["q", "k"], ["l"]), node("Softmax", ["l"], ["p"], axis=-1),
         node("Acosh", ["p"], ["b"], name="between"), node("Add", ["b", "p"], ["y"])],
        {}, HEADS, "operator Acosh (node 'between')",
    ),
    "shapes that contradict": (
        [CONV, node("Add", ["c", "t"], ["y"], name="a")], WEIGHT | {"t": np.zeros(5, np.float32)}, None,
        "operator Add (node 'a')",
    ),
    "control flow": (
        [CONV, node("ReduceMax", ["c"], ["m"], keepdims=0), node("Cast", ["m"], ["t"], to=TensorProto.BOOL),
         node("Loop", ["", "t", "c"], ["y"], body=BODY, name="i")],
        WEIGHT, None, "operator Loop (node 'i')",
    ),
    "quantized to 16 bits": (
        [node("QuantizeLinear", ["x", "s", "z"], ["q"], name="u"), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"s": np.float32(1), "z": np.uint16(0)}, None, "operator QuantizeLinear (node 'u') is of uint16; operator "
        "DequantizeLinear (the node of 'y') is of uint16; only 8 bits",
    ),
    "taken for another one's": ([node("Relu", ["x"], ["y"], domain="my.own")], {}, None, "operator my.own.Relu"),
    "several": (
        [CONV, node("Mine", ["c"], ["m"], domain="my.own", name="m"), node("Acosh", ["c"], ["h"], name="h"),
         node("Acosh", ["h"], ["g"], name="g"), node("Acosh", ["c"], ["f"], name="f"),
         node("Add", ["g", "f"], ["y"])],
        WEIGHT, None, "operator my.own.Mine (node 'm') is not supported; operator Acosh (nodes 'h', 'g', 'f') is not",
    ),
    "QOperator": (
        [node("QLinearAdd", ["x", "s", "z", "x", "s", "z", "s", "z"], ["y"], domain="my.own", name="o")],
        {"s": np.float32(1), "z": np.int8(0)}, None, "operator my.own.QLinearAdd (node 'o')",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_errors_name_the_onnx_node(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes, constants, inputs, says = CASES[case]
    path = save(tmp_path / "m.onnx", nodes, constants, inputs)
    with pytest.raises(ModelError) as caught:
        from_onnx.import_onnx(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {says}")
    assert "relax" not in message and "\n" not in message and len(message) < 1000
    del caught
    # TVM prints about what it was doing, also natively.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["x.1", "7", "a b", "serving_default:0"])
def test_inputs_keep_their_names(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Relu", [name], ["y"])], {}, {name: SHAPE})
    assert from_onnx.import_onnx(path).inputs == (name,)


def test_every_binding_has_its_node(tmp_path: Path) -> None:
    from oneshot_ml2.models.frontend import origins

    nodes = [
        CONV,
        node("Clip", ["c", "low", "high"], ["d"], name="clip"),
        node("Gather", ["d", "i"], ["e"], axis=1, name="gather"),
        node("Split", ["e"], ["s", "t"], axis=1, name="split"),
        node("Add", ["s", "t"], ["y"], name="add"),
    ]
    constants = WEIGHT | {"low": np.float32(0), "high": np.float32(6), "i": np.arange(16)}
    path = save(tmp_path / "m.onnx", nodes, constants)
    labels = origins.import_nodes(onnx.load(path), ()).labels
    found = list(dict.fromkeys(label.split("'")[1] for label in labels))
    assert sorted(found) == ["/first/Conv", "add", "clip", "gather"] or sorted(found) == [
        "/first/Conv", "add", "clip", "gather", "split",
    ]  # fmt: skip
    assert labels[-1] == "operator Add (node 'add')"


def test_supported_operators_are_onnx_operators_and_documented() -> None:
    assert all(onnx.defs.has(name) for name in from_onnx._SUPPORTED_ONNX)
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert ", ".join(from_onnx._SUPPORTED_ONNX) + "." in " ".join(page.split())


def test_models_of_a_later_opset(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Conv", ["x", "w"], ["y"])], WEIGHT, opset=999)
    with pytest.raises(ModelError, match=r"m\.onnx.*999"):
        from_onnx.import_onnx(path)


def test_external_data_that_are_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Conv", ["x", "w"], ["y"])], WEIGHT)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert from_onnx.import_onnx(path).nodes
    os.unlink(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match=r"weights\.bin"):
        from_onnx.import_onnx(path)


def test_external_data_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    path = save(tmp_path / "a" / "m.onnx", [node("Conv", ["x", "w"], ["y"])], WEIGHT)
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    model = onnx.load(path)
    for location in ("../secret.bin", str(tmp_path / "secret.bin")):
        tensor = model.graph.initializer[0]
        tensor.raw_data = b"some"
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        path.write_bytes(model.SerializeToString())
        # Wherever it is read from.
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError, match=r"m\.onnx is no valid ONNX model.*secret"):
            from_onnx.import_onnx(Path("a") / "m.onnx")


def test_names_in_capitals(tmp_path: Path) -> None:
    for name in ("m.onnx", "m.ONNX", "m.Onnx"):
        path = save(tmp_path / name, [node("Relu", ["x"], ["y"])], {})
        assert importer.is_onnx(path) and importer.is_onnx(str(path))
        assert [entry.op for entry in importer.import_model(path).nodes] == ["relu"]
    assert not importer.is_onnx("resnet18") and not importer.is_onnx(None)


def test_layers_are_called_as_their_modules(tmp_path: Path) -> None:
    """PyTorch's newer exporter has the modules' names in metadata, its nodes' names tell nothing."""
    conv = node("Conv", ["x", "w"], ["c"], pads=[1] * 4, name="node_conv2d")
    scopes = {"node_conv2d": "['', 'layer1', 'layer1.0', 'conv2d']", "node_add": "['', 'layer1', 'add_3']"}
    nodes = [conv, node("Sigmoid", ["c"], ["s"], name="other"), node("Add", ["c", "s"], ["y"], name="node_add")]
    path = save(tmp_path / "m.onnx", nodes, {"w": np.ones((16, 16, 3, 3), np.float32)})
    model = onnx.load(path)
    for entry in model.graph.node:
        if entry.name in scopes:
            entry.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes[entry.name])
    onnx.save(model, path)
    names = {of.op: of.name for of in from_onnx.import_onnx(path).nodes}
    assert names["conv2d"] == "layer1.0" and names["add"] == "layer1.add"


def test_what_neither_importer_of_pytorch_takes_has_its_names() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ModelError, match="conv3d"):
        importer.import_graph(torch.nn.Conv3d(3, 8, 3), (torch.zeros(1, 3, 4, 8, 8),))
