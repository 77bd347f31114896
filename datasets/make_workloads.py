"""Write the workload lists: ``python datasets/make_workloads.py`` (needs torch, to trace ResNet and VGG).

Seeded: the same files every time. What is never trained on is excluded by its shape (``shape_key``), whatever network
it comes from; that is asserted before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.models.frontend.traced import trace
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer

FOLDER = Path(__file__).parent / "workloads"
SEED_TRAINING, SEED_HELD_OUT, SEED_TEMPLATE = 1801, 1802, 1803
SPACE_FILLING, HELD_OUT_GENERATED, HELD_OUT_REAL = 208, 48, 48
TEMPLATE = 320
CANDIDATES = 4
LEAST_MACS, MOST_MACS = 500_000, 250_000_000

RELU = Epilogue(bias=True)
LINEAR = Epilogue(bias=True, clip=(-128, 127))
ADDED = Epilogue(bias=True, residual_shift=4, clip=(-128, 127))
# TVM's epilogue of a requantized layer: shift and clip alone.
BARE = Epilogue()


def conv(
    c: int,
    k: int,
    size: int | tuple[int, int],
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    pad: int | tuple[int, int] | None = None,
    epilogue: Epilogue = RELU,
) -> Conv2d:
    """A convolution by its input size; ``pad`` defaults to "same" (half the kernel)."""
    h, w = (size, size) if isinstance(size, int) else size
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    return Conv2d(1, c, h, w, k, r, s, stride, (r // 2, s // 2) if pad is None else pad, 1, epilogue)


# Networks that are never trained on ------------------------------------------------------------------------------
def mobilenet_v1() -> list[Workload]:
    """MobileNet v1 at 224 (Howard et al., 2017); depthwise layers as full convolutions, only for their shape."""
    # (channels in, out, size of the depthwise input, its stride).
    blocks = [(32, 64, 112, 1), (64, 128, 112, 2), (128, 128, 56, 1), (128, 256, 56, 2), (256, 256, 28, 1)]
    blocks += [(256, 512, 28, 2), (512, 512, 14, 1), (512, 1024, 14, 2), (1024, 1024, 7, 1)]
    layers: list[Workload] = [conv(3, 32, 224, 3, 2)]
    for c, k, size, stride in blocks:
        layers += [conv(c, c, size, 3, stride), conv(c, k, size // stride)]
    return [*layers, Dense(1, 1024, 1000, LINEAR)]


def inverted_residuals(
    stages: Iterable[tuple[int, int, int, int, int]], c: int, size: int, depthwise: bool
) -> list[Workload]:
    """Inverted residual stages (expansion, channels out, repeats, stride, depthwise kernel), without squeeze layers."""
    layers: list[Workload] = []
    for expansion, k, repeats, stride, kernel in stages:
        for index in range(repeats):
            step, wide = stride if index == 0 else 1, c * expansion
            if expansion > 1:
                layers.append(conv(c, wide, size))
            if depthwise:
                layers.append(conv(wide, wide, size, kernel, step))
            size = -(-size // step)
            layers.append(conv(wide, k, size, epilogue=ADDED if c == k and step == 1 else LINEAR))
            c = k
    return layers


def mobilenet_v2() -> list[Workload]:
    """MobileNet v2 at 224 (Sandler et al., 2018); depthwise layers as in :func:`mobilenet_v1`."""
    stages = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)]
    stages += [(6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)]
    layers: list[Workload] = [conv(3, 32, 224, 3, 2), *inverted_residuals(stages, 32, 112, depthwise=True)]
    return [*layers, conv(320, 1280, 7), Dense(1, 1280, 1000, LINEAR)]


def bert_base() -> list[Workload]:
    """BERT base (Devlin et al., 2018) at several sequence lengths; a dense layer's shape key ignores the length."""
    return [
        Dense(n, c, k, epilogue)
        for c, k, epilogue in ((768, 768, ADDED), (768, 768, LINEAR), (768, 3072, RELU), (3072, 768, ADDED))
        for n in (1, 16, 64, 96, 128, 384)
    ]


def excluded() -> dict[str, list[Workload]]:
    """Network -> its layers, each workload once; ResNet and VGG from their traced modules."""
    traced = ("resnet18", "resnet34", "resnet50", "vgg16")
    networks = {name: [layer.workload for layer in trace(name)] for name in traced}
    others = {"mobilenet_v1": mobilenet_v1(), "mobilenet_v2": mobilenet_v2(), "bert_base": bert_base()}
    return {name: list(dict.fromkeys(layers)) for name, layers in (networks | others).items()}


# Networks that are trained on --------------------------------------------------------------------------------------
def inception_v3() -> list[Workload]:
    """Inception v3 at 299 (Szegedy et al., 2015)."""
    layers: list[Workload] = [conv(3, 32, 299, 3, 2, 0), conv(32, 32, 149, 3, 1, 0), conv(32, 64, 147, 3)]
    layers += [conv(64, 80, 73), conv(80, 192, 73, 3, 1, 0)]
    for c, pool in ((192, 32), (256, 64), (288, 64)):
        layers += [conv(c, 64, 35), conv(c, 48, 35), conv(48, 64, 35, 5), conv(64, 96, 35, 3), conv(96, 96, 35, 3)]
        layers += [conv(c, pool, 35)]
    layers += [conv(288, 384, 35, 3, 2, 0), conv(96, 96, 35, 3, 2, 0)]
    for c in (128, 160, 192):
        layers += [conv(768, c, 17), conv(768, 192, 17)]
        layers += [conv(c, k, 17, kernel) for kernel in ((1, 7), (7, 1)) for k in dict.fromkeys((c, 192))]
    layers += [conv(192, 320, 17, 3, 2, 0), conv(192, 192, 17, 3, 2, 0)]
    for c in (1280, 2048):
        layers += [conv(c, k, 8) for k in (320, 384, 448, 192)]
    return [*layers, conv(384, 384, 8, (1, 3)), conv(384, 384, 8, (3, 1)), conv(448, 384, 8, 3)]


def densenet121() -> list[Workload]:
    """DenseNet-121 at 224 (Huang et al., 2016), every fourth bottleneck of its long stages."""
    layers: list[Workload] = []
    for first, last, size, step in ((64, 224, 56, 64), (128, 480, 28, 96), (256, 992, 14, 128), (512, 992, 7, 128)):
        layers += [conv(c, 128, size) for c in range(first, last + 1, step)]
        layers += [conv(128, 32, size, 3, epilogue=Epilogue(clip=(-128, 127)))]
    return layers + [conv(c, c // 2, size, epilogue=BARE) for c, size in ((256, 56), (512, 28), (1024, 14))]


def efficientnet_b0() -> list[Workload]:
    """EfficientNet-B0 at 224 (Tan and Le, 2019), without depthwise and squeeze layers."""
    stages = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)]
    stages += [(6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]
    return [conv(3, 32, 224, 3, 2), *inverted_residuals(stages, 32, 112, depthwise=False), conv(320, 1280, 7)]


def squeezenet() -> list[Workload]:
    """SqueezeNet 1.0 and 1.1 at 224 (Iandola et al., 2016)."""
    layers: list[Workload] = [conv(3, 96, 224, 7, 2, 0), conv(3, 64, 224, 3, 2, 0)]
    # (channels in, squeezed, size) of the fire modules.
    fires = [(96, 16, 54), (128, 16, 54), (128, 32, 54), (256, 32, 27), (256, 48, 27), (384, 48, 27), (384, 64, 27)]
    fires += [(512, 64, 13), (64, 16, 55), (128, 16, 55), (128, 32, 27), (256, 48, 13), (384, 48, 13), (384, 64, 13)]
    for c, squeezed, size in fires:
        layers += [conv(c, squeezed, size), conv(squeezed, 4 * squeezed, size), conv(squeezed, 4 * squeezed, size, 3)]
    return [*layers, conv(512, 1000, 13)]


def deepbench() -> list[Workload]:
    """Convolutions and matrix products of Baidu's DeepBench (inference and training shapes, one image)."""
    layers: list[Workload] = [
        conv(1, 16, (48, 480), 3, epilogue=BARE),
        conv(16, 32, (24, 240), 3, epilogue=BARE),
        conv(32, 64, (12, 120), 3, epilogue=BARE),
        conv(64, 128, (6, 60), 3, epilogue=BARE),
        conv(3, 64, 108, 3, 2, epilogue=BARE),
        conv(64, 64, 54, 3, epilogue=BARE),
        conv(128, 128, 27, 3, epilogue=BARE),
        conv(128, 256, 14, 3, epilogue=BARE),
        conv(256, 512, 7, 3, epilogue=BARE),
        conv(192, 32, 28, 5, epilogue=BARE),
        conv(192, 64, 28, epilogue=BARE),
        conv(512, 48, 14, 5, epilogue=BARE),
        conv(512, 192, 14, epilogue=BARE),
        conv(832, 256, 7, epilogue=BARE),
        conv(832, 128, 7, 5, epilogue=BARE),
    ]
    products = [(16, 1760, 1760), (32, 1760, 1760), (16, 2048, 2048), (32, 2048, 2048), (16, 2560, 2560)]
    products += [(1, 4096, 4096), (8, 4096, 4096), (1, 2560, 7680), (2, 2560, 7680), (4, 1024, 3072), (2, 1024, 3072)]
    products += [(64, 2048, 35), (128, 2048, 35), (4, 1536, 512), (8, 2816, 512)]
    return layers + [Dense(n, c, k, Epilogue(clip=(-128, 127))) for n, c, k in products]


def vit() -> list[Workload]:
    """Vision transformers (Dosovitskiy et al., 2020; Touvron et al., 2020): tiny, small, base and large, 197 tokens or
    as many as the limit on multiplications allows."""
    layers: list[Workload] = []
    for width in (192, 384, 768, 1024):
        for c, k, epilogue in (
            (width, 3 * width, LINEAR),
            (width, width, ADDED),
            (width, 4 * width, RELU),
            (4 * width, width, ADDED),
        ):
            tokens = min(197, MOST_MACS // (c * k))
            layers.append(Dense(tokens, c, k, epilogue))
    return layers


TRAINED: dict[str, Callable[[], list[Workload]]] = {
    "inception_v3": inception_v3,
    "densenet121": densenet121,
    "efficientnet_b0": efficientnet_b0,
    "squeezenet": squeezenet,
    "deepbench": deepbench,
    "vit": vit,
}


# Space filling -----------------------------------------------------------------------------------------------------
def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def _channels(rng: np.random.Generator) -> int:
    """8 to 1024; seven in ten are a multiple of 16."""
    value = _log_uniform(rng, 8, 1024)
    return max(16, round(value / 16) * 16) if rng.random() < 0.7 else value


def random_epilogue(rng: np.random.Generator) -> Epilogue:
    """ReLU, saturation or neither; half with a bias, a quarter with a residual; the shift is mostly 8."""
    clips: Sequence[tuple[int, int] | None] = ((0, 127), (-128, 127), None)
    return Epilogue(
        bias=bool(rng.random() < 0.5),
        residual_shift=int(rng.integers(0, 7)) if rng.random() < 0.25 else None,
        shift=8 if rng.random() < 0.7 else int(rng.integers(0, 16)),
        clip=clips[rng.choice(3, p=(0.6, 0.25, 0.15))],
    )


def random_workload(rng: np.random.Generator) -> Workload:
    """A dense layer (one in seven) or a convolution, within the limits on multiplications."""
    kernels = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1))
    while True:
        epilogue = random_epilogue(rng)
        workload: Workload
        if rng.random() < 1 / 7:
            workload = Dense(_log_uniform(rng, 1, 256), 2 * _channels(rng), 2 * _channels(rng), epilogue)
        else:
            r, s = kernels[rng.choice(len(kernels), p=(0.38, 0.34, 0.1, 0.06, 0.06, 0.06))]
            stride = 2 if rng.random() < 0.3 else 1
            h = _log_uniform(rng, 4, 112)
            w = h if rng.random() < 0.75 else _log_uniform(rng, 4, 112)
            dilation = 2 if r == s == 3 and rng.random() < 0.08 else 1
            same = ((r - 1) * dilation // 2,) * 2 + ((s - 1) * dilation // 2,) * 2
            # "same" as PyTorch pads; as TensorFlow pads a stride of 2; none.
            uneven = (max(same[0] - 1, 0), same[1], max(same[2] - 1, 0), same[3])
            padding = (same, uneven, (0,) * 4)[rng.choice(3, p=(0.8, 0.08, 0.12))]
            n = int(rng.choice((1, 2, 3, 4), p=(0.8, 0.08, 0.04, 0.08)))
            c, k = _channels(rng), _channels(rng)
            try:
                workload = Conv2d(n, c, h, w, k, r, s, stride, padding, dilation, epilogue)
            except WorkloadError:
                continue
        if LEAST_MACS <= workload.macs <= MOST_MACS:
            return workload


def random_template_workload(rng: np.random.Generator) -> Conv2d:
    """A convolution that TVM's template takes at any block: channels are multiples of 32, there is no bias."""
    clips: Sequence[tuple[int, int] | None] = ((0, 127), (-128, 127), None)
    while True:
        r, s = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1))[rng.choice(6, p=(0.36, 0.42, 0.1, 0.06, 0.03, 0.03))]
        # Sizes that have divisors, as images have them; any other now and then.
        sizes = [int(rng.choice((1, 3, 5, 7))) << int(rng.integers(0, 7)), _log_uniform(rng, 5, 112)]
        h = sizes[int(rng.random() < 0.25)]
        w = h if rng.random() < 0.8 else _log_uniform(rng, 5, 112)
        c, k = (32 * max(1, round(_log_uniform(rng, 16, 640) / 32)) for _ in range(2))
        padding = (r // 2, s // 2) if rng.random() < 0.85 else 0
        epilogue = Epilogue(shift=8 if rng.random() < 0.8 else 0, clip=clips[rng.choice(3, p=(0.7, 0.2, 0.1))])
        try:
            workload = Conv2d(1, c, h, w, k, r, s, 2 if rng.random() < 0.35 else 1, padding, 1, epilogue)
        except WorkloadError:
            continue
        if min(h, w) >= 5 and LEAST_MACS <= workload.macs <= MOST_MACS:
            return workload


def place(workload: Workload) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Position in the space in which the training shapes are spread out (logarithms to base 2).

    Sizes and channels count fully; the rest less, or rare batches and epilogues would crowd out the usual ones.
    """
    shape = workload if isinstance(workload, Conv2d) else workload.as_conv2d()
    epilogue = workload.epilogue
    sizes = np.log2((shape.c, shape.k, shape.out_h, shape.out_w, (shape.r * shape.s) ** 0.5, shape.n**0.3))
    flags = (shape.strides[0], epilogue.bias, epilogue.residual, epilogue.clip is None, isinstance(workload, Dense))
    return np.array([*sizes, *(0.5 * flag for flag in flags)])


def space_filling(
    rng: np.random.Generator,
    count: int,
    forbidden: set[object],
    draw: Callable[[np.random.Generator], Workload] = random_workload,
) -> list[Workload]:
    """``count`` workloads, each the farthest of ``CANDIDATES`` that ``draw`` gives from those before it."""
    chosen: list[Workload] = []
    places: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
    while len(chosen) < count:
        candidates = [work for work in (draw(rng) for _ in range(CANDIDATES)) if work.shape_key not in forbidden]
        if not candidates:
            continue
        gaps = [min((float(np.abs(place(c) - p).sum()) for p in places), default=0.0) for c in candidates]
        chosen.append(candidates[int(np.argmax(gaps))])
        places.append(place(chosen[-1]))
    return chosen


# Files -------------------------------------------------------------------------------------------------------------
def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return str(value)


def write(name: str, comment: str, layers: list[Layer], script: str = "make_workloads.py") -> None:
    """One ``[[workload]]`` table a layer; ``script``: who writes the list."""
    lines = [f"# {line}" for line in comment.split("\n")] + [f"# Written by datasets/{script}."]
    for layer in layers:
        fields: dict[str, object] = {"name": layer.name, "count": layer.count} | layer.workload.to_dict()
        lines += ["", "[[workload]]", *(f"{key} = {_value(value)}" for key, value in fields.items())]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def named(prefix: str, workloads: Iterable[Workload]) -> list[Layer]:
    """Layers called ``prefix.0``, ``prefix.1`` ..."""
    return [Layer(f"{prefix}.{index}", workload) for index, workload in enumerate(workloads)]


def without_bias(layer: Layer) -> Layer:
    """The same layer with shift and clip alone."""
    epilogue = dataclasses.replace(layer.workload.epilogue, bias=False, residual_shift=None)
    return dataclasses.replace(layer, workload=dataclasses.replace(layer.workload, epilogue=epilogue))


def main() -> None:
    """Make all lists, check them, and write them."""
    networks = excluded()
    never = {workload.shape_key for layers in networks.values() for workload in layers}

    rng = np.random.default_rng(SEED_TRAINING)
    real = [layer for name, make in TRAINED.items() for layer in named(name, dict.fromkeys(make()))]
    real = [layer for layer in real if layer.workload.shape_key not in never and layer.workload.macs <= MOST_MACS]
    # Every third real layer stands as TVM lowers it, without a bias, so that both forms are learned.
    real = [without_bias(layer) if index % 3 == 0 else layer for index, layer in enumerate(real)]
    real = list({layer.workload: layer for layer in reversed(real)}.values())[::-1]
    training = real + named("filling", space_filling(rng, SPACE_FILLING, set(never)))
    trained = {layer.workload.shape_key for layer in training}

    rng = np.random.default_rng(SEED_HELD_OUT)
    generated: list[Workload] = []
    while len(generated) < HELD_OUT_GENERATED:
        workload = random_workload(rng)
        if workload.shape_key not in trained | {other.shape_key for other in generated}:
            generated.append(workload)
    resnet18 = {workload.shape_key for workload in networks["resnet18"]}
    depthwise = {
        workload
        for name in ("mobilenet_v1", "mobilenet_v2")
        for workload in networks[name]
        if isinstance(workload, Conv2d) and workload.r > 1 and workload.c > 3
    }
    pool = [
        layer
        for name, layers in networks.items()
        for layer in named(name, layers)
        if layer.workload not in depthwise
        and layer.workload.shape_key not in resnet18
        and LEAST_MACS <= layer.workload.macs <= MOST_MACS
    ]
    pool = list({layer.workload: layer for layer in reversed(pool)}.values())[::-1]
    picked = sorted(rng.permutation(len(pool))[:HELD_OUT_REAL].tolist())
    held_out = named("generated", generated) + [pool[index] for index in picked]

    held = {layer.workload.shape_key for layer in held_out}
    template = space_filling(np.random.default_rng(SEED_TEMPLATE), TEMPLATE, never | held, random_template_workload)
    template = list(dict.fromkeys(template))

    assert not trained & never
    assert not {workload.shape_key for workload in template} & (never | held)
    assert not trained & {layer.workload.shape_key for layer in held_out}
    assert len({layer.workload for layer in training}) == len(training)
    assert len({layer.workload for layer in held_out}) == len(held_out) >= 64
    assert SPACE_FILLING >= 150
    assert max(layer.workload.macs for layer in training + held_out) <= MOST_MACS
    write("train.toml", "Workloads that the network is trained on.", training)
    write("autotvm.toml", "Convolutions that TVM's template takes, to train on.", named("template", template))
    write("heldout.toml", "Unseen workloads: no training workload has the same shape_key.", held_out)
    write("resnet18.toml", "ResNet-18 at 224 x 224, with how often each layer occurs.", trace("resnet18"))
    write(
        "excluded.toml",
        "Never trained on, by shape_key. Depthwise layers stand as full convolutions, for their shape only;\n"
        "dense layers are excluded at every n.",
        [layer for name, layers in networks.items() for layer in named(name, layers)],
    )


if __name__ == "__main__":
    main()
