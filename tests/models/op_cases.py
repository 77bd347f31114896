"""Graphs of one ONNX operator each, behind a convolution and mostly before another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPE = (1, 16, 8, 8)
# Stands for what the step before made; without it in a step, that is its first operand.
DATA = ...


@dataclass(frozen=True)
class Step:
    """A node: its operands in order, constants as arrays, None for one that is left out."""

    op: str
    operands: tuple[Any, ...] = ()
    outputs: int = 1
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    steps: tuple[Step, ...]
    opset: int = 17
    shape: tuple[int, ...] = SHAPE

    @property
    def image(self) -> bool:
        """Whether the input is an image, which a convolution reads first."""
        return len(self.shape) == 4


def of(op: str, *operands: Any, outputs: int = 1, **attrs: Any) -> Step:
    return Step(op, operands, outputs, attrs)


def case(*steps: Step, opset: int = 17, shape: tuple[int, ...] = SHAPE) -> Case:
    return Case(steps, opset, shape)


def one(op: str, *operands: Any, opset: int = 17, outputs: int = 1, **attrs: Any) -> Case:
    return Case((Step(op, operands, outputs, attrs),), opset)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def reals(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


RNG = np.random.default_rng(0)


def weight(*shape: int) -> NDArray[np.float32]:
    fan = max(int(np.prod(shape[1:])), 1)
    return (RNG.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)


HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
POSITIVE = (of("Abs"), of("Add", HALF))
LINE, MATRIX = of("Reshape", ints(1, 16, 64)), of("Reshape", ints(16, 64))
MASK = RNG.random(SHAPE) > 0.5
GAMMA, BETA = weight(16) + 1, weight(16)

ELEMENTWISE = {
    **{
        op: one(op)
        for op in (
            "Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Exp", "Floor", "Ceil", "Round", "Softplus", "Softsign", "Erf",
            "Elu", "Selu", "LeakyRelu", "HardSigmoid", "Sign", "Sin", "Cos", "Identity", "ThresholdedRelu", "HardSwish",
        )
    },
    **{op: case(*POSITIVE, of(op)) for op in ("Sqrt", "Log", "Reciprocal")},
    "Mish": one("Mish", opset=18),
    "Gelu": one("Gelu", opset=20),
    "Gelu tanh": one("Gelu", opset=20, approximate="tanh"),
    "Celu": one("Celu", alpha=2.0),
    "Elu half": one("Elu", alpha=0.5),
    "Shrink": one("Shrink", lambd=0.5, bias=0.1),
    "LeakyRelu slope": one("LeakyRelu", alpha=0.1),
    "PRelu": one("PRelu", weight(16, 1, 1)),
    "PRelu number": one("PRelu", reals(0.25)),
    "HardSigmoid slope": one("HardSigmoid", alpha=0.1666, beta=0.5),
    "Clip attributes": one("Clip", opset=9, min=0.0, max=6.0),
    "Clip": one("Clip", -ONE, ONE),
    "Clip below": one("Clip", -ONE),
    "Clip above": one("Clip", None, ONE),
    "Pow 2": one("Pow", np.float32(2)),
    "Pow 3": one("Pow", np.float32(3)),
    "Pow half": case(*POSITIVE, of("Pow", HALF)),
    "Sum of one": one("Sum"),
    "Sum of three": one("Sum", DATA, DATA, DATA),
    "Sum constant": one("Sum", DATA, weight(*SHAPE)),
    "Max number": one("Max", HALF),
    "Max of three": one("Max", DATA, np.float32(0.1), weight(1, 16, 1, 1)),
    "Min": one("Min", DATA, weight(*SHAPE)),
    "Mean": one("Mean", DATA, weight(*SHAPE)),
    "Sub from": one("Sub", ONE, DATA),
    "Div by": case(*POSITIVE, of("Div", ONE, DATA)),
    "Mul": one("Mul", weight(16, 1, 1)),
    "Mul itself": one("Mul", DATA, DATA),
    "Add itself": one("Add", DATA, DATA),
    "Mod": one("Mod", np.float32(2), fmod=1),
    "Mod of whole": case(of("Cast", to=7), of("Mod", np.int64(3)), of("Cast", to=1)),
    "Div of whole": case(of("Mul", np.float32(9)), of("Cast", to=7), of("Div", np.int64(2)), of("Cast", to=1)),
}  # fmt: skip

CHOICES = {
    "Where constant": one("Where", MASK, DATA, ZERO),
    "Greater, Where": case(of("Greater", ZERO), of("Where", DATA, ONE, -ONE)),
    "Less": case(of("Less", ZERO), of("Cast", to=1)),
    "GreaterOrEqual": case(of("GreaterOrEqual", ZERO), of("Cast", to=1)),
    "LessOrEqual": case(of("LessOrEqual", ZERO), of("Cast", to=1), opset=16),
    "Equal": case(of("Relu"), of("Equal", ZERO), of("Cast", to=1)),
    "And": case(of("Greater", ZERO), of("And", MASK), of("Cast", to=1)),
    "Or": case(of("Greater", ZERO), of("Or", MASK), of("Cast", to=1)),
    "Xor": case(of("Greater", ZERO), of("Xor", MASK), of("Cast", to=1)),
    "Not": case(of("Greater", ZERO), of("Not"), of("Cast", to=1)),
    "Cast to whole": case(of("Mul", np.float32(5)), of("Cast", to=7), of("Cast", to=1)),
    "Cast to truth": case(of("Relu"), of("Cast", to=9), of("Cast", to=1)),
    "Cast to double": case(of("Cast", to=11), of("Cast", to=1)),
    "Trilu": one("Trilu", upper=0),
    "Trilu above": one("Trilu", np.int64(1), upper=1),
}

RESIZES = {
    f"Resize {mode} {coordinates} {nearest} {given}": one(
        "Resize", None, *((None, ints(1, 16, 13, 5)) if given == "sizes" else (reals(1, 1, 2, 2),)),
        mode=mode, coordinate_transformation_mode=coordinates, **({"nearest_mode": nearest} if nearest else {}),
    )
    for mode, nearests, ways in (
        ("nearest", ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"), ("scales",)),
        ("linear", ("",), ("scales", "sizes")),
        ("cubic", ("",), ("scales",)),
    )
    for nearest in nearests
    for given in ways
    for coordinates in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
} | {
    **{
        f"GridSample {mode} {padding} {corners}": one(
            "GridSample",
            RNG.uniform(-1.6, 1.6, (1, 5, 7, 2)).astype(np.float32),
            mode=mode,
            padding_mode=padding,
            align_corners=corners,
        )
        for mode in ("bilinear", "nearest")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    },
    "GridSample of opset 20": one(
        "GridSample", RNG.uniform(-1, 1, (1, 5, 7, 2)).astype(np.float32), mode="linear", opset=20
    ),
    "Resize by 3 and 2": one("Resize", None, None, ints(1, 16, 24, 16), mode="nearest", nearest_mode="floor",
                             coordinate_transformation_mode="asymmetric"),
    "Resize to half": one("Resize", None, reals(1, 1, 0.5, 0.5), mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric"),
    "Resize smoothed": one("Resize", None, reals(1, 1, 0.5, 0.5), mode="linear", antialias=1, opset=18),
    "Resize axes": one("Resize", None, reals(2, 2), mode="nearest", axes=[2, 3], opset=18),
    "Resize a line": case(LINE, of("Resize", None, reals(1, 1, 2), mode="linear")),
    "Resize of opset 10": one("Resize", reals(1, 1, 2, 2), mode="nearest", opset=10),
    "Resize of opset 11": one("Resize", reals(), reals(1, 1, 2, 2), mode="nearest", nearest_mode="floor",
                              coordinate_transformation_mode="asymmetric", opset=11),
    "Upsample of opset 9": one("Upsample", reals(1, 1, 2, 2), mode="nearest", opset=9),
    "Upsample linear of opset 9": one("Upsample", reals(1, 1, 2, 2), mode="linear", opset=9),
    "Upsample of opset 7": one("Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest", opset=7),
}  # fmt: skip

PADS = {
    **{f"Pad {mode}": one("Pad", ints(0, 0, 1, 2, 0, 0, 2, 1), mode=mode, opset=19)
       for mode in ("constant", "reflect", "edge", "wrap")},
    "Pad with a number": one("Pad", ints(0, 0, 1, 2, 0, 0, 2, 1), HALF),
    "Pad channels": one("Pad", ints(0, 1, 0, 0, 0, 3, 0, 0)),
    "Pad less than nothing": one("Pad", ints(0, 0, -1, -1, 0, 0, 0, -1)),
    "Pad attributes": one("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], opset=9),
    "Pad axes": one("Pad", ints(1, 1, 0, 1), None, ints(2, 3), opset=18),
    "Pad, Conv": case(of("Pad", ints(0, 0, 0, 0, 0, 0, 1, 1)), of("Conv", weight(16, 16, 3, 3), strides=[2, 2])),
    "Pad, Conv with pads": case(of("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1)),
                                of("Conv", weight(16, 16, 3, 3), pads=[1] * 4)),
    "Pad, AveragePool": case(of("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1)), of("AveragePool", kernel_shape=[2, 2])),
    "Pad, MaxPool": case(of("Relu"), of("Pad", ints(0, 0, 0, 0, 0, 0, 1, 1)),
                         of("MaxPool", kernel_shape=[3, 3], strides=[2, 2])),
    "Pad below all, MaxPool": case(of("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), np.float32(-np.inf)),
                                   of("MaxPool", kernel_shape=[3, 3], strides=[2, 2])),
    "Pad a line": case(LINE, of("Pad", ints(0, 0, 1, 0, 0, 1), mode="reflect"), of("Conv", weight(16, 16, 3))),
}  # fmt: skip

POOLS = {
    f"{op} {name}": one(op, kernel_shape=[size, size], strides=[2, 2], **attrs)
    for op in ("MaxPool", "AveragePool")
    for name, size, attrs in (
        ("2", 2, {}), ("2 ceil", 2, {"ceil_mode": 1}), ("3 ceil", 3, {"ceil_mode": 1}), ("3", 3, {"pads": [1] * 4}),
        ("3 ceil pads", 3, {"pads": [1] * 4, "ceil_mode": 1}), ("3 uneven", 3, {"pads": [0, 0, 1, 1]}),
        ("3 SAME_UPPER", 3, {"auto_pad": "SAME_UPPER"}), ("3 SAME_LOWER", 3, {"auto_pad": "SAME_LOWER"}),
        ("3 VALID", 3, {"auto_pad": "VALID"}),
    )
} | {
    "MaxPool of a line": case(LINE, of("MaxPool", kernel_shape=[2], strides=[2])),
    "AveragePool of a line": case(LINE, of("AveragePool", kernel_shape=[2], strides=[2])),
    "MaxPool dilated": one("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
    "AveragePool dilated": one("AveragePool", kernel_shape=[2, 2], dilations=[2, 2], opset=19),
    "AveragePool counted": one("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "AveragePool counted ceil": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1,
                                    count_include_pad=1),
    "GlobalMaxPool": one("GlobalMaxPool"),
    "GlobalAveragePool": one("GlobalAveragePool"),
    "AveragePool of channels": case(
        of("Reshape", ints(1, 1, 16, 8, 8)), of("Pad", ints(0, 0, 2, 0, 0, 0, 0, 2, 0, 0)),
        of("AveragePool", kernel_shape=[5, 1, 1], strides=[1, 1, 1]), of("Reshape", ints(*SHAPE)),
    ),
    "GlobalAveragePool of a line": case(LINE, of("GlobalAveragePool")),
}  # fmt: skip

REDUCTIONS = {
    f"Reduce{kind} {name}": made
    for kind in ("Sum", "Mean", "Max", "Min", "L2", "L1", "Prod", "SumSquare", "LogSumExp")
    for name, made in (
        ("", one("ReduceSum", ints(2, 3), keepdims=0)
             if kind == "Sum" else one(f"Reduce{kind}", axes=[2, 3], keepdims=0)),
        ("kept", one(f"Reduce{kind}", axes=[1], keepdims=1, opset=11)),
        ("18", one(f"Reduce{kind}", ints(1), keepdims=1, opset=18)),
    )
} | {
    "ArgMax": one("ArgMax", axis=1),
    "ArgMax without": one("ArgMax", axis=1, keepdims=0),
    "ArgMin": one("ArgMin", axis=2),
    "TopK": one("TopK", ints(3), outputs=2, axis=1),
    "TopK least": one("TopK", ints(3), outputs=2, axis=-1, largest=0),
    "CumSum": one("CumSum", np.int64(1)),
    "CumSum backwards": one("CumSum", np.int64(1), reverse=1, exclusive=1),
    "OneHot": case(of("ArgMax", axis=1, keepdims=0), of("OneHot", np.int64(16), reals(0, 1), axis=1)),
    "Hardmax": one("Hardmax", axis=1),
}  # fmt: skip

NORMALIZATIONS = {
    "InstanceNormalization": one("InstanceNormalization", GAMMA, BETA),
    "GroupNormalization": one("GroupNormalization", GAMMA, BETA, num_groups=4, opset=21),
    "LayerNormalization": one("LayerNormalization", weight(8), weight(8), axis=-1),
    "LayerNormalization without bias": one("LayerNormalization", weight(8), axis=-1),
    "LayerNormalization of all": one("LayerNormalization", weight(16, 8, 8), weight(16, 8, 8), axis=1),
    "RMSNormalization": one("RMSNormalization", weight(8), axis=-1, opset=23),
    "LRN": one("LRN", size=5, alpha=0.01),
    "LRN strong": one("LRN", size=3, alpha=0.5, beta=0.5, bias=2.0),
    "BatchNormalization": one("BatchNormalization", GAMMA, BETA, weight(16), np.abs(weight(16)) + 1),
    "BatchNormalization apart": case(
        of("Relu"), of("BatchNormalization", GAMMA, BETA, weight(16), np.abs(weight(16)) + 1)
    ),
    "MeanVarianceNormalization": one("MeanVarianceNormalization"),
    "LpNormalization": one("LpNormalization", axis=1),
    **{f"{op} {axis}": one(op, axis=axis) for op in ("Softmax", "LogSoftmax") for axis in (1, 2, -1)},
    **{f"{op} of opset 11": one(op, axis=1, opset=11) for op in ("Softmax", "LogSoftmax")},
}

MOVES = {
    "Split": one("Split", outputs=2, axis=1),
    "Split sizes": one("Split", ints(4, 12), outputs=2, axis=1),
    "Split in three": one("Split", outputs=3, axis=1, num_outputs=3, opset=18),
    "Split attribute": one("Split", outputs=2, axis=1, split=[4, 12], opset=11),
    "Slice": one("Slice", ints(1), ints(7), ints(2), ints(2)),
    "Slice backwards": one("Slice", ints(-1), ints(-100), ints(2), ints(-1)),
    "Slice attributes": one("Slice", axes=[2, 3], starts=[0, 1], ends=[100, -1], opset=9),
    "Slice channels": one("Slice", ints(2), ints(9), ints(1)),
    "Concat": one("Concat", DATA, DATA, axis=1),
    "Concat constant": one("Concat", DATA, weight(1, 4, 8, 8), axis=1),
    "Concat width": one("Concat", DATA, DATA, axis=-1),
    "Transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "Transpose all": one("Transpose"),
    "Unsqueeze": one("Unsqueeze", ints(0)),
    "Squeeze": one("Squeeze", ints(0)),
    "Squeeze all": one("Squeeze"),
    "Squeeze attribute": one("Squeeze", axes=[0], opset=11),
    "Flatten": one("Flatten"),
    "Flatten 2": one("Flatten", axis=2),
    "Reshape": one("Reshape", ints(0, -1)),
    "Tile": one("Tile", ints(1, 1, 2, 3)),
    "Expand": one("Expand", ints(2, 16, 8, 8)),
    "Expand less": one("Expand", ints(1, 1)),
    "Expand pixels": case(of("GlobalAveragePool"), of("Expand", ints(1, 16, 8, 8))),
    "Gather permutation": one("Gather", np.arange(16).reshape(4, 4).T.ravel().copy(), axis=1),
    "Gather one": one("Gather", np.int64(3), axis=1),
    "Gather from the end": one("Gather", ints(-1, -2), axis=2),
    "Gather table": one("Gather", np.array([[0, 2], [1, 3]]), axis=1),
    "Gather every other": one("Gather", ints(0, 2, 4, 6), axis=3),
    "Gather computed": case(of("ArgMax", axis=2, keepdims=0), of("Gather", weight(8, 5), DATA, axis=0)),
    "GatherElements": one("GatherElements", RNG.integers(0, 8, (1, 16, 8, 3)), axis=3),
    "GatherND computed": case(
        of("ArgMax", axis=2, keepdims=0), of("Reshape", ints(1, 128, 1)), of("GatherND", weight(8, 5), DATA)
    ),
    "GatherND": one("GatherND", np.array([[0, 1], [0, 3]])),
    **{
        f"ScatterND {reduction}": one(
            "ScatterND", np.array([[[0, 1], [0, 3], [0, -1]]]), weight(1, 3, 8, 8), **attrs, opset=18
        )
        for reduction, attrs in (("", {}), *((kind, {"reduction": kind}) for kind in ("add", "mul", "max", "min")))
    },
    **{
        f"ScatterElements {reduction}": one(
            "ScatterElements", RNG.integers(-8, 8, (1, 16, 8, 3)), weight(1, 16, 8, 3), axis=3, opset=18, **attrs
        )
        for reduction, attrs in (*((kind, {"reduction": kind}) for kind in ("add", "mul", "max", "min")),)
    },
    "ScatterElements": one("ScatterElements", np.tile(ints(6, -6), (1, 16, 8, 1)), weight(1, 16, 8, 2), axis=3),
    "ScatterElements into a constant": one(
        "ScatterElements",
        weight(1, 20, 8, 8),
        np.arange(16).reshape(1, 16, 1, 1) + np.zeros(SHAPE, np.int64),
        DATA,
        axis=1,
    ),
    "ScatterElements computed": case(
        of("ArgMax", axis=3), of("ScatterElements", weight(*SHAPE), DATA, weight(1, 16, 8, 1), axis=3), opset=17
    ),
    "ScatterND computed": case(
        of("ArgMax", axis=1),
        of("Reshape", ints(64, 1)),
        of("ScatterND", weight(16, 8), DATA, np.ones((64, 8), np.float32)),
    ),
    "ScatterND computed, added": case(
        of("ArgMax", axis=1),
        of("Reshape", ints(64, 1)),
        of("ScatterND", weight(16, 8), DATA, weight(64, 8), reduction="add"),
        opset=18,
    ),
    "DepthToSpace": one("DepthToSpace", blocksize=2),
    "DepthToSpace columns": one("DepthToSpace", blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", blocksize=2),
}

LAYERS = {
    **{
        f"Conv {name}": one("Conv", *operands, **attrs)
        for name, operands, attrs in (
            ("uneven", (weight(16, 16, 3, 3),), {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
            ("SAME_UPPER", (weight(16, 16, 5, 4),), {"auto_pad": "SAME_UPPER", "strides": [3, 2]}),
            ("SAME_LOWER", (weight(16, 16, 3, 3),), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
            ("VALID", (weight(16, 16, 3, 3),), {"auto_pad": "VALID"}),
            ("groups", (weight(32, 4, 3, 3),), {"group": 4, "pads": [1] * 4}),
            ("depthwise", (weight(32, 1, 3, 3),), {"group": 16, "pads": [1] * 4}),
            ("dilated", (weight(16, 16, 3, 3),), {"dilations": [2, 2], "pads": [2] * 4}),
            ("bias", (weight(16, 16, 1, 1), weight(16)), {}),
            ("of wide pads", (weight(16, 16, 1, 1),), {"pads": [1] * 4}),
        )
    },
    **{
        f"Conv of a line {name}": case(LINE, of("Conv", *operands, **attrs))
        for name, operands, attrs in (
            ("", (weight(16, 16, 3),), {"pads": [1, 1]}),
            ("uneven", (weight(16, 16, 3),), {"pads": [2, 0]}),
            ("groups", (weight(32, 4, 3),), {"group": 4, "dilations": [2], "pads": [2, 2]}),
            ("SAME_UPPER", (weight(16, 16, 4),), {"auto_pad": "SAME_UPPER", "strides": [2]}),
            ("depthwise", (weight(16, 1, 3), weight(16)), {"group": 16, "pads": [1, 1]}),
        )
    },
    "Conv of lines": case(of("Conv", weight(16, 16, 3), pads=[1, 1]), shape=(2, 16, 32)),
    **{
        f"ConvTranspose {name}": one("ConvTranspose", *operands, **{"strides": [2, 2], **attrs})
        for name, operands, attrs in (
            ("", (weight(16, 8, 2, 2),), {}),
            ("pads", (weight(16, 8, 3, 3), weight(8)), {"pads": [1] * 4, "output_padding": [1, 1]}),
            ("groups", (weight(16, 2, 4, 4),), {"group": 4, "pads": [1] * 4}),
            ("depthwise", (weight(16, 1, 4, 4),), {"group": 16, "pads": [1] * 4}),
            ("dilated", (weight(16, 8, 3, 3),), {"dilations": [2, 2]}),
            ("SAME_UPPER", (weight(16, 8, 3, 3),), {"auto_pad": "SAME_UPPER"}),
            ("output_shape", (weight(16, 8, 3, 3),), {"output_shape": [16, 16]}),
            ("uneven", (weight(16, 8, 3, 3),), {"pads": [0, 0, 1, 1]}),
            ("by 3", (weight(16, 8, 5, 5),), {"strides": [3, 3], "pads": [1] * 4}),
        )
    },
    "ConvTranspose of a line": case(LINE, of("ConvTranspose", weight(16, 8, 4), weight(8), strides=[2], pads=[1, 1])),
    "ConvTranspose of a line, groups": case(
        LINE, of("ConvTranspose", weight(16, 2, 3), group=4, strides=[2], pads=[1, 1], output_padding=[1])
    ),
    "MatMul": one("MatMul", weight(8, 12)),
    "MatMul constant before": one("MatMul", weight(12, 8), DATA),
    "MatMul constants": one("MatMul", weight(16, 8, 12)),
    "MatMul constants before": one("MatMul", weight(16, 12, 8), DATA),
    "MatMul constant of rank 4": one("MatMul", weight(1, 1, 8, 12)),
    "MatMul itself": one("MatMul", DATA, DATA),
    "MatMul vector": one("MatMul", weight(8)),
    "MatMul vector before": one("MatMul", weight(8), DATA),
    "Gemm": case(of("Flatten"), of("Gemm", weight(1024, 10), weight(10))),
    "Gemm transB": case(of("Flatten"), of("Gemm", weight(10, 1024), weight(10), transB=1)),
    "Gemm factors": case(of("Flatten"), of("Gemm", weight(10, 1024), weight(10), transB=1, alpha=0.5, beta=2.0)),
    "Gemm transA": case(MATRIX, of("Gemm", weight(16, 10), transA=1)),
    "Gemm and a matrix": case(MATRIX, of("Gemm", weight(64, 10), weight(16, 10))),
    "Gemm and a column": case(MATRIX, of("Gemm", weight(64, 10), weight(16, 1))),
    "Gemm and a number": case(of("Flatten"), of("Gemm", weight(1024, 10), HALF)),
    "Gemm constant before": case(MATRIX, of("Gemm", weight(10, 16), DATA)),
    "Einsum": case(MATRIX, of("Einsum", weight(64, 10), equation="ij,jk->ik")),
    "Einsum of attention": one("Einsum", DATA, DATA, equation="bhid,bhjd->bhij"),
    "Einsum with blanks": one("Einsum", DATA, DATA, equation="b h i j , b h j d -> b h i d"),
    "Einsum along channels": one("Einsum", weight(16, 12), equation="nchw,ck->nkhw"),
    "Einsum of graphs": case(
        of("Reshape", ints(1, 2, 8, 8, 8)), of("Einsum", weight(2, 8, 8), equation="nkctv,kvw->nctw")
    ),
    "Einsum ellipsis": one("Einsum", weight(8, 6), equation="...i,ij->...j"),
    "Einsum sum": one("Einsum", equation="nchw->nc"),
}  # fmt: skip


def recurrent(op: str, directions: int = 1, states: bool = False, hidden: int = 8, **attrs: Any) -> Case:
    """A recurrent layer of 6 steps, with biases; ``states``: first states, and of an LSTM peepholes, too."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    shapes: list[Any] = [(gates * hidden, 16), (gates * hidden, hidden), (2 * gates * hidden,)]
    if states:
        shapes += [None, (1, hidden), *([(1, hidden), (3 * hidden,)] if op == "LSTM" else [])]
    arrays = [None if shape is None else 0.3 * weight(directions, *shape) * shape[-1] ** 0.5 for shape in shapes]
    step = of(op, *arrays, hidden_size=hidden, outputs=3 if op == "LSTM" else 2, **attrs)
    return case(step, shape=(6, 1, 16))


RECURRENT = {
    "LSTM": recurrent("LSTM"),
    "LSTM reverse": recurrent("LSTM", direction="reverse"),
    "LSTM both": recurrent("LSTM", 2, direction="bidirectional"),
    "LSTM states": recurrent("LSTM", states=True),
    "GRU": recurrent("GRU"),
    "GRU linear": recurrent("GRU", linear_before_reset=1),
    "GRU both": recurrent("GRU", 2, linear_before_reset=1, direction="bidirectional"),
    "GRU states": recurrent("GRU", states=True),
    "RNN": recurrent("RNN"),
    "RNN relu": recurrent("RNN", activations=["Relu"]),
}

GROUPS = {
    "elementwise": ELEMENTWISE, "choices": CHOICES, "resizes": RESIZES, "pads": PADS, "pools": POOLS,
    "reductions": REDUCTIONS, "normalizations": NORMALIZATIONS, "moves": MOVES, "layers": LAYERS,
    "recurrent": RECURRENT,
}  # fmt: skip


class Writer:
    """Cases of one shape and opset, side by side in a model."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.outputs: list[str] = []

    def constant(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attrs: Any) -> list[str]:
        from onnx import helper

        names = [f"t{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"{op}{len(self.nodes)}", **attrs))
        return names

    def add(self, case: Case, source: str) -> None:
        made = [source]
        for step in case.steps:
            operands = step.operands if any(x is DATA for x in step.operands) else (DATA, *step.operands)
            inputs = [made[0] if x is DATA else "" if x is None else self.constant(x) for x in operands]
            made = self.node(step.op, inputs, step.outputs, **step.attrs)
        self.outputs += made

    def model(self, case: Case) -> Any:
        """Its outputs' types are what onnxruntime finds; images of real numbers pass a last convolution."""
        import onnxruntime
        from onnx import helper

        def built(outputs: list[Any]) -> Any:
            entry = helper.make_tensor_value_info("x", 1, case.shape)
            graph = helper.make_graph(self.nodes, "g", [entry], outputs, self.constants)
            opset = helper.make_opsetid("", case.opset)
            return helper.make_model(graph, opset_imports=[opset], ir_version=10 if case.opset > 20 else 8)

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        draft = built([helper.make_empty_tensor_value_info(name) for name in self.outputs])
        session = onnxruntime.InferenceSession(draft.SerializeToString(), options)
        results = session.run(None, {"x": np.ones(case.shape, np.float32)})
        outputs = []
        for name, array in zip(self.outputs, results, strict=True):
            kind, shape = helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            if case.image and array.ndim == 4 and array.dtype == np.float32:
                (name,) = self.node("Conv", [name, self.constant(weight(8, shape[1], 1, 1))])
                shape = (shape[0], 8, *shape[2:])
            outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return built(outputs)


def written(cases: list[Case]) -> Any:
    """A model of cases of one shape and opset."""
    writer, first = Writer(), cases[0]
    source = "x"
    if first.image:
        (source,) = writer.node("Conv", ["x", writer.constant(weight(16, 16, 3, 3))], pads=[1] * 4)
    for each in cases:
        writer.add(each, source)
    return writer.model(first)
