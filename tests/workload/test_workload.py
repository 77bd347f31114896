"""Workloads: shapes, costs, text forms, and the reference against naive loops."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import read_layers, read_workloads
from oneshot_ml2.workload.max_pool2d import MaxPool2d
from oneshot_ml2.workload.registry import workload_from_dict

LISTS = Path(__file__).parent.parent.parent / "datasets" / "workloads"
PLAIN = Epilogue(shift=0, clip=None)
FULL = Epilogue(bias=True, bias_bits=12, residual_shift=3, shift=5, clip=(-100, 90))


def _wrap(value: int, bits: int) -> int:
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half


def _finish(epilogue: Epilogue, total: int, bias: int, residual: int) -> int:
    """The epilogue on one Python integer."""
    total = _wrap(total, 32)
    if epilogue.bias:
        total = _wrap(total + bias, 32)
    if epilogue.residual_shift is not None:
        total = _wrap(total + residual * 2**epilogue.residual_shift, 32)
    total //= 2**epilogue.shift
    if epilogue.clip is not None:
        total = max(min(total, epilogue.clip[1]), epilogue.clip[0])
    return _wrap(total, 8)


def _naive_conv(conv: Conv2d, tensors: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    out = np.zeros(conv.output_shape, np.int8)
    data, weight = tensors["data"].tolist(), tensors["weight"].tolist()
    for index in np.ndindex(*out.shape):
        n, k, oh, ow = index
        total = 0
        for c in range(conv.c):
            for r in range(conv.r):
                for s in range(conv.s):
                    y = oh * conv.strides[0] + r * conv.dilations[0] - conv.pads[0]
                    x = ow * conv.strides[1] + s * conv.dilations[1] - conv.pads[2]
                    if 0 <= y < conv.h and 0 <= x < conv.w:
                        total += data[n][c][y][x] * weight[k][c][r][s]
        bias = int(tensors["bias"][k]) if "bias" in tensors else 0
        residual = int(tensors["residual"][index]) if "residual" in tensors else 0
        out[index] = _finish(conv.epilogue, total, bias, residual)
    return out


@pytest.mark.parametrize(
    "conv",
    [
        Conv2d(1, 3, 5, 4, 5, 3, 3, padding=1),
        Conv2d(2, 5, 6, 7, 3, 3, 2, stride=(2, 1), padding=(1, 0, 0, 1), epilogue=FULL),
        Conv2d(1, 2, 9, 9, 3, 3, 3, padding=2, dilation=2, epilogue=PLAIN),
        Conv2d(1, 2, 1, 1, 3, 3, 3, padding=(4, 4), dilation=(3, 2), epilogue=FULL),
        Conv2d(1, 2, 7, 3, 2, 7, 1, padding=(3, 0), epilogue=dataclasses.replace(FULL, clip=None)),
        Conv2d(3, 4, 5, 5, 2, 1, 1, stride=2, epilogue=Epilogue(shift=15, clip=(-32768, 32767))),
    ],
    ids=str,
)
def test_conv_reference_equals_naive_loops(conv: Conv2d) -> None:
    tensors = conv.random_inputs(np.random.default_rng(3))
    result = conv.reference(tensors)
    assert result.dtype == np.int8
    np.testing.assert_array_equal(result, _naive_conv(conv, tensors))


@pytest.mark.parametrize("at_once", [1 << 22, 50])
@pytest.mark.parametrize("epilogue", [Epilogue(), PLAIN, FULL])
def test_dense_reference_equals_naive_loops(epilogue: Epilogue, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneshot_ml2.workload.dense._AT_ONCE", at_once)
    dense = Dense(3, 21, 5, epilogue)
    tensors = dense.random_inputs(np.random.default_rng(4))
    result = dense.reference(tensors)
    for n, k in np.ndindex(3, 5):
        total = sum(int(a) * int(b) for a, b in zip(tensors["data"][n], tensors["weight"][k]))
        bias = int(tensors["bias"][k]) if "bias" in tensors else 0
        residual = int(tensors["residual"][n, k]) if "residual" in tensors else 0
        assert result[n, k] == _finish(epilogue, total, bias, residual)
    as_conv = {key: value[..., None, None] if value.ndim == 2 else value for key, value in tensors.items()}
    np.testing.assert_array_equal(dense.as_conv2d().reference(as_conv)[:, :, 0, 0], result)


def _torch(tensors: dict[str, Any], name: str) -> Any:
    import torch

    return torch.from_numpy(tensors[name]).double()


@pytest.mark.parametrize(
    "conv",
    [
        Conv2d(2, 12, 7, 9, 24, 3, 2, 2, (1, 0, 1, 1), epilogue=PLAIN, groups=4),
        Conv2d(1, 10, 8, 8, 10, 3, 3, 1, 1, 2, PLAIN, groups=10),
        Conv2d(1, 5, 6, 6, 10, 1, 1, epilogue=PLAIN, groups=5),
    ],
)
def test_groups_are_those_of_pytorch(conv: Conv2d) -> None:
    from torch.nn import functional

    tensors = conv.random_inputs(np.random.default_rng(4))
    top, bottom, left, right = conv.pads
    data = functional.pad(_torch(tensors, "data"), (left, right, top, bottom))
    want = functional.conv2d(data, _torch(tensors, "weight"), None, conv.strides, 0, conv.dilations, conv.groups)
    assert np.array_equal(conv.reference(tensors), want.numpy().astype(np.int64).astype(np.int8))
    assert conv.macs == conv.n * conv.k * conv.out_h * conv.out_w * conv.c // conv.groups * conv.r * conv.s
    assert conv.shape_key[0] == conv.c // conv.groups


@pytest.mark.parametrize(
    "conv",
    [
        Conv2dTranspose(1, 3, 5, 6, 4, 3, 4, 2, 1, 1, PLAIN),
        Conv2dTranspose(2, 3, 5, 6, 4, 2, 2, (3, 2), 0, (2, 0), PLAIN),
        Conv2dTranspose(1, 2, 4, 4, 2, 3, 3, 1, 1, 0, PLAIN),
    ],
)
def test_transposed_convolution_is_that_of_pytorch(conv: Conv2dTranspose) -> None:
    from torch.nn import functional

    tensors = conv.random_inputs(np.random.default_rng(5))
    pads = (conv.pads[0], conv.pads[2])
    want = functional.conv_transpose2d(
        _torch(tensors, "data"), _torch(tensors, "weight"), None, conv.out_steps, pads, conv.output_padding
    )
    assert np.array_equal(conv.reference(tensors), want.numpy().astype(np.int64).astype(np.int8))
    # Every real tap of the spread inputs is one multiplication of an input by a kernel element that is not cut off.
    rows, cols = (
        sum(0 <= y * step + r - pad < out for y in range(size) for r in range(kernel))
        for size, kernel, step, pad, out in (
            (conv.h, conv.r, conv.out_steps[0], conv.pads[0], conv.out_h),
            (conv.w, conv.s, conv.out_steps[1], conv.pads[2], conv.out_w),
        )
    )
    assert conv.real_tap_pairs == rows * cols
    assert conv.real_macs <= conv.macs


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size,kernel,stride,pad", [((8, 9), 3, 2, 1), ((7, 7), 2, 2, 0), ((5, 11), 3, 1, 1)])
def test_max_pooling_is_that_of_pytorch(size: tuple[int, int], kernel: int, stride: int, pad: int, ceil: bool) -> None:
    from torch.nn import functional

    pool = MaxPool2d(2, 5, *size, kernel, kernel, stride, pad, ceil)
    tensors = pool.random_inputs(np.random.default_rng(6))
    want = functional.max_pool2d(_torch(tensors, "data"), kernel, stride, pad, ceil_mode=ceil)
    assert np.array_equal(pool.reference(tensors), want.numpy().astype(np.int8))


def test_batched_products_are_those_of_their_pairs() -> None:
    product = BatchMatmul(3, 4, 5, 6, Epilogue(bias=True, bias_bits=8, shift=4, clip=(-100, 90)))
    tensors = product.random_inputs(np.random.default_rng(7))
    single = Dense(4, 5, 6, product.epilogue)
    for index, result in enumerate(product.reference(tensors)):
        pair = {"data": tensors["data"][index], "weight": tensors["weight"][index], "bias": tensors["bias"]}
        assert np.array_equal(result, single.reference(pair))


def test_half_even_rounds_as_rint_does() -> None:
    # Sums around every multiple of a half step, ties included; the bias holds half a step.
    for shift in (1, 4, 15):
        step = 1 << shift
        sums = (np.arange(-9, 10)[:, None] * step // 2 + np.array([-1, 0, 1])).reshape(1, -1, 1)
        bias = np.full(sums.shape[1], step // 2, dtype=np.int32)
        epilogue = Epilogue(bias=True, shift=shift, clip=(-128, 127), half_even=True)
        assert np.array_equal(epilogue.apply(sums, {"bias": bias}), np.rint(sums / step).astype(np.int8))


def test_a_shift_before_the_residual_is_exact() -> None:
    rng = np.random.default_rng(8)
    sums = rng.integers(-(1 << 20), 1 << 20, (2, 3, 5))
    residual = rng.integers(-128, 128, sums.shape).astype(np.int8)
    twice = Epilogue(residual_shift=6, pre_shift=4, shift=5, clip=(-128, 127)).apply(sums, {"residual": residual})
    assert np.array_equal(twice, np.clip((sums + (residual.astype(np.int64) << 10)) >> 9, -128, 127))


def test_accumulators_wrap_at_32_bits() -> None:
    dense = Dense(1, 1, 2, Epilogue(bias=True, bias_bits=30, residual_shift=6, shift=15, clip=None))
    sums = np.array([[2**31 - 1, -(2**31)]], dtype=np.int64)
    tensors: dict[str, Any] = {"bias": np.array([1, -1], np.int32), "residual": np.zeros((1, 2), np.int8)}
    np.testing.assert_array_equal(dense.epilogue.apply(sums, tensors), [[_wrap(-(2**16), 8), _wrap(2**16 - 1, 8)]])


def test_random_inputs_cover_their_ranges() -> None:
    conv = Conv2d(1, 64, 20, 20, 64, 3, 3, padding=1, epilogue=dataclasses.replace(FULL, bias_bits=2))
    tensors = conv.random_inputs(np.random.default_rng(0))
    for name, (shape, dtype) in conv.tensor_specs.items():
        assert tensors[name].shape == shape
        assert tensors[name].dtype == dtype
    assert (tensors["data"].min(), tensors["data"].max()) == (-128, 127)
    assert (tensors["bias"].min(), tensors["bias"].max()) == (-4, 4)
    again = conv.random_inputs(np.random.default_rng(0))
    assert all(np.array_equal(tensors[name], again[name]) for name in tensors)


def test_shapes_and_costs() -> None:
    conv = Conv2d(1, 64, 56, 56, 128, 3, 3, stride=2, padding=1)
    assert conv.output_shape == (1, 128, 28, 28)
    assert conv.strides == (2, 2)
    assert conv.pads == (1, 1, 1, 1)
    assert conv.dilations == (1, 1)
    assert conv.shape_key == (64, 128, (3, 3), (28, 28), (2, 2))
    assert conv.macs == 128 * 28 * 28 * 64 * 9
    assert conv.real_macs == 128 * 64 * (3 * 28 - 1) ** 2
    # Stride 2 with one pad: row -1 is padding, the last row is read.
    assert conv.used_pixels == 56 * 56
    assert conv.compulsory_bytes == 64 * 56 * 56 + 128 * 64 * 9 + 128 * 28 * 28
    skip = Conv2d(1, 8, 7, 7, 8, 1, 1, stride=2, epilogue=Epilogue(bias=True, residual_shift=0))
    assert skip.used_pixels == 16
    assert skip.compulsory_bytes == 8 * 16 + 64 + 32 + 2 * 8 * 16
    dense = Dense(4, 100, 10, Epilogue(bias=True))
    assert dense.macs == dense.real_macs == 4000
    assert dense.compulsory_bytes == 400 + 1000 + 40 + 40
    assert dense.output_shape == (4, 10)
    assert dense.shape_key == Dense(9, 100, 10).shape_key == Conv2d(1, 100, 1, 1, 10, 1, 1).shape_key


def test_used_taps_of_a_padded_pixel() -> None:
    conv = Conv2d(1, 1, 1, 1, 1, 3, 3, padding=1)
    assert (conv.used_taps, conv.used_pixels, conv.real_tap_pairs, conv.macs) == (1, 1, 1, 9)


def some_window(rng: np.random.Generator) -> Conv2d | Conv2dTranspose | MaxPool2d:
    """A small operator with windows; steps, dilations and pads may be far larger than the image."""

    def draw(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    while True:
        kernel = (draw(1, 4), draw(1, 3))
        pads = tuple(draw(0, 5) for _ in range(4))
        try:
            match draw(0, 2):
                case 0:
                    steps, dilation = (draw(1, 9), draw(1, 4)), (draw(1, 9), draw(1, 3))
                    return Conv2d(1, 1, draw(1, 12), draw(1, 5), 1, *kernel, steps, pads, dilation)
                case 1:
                    steps = (draw(1, 5), draw(1, 3))
                    more = (draw(0, steps[0] - 1), draw(0, steps[1] - 1))
                    return Conv2dTranspose(1, 1, draw(1, 6), draw(1, 4), 1, *kernel, steps, pads, more)
                case _:
                    steps, ceil = (draw(1, 9), draw(1, 3)), bool(draw(0, 1))
                    return MaxPool2d(1, 1, draw(1, 12), draw(1, 5), *kernel, steps, pads, ceil)
        except WorkloadError:
            continue


def test_counts_of_taps_and_pixels_are_those_of_the_loops() -> None:
    rng = np.random.default_rng(9)
    for _ in range(1500):
        op = some_window(rng)
        pairs, taps, pixels = [], [], []
        sizes = ((op.out_h, op.r, op.h), (op.out_w, op.s, op.w))
        for axis, (out, kernel, size) in enumerate(sizes):
            met = [
                (o, k, place // op.out_steps[axis])
                for o in range(out)
                for k in range(kernel)
                for place in [o * op.in_steps[axis] + k * op.dilations[axis] - op.leads[axis]]
                if place % op.out_steps[axis] == 0 and 0 <= place // op.out_steps[axis] < size
            ]
            pairs.append(len(met))
            taps.append(len({k for _, k, _ in met}))
            pixels.append(len({pixel for _, _, pixel in met}))
        wanted = (pairs[0] * pairs[1], taps[0] * taps[1], pixels[0] * pixels[1])
        assert (op.real_tap_pairs, op.used_taps, op.used_pixels) == wanted, op


def test_the_largest_sizes_are_counted_at_once() -> None:
    most = 1 << 20
    everything = Conv2d(most, most, most, most, most, most, most, padding=most - 1)
    # Every output meets as many taps as inputs: the outputs of all taps together are those of all inputs.
    assert everything.real_tap_pairs == most**4
    assert (everything.used_taps, everything.used_pixels) == (most**2, most**2)
    assert everything.real_macs == most**7
    apart = Conv2d(1, 1, most, 1, 1, 3, 1, padding=(most // 2, 0), dilation=(most // 2, 1))
    assert (apart.real_tap_pairs, apart.used_taps, apart.used_pixels) == (2 * most, 3, most)


def test_identity_is_by_value() -> None:
    one = Conv2d(1, 8, 9, 9, 8, 3, 3, stride=1, padding=1)
    two = Conv2d(1, 8, 9, 9, 8, 3, 3, stride=(1, 1), padding=(1, 1, 1, 1), dilation=[1, 1])
    assert one == two
    assert hash(one) == hash(two)
    assert one != dataclasses.replace(two, epilogue=FULL)
    assert Conv2d(np.int64(1), 8, 9, 9, 8, 3, 3, padding=(1, 1)) == one  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "workload",
    [Conv2d(1, 3, 30, 31, 40, 7, 5, stride=(2, 1), padding=(3, 2, 1, 0)), Dense(2, 3, 4, FULL), Dense(2, 3, 4, PLAIN)],
    ids=str,
)
def test_dict_round_trip(workload: Workload) -> None:
    data = json.loads(json.dumps(workload.to_dict()))
    assert workload_from_dict(data) == workload
    assert type(workload).from_dict(data) == workload


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": 0}, "conv2d c is 0; allowed: 1 to"),
        ({"h": 2.5}, "conv2d h is 2.5; allowed: an integer"),
        ({"k": True}, "conv2d k is True"),
        ({"stride": 0}, "conv2d stride is 0"),
        ({"stride": (1, 2, 3)}, "conv2d stride is .* or 2 of them"),
        ({"padding": (1, 2, 3)}, "conv2d padding is .*2 or 4"),
        ({"padding": 3}, "allowed in height: 0 to 2"),
        ({"padding": (0, 0, 0, 3)}, "allowed in width: 0 to 2"),
        ({"padding": -1}, "conv2d padding is -1"),
        ({"h": 2}, "conv2d height is 2; allowed: at least 3"),
        ({"w": 4, "dilation": 2}, "conv2d width is 4; allowed: at least 5"),
        ({"epilogue": {"shift": 1}}, "conv2d epilogue is"),
    ],
)
def test_impossible_convolutions(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"n": 1, "c": 8, "h": 9, "w": 9, "k": 8, "r": 3, "s": 3}
    with pytest.raises(WorkloadError, match=message):
        Conv2d(**(values | change))


@pytest.mark.parametrize(
    "options",
    [
        {"bias": 1},
        {"bias_bits": 31},
        {"residual_shift": 7},
        {"shift": 16},
        {"shift": -1},
        {"clip": (1, 0)},
        {"clip": (0, 1 << 15)},
        {"clip": 127},
        {"clip": (1, 2, 3)},
    ],
)
def test_impossible_epilogues(options: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError, match=f"epilogue {next(iter(options))} is .*; allowed"):
        Epilogue(**options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"op": "pool"}, "no op 'pool'. There are: batch_matmul, conv2d, conv2d_transpose, dense, max_pool2d"),
        ({"op": "dens"}, "no op 'dens'; did you mean 'dense'\\?"),
        ({"n": 1}, "op is None"),
        ([], "op is None"),
        ({"op": "dense", "n": 1, "c": 2}, "dense: missing k"),
        ({"op": "dense", "n": 1, "c": 2, "k": 3, "groups": 2}, "dense: unknown key 'groups'"),
        ({"op": "dense", "n": 1, "c": 2, "k": 3, "epilogue": {"relu": True}}, "epilogue: unknown key 'relu'"),
        ({"op": "dense", "n": 1, "c": 2, "k": 3, "epilogue": 8}, "epilogue is 8; allowed: a table"),
    ],
)
def test_foreign_dicts(data: Any, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        workload_from_dict(data)


def test_tensors_must_fit() -> None:
    conv = Conv2d(1, 4, 5, 5, 4, 3, 3, epilogue=FULL)
    tensors = conv.random_inputs(np.random.default_rng(0))
    for name in tensors:
        with pytest.raises(WorkloadError, match=f"missing '{name}'"):
            conv.reference({key: value for key, value in tensors.items() if key != name})
        with pytest.raises(WorkloadError, match=f"{name} is "):
            conv.reference(tensors | {name: tensors[name].astype(np.int16)})
        with pytest.raises(WorkloadError, match=f"{name} is "):
            conv.reference(tensors | {name: tensors[name][:-1]})
    with pytest.raises(WorkloadError, match="unexpected 'scale'"):
        conv.reference(tensors | {"scale": tensors["bias"]})
    with pytest.raises(WorkloadError, match="bias reaches 5000; allowed by bias_bits: at most 4096"):
        conv.reference(tensors | {"bias": np.full(4, -5000, np.int32)})


def test_read_workloads(tmp_path: Path) -> None:
    path = tmp_path / "list.toml"
    path.write_text(
        '[[workload]]\nname = "fc"\ncount = 2\nop = "dense"\nn = 1\nc = 2\nk = 3\n'
        '[[workload]]\nop = "conv2d"\nn = 1\nc = 2\nh = 3\nw = 3\nk = 4\nr = 1\ns = 1\nepilogue = { shift = 0 }\n',
        encoding="utf-8",
    )
    first, second = read_layers(path)
    assert (first.name, first.count, first.workload) == ("fc", 2, Dense(1, 2, 3))
    assert (second.name, second.count) == ("1", 1)
    assert second.workload == Conv2d(1, 2, 3, 3, 4, 1, 1, epilogue=PLAIN)
    assert read_workloads(path) == [first.workload, second.workload]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workload = []\n", r"no \[\[workload\]\] table"),
        ("[[workload]\n", "not TOML"),
        ("a = 1\n", r"expected \[\[workload\]\] tables"),
        ('[[workload]]\nname = "x"\nop = "dense"\nn = 0\nc = 1\nk = 1\n', "workload x: dense n is 0"),
        ('[[workload]]\nop = "dense"\ncount = 0\nn = 1\nc = 1\nk = 1\n', "workload 0: count is 0"),
    ],
)
def test_broken_lists(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WorkloadError, match=message):
        read_workloads(path)
    with pytest.raises(WorkloadError, match="cannot read"):
        read_workloads(tmp_path / "absent.toml")


def test_training_shares_no_shape_with_what_it_is_tested_on() -> None:
    training = {workload.shape_key for workload in read_workloads(LISTS / "train.toml")}
    for name in ("excluded.toml", "heldout.toml", "resnet18.toml"):
        assert not training & {workload.shape_key for workload in read_workloads(LISTS / name)}


def test_operators_share_none_either() -> None:
    def keys(*names: str) -> set[object]:
        return {(work.op, work.shape_key) for name in names for work in read_workloads(LISTS / f"{name}.toml")}

    held_out = keys("operators_excluded", "operators_heldout", "excluded", "heldout", "resnet18")
    assert not keys("operators") & held_out
    assert {op for op, _ in keys("operators")} == {"conv2d", "conv2d_transpose", "batch_matmul", "max_pool2d", "dense"}
    assert len(read_workloads(LISTS / "operators_heldout.toml")) >= 60


def test_sizes_of_the_lists() -> None:
    training, held_out = read_layers(LISTS / "train.toml"), read_layers(LISTS / "heldout.toml")
    assert sum(layer.name.startswith("filling") for layer in training) >= 150
    assert len(held_out) >= 60
    for layers in (training, held_out):
        assert len({layer.workload for layer in layers}) == len(layers)
        assert len({layer.name for layer in layers}) == len(layers)
        assert all(layer.workload.macs <= 250_000_000 for layer in layers)


def test_an_operator_that_lacks_something_is_told_what() -> None:
    class Half(Workload):
        pass

    with pytest.raises(TypeError, match=r"Half .*__str__.*compulsory_bytes.*loops.*macs.*reference"):
        Half()  # type: ignore[abstract]
