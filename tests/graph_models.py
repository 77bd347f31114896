"""Small models for the tests of whole models: PyTorch modules, and QDQ graphs written node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

REASON = "pip install oneshot-ml2 brings it"

# Every model of the zoo, and a size at which it is compiled soon.
ZOO = (
    ("resnet18", 64), ("resnet34", 64), ("resnet50", 64), ("vgg16", 64), ("mobilenet_v1", 64), ("mobilenet_v2", 64),
    ("squeezenet", 64), ("vit_tiny", 64), ("bert_tiny", 32), ("bert_base", 16),
)  # fmt: skip


def needs(*packages: str) -> None:
    """Skip the test file, saying what is missing."""
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is missing: {REASON}")


def small_net() -> Any:
    """Every composite: ReLU, a residual of another scale, pooling, and a dense layer at the end."""
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.pool = nn.MaxPool2d(3, 2, 1)
            self.body = nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(torch.relu(self.norm(self.stem(x))))
            x = torch.relu(self.body(x) + x)
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Net().eval()
        # Statistics that are not the identity, so that folding them is seen.
        nn.init.uniform_(net.norm.weight, 0.5, 1.5)
        nn.init.uniform_(net.norm.bias, -0.3, 0.3)
        nn.init.uniform_(net.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(net.norm.running_var, 0.5, 2.0)
    return net


def example(shape: tuple[int, ...] = (1, 3, 12, 12), seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# The shape of what `save_small_net`'s model takes.
SMALL_SHAPE = (1, 3, 12, 12)


def save_small_net(folder: Path) -> Path:
    """`small_net`, compiled for pynq, in a folder."""
    import torch

    from oneshot_ml2.models.compile import compile as compile_model

    given = example((4, *SMALL_SHAPE[1:]), 1)
    compile_model(small_net(), example_inputs=(torch.zeros(SMALL_SHAPE),), calibration=given).save(folder)
    return folder


class Qdq:
    """Writes a QDQ model: every tensor is quantized, as onnxruntime's ``quantize_static`` does it."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.scales: dict[str, Any] = {}

    def constant(self, name: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attrs))
        return output

    def quantized(self, x: str, scale: float, zero: int = 0, kind: type = np.int8) -> str:
        """``x`` through int8 and back."""
        terms = [
            self.constant(f"{x}.scale", np.float32(scale)),
            self.constant(f"{x}.zero", kind(zero)),  # type: ignore[call-arg]
        ]
        self.node("QuantizeLinear", [x, *terms], f"{x}.int")
        self.scales[self.node("DequantizeLinear", [f"{x}.int", *terms], f"{x}.q")] = scale
        return f"{x}.q"

    def weights(self, name: str, x: str, shape: tuple[int, ...], scale: float | NDArray[np.float32]) -> list[str]:
        """Weight and bias of a layer that reads ``x``, dequantized."""
        scale = np.asarray(scale, dtype=np.float32)
        kinds = {"axis": 0} if scale.ndim else {}
        result = []
        for part, array, step in (
            ("w", self.rng.integers(-127, 128, shape).astype(np.int8), scale),
            ("b", self.rng.integers(-4000, 4000, shape[0]).astype(np.int32), np.float32(self.scales[x]) * scale),
        ):
            terms = [
                self.constant(f"{name}.{part}", array),
                self.constant(f"{name}.{part}.scale", np.asarray(step, dtype=np.float32)),
                self.constant(f"{name}.{part}.zero", np.zeros(step.shape, dtype=array.dtype)),
            ]
            result.append(self.node("DequantizeLinear", terms, f"{name}.{part}.q", **kinds))
        return result

    def conv(self, name: str, x: str, shape: tuple[int, ...], scale: Any, out: float, relu: bool = True) -> str:
        """A convolution, and a ReLU with the same scale."""
        pad = shape[2] // 2
        self.node("Conv", [x, *self.weights(name, x, shape, scale)], name, pads=[pad] * 4)
        result = self.quantized(name, out)
        return self.quantized(self.node("Relu", [result], f"{name}.relu"), out) if relu else result

    def write(
        self, path: Path, output: str, shape: tuple[Any, ...] = (1, 3, 8, 8), kind: int = 1, rank: int = 4
    ) -> Path:
        """``output``, of a rank, becomes the model's, under the name ``y``; ``x`` is its input."""
        import onnx
        from onnx import helper

        self.node("Identity", [output], "y")
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", 1, [f"d{i}" for i in range(rank)])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(path))
        return path


def residual_qdq(path: Path, odd: float = 1.0, per_channel: bool = False) -> Path:
    """Two convolutions with a residual, a global average and a dense layer; scales are powers of two times ``odd``."""
    q = Qdq()
    weight: Any = 2.0**-8 * odd
    if per_channel:
        weight = (weight * q.rng.uniform(0.5, 1.0, 16)).astype(np.float32)
    x = q.quantized("x", 2.0**-5 * odd)
    a = q.conv("a", x, (16, 3, 3, 3), weight, 2.0**-4 * odd)
    b = q.conv("b", a, (16, 16, 3, 3), weight, 2.0**-2 * odd, relu=False)
    s = q.quantized(q.node("Add", [b, a], "s"), 2.0**-2 * odd)
    s = q.quantized(q.node("Relu", [s], "r"), 2.0**-2 * odd)
    m = q.quantized(q.node("GlobalAveragePool", [s], "m"), 2.0**-3 * odd)
    f = q.quantized(q.node("Flatten", [m], "f"), 2.0**-3 * odd)
    q.node("Gemm", [f, *q.weights("fc", f, (10, 16), 2.0**-7 * odd)], "g", transB=1)
    return q.write(path, q.quantized("g", 2.0**-1 * odd), rank=2)
