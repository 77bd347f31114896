"""Operators at fixed shapes with their fused epilogue: what is compiled, its cost and its exact result."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.errors import WorkloadError
from oneshot_ml2.reading import read_toml

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

    Add the bias, shift right by ``pre_shift``, add ``residual << residual_shift``, shift right by ``shift``, clip, keep
    the low 8 bits. All sums wrap at 32 bits, all right shifts are arithmetic.

    Attributes:
        bias: whether an int32 bias of shape (K,) is added.
        bias_bits: every ``abs(bias) <= 2**bias_bits``, 0..30.
        residual_shift: 0..6; None: no residual.
        shift: 0..15; 0: no shift stage.
        clip: (low, high) within int16, each bound one ALU stage; None: no clip (wraps to int8).
        pre_shift: 0..15, only with a residual, whose scale may so be far above the sums': with ``a`` of them,
            ``((sums >> a) + (residual << d - a)) >> s - a`` is ``(sums + (residual << d)) >> s`` exactly.
        half_even: sums whose bias holds half a step of the shift are rounded half to even, not half up: one is taken
            from odd results' sums before the shift. Costs a copy and five or six more ALU passes.
    """

    bias: bool = False
    bias_bits: int = 16
    residual_shift: int | None = None
    shift: int = 8
    clip: tuple[int, int] | None = (0, 127)
    pre_shift: int = 0
    half_even: bool = False

    def __post_init__(self) -> None:
        for name in ("bias", "half_even"):
            flag = getattr(self, name)
            if not isinstance(flag, (bool, np.bool_)):
                raise WorkloadError(f"epilogue {name} is {flag!r}; allowed: true or false")
            object.__setattr__(self, name, bool(flag))
        object.__setattr__(self, "bias_bits", _integer("epilogue bias_bits", self.bias_bits, 0, 30))
        object.__setattr__(self, "shift", _integer("epilogue shift", self.shift, 0, 15))
        object.__setattr__(self, "pre_shift", _integer("epilogue pre_shift", self.pre_shift, 0, 15))
        if self.pre_shift and (self.residual_shift is None or self.half_even):
            raise WorkloadError("epilogue pre_shift is for a residual, and not with half_even; allowed otherwise: 0")
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
        """ALU passes with an immediate operand: the shifts, and each bound of the clip."""
        return (self.shift > 0) + (self.pre_shift > 0) + (2 if self.clip is not None else 0)

    @property
    def rounds_even(self) -> bool:
        """Whether results are rounded half to even by passes of their own: only where there is a shift."""
        return self.half_even and self.shift > 0

    @property
    def stage_cycles(self) -> int:
        """Compute cycles an output element takes in all passes but those for bias and residual."""
        # Half to even: a reset, a copy (2), one or two shifts left, two bounds, and the sum (2).
        return self.immediate_stages + ((8 if self.shift == 15 else 9) if self.rounds_even else 0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; absent options (no residual, no clip) are left out, so that TOML can hold it too."""
        data: dict[str, Any] = {"bias": self.bias, "bias_bits": self.bias_bits, "shift": self.shift}
        if self.residual_shift is not None:
            data["residual_shift"] = self.residual_shift
        if self.clip is not None:
            data["clip"] = list(self.clip)
        if self.pre_shift:
            data["pre_shift"] = self.pre_shift
        if self.half_even:
            data["half_even"] = True
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
        acc = acc >> self.pre_shift
        if self.residual_shift is not None:
            acc = _wrap32(acc + (tensors["residual"].astype(np.int64) << self.residual_shift))
        if self.rounds_even:
            acc = _wrap32(acc - ((acc >> self.shift) & 1))
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
    """What all operators share; shapes and dtypes of the tensors come from ``tensor_specs``."""

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
class _Axis:
    """One axis of a window operator, counted in time and memory that grow with its sizes, not with their products.

    Output ``o`` meets tap ``k`` at input ``(o * stride + k * dilation - lead) / spread``, where that is a whole number
    from 0 to ``size - 1``; ``stride`` or ``spread`` is 1.
    """

    out: int
    kernel: int
    size: int
    stride: int
    spread: int
    dilation: int
    lead: int

    @property
    def met(self) -> NDArray[np.int64]:
        """How many outputs read a real input with each tap, int64 (kernel,)."""
        offset = np.arange(self.kernel, dtype=np.int64) * self.dilation - self.lead
        first = np.maximum(-(offset // self.stride), 0)
        first += -(offset + first) % self.spread if self.spread > 1 else 0
        last = np.minimum(((self.size - 1) * self.spread - offset) // self.stride, self.out - 1)
        return np.maximum((last - first) // self.spread + 1, 0)

    @property
    def used(self) -> int:
        """Inputs that some output reads."""
        # Where output o meets tap k, o * stride + k * dilation is this.
        place = np.arange(self.size, dtype=np.int64) * self.spread + self.lead
        # The least tap at which the place is within reach of the outputs, and leaves a multiple of the stride.
        least = np.maximum(-((self.stride * (self.out - 1) - place) // self.dilation), 0)
        common = math.gcd(self.dilation, self.stride)
        period = self.stride // common
        inverse = pow(self.dilation // common, -1, period)
        wanted = place // common % period * inverse % period
        tap = least + (wanted - least) % period
        most = np.minimum(place // self.dilation, self.kernel - 1)
        return int(np.count_nonzero((place % common == 0) & (tap <= most)))


class _Windowed(_Operator):
    """Operators that slide a window over images: output ``o`` meets tap ``t`` at input ``(o * in_step + t * dilation -
    lead) / out_step``, where that is a whole number; one of the two steps is 1.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    padding: int | Sequence[int]

    @property
    def groups(self) -> int:
        """Groups of channels that do not meet."""
        raise NotImplementedError

    @property
    def in_steps(self) -> tuple[int, int]:
        """Inputs from one output to the next, (height, width)."""
        return (1, 1)

    @property
    def out_steps(self) -> tuple[int, int]:
        """Outputs from one input to the next, (height, width)."""
        return (1, 1)

    @property
    def dilations(self) -> tuple[int, int]:
        """Inputs (outputs of a transposed convolution) from one tap to the next, (height, width)."""
        return (1, 1)

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """(top, bottom, left, right)."""
        return cast("tuple[int, int, int, int]", self.padding)

    @property
    def leads(self) -> tuple[int, int]:
        """How far before the image the first output's first tap lies, (height, width)."""
        return (self.pads[0], self.pads[2])

    @property
    def out_h(self) -> int:
        raise NotImplementedError

    @property
    def out_w(self) -> int:
        raise NotImplementedError

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, K, OH, OW)."""
        return (self.n, self.k, self.out_h, self.out_w)

    @property
    def shape_key(self) -> ShapeKey:
        """(C of a group, K, kernel, output size, steps): what the splits call the same workload (design, section 5)."""
        steps = (self.in_steps[0] * self.out_steps[0], self.in_steps[1] * self.out_steps[1])
        return (self.c // self.groups, self.k, (self.r, self.s), (self.out_h, self.out_w), steps)

    @property
    def _axes(self) -> tuple[_Axis, _Axis]:
        """Height and width."""
        sizes = ((self.out_h, self.r, self.h), (self.out_w, self.s, self.w))
        height, width = (
            _Axis(*sizes[i], self.in_steps[i], self.out_steps[i], self.dilations[i], self.leads[i]) for i in (0, 1)
        )
        return height, width

    @cached_property
    def _met(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`_Axis.met` of height and width."""
        height, width = self._axes
        return height.met, width.met

    @property
    def real_tap_pairs(self) -> int:
        """(output pixel, tap) pairs of one image that read a real input element."""
        rows, cols = self._met
        return int(rows.sum()) * int(cols.sum())

    @property
    def used_taps(self) -> int:
        """Kernel taps that read a real input element for some output."""
        rows, cols = self._met
        return int(np.count_nonzero(rows)) * int(np.count_nonzero(cols))

    @property
    def used_pixels(self) -> int:
        """Input pixels (h, w) that some output reads; the others need not be loaded."""
        height, width = self._axes
        return height.used * width.used

    @property
    def real_macs(self) -> int:
        """Multiplications with a real input element."""
        return self.n * self.k * (self.c // self.groups) * self.real_tap_pairs

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that must cross the memory port at least once: used inputs and weights, operands, and the output."""
        elements = self.n * self.k * self.out_h * self.out_w
        operands = (4 * self.k if self.epilogue.bias else 0) + (elements if self.epilogue.residual else 0)
        weights = self.k * (self.c // self.groups) * self.used_taps if "weight" in self.tensor_specs else 0
        return self.n * self.c * self.used_pixels + weights + operands + elements

    def _normalised(self, names: Sequence[str]) -> None:
        """Check the sizes and the epilogue."""
        for name in names:
            object.__setattr__(self, name, _integer(f"{self.op} {name}", getattr(self, name), 1, _LARGEST))
        if not isinstance(self.epilogue, Epilogue):
            raise WorkloadError(f"{self.op} epilogue is {self.epilogue!r}; allowed: an Epilogue")

    def _check_pads(self, reaches: tuple[int, int], pads: tuple[int, ...]) -> None:
        for axis, reach, (before, after), size in (
            ("height", reaches[0], pads[:2], self.h),
            ("width", reaches[1], pads[2:], self.w),
        ):
            if max(before, after) > reach:
                raise WorkloadError(
                    f"{self.op} padding is {pads}; allowed in {axis}: 0 to {reach} (less than the dilated kernel)"
                )
            if size + before + after <= reach:
                least = reach + 1 - before - after
                raise WorkloadError(f"{self.op} {axis} is {size}; allowed: at least {least}, or the output is empty")

    def __str__(self) -> str:
        text = f"{self.op} {self.n}x{self.c}x{self.h}x{self.w} -> {self.k}x{self.out_h}x{self.out_w} {self.r}x{self.s}"
        steps = self.shape_key[4]
        if steps != (1, 1):
            text += f"/{steps[0]}" + (f"x{steps[1]}" if steps[0] != steps[1] else "")
        if self.dilations != (1, 1):
            text += f" d{self.dilations[0]}x{self.dilations[1]}"
        return text + (f" g{self.groups}" if self.groups > 1 and "weight" in self.tensor_specs else "")


def _four_pads(what: str, padding: int | Sequence[int]) -> tuple[int, ...]:
    """(top, bottom, left, right) of an int, a pair (height, width) or all four."""
    pads = _integers(what, padding, (2, 4), 0, _LARGEST)
    return pads if len(pads) == 4 else (pads[0], pads[0], pads[1], pads[1])


@dataclass(frozen=True)
class Conv2d(_Windowed):
    """int8 convolution, data NCHW, weight OIHW; cross-correlation as in every framework.

    ``stride`` and ``dilation`` are an int or a pair (height, width); ``padding`` is an int, a pair, or
    (top, bottom, left, right). All are normalised to tuples. A pad is smaller than the dilated kernel. ``groups``
    divides both channel counts; as many as channels: depthwise.

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
    groups: int = 1

    op = "conv2d"

    def __post_init__(self) -> None:
        self._normalised(("n", "c", "h", "w", "k", "r", "s", "groups"))
        object.__setattr__(self, "stride", _integers("conv2d stride", self.stride, (2,), 1, _LARGEST))
        object.__setattr__(self, "dilation", _integers("conv2d dilation", self.dilation, (2,), 1, _LARGEST))
        object.__setattr__(self, "padding", _four_pads("conv2d padding", self.padding))
        if self.c % self.groups or self.k % self.groups:
            raise WorkloadError(f"conv2d groups is {self.groups}; allowed: a divisor of c={self.c} and of k={self.k}")
        reaches = ((self.r - 1) * self.dilations[0], (self.s - 1) * self.dilations[1])
        self._check_pads(reaches, self.pads)

    def to_dict(self) -> dict[str, Any]:
        """As of every operator; one group is left out, as lists and corpora from before there were groups have it."""
        data = super().to_dict()
        if self.groups == 1:
            del data["groups"]
        return data

    @property
    def strides(self) -> tuple[int, int]:
        """(height, width)."""
        return cast("tuple[int, int]", self.stride)

    @property
    def in_steps(self) -> tuple[int, int]:
        return self.strides

    @property
    def dilations(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.dilation)

    @property
    def out_h(self) -> int:
        return (self.h + self.pads[0] + self.pads[1] - (self.r - 1) * self.dilations[0] - 1) // self.strides[0] + 1

    @property
    def out_w(self) -> int:
        return (self.w + self.pads[2] + self.pads[3] - (self.s - 1) * self.dilations[1] - 1) // self.strides[1] + 1

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C,H,W) int8, weight (K,C/groups,R,S) int8, then bias (K,) int32, residual (output) int8 if any."""
        return {
            "data": ((self.n, self.c, self.h, self.w), np.int8),
            "weight": ((self.k, self.c // self.groups, self.r, self.s), np.int8),
        } | self._epilogue_specs(self.k)

    @property
    def macs(self) -> int:
        """Multiplications of the textbook loop nest, those with zero padding included."""
        return self.n * self.k * self.out_h * self.out_w * (self.c // self.groups) * self.r * self.s

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, K, OH, OW).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        top, bottom, left, right = self.pads
        # Sums of int8 products are exact in float64 up to 2^53, and BLAS is far faster than integer matmul.
        data = np.pad(tensors["data"].astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
        weight = tensors["weight"].astype(np.float64).reshape(self.groups, self.k // self.groups, -1, self.r, self.s)
        sums = np.zeros((self.n, self.groups, self.k // self.groups, self.out_h * self.out_w))
        for r in range(self.r):
            for s in range(self.s):
                y, x = r * self.dilations[0], s * self.dilations[1]
                window = data[
                    :,
                    :,
                    y : y + (self.out_h - 1) * self.strides[0] + 1 : self.strides[0],
                    x : x + (self.out_w - 1) * self.strides[1] + 1 : self.strides[1],
                ]
                sums += weight[..., r, s] @ window.reshape(self.n, self.groups, self.c // self.groups, -1)
        return self.epilogue.apply(sums.astype(np.int64).reshape(self.output_shape), tensors)


@dataclass(frozen=True)
class Conv2dTranspose(_Windowed):
    """int8 transposed convolution (the gradient of a convolution), data NCHW, weight IOHW, one group.

    Every input adds its multiple of the kernel to the output, ``stride`` outputs apart. ``stride`` is an int or a pair,
    ``padding`` an int, a pair or (top, bottom, left, right): what is cut off the output, less than the kernel;
    ``output_padding`` an int or a pair less than the stride: rows and columns more at the end.

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
    output_padding: int | Sequence[int] = 0
    epilogue: Epilogue = Epilogue()

    op = "conv2d_transpose"
    groups = 1

    def __post_init__(self) -> None:
        self._normalised(("n", "c", "h", "w", "k", "r", "s"))
        object.__setattr__(self, "stride", _integers(f"{self.op} stride", self.stride, (2,), 1, _LARGEST))
        object.__setattr__(self, "padding", _four_pads(f"{self.op} padding", self.padding))
        more = _integers(f"{self.op} output_padding", self.output_padding, (2,), 0, _LARGEST)
        object.__setattr__(self, "output_padding", more)
        if any(extra >= step for extra, step in zip(more, self.out_steps, strict=True)):
            raise WorkloadError(f"{self.op} output_padding is {more}; allowed: less than the stride {self.out_steps}")
        for axis, kernel, pads in (("height", self.r, self.pads[:2]), ("width", self.s, self.pads[2:])):
            if max(pads) >= kernel:
                raise WorkloadError(f"{self.op} padding is {self.pads}; allowed in {axis}: 0 to {kernel - 1}")
        if min(self.out_h, self.out_w) < 1:
            raise WorkloadError(f"{self.op} output is {self.out_h} x {self.out_w}; allowed: at least one pixel")

    @property
    def out_steps(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.stride)

    @property
    def leads(self) -> tuple[int, int]:
        """With the kernel turned around, as :meth:`turned` gives it, taps count upwards as those of a convolution."""
        return (self.r - 1 - self.pads[0], self.s - 1 - self.pads[2])

    @property
    def out_h(self) -> int:
        more = cast("tuple[int, int]", self.output_padding)[0]
        return (self.h - 1) * self.out_steps[0] + self.r - self.pads[0] - self.pads[1] + more

    @property
    def out_w(self) -> int:
        more = cast("tuple[int, int]", self.output_padding)[1]
        return (self.w - 1) * self.out_steps[1] + self.s - self.pads[2] - self.pads[3] + more

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C,H,W) int8, weight (C,K,R,S) int8, then bias (K,) int32, residual (output) int8 if any."""
        return {
            "data": ((self.n, self.c, self.h, self.w), np.int8),
            "weight": ((self.c, self.k, self.r, self.s), np.int8),
        } | self._epilogue_specs(self.k)

    @property
    def macs(self) -> int:
        """Multiplications that the operator is: of each input with the whole kernel."""
        return self.n * self.k * self.h * self.w * self.c * self.r * self.s

    @staticmethod
    def turned(weight: NDArray[np.int8]) -> NDArray[np.int8]:
        """The weight as that of a convolution over the spread inputs: (K, C, R, S), the kernel turned around."""
        return np.ascontiguousarray(weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, K, OH, OW).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        data = tensors["data"].astype(np.float64).reshape(self.n, self.c, -1)
        weight = tensors["weight"].astype(np.float64)
        (sh, sw), (top, bottom, left, right) = self.out_steps, self.pads
        height, width = self.out_h + top + bottom, self.out_w + left + right
        full = np.zeros((self.n, self.k, height, width))
        for r in range(self.r):
            for s in range(self.s):
                part = (weight[:, :, r, s].T @ data).reshape(self.n, self.k, self.h, self.w)
                full[:, :, r : r + (self.h - 1) * sh + 1 : sh, s : s + (self.w - 1) * sw + 1 : sw] += part
        sums = full[:, :, top : height - bottom, left : width - right]
        return self.epilogue.apply(sums.astype(np.int64), tensors)


@dataclass(frozen=True)
class MaxPool2d(_Windowed):
    """int8 maximum over windows (r, s) of each channel, data NCHW; padding never wins.

    ``stride`` (default: the window) and ``padding`` as of `Conv2d`; ``ceil_mode``: a last window may begin that reaches
    past the padding.

    Raises:
        WorkloadError: a value out of range, an epilogue with bias or residual, or an output without elements.
    """

    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    stride: int | Sequence[int] | None = None
    padding: int | Sequence[int] = 0
    ceil_mode: bool = False
    epilogue: Epilogue = Epilogue(shift=0, clip=None)

    op = "max_pool2d"

    def __post_init__(self) -> None:
        self._normalised(("n", "c", "h", "w", "r", "s"))
        stride = (self.r, self.s) if self.stride is None else self.stride
        object.__setattr__(self, "stride", _integers(f"{self.op} stride", stride, (2,), 1, _LARGEST))
        object.__setattr__(self, "padding", _four_pads(f"{self.op} padding", self.padding))
        if self.epilogue != Epilogue(shift=0, clip=self.epilogue.clip):
            raise WorkloadError(f"{self.op} epilogue is {self.epilogue}; allowed: a clip only")
        if not isinstance(self.ceil_mode, (bool, np.bool_)):
            raise WorkloadError(f"{self.op} ceil_mode is {self.ceil_mode!r}; allowed: true or false")
        object.__setattr__(self, "ceil_mode", bool(self.ceil_mode))
        self._check_pads((self.r - 1, self.s - 1), self.pads)

    @property
    def k(self) -> int:  # type: ignore[override]
        """As many channels as the input has."""
        return self.c

    @property
    def groups(self) -> int:
        return self.c

    @property
    def in_steps(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.stride)

    def _windows(self, size: int, kernel: int, step: int, before: int, after: int) -> int:
        room = size + before + after - kernel
        if not self.ceil_mode:
            return room // step + 1
        count = -(-room // step) + 1
        # A window must begin inside the image or its leading padding.
        return count - ((count - 1) * step >= size + before)

    @property
    def out_h(self) -> int:
        return self._windows(self.h, self.r, self.in_steps[0], *self.pads[:2])

    @property
    def out_w(self) -> int:
        return self._windows(self.w, self.s, self.in_steps[1], *self.pads[2:])

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C,H,W) int8."""
        return {"data": ((self.n, self.c, self.h, self.w), np.int8)}

    @property
    def macs(self) -> int:
        """None: comparisons only."""
        return 0

    @property
    def real_macs(self) -> int:
        return 0

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, C, OH, OW).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        (sh, sw), (top, _, left, _) = self.in_steps, self.pads
        height, width = (self.out_h - 1) * sh + self.r, (self.out_w - 1) * sw + self.s
        shape = (self.n, self.c, max(height, top + self.h), max(width, left + self.w))
        padded = np.full(shape, -128, dtype=np.int64)
        padded[:, :, top : top + self.h, left : left + self.w] = tensors["data"]
        taps = [
            padded[:, :, r : r + (self.out_h - 1) * sh + 1 : sh, s : s + (self.out_w - 1) * sw + 1 : sw]
            for r in range(self.r)
            for s in range(self.s)
        ]
        return self.epilogue.apply(np.maximum.reduce(taps), tensors)


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


@dataclass(frozen=True)
class BatchMatmul(_Operator):
    """int8 matrix products of pairs: data (B, N, C) times weight (B, K, C) transposed; both may be activations.

    Raises:
        WorkloadError: a value out of range, or a residual.
    """

    b: int
    n: int
    c: int
    k: int
    epilogue: Epilogue = Epilogue()

    op = "batch_matmul"

    def __post_init__(self) -> None:
        for name in ("b", "n", "c", "k"):
            object.__setattr__(self, name, _integer(f"{self.op} {name}", getattr(self, name), 1, _LARGEST))
        if not isinstance(self.epilogue, Epilogue) or self.epilogue.residual:
            raise WorkloadError(f"{self.op} epilogue is {self.epilogue!r}; allowed: an Epilogue without residual")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(B, N, K)."""
        return (self.b, self.n, self.k)

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (B,N,C) int8, weight (B,K,C) int8, then bias (K,) int32 if any, the same for every pair."""
        return {
            "data": ((self.b, self.n, self.c), np.int8),
            "weight": ((self.b, self.k, self.c), np.int8),
        } | self._epilogue_specs(self.k)

    @property
    def shape_key(self) -> ShapeKey:
        """(C, K, (1, 1), (B, N), (1, 1))."""
        return (self.c, self.k, (1, 1), (self.b, self.n), (1, 1))

    @property
    def macs(self) -> int:
        return self.b * self.n * self.c * self.k

    @property
    def real_macs(self) -> int:
        """As ``macs``: there is no padding."""
        return self.macs

    @property
    def compulsory_bytes(self) -> int:
        """Bytes that must cross the memory port at least once."""
        bias = 4 * self.k if self.epilogue.bias else 0
        return self.b * (self.n * self.c + self.k * self.c + self.n * self.k) + bias

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (B, N, K).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        sums = tensors["data"].astype(np.float64) @ tensors["weight"].astype(np.float64).transpose(0, 2, 1)
        # The epilogue's channels come second.
        result = self.epilogue.apply(sums.astype(np.int64).transpose(0, 2, 1), tensors)
        return np.ascontiguousarray(result.transpose(0, 2, 1))

    def __str__(self) -> str:
        return f"batch_matmul {self.b}x{self.n}x{self.c} -> {self.k}"


Workload: TypeAlias = Conv2d | Conv2dTranspose | MaxPool2d | Dense | BatchMatmul

_OPERATORS: dict[str, type[Workload]] = {
    kind.op: kind for kind in (Conv2d, Conv2dTranspose, MaxPool2d, Dense, BatchMatmul)
}


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
