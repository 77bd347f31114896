"""Operators at fixed shapes with their fused epilogue: what is compiled, its cost and its exact result."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.errors import WorkloadError
from oneshot_ml2.files import read_toml

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
ShapeKey: TypeAlias = tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, int]]

_LARGEST = 1 << 20


def _integer(what: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int within ``low..high``, else a WorkloadError that names it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise WorkloadError(f"{what} is {value!r}; allowed: an integer {low} to {high}") from None
    if not low <= number <= high:
        raise WorkloadError(f"{what} is {number}; allowed: {low} to {high}")
    return number


def _integers(what: str, value: Any, lengths: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    """An int or a sequence of one of ``lengths``, as a tuple of ints within ``low..high``."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if len(value) not in lengths:
            counts = " or ".join(str(n) for n in lengths)
            raise WorkloadError(f"{what} is {value!r}; allowed: an integer or {counts} of them")
        return tuple(_integer(what, item, low, high) for item in value)
    return (_integer(what, value, low, high),) * 2


@dataclass(frozen=True)
class Epilogue:
    """What happens to the 32-bit sums before they are stored as int8, in this order.

    Add the bias, add ``residual << residual_shift``, shift right arithmetically by ``shift``, clip, keep the low
    8 bits. All sums wrap at 32 bits.

    Attributes:
        bias: whether an int32 bias of shape (K,) is added.
        bias_bits: every ``abs(bias) <= 2**bias_bits``, 0..30.
        residual_shift: 0..6; None: no residual.
        shift: 0..15; 0: no shift stage.
        clip: (low, high) within int16, each bound one ALU stage; None: no clip (wraps to int8).
    """

    bias: bool = False
    bias_bits: int = 16
    residual_shift: int | None = None
    shift: int = 8
    clip: tuple[int, int] | None = (0, 127)

    def __post_init__(self) -> None:
        if not isinstance(self.bias, (bool, np.bool_)):
            raise WorkloadError(f"epilogue bias is {self.bias!r}; allowed: true or false")
        object.__setattr__(self, "bias", bool(self.bias))
        object.__setattr__(self, "bias_bits", _integer("epilogue bias_bits", self.bias_bits, 0, 30))
        object.__setattr__(self, "shift", _integer("epilogue shift", self.shift, 0, 15))
        if self.residual_shift is not None:
            value = _integer("epilogue residual_shift", self.residual_shift, 0, 6)
            object.__setattr__(self, "residual_shift", value)
        if self.clip is not None:
            if not isinstance(self.clip, Sequence) or len(self.clip) != 2:
                raise WorkloadError(f"epilogue clip is {self.clip!r}; allowed: a pair (low, high) or nothing")
            low, high = (_integer("epilogue clip", bound, -(1 << 15), (1 << 15) - 1) for bound in self.clip)
            if low > high:
                raise WorkloadError(f"epilogue clip is {self.clip!r}; allowed: low <= high")
            object.__setattr__(self, "clip", (low, high))

    @property
    def residual(self) -> bool:
        """Whether an int8 tensor of the output's shape is added."""
        return self.residual_shift is not None

    @property
    def immediate_stages(self) -> int:
        """ALU passes with an immediate operand: the shift, and each bound of the clip."""
        return (self.shift > 0) + (2 if self.clip is not None else 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; absent options (no residual, no clip) are left out, so that TOML can hold it too."""
        data: dict[str, Any] = {"bias": self.bias, "bias_bits": self.bias_bits, "shift": self.shift}
        if self.residual_shift is not None:
            data["residual_shift"] = self.residual_shift
        if self.clip is not None:
            data["clip"] = list(self.clip)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Epilogue:
        """The inverse of :meth:`to_dict`: a missing ``clip`` or ``residual_shift`` means none.

        Raises:
            WorkloadError: an unknown key or a value out of range.
        """
        _check_keys("epilogue", data, {field.name for field in dataclasses.fields(cls)}, set())
        values = {"clip": None, "residual_shift": None} | dict(data)
        return cls(**values)

    def apply(self, sums: NDArray[np.int64], tensors: Tensors) -> NDArray[np.int8]:
        """The epilogue on sums (N, K, ...) (wrapped to 32 bits first); bias is (K,), residual has the sums' shape."""
        acc = _wrap32(sums)
        if self.bias:
            bias = tensors["bias"].astype(np.int64).reshape((1, -1) + (1,) * (acc.ndim - 2))
            acc = _wrap32(acc + bias)
        if self.residual_shift is not None:
            acc = _wrap32(acc + (tensors["residual"].astype(np.int64) << self.residual_shift))
        acc = acc >> self.shift
        if self.clip is not None:
            acc = np.clip(acc, *self.clip)
        return acc.astype(np.int8)


def _wrap32(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two's complement wrap at 32 bits, as the accumulator does (VTA reference, 3.5 and 3.6)."""
    return values.astype(np.int32).astype(np.int64)


def _check_keys(what: str, data: Any, known: set[str], required: set[str]) -> None:
    if not isinstance(data, Mapping):
        raise WorkloadError(f"{what} is {data!r}; allowed: a table of {', '.join(sorted(known))}")
    unknown = sorted(set(data) - known)
    if unknown:
        raise WorkloadError(f"{what}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
    missing = sorted(required - set(data))
    if missing:
        raise WorkloadError(f"{what}: missing {', '.join(missing)}")


class _Operator:
    """What both operators share; shapes and dtypes of the tensors come from ``tensor_specs``."""

    op: str
    epilogue: Epilogue

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name -> (shape, numpy type) of every input tensor, the epilogue's included."""
        raise NotImplementedError

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the int8 result."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the inverse of :func:`workload_from_dict`."""
        data: dict[str, Any] = {"op": self.op}
        for field in dataclasses.fields(cast(Any, self)):
            value = getattr(self, field.name)
            data[field.name] = list(value) if isinstance(value, tuple) else value
        data["epilogue"] = self.epilogue.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        """The inverse of :meth:`to_dict`.

        Raises:
            WorkloadError: another operator, an unknown or missing key, or a value out of range.
        """
        fields = dataclasses.fields(cast(Any, cls))
        required = {field.name for field in fields if field.default is dataclasses.MISSING and field.name != "epilogue"}
        _check_keys(cls.op, data, {"op"} | {field.name for field in fields}, required)
        if data.get("op", cls.op) != cls.op:
            raise WorkloadError(f"op is {data['op']!r}; allowed here: {cls.op!r}")
        values = {key: value for key, value in data.items() if key != "op"}
        if "epilogue" in values:
            values["epilogue"] = Epilogue.from_dict(values["epilogue"])
        return cls(**values)

    def random_inputs(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Uniform tensors over their whole ranges, named and shaped as ``tensor_specs`` says."""
        tensors: dict[str, NDArray[Any]] = {}
        for name, (shape, dtype) in self.tensor_specs.items():
            bound = 1 << self.epilogue.bias_bits
            low, high = (-bound, bound) if name == "bias" else (-128, 127)
            tensors[name] = rng.integers(low, high, size=shape, dtype=dtype, endpoint=True)
        return tensors

    def check_inputs(self, tensors: Tensors) -> None:
        """Raise WorkloadError unless ``tensors`` are exactly those of ``tensor_specs``, biases within ``bias_bits``."""
        specs = self.tensor_specs
        missing, extra = sorted(set(specs) - set(tensors)), sorted(set(tensors) - set(specs))
        if missing or extra:
            problem = f"missing {missing[0]!r}" if missing else f"unexpected {extra[0]!r}"
            raise WorkloadError(f"{self.op} tensors: {problem}; expected: {', '.join(specs)}")
        for name, (shape, dtype) in specs.items():
            array = np.asarray(tensors[name])
            if array.shape != shape or array.dtype != dtype:
                raise WorkloadError(
                    f"{self.op} {name} is {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape}"
                )
        if "bias" in specs:
            limit, most = 1 << self.epilogue.bias_bits, int(np.abs(np.asarray(tensors["bias"], dtype=np.int64)).max())
            if most > limit:
                raise WorkloadError(f"{self.op} bias reaches {most}; allowed by bias_bits: at most {limit}")

    def _epilogue_specs(self, channels: int) -> dict[str, tuple[tuple[int, ...], type]]:
        specs: dict[str, tuple[tuple[int, ...], type]] = {}
        if self.epilogue.bias:
            specs["bias"] = ((channels,), np.int32)
        if self.epilogue.residual:
            specs["residual"] = (self.output_shape, np.int8)
        return specs


@dataclass(frozen=True)
class Conv2d(_Operator):
    """int8 convolution, data NCHW, weight OIHW, one group; cross-correlation as in every framework.

    ``stride`` and ``dilation`` are an int or a pair (height, width); ``padding`` is an int, a pair, or
    (top, bottom, left, right). All are normalised to tuples. A pad is smaller than the dilated kernel.

    Raises:
        WorkloadError: a value out of range, or an output without elements.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: int | Sequence[int] = 1
    padding: int | Sequence[int] = 0
    dilation: int | Sequence[int] = 1
    epilogue: Epilogue = Epilogue()

    op = "conv2d"

    def __post_init__(self) -> None:
        for name in ("n", "c", "h", "w", "k", "r", "s"):
            object.__setattr__(self, name, _integer(f"conv2d {name}", getattr(self, name), 1, _LARGEST))
        stride = _integers("conv2d stride", self.stride, (2,), 1, _LARGEST)
        dilation = _integers("conv2d dilation", self.dilation, (2,), 1, _LARGEST)
        padding = _integers("conv2d padding", self.padding, (2, 4), 0, _LARGEST)
        if len(padding) == 2:
            padding = (padding[0], padding[0], padding[1], padding[1])
        for name, value in (("stride", stride), ("dilation", dilation), ("padding", padding)):
            object.__setattr__(self, name, value)
        if not isinstance(self.epilogue, Epilogue):
            raise WorkloadError(f"conv2d epilogue is {self.epilogue!r}; allowed: an Epilogue")
        for axis, kernel, gap, pads, size in (
            ("height", self.r, dilation[0], padding[:2], self.h),
            ("width", self.s, dilation[1], padding[2:], self.w),
        ):
            reach = (kernel - 1) * gap
            if max(pads) > reach:
                raise WorkloadError(
                    f"conv2d padding is {padding}; allowed in {axis}: 0 to {reach} (less than the dilated kernel)"
                )
            if size + sum(pads) <= reach:
                raise WorkloadError(
                    f"conv2d {axis} is {size}; allowed: at least {reach + 1 - sum(pads)}, or the output is empty"
                )

    @property
    def strides(self) -> tuple[int, int]:
        """(height, width)."""
        return cast("tuple[int, int]", self.stride)

    @property
    def dilations(self) -> tuple[int, int]:
        """(height, width)."""
        return cast("tuple[int, int]", self.dilation)

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right)."""
        return cast("tuple[int, int, int, int]", self.padding)

    @property
    def out_h(self) -> int:
        return (self.h + self.pads[0] + self.pads[1] - (self.r - 1) * self.dilations[0] - 1) // self.strides[0] + 1

    @property
    def out_w(self) -> int:
        return (self.w + self.pads[2] + self.pads[3] - (self.s - 1) * self.dilations[1] - 1) // self.strides[1] + 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, K, OH, OW)."""
        return (self.n, self.k, self.out_h, self.out_w)

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C,H,W) int8, weight (K,C,R,S) int8, then bias (K,) int32 and residual (output) int8 if any."""
        return {
            "data": ((self.n, self.c, self.h, self.w), np.int8),
            "weight": ((self.k, self.c, self.r, self.s), np.int8),
        } | self._epilogue_specs(self.k)

    @property
    def shape_key(self) -> ShapeKey:
        """(C, K, kernel, output size, stride): what the splits call the same workload (design, section 5)."""
        return (self.c, self.k, (self.r, self.s), (self.out_h, self.out_w), self.strides)

    @property
    def macs(self) -> int:
        """Multiplications of the textbook loop nest, those with zero padding included."""
        return self.n * self.k * self.out_h * self.out_w * self.c * self.r * self.s

    @cached_property
    def real_taps(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """((OH, R), (OW, S)): whether the input row (column) that an output's tap reads is no padding."""
        rows = (
            np.arange(self.out_h)[:, None] * self.strides[0]
            + np.arange(self.r)[None, :] * self.dilations[0]
            - self.pads[0]
        )
        cols = (
            np.arange(self.out_w)[:, None] * self.strides[1]
            + np.arange(self.s)[None, :] * self.dilations[1]
            - self.pads[2]
        )
        return (rows >= 0) & (rows < self.h), (cols >= 0) & (cols < self.w)

    @property
    def real_tap_pairs(self) -> int:
        """(output pixel, tap) pairs of one image that read a real input element."""
        rows, cols = self.real_taps
        return int(rows.sum()) * int(cols.sum())

    @property
    def real_macs(self) -> int:
        """Multiplications with a real input element: ``macs`` less those with zero padding."""
        return self.n * self.k * self.c * self.real_tap_pairs

    @property
    def used_taps(self) -> int:
        """Kernel taps that read a real input element for some output."""
        rows, cols = self.real_taps
        return int(rows.any(axis=0).sum()) * int(cols.any(axis=0).sum())

    @property
    def used_pixels(self) -> int:
        """Input pixels (h, w) that some output reads; the others need not be loaded."""
        rows, cols = self.real_taps
        used = 1
        for mask, stride, gap, pad in (
            (rows, self.strides[0], self.dilations[0], self.pads[0]),
            (cols, self.strides[1], self.dilations[1], self.pads[2]),
        ):
            out, tap = np.nonzero(mask)
            used *= len(np.unique(out * stride + tap * gap - pad))
        return used

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that must cross the memory port at least once: used inputs and weights, operands, and the output."""
        elements = self.n * self.k * self.out_h * self.out_w
        operands = (4 * self.k if self.epilogue.bias else 0) + (elements if self.epilogue.residual else 0)
        return self.n * self.c * self.used_pixels + self.k * self.c * self.used_taps + operands + elements

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, K, OH, OW).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        top, bottom, left, right = self.pads
        # Sums of int8 products are exact in float64 up to 2^53, and BLAS is far faster than integer matmul.
        data = np.pad(tensors["data"].astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
        weight = tensors["weight"].astype(np.float64)
        sums = np.zeros((self.n, self.k, self.out_h * self.out_w))
        for r in range(self.r):
            for s in range(self.s):
                y, x = r * self.dilations[0], s * self.dilations[1]
                window = data[
                    :,
                    :,
                    y : y + (self.out_h - 1) * self.strides[0] + 1 : self.strides[0],
                    x : x + (self.out_w - 1) * self.strides[1] + 1 : self.strides[1],
                ]
                sums += weight[:, :, r, s] @ window.reshape(self.n, self.c, -1)
        return self.epilogue.apply(sums.astype(np.int64).reshape(self.output_shape), tensors)

    def __str__(self) -> str:
        text = f"conv2d {self.n}x{self.c}x{self.h}x{self.w} -> {self.k}x{self.out_h}x{self.out_w} {self.r}x{self.s}"
        if self.strides != (1, 1):
            text += f"/{self.strides[0]}" + (f"x{self.strides[1]}" if self.strides[0] != self.strides[1] else "")
        return text + (f" d{self.dilations[0]}x{self.dilations[1]}" if self.dilations != (1, 1) else "")


@dataclass(frozen=True)
class Dense(_Operator):
    """int8 matrix product: data (N, C) times weight (K, C) transposed.

    Raises:
        WorkloadError: a value out of range.
    """

    n: int
    c: int
    k: int
    epilogue: Epilogue = Epilogue()

    op = "dense"

    def __post_init__(self) -> None:
        for name in ("n", "c", "k"):
            object.__setattr__(self, name, _integer(f"dense {name}", getattr(self, name), 1, _LARGEST))
        if not isinstance(self.epilogue, Epilogue):
            raise WorkloadError(f"dense epilogue is {self.epilogue!r}; allowed: an Epilogue")

    @property
    def out_h(self) -> int:
        return 1

    @property
    def out_w(self) -> int:
        return 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, K)."""
        return (self.n, self.k)

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C) int8, weight (K,C) int8, then bias (K,) int32 and residual (N,K) int8 if any."""
        return {"data": ((self.n, self.c), np.int8), "weight": ((self.k, self.c), np.int8)} | self._epilogue_specs(
            self.k
        )

    @property
    def shape_key(self) -> ShapeKey:
        """That of the 1x1 convolution that it is: (C, K, (1, 1), (1, 1), (1, 1)), whatever N."""
        return self.as_conv2d().shape_key

    @property
    def macs(self) -> int:
        return self.n * self.c * self.k

    @property
    def real_macs(self) -> int:
        """As ``macs``: there is no padding."""
        return self.macs

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that must cross the memory port at least once."""
        return self.as_conv2d().compulsory_bytes

    def as_conv2d(self) -> Conv2d:
        """The same product as a 1x1 convolution of 1x1 images (VTA reference, 8.2)."""
        return Conv2d(self.n, self.c, 1, 1, self.k, 1, 1, epilogue=self.epilogue)

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, K).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        sums = tensors["data"].astype(np.float64) @ tensors["weight"].astype(np.float64).T
        return self.epilogue.apply(sums.astype(np.int64), tensors)

    def __str__(self) -> str:
        return f"dense {self.n}x{self.c} -> {self.k}"


Workload: TypeAlias = Conv2d | Dense

_OPERATORS: dict[str, type[Conv2d | Dense]] = {"conv2d": Conv2d, "dense": Dense}


def workload_from_dict(data: Mapping[str, Any]) -> Workload:
    """The workload that ``to_dict`` wrote, by its ``op``.

    Raises:
        WorkloadError: no or an unknown ``op``, an unknown or missing key, or a value out of range.
    """
    op = data.get("op") if isinstance(data, Mapping) else None
    if not isinstance(op, str) or op not in _OPERATORS:
        raise WorkloadError(f"op is {op!r}; allowed: {', '.join(_OPERATORS)}")
    workload: Workload = _OPERATORS[op].from_dict(data)
    return workload


@dataclass(frozen=True)
class Layer:
    """A workload of a network or a list: its name there, and how often it occurs."""

    name: str
    workload: Workload
    count: int = 1


def read_layers(path: str | Path) -> list[Layer]:
    """The ``[[workload]]`` tables of a TOML file, each a workload's ``to_dict`` plus optional ``name`` and ``count``.

    Raises:
        WorkloadError: an unreadable file, broken TOML, or an impossible workload (says which).
    """
    path = Path(path)
    data = read_toml(path, WorkloadError)
    tables = data.get("workload")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise WorkloadError(f"{path}: expected [[workload]] tables")
    layers = []
    for index, table in enumerate(tables):
        values = dict(table)
        name = str(values.pop("name", index))
        try:
            count = _integer("count", values.pop("count", 1), 1, _LARGEST)
            layers.append(Layer(name, workload_from_dict(values), count))
        except WorkloadError as error:
            raise WorkloadError(f"{path}: workload {name}: {error}") from error
    return layers


def read_workloads(path: str | Path) -> list[Workload]:
    """The workloads of :func:`read_layers`, in the file's order.

    Raises:
        WorkloadError: as :func:`read_layers`.
    """
    return [layer.workload for layer in read_layers(path)]
