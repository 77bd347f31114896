"""Networks by name, as short PyTorch modules, and the workloads that a module's graph contains.

torch is imported inside the functions, so that importing this module stays light.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oneshot_ml2.errors import OneShotError
from oneshot_ml2.workload import Conv2d, Dense, Epilogue, Layer, Workload

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule, Node

# Requantization of every traced layer: TVM's shift of 8 (VTA reference, 8.1), and int8 residuals 4 bits up.
SHIFT, RESIDUAL_SHIFT = 8, 4


def _resnet(bottleneck: bool, depths: tuple[int, ...]) -> nn.Module:
    """ResNet for 1000 classes (He et al., 2015), strides of the bottleneck in its 3x3."""
    from torch import Tensor, nn

    expansion = 4 if bottleneck else 1

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            outputs = width * expansion
            # (channels in, out, kernel, stride) of the convolutions on the main path.
            convs = [(inputs, width, 3, stride), (width, width, 3, 1)]
            if bottleneck:
                convs = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
            self.depth = len(convs)
            for number, (cin, cout, kernel, step) in enumerate(convs, 1):
                setattr(self, f"conv{number}", nn.Conv2d(cin, cout, kernel, step, kernel // 2, bias=False))
                setattr(self, f"bn{number}", nn.BatchNorm2d(cout))
            self.relu = nn.ReLU()
            self.shortcut: nn.Module = nn.Identity()
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Tensor) -> Tensor:
            residual = self.shortcut(x)
            for number in range(1, self.depth + 1):
                x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
                x = self.relu(x + residual if number == self.depth else x)
            return x

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU()
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            inputs = 64
            for stage, depth in enumerate(depths):
                width, blocks = 64 << stage, []
                for index in range(depth):
                    blocks.append(Block(inputs, width, 2 if stage and not index else 1))
                    inputs = width * expansion
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(inputs, 1000)

        def forward(self, x: Tensor) -> Tensor:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            for stage in range(len(depths)):
                x = getattr(self, f"layer{stage + 1}")(x)
            y: Tensor = self.fc(self.avgpool(x).flatten(1))
            return y

    return ResNet()


def _vgg16() -> nn.Module:
    """VGG-16 (configuration D) for 1000 classes (Simonyan and Zisserman, 2014)."""
    from torch import nn

    features: list[nn.Module] = []
    inputs = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            features += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        features.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *features,
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    )


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: _resnet(False, (2, 2, 2, 2)),
    "resnet34": lambda: _resnet(False, (3, 4, 6, 3)),
    "resnet50": lambda: _resnet(True, (3, 4, 6, 3)),
    "vgg16": _vgg16,
}


def model_names() -> list[str]:
    """Names that :func:`build` and :func:`trace` know, sorted."""
    return sorted(_MODELS)


def build(name: str) -> nn.Module:
    """The PyTorch module of that name, in evaluation mode, randomly initialised on torch's default device.

    Raises:
        OneShotError: no such model (names those there are), or torch is not installed.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise OneShotError(f"no model {name!r}{hint} There are: {', '.join(model_names())}")
    try:
        return _MODELS[name]().eval()
    except ImportError as error:
        raise OneShotError(f"model {name!r} is traced with PyTorch, which cannot be imported ({error})") from error


def trace(name: str, size: int = 224, batch: int = 1, *, merge: bool = True) -> list[Layer]:
    """The convolutions and dense layers of a model for images (batch, 3, size, size), in order of execution.

    With ``merge``, equal workloads become one layer under the first one's name, with their ``count``.

    Raises:
        OneShotError: no such model, or images too small for it.
    """
    if size < 1 or batch < 1:
        raise OneShotError(f"images of {batch} x 3 x {size} x {size}; allowed: size and batch of at least 1")
    if name not in _MODELS:
        build(name)
    import torch

    with torch.device("meta"):
        module = build(name)
    return trace_module(module, (batch, 3, size, size), merge=merge)


def trace_module(module: nn.Module, input_shape: tuple[int, ...], *, merge: bool = True) -> list[Layer]:
    """The convolutions and dense layers of a module, with the epilogue that its graph gives each of them.

    What follows a layer and uses nothing else is fused into it: batch normalisation (its scale into the weights, the
    rest a bias), an addition whose other operand is computed earlier (a residual), a ReLU (clip 0..127). Without a
    ReLU the result saturates at int8. The module must be traceable by torch.fx, on any device; nothing is computed
    if that is ``meta``.

    Raises:
        OneShotError: not traceable, the input does not fit it, or grouped convolutions (not supported).
    """
    import torch
    from torch import fx
    from torch.fx.passes.shape_prop import ShapeProp

    parameter = next(module.parameters(), None)
    image = torch.empty(input_shape, device=None if parameter is None else parameter.device)
    module.eval()
    try:
        graph = fx.symbolic_trace(module)
        with torch.inference_mode():
            ShapeProp(graph).propagate(image)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise OneShotError(f"{type(module).__name__} cannot be traced for input {input_shape}: {reason}") from error
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    layers = []
    for node in graph.graph.nodes:
        target = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(target, (torch.nn.Conv2d, torch.nn.Linear)):
            epilogue = _epilogue(graph, node, target.bias is not None, order)
            layers.append(Layer(str(node.target), _workload(node, target, epilogue)))
    if not merge:
        return layers
    counts = Counter(layer.workload for layer in layers)
    first = {layer.workload: layer for layer in reversed(layers)}
    return [
        dataclasses.replace(layer, count=counts[layer.workload]) for layer in layers if first[layer.workload] is layer
    ]


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _epilogue(graph: GraphModule, node: Node, bias: bool, order: dict[Node, int]) -> Epilogue:
    """Follow the only user of ``node`` as long as it can be fused."""
    import torch
    from torch import nn

    adds = (operator.add, operator.iadd, torch.add, "add", "add_")
    relus = (torch.relu, nn.functional.relu, nn.functional.relu6, "relu", "relu_")
    residual_shift = None
    low = -128
    while len(node.users) == 1:
        user = next(iter(node.users))
        module = graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, nn.BatchNorm2d) and residual_shift is None:
            bias = True
        elif isinstance(module, (nn.ReLU, nn.ReLU6)) or user.target in relus:
            low = 0
            break
        elif user.target in adds and residual_shift is None:
            others = [arg for arg in user.all_input_nodes if arg is not node]
            # The last operand computed takes the sum; only then is the other one in memory.
            if len(others) != 1 or order[others[0]] > order[node] or _shape(others[0]) != _shape(node):
                break
            residual_shift = RESIDUAL_SHIFT
        elif not isinstance(module, (nn.Identity, nn.Dropout)):
            break
        node = user
    return Epilogue(bias=bias, residual_shift=residual_shift, shift=SHIFT, clip=(low, 127))


def _workload(node: Node, module: nn.Conv2d | nn.Linear, epilogue: Epilogue) -> Workload:
    from torch import nn

    shape = _shape(node.args[0])
    if isinstance(module, nn.Linear):
        rows = 1
        for size in shape[:-1]:
            rows *= size
        return Dense(rows, module.in_features, module.out_features, epilogue)
    if module.groups != 1 or module.padding_mode != "zeros":
        raise OneShotError(f"{node.target}: grouped and non-zero padded convolutions are not supported")
    if isinstance(module.padding, str):
        raise OneShotError(f"{node.target}: padding {module.padding!r} is not supported; give it in numbers")
    n, c, h, w = shape
    r, s = module.kernel_size
    return Conv2d(n, c, h, w, module.out_channels, r, s, module.stride, module.padding, module.dilation, epilogue)
