"""Digits: train a small CNN on scikit-learn's digits, compile it for a VTA, and count what both get right.

Run: ``pip install -e '.[examples]'``, then ``python examples/digits.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common
import numpy as np

# What int8 may cost, in points of accuracy.
ALLOWED = 0.5
_EPOCHS, _BATCH = 30, 64
_CALIBRATION = 32


def data() -> tuple[common.Array, common.Array, common.Array, common.Array]:
    """Images float32 (n, 1, 8, 8) of 0..1 and their digits, to train with and to judge by; every third is judged."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    judged = np.arange(len(labels)) % 3 == 0
    return images[~judged], labels[~judged], images[judged], labels[judged]


def network() -> Any:
    """Convolutions with batch normalization, a depthwise one among them, pooling, and a dense layer."""
    from torch import nn

    def block(inputs: int, outputs: int, groups: int = 1, size: int = 3) -> list[Any]:
        layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32), *block(32, 32, groups=32), *block(32, 64, size=1), nn.MaxPool2d(2), *block(64, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(images: common.Array, labels: common.Array, epochs: int = _EPOCHS) -> Any:
    """The network after so many passes over the images."""
    import torch
    from torch.nn.functional import cross_entropy

    common.one_thread()
    net = network().train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = epochs * -(-len(x) // _BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(_BATCH):
            optimizer.zero_grad()
            cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
            rate.step()
    return net.eval()


def picture(path: Path, images: common.Array, labels: common.Array, scores: common.Array, real: common.Array) -> None:
    """The first images, and those that either model gets wrong, with what they say."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wrong = np.flatnonzero((scores.argmax(1) != labels) | (real.argmax(1) != labels))
    shown = [*wrong[:16], *np.setdiff1d(np.arange(len(labels)), wrong)][:32]
    figure, axes = pyplot.subplots(4, 8, figsize=(10, 6))
    for axis, index in zip(axes.ravel(), shown):
        axis.imshow(images[index, 0], cmap="gray_r")
        right = scores[index].argmax() == labels[index]
        axis.set_title(
            f"{labels[index]}: float {real[index].argmax()}, VTA {scores[index].argmax()}", fontsize=8,
            color="black" if right else "red",
        )  # fmt: skip
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    import torch

    args = common.options(__doc__, "digits")
    images, labels, judged, wanted = data()
    net = trained(images, labels)
    with torch.no_grad():
        real = net(torch.from_numpy(judged)).numpy()
    folder = args.output / "model"
    common.compiled(
        net, args.accelerator, folder, example_inputs=(torch.zeros(1, 1, 8, 8),), calibration=images[:_CALIBRATION]
    )
    model = common.o2.load(folder)
    scores = np.concatenate([model.run(image[None])["output"] for image in judged])
    accuracy, float_accuracy = (100 * float((of.argmax(1) == wanted).mean()) for of in (scores, real))
    common.table(
        ("model", "images", "right", "accuracy"),
        [
            ("float", str(len(wanted)), str(int((real.argmax(1) == wanted).sum())), f"{float_accuracy:.2f} %"),
            ("VTA", str(len(wanted)), str(int((scores.argmax(1) == wanted).sum())), f"{accuracy:.2f} %"),
        ],
    )
    picture(args.output / "digits.png", judged, wanted, scores, real)
    print(f"picture: {args.output / 'digits.png'}")
    return common.verdict(
        f"accuracy at least the float model's - {ALLOWED} points", accuracy >= float_accuracy - ALLOWED
    )


if __name__ == "__main__":
    sys.exit(main())
