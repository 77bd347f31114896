"""Write the lists of operators beyond convolution and dense layers: ``python datasets/make_operators.py``.

Depthwise, grouped and transposed convolutions, batched matrix products, pooling and additions, and convolutions and
dense layers whose epilogues shift twice or round half to even. Seeded: the same files every time. What is never trained
on is excluded by operator and shape (``shape_key``), whatever network it comes from; that is asserted before anything
is written. Run it after ``make_workloads.py``, whose lists it reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from make_workloads import FOLDER, LINEAR, MOST_MACS, RELU, named, write
from make_workloads import random_workload as random_layer

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer, read_workloads
from oneshot_ml2.workload.max_pool2d import MaxPool2d

SEED_TRAINING, SEED_HELD_OUT = 4101, 4102
FILLING, HELD_OUT_GENERATED, HELD_OUT_REAL = 150, 48, 48
MOST_OUTPUTS = 1_500_000

SUM = Epilogue(bias=True, residual_shift=3, shift=4, clip=(-128, 127))
MEAN = Epilogue(bias=True, shift=12, clip=(-128, 127))
PRODUCT = Epilogue(bias=True, shift=7, clip=(-128, 127))


def depthwise(c: int, size: int, kernel: int = 3, stride: int = 1, epilogue: Epilogue = RELU) -> Conv2d:
    """A depthwise convolution by its input size, padded by half its kernel."""
    return Conv2d(1, c, size, size, c, kernel, kernel, stride, kernel // 2, 1, epilogue, groups=c)


def add(c: int, size: int) -> Conv2d:
    """The sum of two int8 tensors, as whole models lower it."""
    return depthwise(c, size, 1, epilogue=SUM)


def mean(c: int, size: int) -> Conv2d:
    """Global average pooling, as whole models lower it."""
    return Conv2d(1, c, size, size, c, size, size, size, 0, 1, MEAN, groups=c)


def attention(heads: int, tokens: int, width: int) -> list[Workload]:
    """Both products of multi-head attention."""
    return [BatchMatmul(heads, tokens, width, tokens, PRODUCT), BatchMatmul(heads, tokens, tokens, width, PRODUCT)]


# Networks that are never trained on ------------------------------------------------------------------------------
def excluded() -> dict[str, list[Workload]]:
    """Network -> its operators of these kinds."""
    v1 = [(32, 112, 1), (64, 112, 2), (128, 56, 1), (128, 56, 2), (256, 28, 1), (256, 28, 2), (512, 14, 1)]
    v1 += [(512, 14, 2), (1024, 7, 1)]
    v2 = [(32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (192, 28, 2), (384, 14, 1)]
    v2 += [(576, 14, 1), (576, 14, 2), (960, 7, 1)]
    stages = ((64, 56), (128, 28), (256, 14), (512, 7))
    return {
        "mobilenet_v1": [*(depthwise(c, size, 3, stride) for c, size, stride in v1), mean(1024, 7)],
        "mobilenet_v2": [
            *(depthwise(c, size, 3, stride) for c, size, stride in v2),
            *(add(c, size) for c, size in ((24, 56), (32, 28), (64, 14), (96, 14), (160, 7))),
            mean(1280, 7),
        ],
        "resnet18": [MaxPool2d(1, 64, 112, 112, 3, 3, 2, 1), *(add(c, size) for c, size in stages), mean(512, 7)],
        "resnet50": [*(add(4 * c, size) for c, size in stages), mean(2048, 7)],
        "vgg16": [MaxPool2d(1, c, s, s, 2, 2) for c, s in ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))],
        "bert_base": [product for tokens in (16, 64, 96, 128, 384) for product in attention(12, tokens, 64)],
        "resnext50": [
            Conv2d(1, c, size, size, c, 3, 3, stride, 1, 1, RELU, groups=32)
            for c, size, stride in ((128, 56, 1), (256, 56, 2), (256, 28, 1), (512, 28, 2), (512, 14, 1), (1024, 7, 1))
        ],
        "dcgan": [
            Conv2dTranspose(1, c, size, size, k, 4, 4, 2, 1, 0, RELU)
            for c, k, size in ((1024, 512, 4), (512, 256, 8), (256, 128, 16), (128, 3, 32))
        ],
    }


# Networks that are trained on --------------------------------------------------------------------------------------
def trained() -> dict[str, list[Workload]]:
    """Network -> its operators of these kinds."""
    b0 = [(32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (144, 56, 5, 2), (240, 28, 5, 1), (240, 28, 3, 2)]
    b0 += [(480, 14, 3, 1), (480, 14, 5, 1), (672, 14, 5, 1), (672, 14, 5, 2), (1152, 7, 5, 1), (1152, 7, 3, 1)]
    shuffle = [(58, 28, 1), (58, 56, 2), (116, 14, 1), (116, 28, 2), (232, 7, 1), (232, 14, 2), (24, 56, 2)]
    unet = [(128, 64, 56), (256, 128, 28), (512, 256, 14), (1024, 512, 7)]
    return {
        "efficientnet_b0": [
            *(depthwise(c, size, kernel, stride) for c, size, kernel, stride in b0),
            *(add(c, size) for c, size in ((24, 56), (40, 28), (80, 14), (112, 14), (192, 7))),
        ],
        "shufflenet_v2": [depthwise(c, size, 3, stride, LINEAR) for c, size, stride in shuffle],
        "regnet": [
            Conv2d(1, c, size, size, c, 3, 3, stride, 1, 1, RELU, groups=groups)
            for c, size, stride, groups in (
                (48, 112, 2, 2),
                (96, 56, 2, 4),
                (192, 28, 2, 8),
                (192, 28, 1, 8),
                (432, 14, 1, 18),
                (240, 14, 1, 10),
            )
        ],
        "alexnet": [
            Conv2d(1, 96, 27, 27, 256, 5, 5, 1, 2, 1, RELU, groups=2),
            Conv2d(1, 384, 13, 13, 384, 3, 3, 1, 1, 1, RELU, groups=2),
            MaxPool2d(1, 96, 55, 55, 3, 3, 2),
            MaxPool2d(1, 256, 27, 27, 3, 3, 2),
        ],
        "unet": [Conv2dTranspose(1, c, size, size, k, 2, 2, 2, 0, 0, RELU) for c, k, size in unet],
        "fsrcnn": [Conv2dTranspose(1, 56, 32, 32, 1, 9, 9, step, 4, step - 1, LINEAR) for step in (2, 3)],
        "cyclegan": [
            Conv2dTranspose(1, c, size, size, k, 3, 3, 2, 1, 1, RELU) for c, k, size in ((256, 128, 32), (128, 64, 56))
        ],
        "inception_v3": [MaxPool2d(1, c, s, s, 3, 3, 2) for c, s in ((64, 147), (192, 71), (288, 35), (768, 17))],
        "squeezenet": [MaxPool2d(1, c, s, s, 3, 3, 2, 0, True) for c, s in ((96, 109), (256, 54), (512, 27))],
        "densenet121": [mean(1000, 8), Conv2d(1, 128, 56, 56, 128, 2, 2, 2, 0, 1, MEAN, groups=128)],
        "vit": [product for heads, width in ((3, 64), (6, 64), (16, 64)) for product in attention(heads, 197, width)],
        "transformer": [p for h, t, w in ((8, 50, 64), (4, 200, 32), (2, 80, 128)) for p in attention(h, t, w)],
    }


# Space filling -----------------------------------------------------------------------------------------------------
def between(rng: np.random.Generator, low: int, high: int) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def random_epilogue(rng: np.random.Generator, residual: bool = True) -> Epilogue:
    """As compiled models have them: a bias of half a step, a shift, a clip; some residuals; some half to even."""
    shift = int(rng.integers(0, 16))
    half_even = bool(rng.random() < 0.15)
    adds = residual and rng.random() < 0.25
    return Epilogue(
        bias=bool(rng.random() < 0.8),
        residual_shift=int(rng.integers(0, 7)) if adds else None,
        shift=shift,
        clip=((0, 127), (-128, 127))[int(rng.integers(2))],
        pre_shift=int(rng.integers(1, 6)) if adds and not half_even and rng.random() < 0.6 else 0,
        half_even=half_even,
    )


def random_operator(rng: np.random.Generator) -> Workload:
    """One of the kinds, its sizes drawn evenly in the logarithm."""
    kind = rng.choice(7, p=(0.28, 0.12, 0.12, 0.14, 0.1, 0.1, 0.14))
    while True:
        h = between(rng, 4, 112)
        w = h if rng.random() < 0.75 else between(rng, 4, 112)
        c, k = between(rng, 8, 1024), between(rng, 8, 512)
        epilogue = random_epilogue(rng)
        kernel, stride = int(rng.choice((3, 3, 5, 7))), int(rng.choice((1, 1, 2)))
        workload: Workload
        try:
            if kind == 0:
                workload = Conv2d(1, c, h, w, c, kernel, kernel, stride, kernel // 2, 1, epilogue, groups=c)
            elif kind == 1:
                groups, each, out = (int(rng.choice(sizes)) for sizes in ((2, 4, 8, 32), (4, 8, 16, 32, 64), (1, 1, 2)))
                size = int(rng.choice((1, 3, 3)))
                workload = Conv2d(
                    1, groups * each, h, w, groups * each * out, size, size, stride, size // 2, 1, epilogue, groups
                )
            elif kind == 2:
                step = int(rng.choice((2, 2, 3, 4)))
                size = step + int(rng.integers(0, 3))
                workload = Conv2dTranspose(1, c, h, w, k, size, size, step, (size - step + 1) // 2, 0, epilogue)
            elif kind == 3:
                plain = random_epilogue(rng, residual=False)
                pairs, inner, outputs = between(rng, 1, 16), between(rng, 16, 256), between(rng, 16, 256)
                workload = BatchMatmul(pairs, h * 3, inner, outputs, plain)
            elif kind == 4:
                size = int(rng.choice((2, 3, 3)))
                workload = MaxPool2d(1, c, h, w, size, size, int(rng.choice((1, 2, 2))), size // 2)
            elif kind == 5:
                size = int(rng.choice((1, 1, 2, 4, 7)))
                workload = Conv2d(1, c, h, w, c, size, size, size, 0, 1, epilogue, groups=c)
            else:
                workload = dataclasses.replace(random_layer(rng), epilogue=epilogue)
        except WorkloadError:
            continue
        elements = int(np.prod(workload.output_shape))
        if 2_000 <= elements <= MOST_OUTPUTS and workload.macs <= MOST_MACS:
            return workload


def key(workload: Workload) -> tuple[object, ...]:
    """Operator and shape: what makes two of these workloads the same."""
    return workload.op, workload.shape_key


def filling(
    rng: np.random.Generator,
    count: int,
    forbidden: set[tuple[object, ...]],
    draw: Callable[[np.random.Generator], Workload] = random_operator,
    new: Callable[[Workload], bool] = lambda workload: True,
) -> list[Workload]:
    """``count`` random workloads of different keys, none forbidden, all ``new``."""
    found: dict[tuple[object, ...], Workload] = {}
    while len(found) < count:
        workload = draw(rng)
        if key(workload) not in forbidden and new(workload):
            found.setdefault(key(workload), workload)
    return list(found.values())


def main() -> None:
    """Make the lists, check them, and write them."""
    never = {name: list(dict.fromkeys(layers)) for name, layers in excluded().items()}
    forbidden = {key(workload) for layers in never.values() for workload in layers}
    for name in ("excluded.toml", "heldout.toml"):
        forbidden |= {key(workload) for workload in read_workloads(FOLDER / name)}
    real = [layer for name, layers in trained().items() for layer in named(name, dict.fromkeys(layers))]
    real = [layer for layer in real if key(layer.workload) not in forbidden and layer.workload.macs <= MOST_MACS]
    training = real + named("filling", filling(np.random.default_rng(SEED_TRAINING), FILLING, forbidden))
    keys = {key(layer.workload) for layer in training}

    rng = np.random.default_rng(SEED_HELD_OUT)
    layers = [Layer(f"{name}.{i}", work) for name, works in never.items() for i, work in enumerate(works)]
    layers = [layer for layer in layers if layer.workload.macs <= MOST_MACS]
    picked = sorted(rng.permutation(len(layers))[:HELD_OUT_REAL].tolist())
    held_out = named("generated", filling(rng, HELD_OUT_GENERATED, keys | forbidden)) + [layers[i] for i in picked]

    assert not keys & forbidden
    assert not keys & {key(layer.workload) for layer in held_out}
    assert len({layer.workload for layer in training}) == len(training) >= 180
    assert len(held_out) == HELD_OUT_GENERATED + HELD_OUT_REAL
    lists = {
        "": ("Operators beyond convolution and dense layers that the network is trained on.", training),
        "_heldout": ("Unseen operators: no training workload is of the same kind and shape_key.", held_out),
        "_excluded": (
            "Operators never trained on, by kind and shape_key.",
            [layer for name, works in never.items() for layer in named(name, works)],
        ),
    }
    for suffix, (comment, content) in lists.items():
        write(f"operators{suffix}.toml", comment, content, "make_operators.py")


if __name__ == "__main__":
    main()
