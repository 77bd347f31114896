"""What a device was found to do: the ``BOARD`` object of an accelerator's JSON (docs/doctor.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from oneshot_ml2.common.errors import AcceleratorError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.reading import shown, whole_number

RIGHT, WRONG, SLOW, NOT_TRIED = "right", "wrong", "slow", "not tried"
VERDICTS = (RIGHT, WRONG, SLOW, NOT_TRIED)
# Tokens that a queue of the RTL holds.
MOST_TOKENS = 255

# What a program may need of a device, in the order of the bits of `needs.needs`.
NEEDS: dict[str, str] = {
    "done_any": "a run that begins with a LOAD of inputs or a STORE is done when it says so",
    "load_uop": "LOAD UOP",
    "load_acc": "LOAD ACC",
    "load_acc_strides": "LOAD ACC whose rows are apart in DRAM, or repeated",
    "load_inp": "LOAD INP",
    "load_inp_strides": "LOAD INP whose rows are apart in DRAM",
    "load_inp_pads": "LOAD INP with pads",
    "load_inp_pads_strides": "LOAD INP with both",
    "load_wgt": "LOAD WGT",
    "load_wgt_strides": "LOAD WGT whose rows are apart in DRAM",
    "store": "STORE",
    "store_strides": "STORE whose rows are apart in DRAM",
    "gemm": "GEMM",
    "gemm_reset": "GEMM with reset",
    "gemm_outer_acc": "factor of the outer loop of a GEMM, accumulators",
    "gemm_outer_inp": "factor of the outer loop of a GEMM, inputs",
    "gemm_outer_wgt": "factor of the outer loop of a GEMM, weights",
    "gemm_inner_acc": "factor of the inner loop of a GEMM, accumulators",
    "gemm_inner_inp": "factor of the inner loop of a GEMM, inputs",
    "gemm_inner_wgt": "factor of the inner loop of a GEMM, weights",
    "alu_outer_dst": "factor of the outer loop of the ALU, destination",
    "alu_outer_src": "factor of the outer loop of the ALU, second operand",
    "alu_inner_dst": "factor of the inner loop of the ALU, destination",
    "alu_inner_src": "factor of the inner loop of the ALU, second operand",
    "min_imm": "MIN with an immediate",
    "max_imm": "MAX with an immediate",
    "add_imm": "ADD with an immediate",
    "shr_imm": "SHR with an immediate",
    "shl_imm": "SHR with a negative immediate, which shifts left",
    "min_tensor": "MIN of two accumulators",
    "max_tensor": "MAX of two accumulators",
    "add_tensor": "ADD of two accumulators",
    "shr_tensor": "SHR by another accumulator",
    "tokens_load_compute": "tokens of load for compute",
    "tokens_compute_load": "tokens of compute for load",
    "tokens_compute_store": "tokens of compute for store",
    "tokens_store_compute": "tokens of store for compute",
}
# What else is looked at: sizes, limits and times, which are corrected in the accelerator's keys or are in `Board`.
OTHERS: dict[str, str] = {
    "run": "a run of the least program: LOAD UOP, LOAD ACC, an ALU operation, STORE",
    "coherence": "memory that host and device see alike without flushing caches",
    "block": "batch and block",
    "uop_depth": "micro-ops that the SRAM holds",
    "inp_depth": "inputs that the SRAM holds",
    "wgt_depth": "weights that the SRAM holds",
    "acc_depth": "accumulators that the SRAMs hold",
    "acc_distance": "operations from an accumulator's update to the next in an instruction",
    "allocation": "the largest piece of memory",
    "tokens_255": "255 tokens in each queue",
    "time_row": "cycles of a row of a LOAD and of a STORE",
    "time_byte": "cycles of a byte of a LOAD and of a STORE",
    "time_instruction": "cycles of an instruction",
    "time_gemm": "cycles of a micro-op of a GEMM",
    "time_alu": "cycles of a micro-op of the ALU",
    "time_submission": "time around a run",
}
FEATURES = NEEDS | OTHERS
# Limit -> lowest and highest value.
_LIMITS = {"tokens": (1, MOST_TOKENS), "acc_distance": (1, 64), "largest_allocation": (4096, 1 << 40)}


@dataclass(frozen=True)
class Board:
    """What is known of a device.

    Attributes:
        avoided: those of `NEEDS` that are not right, which schedules must not need, in that order.
        tokens: how many of them a queue holds.
        acc_distance: operations from one update of an accumulator to the next in an instruction, at least.
        largest_allocation: bytes of one piece of memory at most; 0: not known.
        flush: caches have to be flushed around a run.
        configuration: what the driver says that it is built for; "" if it says nothing.
        text: the whole object, JSON.
    """

    avoided: tuple[str, ...] = ()
    tokens: int = MOST_TOKENS
    acc_distance: int = 1
    largest_allocation: int = 0
    flush: bool = False
    configuration: str = ""
    text: str = field(default="{}", compare=False, repr=False)

    @property
    def restricts(self) -> bool:
        """Whether there may be programs that it cannot run."""
        return bool(self.avoided) or self.tokens < MOST_TOKENS

    @cached_property
    def mask(self) -> int:
        """The bits of `needs.needs` of what is avoided."""
        return sum(1 << bit for bit, name in enumerate(NEEDS) if name in self.avoided)

    @property
    def about(self) -> str:
        """What schedules are kept from, in words."""
        parts = list(self.avoided)
        if self.tokens < MOST_TOKENS:
            parts.append(f"more than {self.tokens} tokens")
        return ", ".join(parts)

    @classmethod
    def from_json(cls, data: Any) -> Board:
        """Read the object.

        Raises:
            AcceleratorError: no object, a feature or a limit that there is not, or a value that it cannot have.
        """
        if not isinstance(data, dict):
            raise AcceleratorError(f"BOARD is {shown(data)}; allowed: an object as `oneshot-ml2 doctor` writes it")
        features, limits = (_object(data, key) for key in ("features", "limits"))
        for name, verdict in features.items():
            if name not in FEATURES:
                raise AcceleratorError(f"BOARD: {unknown('feature', name, FEATURES)}")
            if verdict not in VERDICTS:
                raise AcceleratorError(f"BOARD: {name} is {shown(verdict)}; allowed: {', '.join(VERDICTS)}")
        found: dict[str, Any] = {}
        for name, value in limits.items():
            if name == "flush":
                if not isinstance(value, bool):
                    raise AcceleratorError(f"BOARD: flush is {shown(value)}; allowed: true or false")
                found[name] = value
                continue
            if name not in _LIMITS:
                raise AcceleratorError(f"BOARD: {unknown('limit', name, [*_LIMITS, 'flush'])}")
            try:
                found[name] = whole_number(value, f"BOARD: {name}", *_LIMITS[name])
            except ValueError as error:
                raise AcceleratorError(str(error)) from error
        driver = data.get("driver") or ""
        if not isinstance(driver, str):
            raise AcceleratorError(f"BOARD: driver is {shown(driver)}; allowed: a text, or null")
        avoided = tuple(name for name in NEEDS if features.get(name, RIGHT) in (WRONG, NOT_TRIED))
        return cls(avoided, configuration=driver, text=json.dumps(data), **found)


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise AcceleratorError(f"BOARD: {key} is {shown(value)}; allowed: an object")
    return value
