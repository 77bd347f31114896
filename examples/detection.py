"""Detection: a YOLO-style network with SPPF, Resize, Concat and decoding, trained on drawn shapes.

Run: ``pip install -e '.[examples]'``, then ``python examples/detection.py``. Circles, boxes and triangles of any colour
lie on backgrounds of noise; the network predicts the edges' distances from the cells' middles, as anchor-free ones do.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np

KINDS = ("circle", "box", "triangle")
SIZE, STRIDES = 128, (8, 16)
# The bar: mean intersection over union of the boxes that match the float model's.
ALLOWED = 0.95
_STEPS, _BATCH = 300, 16
_CALIBRATION, _JUDGED = 16, 48
_SCORE, _OVERLAP = 0.4, 0.5
# Objects whose longer side is above it are the coarser grid's.
_LARGE = 44


@dataclass(frozen=True)
class Boxes:
    """Of an image: ``corners`` float (n, 4), left, top, right, bottom in pixels; ``kinds`` int (n,); ``scores``."""

    corners: common.Array
    kinds: common.Array
    scores: common.Array


# Drawing ---------------------------------------------------------------------------------------
def drawn(rng: np.random.Generator) -> tuple[common.Array, Boxes]:
    """An image float32 (3, SIZE, SIZE) of 0..1 with one to five shapes, and where they are."""
    from PIL import Image, ImageDraw

    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).astype(np.uint8))
    image = coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    corners: list[tuple[float, ...]] = []
    kinds = []
    for _ in range(rng.integers(1, 6)):
        width, height = rng.integers(16, 64, 2).tolist()
        left, top = int(rng.integers(2, SIZE - width - 2)), int(rng.integers(2, SIZE - height - 2))
        box = (left, top, left + width, top + height)
        if any(_overlap(np.array([box]), np.array([other]))[0, 0] > 0.02 for other in corners):
            continue
        kind, colour = int(rng.integers(len(KINDS))), tuple(rng.integers(0, 256, 3).tolist())
        outline = (255, 255, 255) if sum(colour) < 380 else (0, 0, 0)
        if kind == 0:
            draw.ellipse(box, colour, outline, 2)
        elif kind == 1:
            draw.rectangle(box, colour, outline, 2)
        else:
            draw.polygon(
                [(left, top + height), (left + width, top + height), (left + width / 2, top)], colour, outline, 2
            )
        corners.append(box)
        kinds.append(kind)
    noisy = np.asarray(image, np.float32) / 255 + rng.normal(0, 0.03, (SIZE, SIZE, 3))
    found = Boxes(np.array(corners, np.float32), np.array(kinds), np.ones(len(kinds)))
    return np.clip(noisy, 0, 1).astype(np.float32).transpose(2, 0, 1), found


# The network -----------------------------------------------------------------------------------
def network() -> Any:
    """Images (n, 3, SIZE, SIZE) -> (n, 4 + kinds, cells): middle and size of a box in pixels, and scores 0..1."""
    import torch
    from torch import Tensor, nn

    class Conv(nn.Sequential):
        def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
            layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
            super().__init__(layer, nn.BatchNorm2d(outputs), nn.SiLU())

    class Split(nn.Module):
        """Half of the channels through a residual block, then all together."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            half = channels // 2
            self.first, self.last = Conv(channels, channels, 1), Conv(channels + half, channels, 1)
            self.block = nn.Sequential(Conv(half, half), Conv(half, half))

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.first(x).chunk(2, 1)
            return self.last(torch.cat([a, b, b + self.block(b)], 1))  # type: ignore[no-any-return]

    class Pools(nn.Module):
        """SPPF: one pool three times, all results together."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            half = channels // 2
            self.first, self.last = Conv(channels, half, 1), Conv(4 * half, channels, 1)
            self.pool = nn.MaxPool2d(5, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            parts = [self.first(x)]
            for _ in range(3):
                parts.append(self.pool(parts[-1]))
            return self.last(torch.cat(parts, 1))  # type: ignore[no-any-return]

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), Split(32), Conv(32, 48, 3, 2), Split(48))
            self.deep = nn.Sequential(Conv(48, 64, 3, 2), Split(64), Pools(64))
            self.up = nn.Upsample(scale_factor=2, mode="nearest")
            self.fine, self.down = Conv(48 + 64, 48), Conv(48, 64, 3, 2)
            self.coarse = Conv(64 + 64, 64)
            self.boxes = nn.ModuleList([nn.Sequential(Conv(n, n), nn.Conv2d(n, 4, 1)) for n in (48, 64)])
            self.kinds = nn.ModuleList([nn.Sequential(Conv(n, n), nn.Conv2d(n, len(KINDS), 1)) for n in (48, 64)])
            for head in self.kinds:
                nn.init.constant_(head[-1].bias, -4.0)  # type: ignore[index]
            for stride in STRIDES:
                self.register_buffer(f"middles{stride}", torch.from_numpy(middles(stride)))

        def raw(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            """Of each grid the distances of the edges in cells, above 0, and the scores before the sigmoid."""
            shallow = self.stem(x)
            deep = self.deep(shallow)
            fine = self.fine(torch.cat([shallow, self.up(deep)], 1))
            coarse = self.coarse(torch.cat([self.down(fine), deep], 1))
            grids = (fine, coarse)
            distances = [nn.functional.softplus(head(grid)) for head, grid in zip(self.boxes, grids)]
            return distances, [head(grid) for head, grid in zip(self.kinds, grids)]

        def forward(self, x: Tensor) -> Tensor:
            distances, kinds = self.raw(x)
            boxes = []
            for stride, part in zip(STRIDES, distances):
                part = part.flatten(2) * stride
                middle = getattr(self, f"middles{stride}") + (part[:, 2:] - part[:, :2]) / 2
                boxes.append(torch.cat([middle, part[:, :2] + part[:, 2:]], 1))
            scores = torch.cat([part.flatten(2) for part in kinds], 2).sigmoid()
            return torch.cat([torch.cat(boxes, 2), scores], 1)

    return Detector()


def middles(stride: int) -> common.Array:
    """The middles of a grid's cells in pixels, float32 (1, 2, cells), x and y."""
    places = (np.arange(SIZE // stride) + 0.5) * stride
    y, x = np.meshgrid(places, places, indexing="ij")
    return np.stack([x.ravel(), y.ravel()])[None].astype(np.float32)


# Training --------------------------------------------------------------------------------------
def wanted(stride: int, found: Boxes) -> tuple[common.Array, common.Array]:
    """What a grid is to say of an image: distances (4, cells) in cells where an object is, and kinds (kinds, cells)."""
    x, y = middles(stride)[0]
    distances, kinds = np.zeros((4, len(x)), np.float32), np.zeros((len(KINDS), len(x)), np.float32)
    for (left, top, right, bottom), kind in zip(found.corners, found.kinds):
        if (max(right - left, bottom - top) > _LARGE) != (stride == STRIDES[-1]):
            continue
        # The cells around the middle of an object, at least the nearest one.
        apart = np.maximum(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
        cells = (apart < 0.75 * stride) | (apart == apart.min())
        edges = np.stack([x - left, y - top, right - x, bottom - y])[:, cells]
        distances[:, cells], kinds[kind, cells] = np.maximum(edges, 0) / stride, 1
    return distances, kinds


def trained(steps: int = _STEPS) -> Any:
    """The network after so many steps, each on images of its own."""
    import torch
    from torch.nn import functional
    from tqdm import tqdm

    common.one_thread()
    rng = np.random.default_rng(1)
    net = network().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="train", unit="step", leave=False):
        images, found = zip(*(drawn(rng) for _ in range(_BATCH)))
        loss = torch.zeros(())
        for stride, distances, scores in zip(STRIDES, *net.raw(torch.from_numpy(np.stack(images)))):
            targets = [wanted(stride, boxes) for boxes in found]
            edges, kinds = (torch.from_numpy(np.stack(part)) for part in zip(*targets))
            loss = loss + functional.binary_cross_entropy_with_logits(scores.flatten(2), kinds, reduction="sum")
            objects = kinds.amax(1) > 0
            own, right = distances.flatten(2).movedim(1, 2)[objects], edges.movedim(1, 2)[objects]
            loss = loss + 4 * (1 - _shared(own, right)).sum() + functional.smooth_l1_loss(own, right, reduction="sum")
        optimizer.zero_grad()
        (loss / _BATCH).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        rate.step()
    return net.eval()


def _shared(a: Any, b: Any) -> Any:
    """Intersection over union of boxes given by the distances of their edges from one point, (n, 4) each."""
    both = a.minimum(b)
    common_area = (both[:, 0] + both[:, 2]) * (both[:, 1] + both[:, 3])
    areas = [(of[:, 0] + of[:, 2]) * (of[:, 1] + of[:, 3]) for of in (a, b)]
    return common_area / (areas[0] + areas[1] - common_area + 1e-6)


# Boxes -----------------------------------------------------------------------------------------
def boxes_of(output: common.Array, least: float = _SCORE) -> Boxes:
    """What an output (4 + kinds, cells) says: boxes of a score, the best of those that overlap."""
    scores, kinds = output[4:].max(0), output[4:].argmax(0)
    middle, size = output[:2], output[2:4]
    corners = np.concatenate([middle - size / 2, middle + size / 2]).T
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < least:
            break
        if not kept or _overlap(corners[[index]], corners[kept]).max() < _OVERLAP:
            kept.append(int(index))
    return Boxes(corners[kept], kinds[kept], scores[kept])


def _overlap(a: common.Array, b: common.Array) -> common.Array:
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [np.clip(of[:, 2:] - of[:, :2], 0, None).prod(1) for of in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared + 1e-9)


def matched(own: Boxes, real: Boxes) -> list[float]:
    """Intersection over union of each of ``real`` with the box of its kind that fits best, one to one; above 0.5."""
    table = _overlap(real.corners, own.corners) * (real.kinds[:, None] == own.kinds[None])
    found = []
    while table.size and table.max() > 0.5:
        row, column = np.unravel_index(table.argmax(), table.shape)
        found.append(float(table[row, column]))
        table[row], table[:, column] = 0, 0
    return found


def picture(path: Path, images: list[common.Array], float_boxes: list[Boxes], own_boxes: list[Boxes]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(13, 7))
    for axis, image, real, own in zip(axes.ravel(), images, float_boxes, own_boxes):
        axis.imshow(image.transpose(1, 2, 0))
        for boxes, colour, style in ((real, "white", "-"), (own, "red", "--")):
            for (left, top, right, bottom), kind in zip(boxes.corners, boxes.kinds):
                axis.add_patch(
                    patches.Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, ls=style)
                )
                if boxes is own:
                    axis.text(left, top - 2, KINDS[kind], color=colour, fontsize=8)
        axis.axis("off")
    figure.suptitle("white: float, red: int8 on VTA")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    import torch

    args = common.options(__doc__, "detection")
    net = trained()
    rng = np.random.default_rng(2)
    calibration = np.stack([drawn(rng)[0] for _ in range(_CALIBRATION)])
    images, truth = (list(part) for part in zip(*(drawn(rng) for _ in range(_JUDGED))))
    with torch.no_grad():
        real = [boxes_of(net(torch.from_numpy(image[None])).numpy()[0]) for image in images]
    folder = args.output / "model"
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    model = common.compiled(net, args.accelerator, folder, example_inputs=example, calibration=calibration)
    (name,) = (tensor.name for tensor in common.o2.load(folder).inputs)
    outputs = common.run_all(folder, [{name: image[None]} for image in images])
    own = [boxes_of(next(iter(output.values()))[0]) for output in outputs]
    overlaps = [value for pair in zip(own, real) for value in matched(*pair)]
    rows = [
        (
            what,
            str(sum(len(boxes.kinds) for boxes in found)),
            str(sum(len(matched(*pair)) for pair in zip(found, truth))),
        )
        for what, found in (("float", real), (f"VTA ({model.accelerator.name})", own))
    ]
    common.table(("model", "boxes", f"of {sum(len(boxes.kinds) for boxes in truth)} objects found"), rows)
    mean = float(np.mean(overlaps)) if overlaps else 0.0
    print(f"boxes of both: {len(overlaps)}, their intersection over union: mean {mean:.4f}, least {min(overlaps):.4f}")
    picture(args.output / "detection.png", images[:8], real[:8], own[:8])
    print(f"picture: {args.output / 'detection.png'}")
    return common.verdict(f"mean intersection over union at least {ALLOWED}", mean >= ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
