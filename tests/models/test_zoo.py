"""Traced networks: shapes, counts and the epilogues that the graph implies."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import loaded_by

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.models.frontend.traced import trace, trace_module
from oneshot_ml2.models.zoo import build, model_names, native_size
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue

RELU = Epilogue(bias=True)
RESIDUAL = Epilogue(bias=True, residual_shift=4)
LINEAR = Epilogue(bias=True, clip=(-128, 127))


def test_resnet18() -> None:
    layers = trace("resnet18")
    found = {layer.name: layer for layer in layers}
    assert sum(layer.count for layer in layers) == 21
    # The published 1.81 G multiplications of ResNet-18 at 224 x 224.
    assert sum(layer.count * layer.workload.macs for layer in layers) == 1_814_073_344
    assert layers[0].name == "conv1"
    assert layers[0].workload == Conv2d(1, 3, 224, 224, 64, 7, 7, 2, 3, epilogue=RELU)
    assert found["layer1.0.conv1"].workload == Conv2d(1, 64, 56, 56, 64, 3, 3, 1, 1, epilogue=RELU)
    assert found["layer1.0.conv2"].workload == Conv2d(1, 64, 56, 56, 64, 3, 3, 1, 1, epilogue=RESIDUAL)
    assert found["layer1.0.conv1"].count == found["layer1.0.conv2"].count == 2
    assert found["layer2.0.conv1"].workload == Conv2d(1, 64, 56, 56, 128, 3, 3, 2, 1, epilogue=RELU)
    assert found["layer2.0.shortcut.0"].workload == Conv2d(1, 64, 56, 56, 128, 1, 1, 2, 0, epilogue=LINEAR)
    assert layers[-1].name == "fc"
    assert layers[-1].workload == Dense(1, 512, 1000, LINEAR)


def test_unmerged_layers_are_in_order() -> None:
    layers = trace("resnet18", merge=False)
    assert len(layers) == 21
    assert all(layer.count == 1 for layer in layers)
    assert [layer.name for layer in layers[:3]] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]


@pytest.mark.parametrize(
    ("name", "count", "macs"),
    [
        ("resnet34", 37, 3_663_761_408),
        ("resnet50", 54, 4_089_184_256),
        ("vgg16", 16, 15_470_264_320),
        ("mobilenet_v1", 28, 568_740_352),
        ("mobilenet_v2", 53, 300_774_272),
        ("squeezenet", 26, 349_151_936),
        ("vit_tiny", 98, 1_253_683_200),
    ],
)
def test_published_sizes(name: str, count: int, macs: int) -> None:
    layers = trace(name)
    assert sum(layer.count for layer in layers) == count
    assert sum(layer.count * layer.workload.macs for layer in layers) == macs


def test_vgg16_has_no_residual() -> None:
    layers = trace("vgg16")
    assert [layer.workload.epilogue for layer in layers] == [RELU] * (len(layers) - 1) + [LINEAR]
    assert layers[-3].workload == Dense(1, 25088, 4096, RELU)


def test_size_and_batch() -> None:
    first = trace("resnet18", size=64, batch=3)[0].workload
    assert first == Conv2d(3, 3, 64, 64, 64, 7, 7, 2, 3, epilogue=RELU)
    assert trace("resnet18", size=64, batch=3)[-1].workload == Dense(3, 512, 1000, LINEAR)
    with pytest.raises(OneShotError, match="at least 1"):
        trace("resnet18", size=0)
    with pytest.raises(OneShotError, match="cannot be traced"):
        trace("vgg16", size=8)


def test_every_model_has_a_size_of_its_own() -> None:
    assert {name: native_size(name) for name in model_names()} == {
        name: 128 if name.startswith("bert") else 224 for name in model_names()
    }


def test_unknown_model_names_the_closest() -> None:
    with pytest.raises(OneShotError, match="no model 'resnet-18'; did you mean 'resnet18'") as caught:
        trace("resnet-18")
    assert all(name in str(caught.value) for name in model_names())


def test_built_module_runs() -> None:
    import torch

    module = build("resnet18")
    assert not module.training
    with torch.inference_mode():
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_epilogues_of_a_module_of_ones_own() -> None:
    import torch
    from torch import Tensor, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 8, 3, padding=1, bias=False)
            self.b = nn.Conv2d(8, 8, (1, 3), stride=(2, 1), padding=(0, 1))
            self.c = nn.Conv2d(4, 8, 1, stride=(2, 1), bias=False)
            self.d = nn.Linear(8, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            b = self.b(torch.relu(a))
            # c is computed last, so it takes the sum; b has no further stage.
            y = (b + self.c(x)).relu()
            return self.d(y.mean((2, 3)))  # type: ignore[no-any-return]

    layers = {layer.name: layer.workload for layer in trace_module(Net(), (2, 4, 6, 6))}
    assert layers["a"] == Conv2d(2, 4, 6, 6, 8, 3, 3, padding=1, epilogue=Epilogue())
    assert layers["b"].epilogue == LINEAR
    assert layers["b"].output_shape == (2, 8, 3, 6)
    assert layers["c"].epilogue == Epilogue(residual_shift=4)
    assert layers["d"] == Dense(2, 8, 5, Epilogue(clip=(-128, 127)))


def test_grouped_and_transposed_convolutions() -> None:
    from torch import nn

    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.ConvTranspose2d(8, 4, 3, 2, 1, 1))
    first, second = (layer.workload for layer in trace_module(net, (1, 8, 9, 9)))
    assert first == Conv2d(1, 8, 9, 9, 8, 3, 3, groups=8, epilogue=RELU)
    assert second == Conv2dTranspose(1, 8, 7, 7, 4, 3, 3, 2, 1, 1, LINEAR)


def test_encoders() -> None:
    layers = trace("bert_tiny", size=16)
    # Per block: four products of width 128, two pairs of attention, and two layers of the wide part.
    assert sum(layer.count * layer.workload.macs for layer in layers) == 2 * 16 * (4 * 128**2 + 2 * 4 * 128**2) + (
        2 * 2 * 16 * 16 * 128
    )
    products = [layer.workload for layer in layers if isinstance(layer.workload, BatchMatmul)]
    assert {(p.b, p.n, p.c, p.k) for p in products} == {(2, 16, 64, 16), (2, 16, 16, 64)}
    with pytest.raises(OneShotError, match="up to 512 tokens"):
        trace("bert_tiny", size=513)


def test_unsupported_modules_are_refused() -> None:
    from torch import nn

    with pytest.raises(OneShotError, match="'reflect'"):
        trace_module(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), (1, 8, 9, 9))
    with pytest.raises(OneShotError, match="groups or dilation"):
        trace_module(nn.Sequential(nn.ConvTranspose2d(8, 8, 3, groups=8)), (1, 8, 9, 9))
    with pytest.raises(OneShotError, match=r"compile the whole model"):
        trace_module(Attention(), (1, 4, 8))
    with pytest.raises(OneShotError, match="cannot be traced"):
        trace_module(nn.Sequential(nn.Conv2d(8, 8, 3)), (1, 4, 9, 9))


def Attention() -> Any:
    from torch import Tensor, nn
    from torch.nn import functional

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x)

    return Net()


def test_import_is_light() -> None:
    assert loaded_by("import oneshot_ml2.models.zoo", ["torch"]) == set()
