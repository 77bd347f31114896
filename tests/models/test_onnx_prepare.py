"""What an ONNX file computes of constants and shapes, and what else is resolved before it is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_models import needs
from onnx_models import Array, computed, relative, wanted, write

import oneshot_ml2 as o2
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.frontend.importer import import_model
from oneshot_ml2.models.quantize.quantize import quantize

needs("tvm", "onnx")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 16, 8, 8), dtype=np.float32)
IMAGE = (1, 16, 8, 8)
WEIGHT = (RNG.standard_normal((16, 16, 3, 3)) / 8).astype(np.float32)
CONV = ("Conv", ["x", "w"], ["c"], {"pads": [1] * 4})


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def branch(value: float) -> Any:
    """Half of an If: ``c`` plus a number."""
    from onnx import helper

    nodes = [
        helper.make_node("Constant", [], ["number"], value_float=value),
        helper.make_node("Add", ["c", "number"], ["sum"]),
    ]
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("sum", 1, None)])


def resolved() -> dict[str, tuple[list[Any], dict[str, Any], int, list[str]]]:
    """What is resolved: nodes behind a convolution, constants, opset, and the operators that are left of them."""
    doubled, wide = ("Mul", ["c", "k"], ["y"], {}), ("Reshape", ["c", "k"], ["y"], {})
    return {
        "shapes": (
            [("Shape", ["c"], ["s"], {}), ("Gather", ["s", "i"], ["n"], {}), ("Unsqueeze", ["n", "zeros"], ["m"], {}),
             ("Concat", ["m", "rest"], ["t"], {"axis": 0}), ("Reshape", ["c", "t"], ["y"], {})],
            {"i": np.int64(1), "zeros": ints(0), "rest": ints(-1)}, 17, ["reshape"],
        ),
        "ranges": (
            [("Range", ["from", "to", "step"], ["r"], {}), ("ConstantOfShape", ["one"], ["k"], {}),
             ("Add", ["r", "k"], ["p"], {}), ("Add", ["c", "p"], ["y"], {})],
            {"from": np.float32(0), "to": np.float32(8), "step": np.float32(1), "one": ints(1)}, 17, ["add"],
        ),
        "a condition that is known": (
            [("Size", ["c"], ["n"], {}), ("Equal", ["n", "all"], ["t"], {}),
             ("If", ["t"], ["y"], {"then_branch": branch(1.0), "else_branch": branch(-1.0)})],
            {"all": np.int64(1024)}, 17, [],
        ),
        "constant value_float": ([("Constant", [], ["k"], {"value_float": 2.0}), doubled], {}, 17, []),
        "constant value_floats": (
            [("Constant", [], ["k"], {"value_floats": [2.0] * 8}), doubled], {}, 17, ["multiply"],
        ),
        "constant value_ints": ([("Constant", [], ["k"], {"value_ints": [1, 1024]}), wide], {}, 17, ["reshape"]),
        "expansions, casts and copies of constants": (
            [("Cast", ["i"], ["f"], {"to": 1}), ("Expand", ["f", "s"], ["e"], {}), ("Identity", ["e"], ["j"], {}),
             ("Dropout", ["c"], ["d"], {}), ("Identity", ["d"], ["q"], {}), ("Add", ["q", "j"], ["y"], {})],
            {"i": ints(3), "s": ints(8)}, 17, ["add"],
        ),
        "a function of ONNX": ([("MeanVarianceNormalization", ["c"], ["y"], {"axes": [0, 2, 3]})], {}, 13, ["any"]),
    }  # fmt: skip


@pytest.mark.parametrize("case", resolved())
def test_what_follows_from_constants_and_shapes(case: str, tmp_path: Path) -> None:
    nodes, constants, opset, left = resolved()[case]
    path = write(tmp_path / "m.onnx", [CONV, *nodes], {"x": IMAGE}, constants | {"w": WEIGHT}, opset=opset)
    graph = import_onnx(path)
    np.testing.assert_allclose(computed(graph, {"x": X[:1]})[0], wanted(path, {"x": X[:1]})[0], atol=2e-5)
    names = [node.op for node in graph.nodes]
    assert names[0] == "conv2d" and (names[1:] == left or left == ["any"])


def test_functions_of_the_model(tmp_path: Path) -> None:
    from onnx import helper

    inner = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    outer = helper.make_function(
        "own", "Block", ["a", "k"], ["b"],
        [helper.make_node("Twice", ["a"], ["d"], domain="own"), helper.make_node("Conv", ["d", "k"], ["b"])],
        [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )  # fmt: skip
    nodes = [("own::Block", ["x", "w"], ["y"], {})]
    path = write(tmp_path / "m.onnx", nodes, {"x": IMAGE}, {"w": WEIGHT}, functions=[inner, outer])
    graph = import_onnx(path)
    assert [node.op for node in graph.nodes] == ["add", "conv2d"]
    np.testing.assert_allclose(computed(graph, {"x": X[:1]})[0], wanted(path, {"x": X[:1]})[0], atol=2e-5)


def test_dropouts_in_training_mode_are_noted(tmp_path: Path) -> None:
    constants = {"ratio": np.float32(0.5), "on": np.array(True), "off": np.array(False)}
    nodes = [("Dropout", ["x", "ratio", "off"], ["d"], {}), ("Dropout", ["d", "ratio", "on"], ["e"], {})]
    graph = import_onnx(write(tmp_path / "m.onnx", [*nodes, ("Relu", ["e"], ["y"], {})], {"x": IMAGE}, constants))
    assert graph.notes == ("1 dropouts are in training mode in the file, and do nothing here",)
    assert [node.op for node in graph.nodes] == ["relu"]


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [("Conv", ["x", "w"], ["y"], {})], {"x": IMAGE, "w": WEIGHT.shape}, {"w": WEIGHT})
    assert import_onnx(path).inputs == ("x",)


def test_dynamic_weights_stay_quantized(tmp_path: Path) -> None:
    """Folding leaves dequantized weights their scales."""
    constants = {
        "i": (WEIGHT * 256).astype(np.int8),
        "s": np.float32(2.0**-8),
        "z": np.int8(0),
        "q": np.float32(2.0**-4),
    }
    nodes = [
        ("QuantizeLinear", ["x", "q", "z"], ["a"], {}), ("DequantizeLinear", ["a", "q", "z"], ["b"], {}),
        ("DequantizeLinear", ["i", "s", "z"], ["w"], {}), ("Conv", ["b", "w"], ["c"], {}),
        ("Shape", ["c"], ["n"], {}), ("Reshape", ["c", "n"], ["y"], {}),
    ]  # fmt: skip
    graph = import_onnx(write(tmp_path / "m.onnx", nodes, {"x": IMAGE}, constants))
    (layer,) = (node for node in graph.nodes if node.op == "conv2d")
    assert float(layer.attrs["weight_scale"][0]) == 2.0**-8


# Floats of other sizes ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE"])
def test_other_floats(kind: str, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    number = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    path = write(
        tmp_path / "m.onnx", [CONV, ("Relu", ["c"], ["y"], {})], {"x": IMAGE}, {"w": WEIGHT.astype(dtype)},
        kinds={"x": number, "y": number},
    )  # fmt: skip
    graph = import_onnx(path)
    assert graph.notes == (
        f"its {kind.lower()} tensors were taken as float32",
        f"input 'x' is {kind.lower()} in the file, and float32 here",
    )
    (expected,) = wanted(path, {"x": X[:1].astype(dtype)})
    assert relative(computed(graph, {"x": X[:1]})[0], expected) < (2e-3 if kind == "FLOAT16" else 1e-6)


def test_half_precision_inside(tmp_path: Path) -> None:
    """Inputs and outputs are float32 and cast, as converters write it; numbers of 8 bits are cast likewise."""
    from onnx import TensorProto

    nodes = [
        ("Cast", ["x"], ["h"], {"to": TensorProto.FLOAT16}),
        ("Conv", ["h", "w"], ["c"], {"pads": [1] * 4}),
        ("Cast", ["c"], ["y"], {"to": TensorProto.FLOAT}),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"x": IMAGE}, {"w": WEIGHT.astype(np.float16)})
    graph = import_onnx(path)
    assert [node.op for node in graph.nodes] == ["conv2d"]
    assert graph.notes == ("its float16 tensors were taken as float32",)

    pixels = [("Cast", ["x"], ["h"], {"to": TensorProto.FLOAT}), ("Conv", ["h", "w"], ["y"], {})]
    path = write(tmp_path / "u.onnx", pixels, {"x": IMAGE}, {"w": WEIGHT}, kinds={"x": TensorProto.UINT8})
    graph, image = import_onnx(path), RNG.integers(0, 256, IMAGE).astype(np.uint8)
    assert graph.notes == ("input 'x' is uint8 in the file, and float32 here",)
    assert relative(computed(graph, {"x": image})[0], wanted(path, {"x": image})[0]) < 1e-5


# Masks -------------------------------------------------------------------------------------------
HEADS = {"q": (1, 2, 8, 16), "k": (1, 2, 16, 8), "v": (1, 2, 8, 16)}
TENSORS = {name: RNG.standard_normal(shape, dtype=np.float32) for name, shape in HEADS.items()}
CAUSAL = np.where(np.tri(8, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]


def attention(mask: Array, clears: bool = True, chooses: bool = False) -> tuple[list[Any], dict[str, Any]]:
    """Attention as PyTorch's exporters write it: a row of which all is masked becomes 0."""
    choice = [("Where", ["keep", "l", "mask"], ["m"], {})] if chooses else [("Add", ["l", "mask"], ["m"], {})]
    cleared = [("IsNaN", ["p"], ["b"], {}), ("Where", ["b", "zero", "p"], ["r"], {})]
    nodes = [
        ("MatMul", ["q", "k"], ["l"], {}), *choice, ("Softmax", ["m"], ["p"], {"axis": -1}),
        *(cleared if clears else []), ("MatMul", ["r" if clears else "p", "v"], ["y"], {}),
    ]  # fmt: skip
    constants = {"mask": mask, "zero": np.float32(0)} | ({"keep": ~np.isneginf(mask)} if chooses else {})
    return nodes, constants if clears else {name: array for name, array in constants.items() if name != "zero"}


# The second row of one mask is masked as a whole.
ROWS = CAUSAL.copy()
ROWS[..., 1, :] = -np.inf
MASKS = {
    "none": np.zeros((1, 1, 8, 8), np.float32),
    "causal": CAUSAL,
    "a row": ROWS,
    "the least number": np.maximum(CAUSAL, np.finfo(np.float32).min),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_are_finite_and_nothing_is_asked_to_be_a_number(mask: str, tmp_path: Path) -> None:
    nodes, constants = attention(MASKS[mask])
    path = write(tmp_path / "m.onnx", nodes, HEADS, constants, opset=18)
    graph = import_onnx(path)
    (expected,) = wanted(path, TENSORS)
    np.testing.assert_allclose(computed(graph, TENSORS)[0], expected, atol=1e-5)
    assert (expected[:, :, 1] == 0).all() == (mask == "a row")
    assert not {"isnan", "where", "select"} & {node.op for node in graph.nodes}
    result = quantize(graph, [TENSORS])
    assert [node.op for node in result.graph.nodes if node.attrs.get("workload") is not None] == [
        "int_batch_matmul"
    ] * 2
    assert relative(computed(result.graph, TENSORS)[0], expected) < 0.05


def test_masks_without_the_question(tmp_path: Path) -> None:
    nodes, constants = attention(CAUSAL, clears=False)
    path = write(tmp_path / "m.onnx", nodes, HEADS, constants, opset=18)
    np.testing.assert_allclose(computed(import_onnx(path), TENSORS)[0], wanted(path, TENSORS)[0], atol=1e-5)
    # What is NaN in the file stays so, and is refused when it is quantized.
    nodes, constants = attention(ROWS, clears=False)
    graph = import_onnx(write(path, nodes, HEADS, constants, opset=18))
    with pytest.raises(ModelError, match="is not finite on the calibration data"):
        quantize(graph, [TENSORS])


# Exporters ---------------------------------------------------------------------------------------
def torch_net(masked: bool = True) -> Any:
    """Convolution, normalization, attention with or without a mask, a residual, a mean and a dense layer."""
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1, stride=2)
            self.norm, self.wide, self.head = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 10)
            self.register_buffer("mask", torch.ones(16, 16, dtype=torch.bool).tril())

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.relu6(self.conv(x))
            b, c, h, w = x.shape
            x = x.flatten(2).transpose(1, 2)
            q, k, v = self.wide(self.norm(x)).view(b, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
            a = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask if masked else None)
            return self.head((x + a.transpose(1, 2).reshape(b, h * w, c)).mean(1))  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.mark.parametrize(
    ("dynamo", "opset"), [(False, 14), (False, 17), (False, 20), (True, 18), (True, 20), (True, 23)]
)
def test_what_pytorch_exports(dynamo: bool, opset: int, tmp_path: Path) -> None:
    import torch

    net, x = torch_net(), torch.from_numpy(X[:1, :3])
    if dynamo:
        pytest.importorskip("onnxscript")
    with torch.no_grad():
        expected = net(x).numpy()
    torch.onnx.export(net, (x,), tmp_path / "m.onnx", dynamo=dynamo, opset_version=opset, verbose=False)
    graph = import_onnx(tmp_path / "m.onnx")
    np.testing.assert_allclose(computed(graph, {graph.inputs[0]: x.numpy()})[0], expected, atol=1e-5)


def test_an_exported_program() -> None:
    import torch

    net, x = torch_net(masked=False), torch.from_numpy(X[:1, :3])
    program = torch.export.export(net, (x,))
    with torch.no_grad():
        expected = net(x).numpy()
    graph = import_model(program)
    np.testing.assert_allclose(computed(graph, {graph.inputs[0]: x.numpy()})[0], expected, atol=1e-5)
    with pytest.raises(ModelError, match="an exported program has its shapes"):
        import_model(program, (x,))
    batch = torch.export.Dim("batch", min=2)
    free = torch.export.export(torch.nn.Conv2d(3, 8, 3), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    with pytest.raises(ModelError, match="free dimensions"):
        import_model(free)


def tf_convention(path: Path) -> Path:
    """NHWC at both ends, SAME pads, and turns around a sum, as converters of TensorFlow's models write them."""
    there, back = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    nodes = [
        ("Transpose", ["x"], ["t"], there),
        ("Conv", ["t", "w"], ["c"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Transpose", ["c"], ["u"], back),
        ("Add", ["u", "bias"], ["s"], {}),
        ("Relu", ["s"], ["r"], {}),
        ("Transpose", ["r"], ["v"], there),
        ("Conv", ["v", "w"], ["d"], {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 3]}),
        ("Transpose", ["d"], ["y"], back),
    ]
    bias = np.linspace(-1, 1, 16, dtype=np.float32)
    return write(path, nodes, {"x": (1, 8, 8, 16)}, {"w": WEIGHT, "bias": bias})


def test_channels_that_are_last(tmp_path: Path) -> None:
    path = tf_convention(tmp_path / "m.onnx")
    x = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    graph = import_onnx(path)
    assert [node.op for node in graph.nodes] == ["permute", "conv2d", "relu", "conv2d", "permute"]
    np.testing.assert_allclose(computed(graph, {"x": x[:1]})[0], wanted(path, {"x": x[:1]})[0], atol=2e-5)


def test_turns_around_residuals_meet(tmp_path: Path) -> None:
    """Blocks of a residual network in channels-last order: two turns are left, at the ends."""
    there, back = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    nodes, x = [], "x"
    for index in range(2):
        nodes += [
            ("Transpose", [x], [f"t{index}"], there),
            ("Conv", [f"t{index}", "w"], [f"c{index}"], {"pads": [1] * 4}),
            ("Transpose", [f"c{index}"], [f"u{index}"], back),
            ("Add", [f"u{index}", "bias"], [f"b{index}"], {}),
        ]
        if index:
            nodes.append(("Add", [f"b{index}", x], [f"s{index}"], {}))
        nodes.append(("Relu", [f"s{index}" if index else f"b{index}"], [f"r{index}"], {}))
        x = f"r{index}"
    nodes.append(("Identity", [x], ["y"], {}))
    bias = np.linspace(-1, 1, 16, dtype=np.float32)
    path = write(tmp_path / "m.onnx", nodes, {"x": (1, 8, 8, 16)}, {"w": WEIGHT, "bias": bias})
    image = {"x": np.ascontiguousarray(X[:1].transpose(0, 2, 3, 1))}
    graph = import_onnx(path)
    assert [node.op for node in graph.nodes] == ["permute", "conv2d", "relu", "conv2d", "add", "relu", "permute"]
    np.testing.assert_allclose(computed(graph, image)[0], wanted(path, image)[0], atol=2e-5)


@pytest.mark.parametrize("write_model", [tf_convention])
def test_a_compiled_one_is_exact(write_model: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    x = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    model = o2.compile(path, "pynq", calibration=x)
    assert model.ok and model.macs()[1] == 0
    (found,) = model.run({"x": x[:1]}).values()
    np.testing.assert_array_equal(found, computed(model.graph, {"x": x[:1]})[0])
    assert relative(found, wanted(path, {"x": x[:1]})[0]) < 0.05


def detector(path: Path, behind: list[Any]) -> Path:
    """A convolution whose channels are coordinates and scores of 64 boxes, NonMaxSuppression ``n``, and more."""
    import onnx
    from onnx import helper, numpy_helper

    constants = {"w": WEIGHT, "line": ints(1, 16, 64), "k": ints(5), "i": np.int64(2)}
    nodes: list[Any] = [
        CONV, ("Reshape", ["c", "line"], ["r"], {}), ("Split", ["r"], ["b", "scores"], {"axis": 1}),
        ("Slice", ["b", "zero", "four", "one"], ["f"], {}), ("Transpose", ["f"], ["boxes"], {"perm": [0, 2, 1]}),
        ("NonMaxSuppression", ["boxes", "scores", "k"], ["n"], {}), *behind,
    ]  # fmt: skip
    constants |= {"zero": ints(0), "four": ints(4), "one": ints(1)}
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    made = [helper.make_node(op, inputs, outputs, outputs[0], **attrs) for op, inputs, outputs, attrs in nodes]
    ends = [helper.make_tensor_value_info("n", 7, None), helper.make_tensor_value_info("c", 1, IMAGE)]
    graph = helper.make_graph(made, "g", [helper.make_tensor_value_info("x", 1, IMAGE)], ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_detector_ends_where_sizes_depend_on_the_data(tmp_path: Path) -> None:
    more = [("Gather", ["n", "i"], ["g"], {"axis": 1}), ("Gather", ["boxes", "g"], ["d"], {"axis": 1})]
    graph = import_onnx(detector(tmp_path / "m.onnx", more))
    assert graph.output_names == ("c", "boxes", "scores")
    assert any("NonMaxSuppression ('n') and 2 more behind it were left out" in note for note in graph.notes)
    assert [graph.shape(name) for name in graph.outputs] == [IMAGE, (1, 64, 4), (1, 8, 64)]


def test_a_size_that_depends_on_the_data_before_a_layer_is_refused(tmp_path: Path) -> None:
    more = [("Gather", ["n", "i"], ["g"], {"axis": 1}), ("Gather", ["boxes", "g"], ["d"], {"axis": 1}),
            ("MatMul", ["d", "f"], ["m"], {})]  # fmt: skip
    with pytest.raises(ModelError, match="NonMaxSuppression"):
        import_onnx(detector(tmp_path / "m.onnx", more))
