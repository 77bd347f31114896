"""Architectures of the list that no package defines lightly, after their papers, with PyTorch's own layers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(
    channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), activation())


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with padded convolutions, four levels, transposed convolutions upwards."""

    def __init__(self, width: int = 16, classes: int = 2) -> None:
        super().__init__()
        sizes = [width << level for level in range(5)]
        self.down = nn.ModuleList(self._two(c, k) for c, k in zip([3, *sizes], sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * k, k, 2, 2) for k in sizes[:-1])
        self.merge = nn.ModuleList(self._two(2 * k, k) for k in sizes[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _two(channels: int, out: int) -> nn.Sequential:
        return nn.Sequential(_conv(channels, out), _conv(out, out))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([kept[level], self.up[level](x)], 1))
        return self.head(x)


class _C2f(nn.Module):
    def __init__(self, channels: int, out: int, count: int, add: bool) -> None:
        super().__init__()
        half = out // 2
        self.add = add
        self.first = _conv(channels, out, 1, activation=nn.SiLU)
        self.parts = nn.ModuleList(
            nn.Sequential(_conv(half, half, activation=nn.SiLU), _conv(half, half, activation=nn.SiLU))
            for _ in range(count)
        )
        self.last = _conv((2 + count) * half, out, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for part in self.parts:
            result = part(parts[-1])
            parts.append(parts[-1] + result if self.add else result)
        return self.last(torch.cat(parts, 1))


class YoloV8(nn.Module):
    """YOLOv8's nano detector: C2f backbone, SPPF, path aggregation by nearest upsampling, boxes as distributions."""

    def __init__(self, classes: int = 80, bins: int = 16) -> None:
        super().__init__()
        silu = nn.SiLU
        self.bins = bins
        self.stem = nn.Sequential(_conv(3, 16, 3, 2, activation=silu), _conv(16, 32, 3, 2, activation=silu))
        self.c2 = _C2f(32, 32, 1, True)
        self.c3 = nn.Sequential(_conv(32, 64, 3, 2, activation=silu), _C2f(64, 64, 2, True))
        self.c4 = nn.Sequential(_conv(64, 128, 3, 2, activation=silu), _C2f(128, 128, 2, True))
        self.c5 = nn.Sequential(_conv(128, 256, 3, 2, activation=silu), _C2f(256, 256, 1, True))
        self.squeeze, self.spread = _conv(256, 128, 1, activation=silu), _conv(512, 256, 1, activation=silu)
        self.up4, self.up3 = _C2f(384, 128, 1, False), _C2f(192, 64, 1, False)
        self.down3, self.down4 = _conv(64, 64, 3, 2, activation=silu), _conv(128, 128, 3, 2, activation=silu)
        self.n4, self.n5 = _C2f(192, 128, 1, False), _C2f(384, 256, 1, False)
        self.boxes = nn.ModuleList(self._head(c, 64, 4 * bins) for c in (64, 128, 256))
        self.scores = nn.ModuleList(self._head(c, 80, classes) for c in (64, 128, 256))
        self.register_buffer("steps", torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))

    @staticmethod
    def _head(channels: int, width: int, out: int) -> nn.Sequential:
        convolutions = _conv(channels, width, activation=nn.SiLU), _conv(width, width, activation=nn.SiLU)
        return nn.Sequential(*convolutions, nn.Conv2d(width, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        x3 = self.c3(self.c2(self.stem(x)))
        x4 = self.c4(x3)
        x5 = self.squeeze(self.c5(x4))
        pooled = [x5]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        x5 = self.spread(torch.cat(pooled, 1))
        p4 = self.up4(torch.cat([F.interpolate(x5, scale_factor=2.0), x4], 1))
        p3 = self.up3(torch.cat([F.interpolate(p4, scale_factor=2.0), x3], 1))
        p4 = self.n4(torch.cat([self.down3(p3), p4], 1))
        p5 = self.n5(torch.cat([self.down4(p4), x5], 1))
        levels = list(zip((p3, p4, p5), self.boxes, self.scores))
        distances = torch.cat([box(level).flatten(2) for level, box, _ in levels], 2)
        scores = torch.cat([score(level).flatten(2) for level, _, score in levels], 2)
        shares = distances.view(-1, 4, self.bins, distances.shape[-1]).transpose(1, 2).softmax(1)
        left, right = (shares * self.steps).sum(1).chunk(2, 1)
        centre, strides = self._anchors(levels)
        low, high = centre - left, centre + right
        boxes = torch.cat([(low + high) / 2, high - low], 1) * strides
        return torch.cat([boxes, scores.sigmoid()], 1)

    def _anchors(self, levels: list[tuple[Tensor, nn.Module, nn.Module]]) -> tuple[Tensor, Tensor]:
        """The middles of the cells of every level, (1, 2, cells), and their strides (1, 1, cells)."""
        centres, strides = [], []
        for (level, _, _), stride in zip(levels, (8.0, 16.0, 32.0)):
            rows, columns = (torch.arange(extent, dtype=torch.float32) + 0.5 for extent in level.shape[2:])
            centres.append(torch.stack(torch.meshgrid(columns, rows, indexing="xy")).flatten(1))
            strides.append(torch.full((1, centres[-1].shape[1]), stride))
        return torch.cat(centres, 1)[None], torch.cat(strides, 1)[None]


class RetinaFace(nn.Module):
    """RetinaFace's small form: MobileNetV1 of a quarter width, a feature pyramid, context modules, leaky ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.stage1 = nn.Sequential(self._leaky(3, 8, 3, 2), *(self._separable(*w) for w in widths))
        self.stage2 = nn.Sequential(self._separable(64, 128, 2), *(self._separable(128, 128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(self._separable(128, 256, 2), self._separable(256, 256, 1))
        self.lateral = nn.ModuleList(self._leaky(c, 64, 1) for c in (64, 128, 256))
        self.merge = nn.ModuleList(self._leaky(64, 64) for _ in range(2))
        self.wide = nn.ModuleList(_conv(64, 32, activation=nn.Identity) for _ in range(3))
        self.narrow = nn.ModuleList(
            nn.Sequential(self._leaky(64, 32), _conv(32, 32, activation=nn.Identity)) for _ in range(3)
        )
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(64, 2 * k, 1) for k in (4, 2, 10)) for _ in range(3))

    @staticmethod
    def _leaky(channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.LeakyReLU(0.1))

    def _separable(self, channels: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(self._leaky(channels, channels, 3, stride, channels), self._leaky(channels, out, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.stage1(x)
        second = self.stage2(first)
        levels = [lateral(c) for lateral, c in zip(self.lateral, (first, second, self.stage3(second)))]
        for level in (1, 0):
            upper = F.interpolate(levels[level + 1], size=levels[level].shape[2:], mode="nearest")
            levels[level] = self.merge[level](levels[level] + upper)
        found: list[list[Tensor]] = [[], [], []]
        for index, level in enumerate(levels):
            context = F.relu(torch.cat([self.wide[index](level), self.narrow[index](level)], 1))
            for kind, (head, width) in enumerate(zip(self.heads[index], (4, 2, 10))):
                found[kind].append(head(context).permute(0, 2, 3, 1).reshape(1, -1, width))
        boxes, scores, marks = (torch.cat(parts, 1) for parts in found)
        return boxes, scores.softmax(-1), marks


class BlazeFace(nn.Module):
    """BlazeFace's front camera detector (Bazarevsky et al., 2019): 5x5 depthwise, pads before strides, PReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 5, 2), nn.PReLU(24))
        widths = [24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88]
        strides = [1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1]
        self.strides = [*strides, 1]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 5, s, 2 if s == 1 else 0, groups=c), nn.Conv2d(c, k, 1))
            for c, k, s in zip(widths, [*widths[1:], 96], self.strides)
        )
        self.slopes = nn.ModuleList(nn.PReLU(k) for k in [*widths[1:], 96])
        self.boxes, self.scores = nn.Conv2d(96, 32, 1), nn.Conv2d(96, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(F.pad(x, (1, 2, 1, 2)))
        for block, slope, stride in zip(self.blocks, self.slopes, self.strides):
            result = block(F.pad(x, (1, 2, 1, 2)) if stride == 2 else x)
            x = F.max_pool2d(x, 2) if stride == 2 else x
            x = slope(result + F.pad(x, (0, 0, 0, 0, 0, result.shape[1] - x.shape[1])))
        boxes, scores = self.boxes(x), self.scores(x)
        return boxes.permute(0, 2, 3, 1).reshape(1, -1, 16), scores.permute(0, 2, 3, 1).reshape(1, -1, 1).sigmoid()


class Espcn(nn.Sequential):
    """ESPCN (Shi et al., 2016): super-resolution by a shuffle of channels to pixels."""

    def __init__(self, factor: int = 3) -> None:
        last = nn.Conv2d(32, factor**2, 3, 1, 1)
        layers = nn.Conv2d(1, 64, 5, 1, 2), nn.Tanh(), nn.Conv2d(64, 32, 3, 1, 1), nn.Tanh(), last
        super().__init__(*layers, nn.PixelShuffle(factor))


class Autoencoder(nn.Sequential):
    """A convolutional autoencoder with instance norms, and transposed convolutions of 4x4 in the decoder."""

    def __init__(self) -> None:
        down = [
            nn.Sequential(nn.Conv2d(c, k, 4, 2, 1), nn.InstanceNorm2d(k, affine=True), nn.LeakyReLU(0.2))
            for c, k in ((3, 32), (32, 64), (64, 128))
        ]
        up = [
            nn.Sequential(nn.ConvTranspose2d(c, k, 4, 2, 1), nn.BatchNorm2d(k), nn.ReLU())
            for c, k in ((128, 64), (64, 32))
        ]
        super().__init__(*down, *up, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())


class Recurrent(nn.Module):
    """Two recurrent layers and a classifier of the last step."""

    def __init__(self, kind: str, features: int = 40, hidden: int = 64, classes: int = 12) -> None:
        super().__init__()
        self.layers = getattr(nn, kind)(features, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


class DsCnn(nn.Sequential):
    """DS-CNN for keywords (Zhang et al., 2017), the small one, of 49 frames of 10 coefficients."""

    def __init__(self, width: int = 64, classes: int = 12) -> None:
        stem = nn.Sequential(nn.Conv2d(1, width, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks = [nn.Sequential(_conv(width, width, groups=width), _conv(width, width, 1)) for _ in range(4)]
        super().__init__(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class TcResNet(nn.Module):
    """TC-ResNet8 for keywords (Choi et al., 2019): convolutions over time alone."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        widths = [16, 24, 32, 48]
        self.stem = nn.Conv1d(40, 16, 3, padding=1, bias=False)
        self.first = nn.ModuleList(self._part(c, k, 2) for c, k in itertools.pairwise(widths))
        self.second = nn.ModuleList(self._part(k, k, 1) for k in widths[1:])
        self.short = nn.ModuleList(
            nn.Sequential(nn.Conv1d(c, k, 1, 2, bias=False), nn.BatchNorm1d(k), nn.ReLU())
            for c, k in itertools.pairwise(widths)
        )
        self.head = nn.Linear(48, classes)

    @staticmethod
    def _part(channels: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(channels, out, 9, stride, 4, bias=False), nn.BatchNorm1d(out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, short in zip(self.first, self.second, self.short):
            x = F.relu(second(F.relu(first(x))) + short(x))
        return self.head(F.adaptive_avg_pool1d(x, 1).flatten(1))


class WaveNet(nn.Module):
    """WaveNet's gated, dilated, causal convolutions (van den Oord et al., 2016), ten of them."""

    def __init__(self, width: int = 32, classes: int = 256) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=1 << level) for level in range(10))
        self.mix = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(10))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = torch.zeros_like(x)
        for level, (gated, mix) in enumerate(zip(self.gated, self.mix)):
            signal, gate = gated(F.pad(x, (1 << level, 0))).chunk(2, 1)
            part = mix(signal.tanh() * gate.sigmoid())
            x, skips = x + part, skips + part
        return self.head(skips)
