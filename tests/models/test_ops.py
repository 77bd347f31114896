"""Every operator that a model may have: as ONNX defines it, what quantization costs, and groups of them compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_models import needs
from op_cases import GROUPS, SHAPE, Case, written

import oneshot_ml2 as o2
from oneshot_ml2.models import partition
from oneshot_ml2.models.execute import execute
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.frontend.from_torch import import_torch
from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.quantize.quantize import quantize

needs("tvm", "onnx", "onnxruntime")

CASES = {name: case for group in GROUPS.values() for name, case in group.items()}
# Where a rounding turns a result over, or squares and exponentials magnify it.
ROUGH = {
    "Floor", "Ceil", "Round", "Sign", "Mod", "Mod of whole", "Div of whole", "Cast to whole", "Cast to truth",
    "Exp", "Greater, Where", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "And", "Or", "Xor", "Not", "ArgMax",
    "ArgMax without", "ArgMin", "OneHot", "Hardmax", "TopK", "TopK least", "Gather computed", "GatherND computed",
    "ScatterElements computed", "ScatterND computed", "ScatterND computed, added", "ReduceProd ",
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


def torch_nets() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """What PyTorch writes otherwise than ONNX: a module, and its inputs."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    def conv() -> Any:
        return nn.Conv2d(16, 16, 3, padding=1)

    class Recurrent(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.layer(x)[0])
            return y

    class Attention(nn.Module):
        """``kind``: of its mask."""

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind, self.wide, self.out = kind, nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q, k, v = (t.reshape(1, 6, 2, 8).transpose(1, 2) for t in self.wide(x).chunk(3, -1))
            if self.kind == "causal":
                mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            elif self.kind == "truth":
                mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
            else:
                out = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
                mixed = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + out, -1) @ v
            y: Tensor = self.out(mixed.transpose(1, 2).reshape(1, 6, 16))
            return y

    class Extremes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.amax((2, 3)) - x.amin((2, 3))

    class Assigned(nn.Module):
        """A part of a tensor written, patches, and images smoothed while they become smaller."""

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :4, 1:] = 2 * x[:, :4, 1:]
            patches = functional.unfold(x, 4, stride=4).reshape(1, 16, 16, 4)
            small: Tensor = functional.interpolate(x, (4, 4), mode="bilinear", antialias=True)
            return torch.cat([small.flatten(2), patches.mean(-1)], 1)

    class Sampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = conv()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = functional.grid_sample(
                x, torch.tanh(self.grid(x))[:, :2].permute(0, 2, 3, 1)[:, :5], align_corners=True
            )
            return y

    x = torch.from_numpy(np.random.default_rng(1).standard_normal(SHAPE, dtype=np.float32))
    tokens, mask = x.reshape(1, 64, 16)[:, :6], torch.tensor([[1, 1, 1, 1, 0, 0]])
    return {
        "LSTM of two layers": (Recurrent(nn.LSTM(16, 12, 2, batch_first=True)), (tokens,)),
        "LSTM both": (Recurrent(nn.LSTM(16, 12, batch_first=True, bidirectional=True)), (tokens,)),
        "GRU": (Recurrent(nn.GRU(16, 12, 2)), (tokens,)),
        **{f"mask {kind}": (Attention(kind), (tokens, mask)) for kind in ("causal", "truth", "number")},
        "bilinear": (nn.Sequential(conv(), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)), (x,)),
        "bicubic": (nn.Sequential(conv(), nn.Upsample(scale_factor=2, mode="bicubic")), (x,)),
        "nearest": (nn.Sequential(conv(), nn.Upsample(size=(13, 5)), conv()), (x,)),
        "activations": (nn.Sequential(conv(), nn.PReLU(16), nn.Mish(), nn.SELU(), nn.CELU(2.0), nn.LeakyReLU()), (x,)),
        "hard": (nn.Sequential(conv(), nn.Hardswish(), nn.Hardtanh(), nn.LogSigmoid()), (x,)),
        "norms": (nn.Sequential(conv(), nn.GroupNorm(4, 16), conv(), nn.InstanceNorm2d(16, affine=True)), (x,)),
        "pads": (nn.Sequential(nn.ReflectionPad2d(1), conv(), nn.ZeroPad2d((0, 1, 0, 1)), conv()), (x,)),
        "pixels": (nn.Sequential(conv(), nn.PixelUnshuffle(2), nn.PixelShuffle(2)), (x,)),
        "dilated": (nn.ConvTranspose2d(16, 8, 3, 2, dilation=2), (x,)),
        "circular": (nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), (x,)),
        "assigned": (nn.Sequential(conv(), Assigned()), (x,)),
        "sampled": (Sampled(), (x,)),
        "mask of truth values": (Attention("truth"), (tokens, mask.bool())),
        "extremes": (nn.Sequential(conv(), Extremes()), (x,)),
    }


TORCH = (
    "LSTM of two layers", "LSTM both", "GRU", "mask causal", "mask truth", "mask number", "bilinear", "bicubic",
    "nearest", "activations", "hard", "norms", "pads", "pixels", "dilated", "extremes",
    "circular", "assigned", "sampled", "mask of truth values",
)  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_as_pytorch_computes(name: str) -> None:
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net, inputs = torch_nets()[name]
    net.eval()
    with torch.inference_mode():
        right = net(*inputs).numpy()
    graph = import_torch(net, inputs)
    sample = {entry: x.numpy() for entry, x in zip(graph.inputs, inputs, strict=False)}
    (found,) = execute(graph, sample).values()
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)
    integer = quantize(graph, [sample]).graph
    assert partition.host_shares(integer) == {}
    (found,) = execute(integer, sample).values()
    assert error(found, right) < 0.1


@pytest.mark.slow
def test_a_recurrent_layer_is_the_vtas(tmp_path: Path) -> None:
    """Both directions: all inputs in one product each, and one product for each step after the first."""
    import onnx

    case = GROUPS["recurrent"]["LSTM both"]
    onnx.save(written([case]), tmp_path / "m.onnx")
    x = samples(case, 4)
    model = o2.compile(tmp_path / "m.onnx", "pynq", calibration=x)
    assert model.ok
    layers = [layer for layer in model.layers if layer.macs]
    assert len(layers) == 2 + 2 * 5 and all(layer.reason is None for layer in layers)
    found, right = model.run(x[:6]), execute(model.graph, {"x": x[:6]})
    for title, name in zip(model.graph.output_names, model.graph.outputs, strict=True):
        np.testing.assert_allclose(found[title], right[name], atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_sigmoid_far_below_zero_warns_of_nothing() -> None:
    x = np.array([-200, -1, 0, 200], np.float32)
    compute = op_of("sigmoid").compute
    assert compute is not None
    found = compute([x], {}, x.shape)
    np.testing.assert_allclose(found, [0, 1 / (1 + np.e), 0.5, 1], rtol=1e-6)
