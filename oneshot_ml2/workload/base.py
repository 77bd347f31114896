"""Operators at fixed shapes with their fused epilogue: what is compiled, its cost and its exact result."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.checks import LARGEST, check_keys, integer, integers
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.loops import Axis, LoopNest

if TYPE_CHECKING:
    from oneshot_ml2.workload.epilogue import Tensors


def short_workload(workload: Workload) -> str:
    """E.g. ``64x56x56 > 128x28x28 3x3/2`` or ``512 > 1000``; a batch other than 1 goes in front."""
    op, text = str(workload).replace(" -> ", " > ").split(" ", 1)
    batch, _, rest = text.partition("x")
    text = rest if batch == "1" else f"{batch} x {rest}"
    return text if op == "conv2d" else f"{text} {op}"


ShapeKey: TypeAlias = tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, int]]


class Workload(ABC):
    """What all operators share; shapes and dtypes of the tensors come from ``tensor_specs``.

    What is abstract is an operator's own to say; one that lacks some of it cannot be made, and the error names it.
    """

    op: str
    epilogue: Epilogue

    @property
    @abstractmethod
    def loops(self) -> LoopNest:
        """Its loops in elements; what accelerators do with them follows from these alone."""
        raise NotImplementedError

    @abstractmethod
    def loop_weight(self, tensors: Tensors) -> NDArray[np.int8] | None:
        """The weights that the loops read, int8 (groups, K, C, R, S) or, of matrices, (groups, K, C); None: pooling."""
        raise NotImplementedError

    @property
    @abstractmethod
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name -> (shape, numpy type) of every input tensor, the epilogue's included."""
        raise NotImplementedError

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the int8 result."""
        raise NotImplementedError

    @property
    @abstractmethod
    def shape_key(self) -> ShapeKey:
        """(C of a group, K, kernel, output size, steps): equal for what docs/evaluation.md calls the same workload."""
        raise NotImplementedError

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiplications that the operator is."""
        raise NotImplementedError

    @property
    @abstractmethod
    def real_macs(self) -> int:
        """Multiplications with a real input element."""
        raise NotImplementedError

    @property
    @abstractmethod
    def compulsory_bytes(self) -> int:
        """Bytes that must cross the memory port at least once."""
        raise NotImplementedError

    @property
    def over_patches(self) -> Workload | None:
        """What computes the same of patches, each window of the data laid out as the channels of one pixel: channel
        ``(c * R + r) * S + s`` holds what tap (r, s) reads of channel c, zero where that is padding. None: nothing.
        """
        return None

    @abstractmethod
    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8.

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
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
        check_keys(cls.op, data, {"op"} | {field.name for field in fields}, required)
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

    @abstractmethod
    def __str__(self) -> str:
        """``OP DATA -> RESULT`` and more, e.g. ``dense 1x64 -> 10``; `short_workload` takes it apart."""


class Windowed(Workload):
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
    # Of the loops: the largest of a window instead of a sum; outputs that read zeros around the image.
    pool = False

    @property
    def zeros_around(self) -> bool:
        """Whether an output may read zeros outside of its image."""
        return False

    @property
    @abstractmethod
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
    @abstractmethod
    def out_h(self) -> int:
        raise NotImplementedError

    @property
    @abstractmethod
    def out_w(self) -> int:
        raise NotImplementedError

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, K, OH, OW)."""
        return (self.n, self.k, self.out_h, self.out_w)

    @property
    def shape_key(self) -> ShapeKey:
        """(C of a group, K, kernel, output size, steps): what the splits call the same workload."""
        steps = (self.in_steps[0] * self.out_steps[0], self.in_steps[1] * self.out_steps[1])
        return (self.c // self.groups, self.k, (self.r, self.s), (self.out_h, self.out_w), steps)

    @cached_property
    def loops(self) -> LoopNest:
        sizes = ((self.out_h, self.r, self.h), (self.out_w, self.s, self.w))
        height, width = (
            Axis(*sizes[i], self.in_steps[i], self.out_steps[i], self.dilations[i], self.leads[i]) for i in (0, 1)
        )
        groups = self.groups
        return LoopNest(
            self.n, groups, self.c // groups, self.k // groups, height, width, pool=self.pool,
            zeros_around=self.zeros_around,
        )  # fmt: skip

    @property
    def real_tap_pairs(self) -> int:
        """(output pixel, tap) pairs of one image that read a real input element."""
        return self.loops.real_tap_pairs

    @property
    def used_taps(self) -> int:
        """Kernel taps that read a real input element for some output."""
        return self.loops.used_taps

    @property
    def used_pixels(self) -> int:
        """Input pixels (h, w) that some output reads; the others need not be loaded."""
        return self.loops.used_pixels

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
            object.__setattr__(self, name, integer(f"{self.op} {name}", getattr(self, name), 1, LARGEST))
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


@dataclass(frozen=True)
class Convolution(Windowed):
    """What convolutions are described by, before what each has of its own: N, C, H, W of the data, K outputs, an R x S
    kernel.
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


def four_pads(what: str, padding: int | Sequence[int]) -> tuple[int, ...]:
    """(top, bottom, left, right) of an int, a pair (height, width) or all four."""
    pads = integers(what, padding, (2, 4), 0, LARGEST)
    return pads if len(pads) == 4 else (pads[0], pads[0], pads[1], pads[1])
