"""What follows an operator's sums: bias, residual, shift and clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.checks import check_keys, integer

Tensors: TypeAlias = Mapping[str, NDArray[Any]]

LARGEST_SHIFT, LARGEST_RESIDUAL_SHIFT, LARGEST_BIAS_BITS = 15, 6, 30


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
        object.__setattr__(self, "bias_bits", integer("epilogue bias_bits", self.bias_bits, 0, LARGEST_BIAS_BITS))
        object.__setattr__(self, "shift", integer("epilogue shift", self.shift, 0, LARGEST_SHIFT))
        object.__setattr__(self, "pre_shift", integer("epilogue pre_shift", self.pre_shift, 0, LARGEST_SHIFT))
        if self.pre_shift and (self.residual_shift is None or self.half_even):
            raise WorkloadError("epilogue pre_shift is for a residual, and not with half_even; allowed otherwise: 0")
        if self.residual_shift is not None:
            value = integer("epilogue residual_shift", self.residual_shift, 0, LARGEST_RESIDUAL_SHIFT)
            object.__setattr__(self, "residual_shift", value)
        if self.clip is not None:
            if not isinstance(self.clip, Sequence) or len(self.clip) != 2:
                raise WorkloadError(f"epilogue clip is {self.clip!r}; allowed: a pair (low, high) or nothing")
            low, high = (integer("epilogue clip", bound, -(1 << 15), (1 << 15) - 1) for bound in self.clip)
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
        check_keys("epilogue", data, {field.name for field in dataclasses.fields(cls)}, set())
        values = {"clip": None, "residual_shift": None} | dict(data)
        return cls(**values)

    def apply(self, sums: NDArray[np.int64], tensors: Tensors) -> NDArray[np.int8]:
        """The epilogue on sums (N, K, ...) (wrapped to 32 bits first); bias is (K,), residual has the sums' shape."""
        acc = wrap32(sums)
        if self.bias:
            bias = tensors["bias"].astype(np.int64).reshape((1, -1) + (1,) * (acc.ndim - 2))
            acc = wrap32(acc + bias)
        acc = acc >> self.pre_shift
        if self.residual_shift is not None:
            acc = wrap32(acc + (tensors["residual"].astype(np.int64) << self.residual_shift))
        if self.rounds_even:
            acc = wrap32(acc - ((acc >> self.shift) & 1))
        acc = acc >> self.shift
        if self.clip is not None:
            acc = np.clip(acc, *self.clip)
        return acc.astype(np.int8)


def wrap32(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two's complement wrap at 32 bits, as the accumulator does (docs/hardware.md, Meaning)."""
    return values.astype(np.int32).astype(np.int64)
