"""Our own definitions of known networks, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

# Of the BERT encoders: token ids, and the longest input.
VOCABULARY, TOKENS = 30522, 512


def _resnet(bottleneck: bool, depths: tuple[int, ...]) -> nn.Module:
    """ResNet for 1000 classes (He et al., 2015), strides of the bottleneck in its 3x3."""
    from torch import nn

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


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: str = "ReLU") -> Any:
    """A convolution that keeps the size, batch normalisation, and a ReLU of that kind, if any."""
    from torch import nn

    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        *([getattr(nn, relu)()] if relu else []),
    ]
    return nn.Sequential(*layers)


def _mobilenet_v1() -> nn.Module:
    """MobileNet of width 1 for 1000 classes (Howard et al., 2017)."""
    from torch import nn

    layers = [_conv_norm(3, 32, 3, 2)]
    inputs = 32
    for outputs, stride in (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
    ):  # fmt: skip
        layers += [_conv_norm(inputs, inputs, 3, stride, inputs), _conv_norm(inputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def _mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1 for 1000 classes (Sandler et al., 2018)."""
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
            super().__init__()
            width = inputs * expansion
            expand = [_conv_norm(inputs, width, 1, relu="ReLU6")] if expansion > 1 else []
            self.body = nn.Sequential(
                *expand, _conv_norm(width, width, 3, stride, width, "ReLU6"), _conv_norm(width, outputs, 1, relu="")
            )
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return x + y if self.residual else y

    layers: list[nn.Module] = [_conv_norm(3, 32, 3, 2, relu="ReLU6")]
    inputs = 32
    # (expansion, channels, blocks, stride of the first): table 2 of the paper.
    for expansion, outputs, depth, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(depth):
            layers.append(Bottleneck(inputs, outputs, 1 if index else stride, expansion))
            inputs = outputs
    layers.append(_conv_norm(inputs, 1280, 1, relu="ReLU6"))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def _squeezenet() -> nn.Module:
    """SqueezeNet 1.1 for 1000 classes (Iandola et al., 2016)."""
    import torch
    from torch import nn

    class Fire(nn.Module):
        def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
            super().__init__()
            self.squeeze = nn.Conv2d(inputs, squeezed, 1)
            self.expand1 = nn.Conv2d(squeezed, expanded, 1)
            self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.squeeze(x))
            return torch.cat([self.relu(self.expand1(x)), self.relu(self.expand3(x))], 1)

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU()]
    inputs = 64
    for squeezed, fires in ((16, 2), (32, 2), (48, 4)):
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for index in range(fires):
            squeezed = 64 if index == 2 else squeezed
            layers.append(Fire(inputs, squeezed, 4 * squeezed))
            inputs = 8 * squeezed
    return nn.Sequential(*layers, nn.Conv2d(inputs, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _encoder(width: int, depth: int, heads: int, norm_first: bool) -> nn.Module:
    """Transformer blocks (Vaswani et al., 2017) on (B, S, width): norm after each sum (BERT) or before each part (ViT).

    Four times as wide between, with GELU; without dropout and masks.
    """
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

        def split(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], x.shape[1], heads, width // heads).transpose(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
            scores = (query @ key.transpose(2, 3)) * (width // heads) ** -0.5
            mixed = (scores.softmax(-1) @ value).transpose(1, 2)
            y: Tensor = self.out(mixed.reshape(x.shape))
            return y

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.wide, self.gelu, self.narrow = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            if norm_first:
                x = x + self.attention(self.norm1(x))
                return x + self.narrow(self.gelu(self.wide(self.norm2(x))))
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.narrow(self.gelu(self.wide(x))))

    return nn.Sequential(*(Block() for _ in range(depth)))


def _vit_tiny() -> nn.Module:
    """ViT-Ti/16 for 1000 classes (Touvron et al., 2021), for images of 16 x 16 up to 512 x 512."""
    import torch
    from torch import nn

    width = 192

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, 16, 16)
            self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + 32 * 32, width))
            self.blocks = _encoder(width, 12, 3, norm_first=True)
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], 1, width), x], 1)
            x = self.blocks(x + self.positions[:, : x.shape[1]])
            return self.head(self.norm(x)[:, 0])

    return ViT()


def _bert(width: int, depth: int, heads: int) -> nn.Module:
    """A BERT encoder (Devlin et al., 2018): token ids (B, S) int64, S up to ``TOKENS``, to the last hidden states."""
    import torch
    from torch import nn

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(VOCABULARY, width)
            # Those of the positions and of the one segment.
            self.positions = nn.Parameter(torch.randn(1, TOKENS, width))
            self.norm = nn.LayerNorm(width)
            self.blocks = _encoder(width, depth, heads, norm_first=False)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.norm(self.words(ids) + self.positions[:, : ids.shape[1]])
            y: Tensor = self.blocks(x)
            return y

    return Bert()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: _resnet(False, (2, 2, 2, 2)),
    "resnet34": lambda: _resnet(False, (3, 4, 6, 3)),
    "resnet50": lambda: _resnet(True, (3, 4, 6, 3)),
    "vgg16": _vgg16,
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "squeezenet": _squeezenet,
    "vit_tiny": _vit_tiny,
    "bert_tiny": lambda: _bert(128, 2, 2),
    "bert_base": lambda: _bert(768, 12, 12),
}
# Models that take token ids, not images.
_TEXT = ("bert_tiny", "bert_base")


def model_names() -> list[str]:
    """Names that :func:`build` and :func:`trace` know, sorted."""
    return sorted(MODELS)


def native_size(name: str) -> int:
    """The size that a model is compiled at unless one is asked for: height and width of images, or tokens."""
    return 128 if name in _TEXT else 224


def check_name(name: str) -> None:
    """Raise OneShotError unless there is such a model; names those there are."""
    if name not in MODELS:
        raise OneShotError(unknown("model", name, model_names()))


def build(name: str) -> nn.Module:
    """The PyTorch module of that name, in evaluation mode, randomly initialised on torch's default device.

    Raises:
        OneShotError: no such model (names those there are), or torch is not installed.
    """
    check_name(name)
    try:
        return MODELS[name]().eval()
    except ImportError as error:
        raise OneShotError(f"model {name!r} is traced with PyTorch, which cannot be imported ({error})") from error


def example_input(name: str, size: int, batch: int = 1, device: str = "cpu") -> Any:
    """Zeros as a model takes them: images (batch, 3, size, size) in float32, or ``size`` token ids (batch, size) int64.

    Raises:
        OneShotError: no such size.
    """
    import torch

    if size < 1 or batch < 1:
        raise OneShotError(f"size is {size} and batch is {batch}; allowed: at least 1")
    if name in _TEXT:
        if size > TOKENS:
            raise OneShotError(f"{name} takes up to {TOKENS} tokens; the size is {size}")
        return torch.zeros(batch, size, dtype=torch.int64, device=device)
    return torch.zeros(batch, 3, size, size, device=device)
