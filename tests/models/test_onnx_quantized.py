"""Models that were quantized elsewhere: unsigned, with zero points, as integer operators, or while they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_models import needs
from onnx_models import Array, computed, relative, wanted, write

import oneshot_ml2 as o2
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.quantize.qdq import Grid
from oneshot_ml2.models.quantize.quantize import quantize

needs("tvm", "onnx")

RNG = np.random.default_rng(0)
IMAGE, UINT8, INT8 = (1, 4, 8, 8), np.uint8, np.int8
X = RNG.standard_normal((4, *IMAGE[1:]), dtype=np.float32)
WEIGHT = (RNG.standard_normal((8, 4, 3, 3)) * 0.25).astype(np.float32)
DEEP = (RNG.standard_normal((8, 8, 3, 3)) * 0.2).astype(np.float32)
HEAD = (RNG.standard_normal((8, 5)) * 0.5).astype(np.float32)


class Writer:
    """Nodes and constants of a quantized model."""

    def __init__(self, kind: Any) -> None:
        self.kind = np.dtype(kind)
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self.constants: dict[str, Array] = {}

    def constant(self, name: str, array: Any) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append((op, inputs, [output], attributes))
        return output

    def grid(self, name: str, low: float, high: float) -> list[str]:
        """The scale and zero point with which integers stand for real numbers from ``low`` to ``high``."""
        limits = np.iinfo(self.kind)
        scale = np.float32((high - low) / 255)
        zero = np.rint(limits.min - low / scale).astype(self.kind)
        return [self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero", zero)]

    def rounded(self, x: str, low: float, high: float) -> str:
        """``x`` through integers and back."""
        grid = self.grid(x, low, high)
        self.node("QuantizeLinear", [x, *grid], f"{x}.q")
        return self.node("DequantizeLinear", [f"{x}.q", *grid], f"{x}.dq")

    def weight(self, name: str, array: Array, axis: int | None = None, zero: int = 0) -> list[str]:
        """Integers of a weight, their scale and zero point; ``axis``: that along which each has a scale of its own."""
        kind = UINT8 if zero else INT8
        others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
        scale = np.asarray(np.abs(array).max(others) / 127, dtype=np.float32)
        along = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        integers = (np.rint(array / along) + zero).astype(kind)
        terms = (("int", integers), ("scale", scale), ("zero", np.full(scale.shape, zero, dtype=kind)))
        return [self.constant(f"{name}.w.{part}", value) for part, value in terms]

    def bias(self, name: str, data: list[str], weight: list[str], count: int) -> tuple[str, Array]:
        """An int32 bias of about 0.1, and its scale."""
        scale = np.asarray(self.constants[data[0]] * self.constants[weight[1]], dtype=np.float32)
        values = np.linspace(-0.1, 0.1, count)
        return self.constant(f"{name}.bias", np.rint(values / scale).astype(np.int32)), scale


def convolution(writer: Writer, x: str, name: str, weight: Array, grid: list[str], axis: int | None, zero: int) -> str:
    """One with an int32 bias in the QDQ format; ``grid``: of ``x``."""
    terms = writer.weight(name, weight, axis, zero)
    along = {} if axis is None else {"axis": axis}
    writer.node("DequantizeLinear", terms, f"{name}.w", **along)
    bias, scale = writer.bias(name, grid, terms, len(weight))
    writer.node("DequantizeLinear", [bias, writer.constant(f"{name}.bias.scale", scale)], f"{name}.b", **along)
    return writer.node("Conv", [x, f"{name}.w", f"{name}.b"], name, pads=[1] * 4)


def qdq(path: Path, kind: Any, axis: int | None = None, zero: int = 0) -> Path:
    """Convolutions whose ReLUs are left to the ranges, a residual, pools and a matrix, as onnxruntime writes them."""
    writer = Writer(kind)
    x = writer.rounded("x", -3.5, 4.0)
    first = convolution(writer, x, "c", WEIGHT, ["x.scale"], axis, zero)
    r = writer.rounded(first, 0.0, 3.0)
    second = convolution(writer, r, "d", DEEP, ["c.scale"], axis, zero)
    s = writer.rounded(writer.node("Add", [writer.rounded(second, -2.0, 2.5), r], "s"), 0.0, 5.0)
    writer.node("MaxPool", [s], "m", kernel_shape=[2, 2], strides=[2, 2])
    m = writer.rounded("m", 0.0, 5.0)
    g = writer.rounded(writer.node("GlobalAveragePool", [m], "g"), 0.0, 4.0)
    f = writer.node("Flatten", [g], "f")
    writer.node("DequantizeLinear", writer.weight("e", HEAD, None if axis is None else 1, zero), "e.w")
    y = writer.rounded(writer.node("MatMul", [f, "e.w"], "e"), -3.0, 3.5)
    writer.node("Identity", [y], "y")
    # ONNX's evaluator dequantizes from opset 19 on.
    return write(path, writer.nodes, {"x": IMAGE}, writer.constants, opset=21)


def qoperator(path: Path, kind: Any, axis: int | None = None) -> Path:
    """The same of integer operators."""
    writer = Writer(kind)
    grids = {
        name: writer.grid(name, *limits)
        for name, limits in {
            "x": (-3.5, 4.0), "c": (0.0, 3.0), "d": (-2.0, 2.5), "s": (0.0, 5.0), "g": (0.0, 4.0), "e": (-3.0, 3.5),
        }.items()
    }  # fmt: skip
    writer.node("QuantizeLinear", ["x", *grids["x"]], "x.q")
    for name, before, weight in (("c", "x", WEIGHT), ("d", "c", DEEP)):
        terms = writer.weight(name, weight, axis)
        bias, _ = writer.bias(name, grids[before], terms, 8)
        operands = [f"{before}.q", *grids[before], *terms, *grids[name], bias]
        writer.node("QLinearConv", operands, f"{name}.q", pads=[1] * 4)
    own = "com.microsoft::"
    writer.node(f"{own}QLinearAdd", ["d.q", *grids["d"], "c.q", *grids["c"], *grids["s"]], "s.q")
    writer.node("MaxPool", ["s.q"], "m.q", kernel_shape=[2, 2], strides=[2, 2])
    pool = ["m.q", *grids["s"], *grids["g"]]
    writer.node(f"{own}QLinearGlobalAveragePool", pool, "g.q", channels_last=0)
    writer.node("Flatten", ["g.q"], "f.q")
    weight = writer.weight("e", HEAD, None if axis is None else 1)
    writer.node("QLinearMatMul", ["f.q", *grids["g"], *weight, *grids["e"]], "e.q")
    writer.node("DequantizeLinear", ["e.q", *grids["e"]], "y")
    return write(path, writer.nodes, {"x": IMAGE}, writer.constants)


def on_the_vta(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes if node.attrs.get("workload") is not None]


@pytest.mark.parametrize(
    ("kind", "axis", "zero"), [(UINT8, None, 0), (INT8, None, 0), (UINT8, 0, 0), (UINT8, None, 128), (INT8, None, 120)]
)
def test_unsigned_numbers_and_zero_points(kind: Any, axis: int | None, zero: int, tmp_path: Path) -> None:
    path = qdq(tmp_path / "m.onnx", kind, axis, zero)
    graph, inputs = import_onnx(path), {"x": X[:1]}
    (own,), (expected,) = computed(graph, inputs), wanted(path, inputs)
    # What is read is what the file computes.
    np.testing.assert_allclose(own, expected, atol=2e-6)

    result = quantize(graph, X)
    assert result.kind == "qdq"
    assert result.changes[0].startswith("7 of 7 activations are unsigned or have zero points")
    (found,) = computed(result.graph, inputs)
    assert relative(found, expected) < 0.1
    errors = {error.name: error.rms for error in result.errors}
    assert list(errors) == ["c", "d", "s.add", "m", "g", "e"] and max(errors.values()) < 0.05
    assert on_the_vta(result.graph) == [
        "int_conv2d",
        "int_conv2d",
        "int_add",
        "max_pool2d",
        "int_avg_pool2d",
        "int_dense",
    ]
    # The ReLUs that ranges stand for.
    lows = {node.name: node.attrs["clip"][0] for node in result.graph.nodes if node.op in ("int_conv2d", "int_add")}
    assert list(lows.values()) == [0, -64, 0]


def test_exponents_cover_ranges(tmp_path: Path) -> None:
    result = quantize(import_onnx(qdq(tmp_path / "m.onnx", UINT8)), X)
    exponents = {error.name: error.exponent for error in result.errors}
    # 127 * 2**-5 is 3.97, 85 % of 4.67: enough for 3; half of it is not for 2.5, nor all of it for 5.
    assert (exponents["c"], exponents["d"], exponents["m"]) == (-5, -5, -4)
    assert Grid(4 / 255, 0, 0, 255).exponent == -5 and Grid(4.9 / 255, 0, 0, 255).exponent == -4
    assert Grid(2.0**-5, 0, -128, 127).exponent == -5


@pytest.mark.parametrize(("kind", "axis"), [(UINT8, None), (INT8, None), (UINT8, 0)])
def test_integer_operators_are_the_same_model(kind: Any, axis: int | None, tmp_path: Path) -> None:
    graph = import_onnx(qoperator(tmp_path / "i.onnx", kind, axis))
    twin = import_onnx(qdq(tmp_path / "q.onnx", kind, axis))
    inputs = {"x": X[:1]}
    np.testing.assert_allclose(computed(graph, inputs)[0], computed(twin, inputs)[0], atol=1e-6)
    integer, other = quantize(graph, X), quantize(twin, X)
    np.testing.assert_array_equal(computed(integer.graph, inputs)[0], computed(other.graph, inputs)[0])
    assert on_the_vta(integer.graph) == on_the_vta(other.graph)


def test_more_integer_operators(tmp_path: Path) -> None:
    writer = Writer(UINT8)
    x, z = writer.grid("x", -1.0, 1.0), writer.grid("z", -2.0, 2.0)
    own = "com.microsoft::"
    writer.node("QuantizeLinear", ["x", *x], "q")
    writer.node(f"{own}QLinearConcat", [*z, "q", *x, "q", *x], "c", axis=1)
    writer.node(f"{own}QLinearSigmoid", ["c", *z, *x], "s")
    writer.node("Pad", ["s", writer.constant("pads", [0, 1, 0, 2]), writer.constant("fill", UINT8(255))], "p")
    weight = writer.weight("w", RNG.standard_normal((3, 11)).astype(np.float32))
    bias, _ = writer.bias("g", x, weight, 3)
    # Without a scale of its own its result is float.
    writer.node(f"{own}QGemm", ["p", *x, *weight, bias], "y", transB=1, alpha=1.0)
    path = write(tmp_path / "m.onnx", writer.nodes, {"x": (1, 4)}, writer.constants)
    data = np.array([[-0.5, 0.25, 0.75, 3.0]], dtype=np.float32)

    def through(array: Array, grid: list[str]) -> Array:
        scale, zero = (writer.constants[name].astype(np.float32) for name in grid)
        return (np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale

    half = through(1 / (1 + np.exp(-through(np.concatenate([through(data, x)] * 2, 1), z))), x)
    padded = np.concatenate([half[:, :0], np.full((1, 1), 127 / 127.5), half, np.full((1, 2), 127 / 127.5)], 1)
    real = writer.constants[weight[0]].astype(np.float32) * writer.constants[weight[1]]
    expected = padded @ real.T + np.linspace(-0.1, 0.1, 3)
    try:
        (found,) = computed(import_onnx(path), {"x": data})
    except ModelError as error:
        # The operator itself is no matter of quantization.
        assert "operator Pad" in str(error)
        return
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_dynamic_quantization_is_taken_back(tmp_path: Path) -> None:
    writer = Writer(UINT8)
    weight, head = writer.weight("w", WEIGHT, zero=128), writer.weight("h", HEAD)
    for name, op, x, terms in (("c", "ConvInteger", "x", weight), ("e", "MatMulInteger", "f", head)):
        parts = [f"{x}.int", f"{x}.step", f"{x}.nought"]
        writer.nodes.append(("DynamicQuantizeLinear", [x], parts, {}))
        attributes = {"pads": [1] * 4} if name == "c" else {}
        writer.node(op, [parts[0], terms[0], parts[2], terms[2]], f"{name}.sum", **attributes)
        writer.node("Cast", [f"{name}.sum"], f"{name}.real", to=1)
        writer.node("Mul", [parts[1], terms[1]], f"{name}.factor")
        writer.node("Mul", [f"{name}.real", f"{name}.factor"], "y" if name == "e" else name)
        if name == "c":
            writer.node("Flatten", [writer.node("GlobalAveragePool", [writer.node("Relu", ["c"], "r")], "g")], "f")
    path = write(tmp_path / "m.onnx", writer.nodes, {"x": IMAGE}, writer.constants)
    graph, inputs = import_onnx(path), {"x": X[:1]}
    assert graph.notes[0].startswith("4 operators of dynamic quantization were taken as float ones")
    (own,), (expected,) = computed(graph, inputs), wanted(path, inputs)
    assert relative(own, expected) < 0.02
    result = quantize(graph, X)
    assert result.kind == "float" and result.changes[0] == graph.notes[0]
    assert on_the_vta(result.graph) == ["int_conv2d", "int_avg_pool2d", "int_dense"]
    assert relative(computed(result.graph, inputs)[0], own) < 0.05


@pytest.mark.parametrize("per_gate", [False, True])
@pytest.mark.parametrize("zero", [0, 128])
def test_an_lstm_of_dynamic_quantization_is_taken_back(zero: int, per_gate: bool, tmp_path: Path) -> None:
    """Its weights stand transposed, in both directions, with their scales behind all other operands."""
    steps, size, hidden = 6, 10, 8
    rng, writer = np.random.default_rng(3), Writer(UINT8)
    terms = []
    for name, rows in (("w", size), ("r", hidden)):
        array = rng.standard_normal((2, rows, 4 * hidden)).astype(np.float32) / 3
        scale = np.abs(array).max(1 if per_gate else (1, 2)).astype(np.float32) / 127
        integers = np.rint(array / scale.reshape(2, 1, -1)) + zero
        kind = UINT8 if zero else INT8
        terms.append([
            writer.constant(name, integers.astype(kind)), writer.constant(f"{name}.s", scale),
            writer.constant(f"{name}.z", np.full(scale.shape, zero, kind)),
        ])  # fmt: skip
    writer.constant("b", rng.standard_normal((2, 8 * hidden)).astype(np.float32) / 9)
    (w, *ws), (r, *rs) = terms
    writer.nodes.append((
        "com.microsoft::DynamicQuantizeLSTM", ["x", w, r, "b", "", "", "", "", *ws, *rs], ["y"],
        {"hidden_size": hidden, "direction": "bidirectional"},
    ))  # fmt: skip
    path = write(tmp_path / "m.onnx", writer.nodes, {"x": (steps, 1, size)}, writer.constants)
    graph, inputs = import_onnx(path), {"x": rng.standard_normal((steps, 1, size), dtype=np.float32)}
    assert graph.notes[0].startswith("1 operators of dynamic quantization were taken as float ones")
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    assert relative(computed(graph, inputs)[0], session.run(None, inputs)[0]) < 0.03


@pytest.mark.parametrize("bits", ["INT16", "UINT16", "INT4", "UINT4"])
def test_other_numbers_of_bits_are_refused_in_one_line(bits: str, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    path = write(tmp_path / "m.onnx", [("Add", ["x", "w"], ["y"], {})], {"x": (1, 4)}, {"s": np.float32(1)}, opset=21)
    import onnx

    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("i", getattr(TensorProto, bits), [1, 4], [1, 2, 3, 4]))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["i", "s"], ["w"], name="weight"))
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        import_onnx(path)
    kind = f"operator DequantizeLinear (node 'weight') is of {bits.lower()}"
    assert str(caught.value) == (
        f"{path}: {kind}; only 8 bits, with a scale for a tensor or a channel, are supported: quantize with "
        "QuantType.QInt8 or QUInt8"
    )


def test_a_scale_that_the_model_computes(tmp_path: Path) -> None:
    nodes = [
        ("ReduceMax", ["x"], ["s"], {"keepdims": 0}),
        ("QuantizeLinear", ["x", "s"], ["q"], {}),
        ("DequantizeLinear", ["q", "s"], ["y"], {}),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"x": (1, 4)})
    with pytest.raises(ModelError, match=r"operator QuantizeLinear \(node '/q/QuantizeLinear'\) has a scale or zero"):
        import_onnx(path)


FORMATS = [
    ("QDQ", "QUInt8", "QInt8", False), ("QDQ", "QInt8", "QInt8", False), ("QDQ", "QUInt8", "QUInt8", False),
    ("QDQ", "QUInt8", "QInt8", True), ("QOperator", "QUInt8", "QInt8", False), ("QOperator", "QInt8", "QInt8", True),
]  # fmt: skip


def plain(path: Path, opset: int = 17) -> Path:
    nodes = [
        ("Conv", ["x", "w", "b"], ["c"], {"pads": [1] * 4}),
        ("Relu", ["c"], ["r"], {}),
        ("Conv", ["r", "d"], ["e"], {"pads": [1] * 4}),
        ("Clip", ["e", "low", "high"], ["t"], {}),
        ("Add", ["t", "r"], ["a"], {}),
        ("MaxPool", ["a"], ["m"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("GlobalAveragePool", ["m"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}),
        ("Gemm", ["f", "h", "k"], ["y"], {}),
    ]
    constants = {
        "w": WEIGHT, "b": np.linspace(-0.2, 0.2, 8, dtype=np.float32), "d": DEEP, "h": HEAD,
        "k": np.linspace(-1, 1, 5, dtype=np.float32), "low": np.float32(0), "high": np.float32(0.75),
    }  # fmt: skip
    return write(path, nodes, {"x": IMAGE}, constants, opset=opset)


@pytest.mark.parametrize(("form", "activations", "weights", "per_channel"), FORMATS)
def test_what_onnxruntime_writes(form: str, activations: str, weights: str, per_channel: bool, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from onnxruntime import quantization as tools

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Array] = iter(X)

        def get_next(self) -> dict[str, Array] | None:
            image = next(self.left, None)
            return None if image is None else {"x": image[None]}

    source, path = plain(tmp_path / "f.onnx"), tmp_path / "q.onnx"
    tools.quantize_static(
        source, path, Reader(), quant_format=tools.QuantFormat[form], activation_type=tools.QuantType[activations],
        weight_type=tools.QuantType[weights], per_channel=per_channel,
    )  # fmt: skip
    (expected,) = ort.InferenceSession(path).run(None, {"x": X[:1]})
    graph = import_onnx(path)
    # Integer kernels may round otherwise by a step here and there.
    assert relative(computed(graph, {"x": X[:1]})[0], expected) < 0.02
    result = quantize(graph, X)
    assert relative(computed(result.graph, {"x": X[:1]})[0], wanted(source, {"x": X[:1]})[0]) < 0.05
    assert on_the_vta(result.graph).count("int_conv2d") == 2 and "int_dense" in on_the_vta(result.graph)
    # The clip's upper bound is that of the range, too: 0.75.
    second = [node for node in result.graph.nodes if node.op == "int_conv2d"][1]
    exponent = result.graph.values[second.output].exponent
    assert exponent is not None and second.attrs["clip"] == (0, min(127, round(0.75 / 2.0**exponent)))


def test_dynamic_quantization_of_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from onnxruntime.quantization import quantize_dynamic

    source, path = plain(tmp_path / "f.onnx", 11), tmp_path / "q.onnx"
    quantize_dynamic(source, path)
    graph = import_onnx(path)
    assert relative(computed(graph, {"x": X[:1]})[0], wanted(source, {"x": X[:1]})[0]) < 0.03


@pytest.mark.parametrize("write_model", [qdq, qoperator])
def test_a_compiled_one_is_exact(write_model: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", UINT8)
    model = o2.compile(path, "pynq", calibration=X)
    assert model.ok and model.macs()[1] == 0
    (found,) = model.run({"x": X[:1]}).values()
    np.testing.assert_array_equal(found, computed(model.graph, {"x": X[:1]})[0])
    assert "activations are unsigned or have zero points" in model.report()
