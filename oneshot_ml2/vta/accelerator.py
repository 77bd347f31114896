"""One VTA instance: the public VTA JSON plus the parameters that its timing needs."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import AcceleratorError, OneShotWarning
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.reading import parse_json, read_text
from oneshot_ml2.vta import hls_keys
from oneshot_ml2.vta.board import Board
from oneshot_ml2.vta.hls_keys import HlsTiming

# JSON key -> (field, lowest, highest); the ranges that no other key can narrow.
_KEYS: dict[str, tuple[str, int, int]] = {
    "LOG_INP_WIDTH": ("log_inp_width", 3, 3),
    "LOG_WGT_WIDTH": ("log_wgt_width", 3, 3),
    "LOG_ACC_WIDTH": ("log_acc_width", 5, 5),
    "LOG_BATCH": ("log_batch", 0, 6),
    "LOG_BLOCK": ("log_block", 1, 6),
    "LOG_UOP_BUFF_SIZE": ("log_uop_buff_size", 4, 15),
    "LOG_INP_BUFF_SIZE": ("log_inp_buff_size", 4, 28),
    "LOG_WGT_BUFF_SIZE": ("log_wgt_buff_size", 4, 28),
    "LOG_ACC_BUFF_SIZE": ("log_acc_buff_size", 4, 28),
    "BUS_BITS": ("bus_bits", 64, 512),
    "BURST_LEN_BITS": ("burst_len_bits", 1, 8),
    "MEMORY_LATENCY": ("memory_latency", 1, 65535),
    "INSTRUCTION_QUEUE": ("instruction_queue", 2, 65536),
    "CLOCK_MHZ": ("clock_mhz", 1, 10000),
    "UOP_DEPTH": ("uop_depth", 4, 8192),
    "ISA_UOP_INDEX_BITS": ("isa_uop_bits", 1, 13),
    "ISA_INP_INDEX_BITS": ("isa_inp_bits", 1, 16),
    "ISA_WGT_INDEX_BITS": ("isa_wgt_bits", 1, 16),
    "ISA_ACC_INDEX_BITS": ("isa_acc_bits", 1, 11),
}
_REQUIRED = (
    "LOG_BATCH",
    "LOG_BLOCK",
    "LOG_UOP_BUFF_SIZE",
    "LOG_INP_BUFF_SIZE",
    "LOG_WGT_BUFF_SIZE",
    "LOG_ACC_BUFF_SIZE",
)
_BOARD_DEFAULTS = {"ultra96": (333, 128), "zcu104": (333, 128)}
# The designs of VTA's hardware; a JSON that names none is of the first, as its cycles always were.
DESIGNS = ("chisel", "hls")
# Boards whose bitstreams are of the HLS design (`TARGET`), each with a preset of that.
_HLS_BOARDS = ("pynq", "ultra96", "zcu104")


@dataclass(frozen=True)
class Accelerator:
    """A VTA instance; immutable and hashable. Sizes are log2 as in VTA's JSON (bytes, bits).

    The index widths ``isa_*_bits`` and ``uop_depth`` are those of the instruction decoder and
    the micro-op SRAM; 0 means "derived from the buffer sizes", as VTA's header does.
    ``hls`` is the timing of the HLS design; None: the hardware is of the Chisel design.
    ``board`` is what a device was found to do; None: nobody has asked one.
    ``extra`` keeps JSON keys that we do not know, so that a round trip loses nothing.
    """

    log_batch: int
    log_block: int
    log_uop_buff_size: int
    log_inp_buff_size: int
    log_wgt_buff_size: int
    log_acc_buff_size: int
    log_inp_width: int = 3
    log_wgt_width: int = 3
    log_acc_width: int = 5
    bus_bits: int = 64
    burst_len_bits: int = 8
    memory_latency: int = 16
    instruction_queue: int = 512
    clock_mhz: int = 100
    uop_depth: int = 0
    isa_uop_bits: int = 0
    isa_inp_bits: int = 0
    isa_wgt_bits: int = 0
    isa_acc_bits: int = 0
    hls: HlsTiming | None = None
    board: Board | None = None
    name: str = dataclasses.field(default="custom", compare=False)
    extra: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self) -> None:
        # First of all: a shift by 3e10 takes all memory.
        for key, (field, low, high) in _KEYS.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise AcceleratorError(f"{key} is {value!r}; allowed: an integer {low} to {high}")
            if not key.startswith("ISA_") and not (key == "UOP_DEPTH" and value == 0):
                _require(key, value, low, high)
        derived = {
            "uop_depth": 1 << max(self.log_uop_buff_size - 2, 0),
            "isa_uop_bits": self.log_uop_buff_size - 2,
            "isa_inp_bits": self.log_inp_depth,
            "isa_wgt_bits": self.log_wgt_depth,
            "isa_acc_bits": self.log_acc_depth,
        }
        for field, value in derived.items():
            if getattr(self, field) == 0:
                object.__setattr__(self, field, value)
        self._check()

    # Derived quantities (docs/hardware.md, Configuration) -------------------------------------------------
    def with_memory(self, factor: float) -> Accelerator:
        """The same whose memory answers after so many times as long; on the HLS design that is a row's latency."""
        if self.hls is not None:
            return dataclasses.replace(self, hls=self.hls.scaled({"read_row": factor, "store_row": factor}))
        return dataclasses.replace(self, memory_latency=min(max(1, round(self.memory_latency * factor)), 65535))

    def with_srams(self, uop: int, inp: int, wgt: int, acc: int) -> Accelerator:
        """The same with other SRAMs, log2 of their bytes; the decoder's index widths are those that they need.

        Raises:
            AcceleratorError: sizes that cannot be.
        """
        return dataclasses.replace(self, **sram_fields(uop, inp, wgt, acc))

    @property
    def design(self) -> str:
        """One of `DESIGNS`."""
        return DESIGNS[self.hls is not None]

    @property
    def acc_distance(self) -> int:
        """Operations from one update of an accumulator to the next in an instruction, at least; 0: any number does."""
        design = self.hls.acc_distance if self.hls is not None else 0
        return max(design, self.board.acc_distance if self.board is not None else 0)

    @property
    def batch(self) -> int:
        """Rows of the GEMM tile."""
        return 1 << self.log_batch

    @property
    def block(self) -> int:
        """Inner and output width of the GEMM tile."""
        return 1 << self.log_block

    @property
    def log_inp_depth(self) -> int:
        return self.log_inp_buff_size - self.log_batch - self.log_block

    @property
    def log_wgt_depth(self) -> int:
        return self.log_wgt_buff_size - 2 * self.log_block

    @property
    def log_acc_depth(self) -> int:
        return self.log_acc_buff_size - self.log_batch - self.log_block - 2

    @property
    def inp_depth(self) -> int:
        """INP SRAM, elements."""
        return 1 << self.log_inp_depth

    @property
    def wgt_depth(self) -> int:
        """WGT SRAM, elements."""
        return 1 << self.log_wgt_depth

    @property
    def acc_depth(self) -> int:
        """ACC and OUT SRAM, elements."""
        return 1 << self.log_acc_depth

    @property
    def inp_bytes(self) -> int:
        """Bytes of an INP (and OUT) element."""
        return self.batch * self.block

    @property
    def wgt_bytes(self) -> int:
        return self.block * self.block

    @property
    def acc_bytes(self) -> int:
        return 4 * self.batch * self.block

    @property
    def bus_bytes(self) -> int:
        return self.bus_bits // 8

    @property
    def burst_beats(self) -> int:
        """Longest burst, beats."""
        return 1 << self.burst_len_bits

    @property
    def burst_bytes(self) -> int:
        """Longest burst, bytes (docs/hardware.md, Time)."""
        return self.burst_beats * self.bus_bytes

    @cached_property
    def bitstream(self) -> str:
        """VTA's name of the hardware variant, e.g. ``1x16_i8w8a32_15_15_18_17``."""
        return (
            f"{self.batch}x{self.block}_i8w8a32_{self.log_uop_buff_size}_{self.log_inp_buff_size}"
            f"_{self.log_wgt_buff_size}_{self.log_acc_buff_size}"
        )

    # Constraints (docs/hardware.md, Configuration) --------------------------------------------------------
    def _check(self) -> None:
        """Its "A = I" and "elements no narrower than the bus" bind the HLS and OpenCL builds only, not the RTL."""
        if self.bus_bits & (self.bus_bits - 1):
            raise AcceleratorError(f"BUS_BITS is {self.bus_bits}; allowed: 64, 128, 256 or 512")
        # The ACC element is the largest but for one whole block, which LOG_BLOCK's own range keeps within 4096 bytes.
        _require("LOG_BATCH", self.log_batch, 0, 10 - self.log_block, "an ACC element has at most 4096 bytes")
        for memory, (log_depth, most, why) in {
            "INP": (self.log_inp_depth, 16, "an instruction's SRAM address has 16 bits"),
            "WGT": (self.log_wgt_depth, 16, "an instruction's SRAM address has 16 bits"),
            "ACC": (self.log_acc_depth, 11, "four ACC factors share 64 bits of an ALU instruction with 20 more"),
        }.items():
            key, value, low, high = self._size_range(memory, log_depth, most)
            _require(key, value, low, high, f"2 to {1 << most} elements at this block and batch: {why}")
        # A width that nobody gave is that of LOG_UOP_BUFF_SIZE; then it is the depth that goes beyond.
        if self.isa_uop_bits == self.log_uop_buff_size - 2 and self.uop_depth > 1 << self.isa_uop_bits:
            _require("UOP_DEPTH", self.uop_depth, 4, 1 << self.isa_uop_bits, f"{self.isa_uop_bits} index bits")
        for memory, needed in (
            ("UOP", (self.uop_depth - 1).bit_length()),
            ("INP", self.log_inp_depth),
            ("WGT", self.log_wgt_depth),
            ("ACC", self.log_acc_depth),
        ):
            key = f"ISA_{memory}_INDEX_BITS"
            field, _, high = _KEYS[key]
            _require(key, getattr(self, field), needed, high, "enough to index the whole SRAM")
        self._check_uop_bits()

    def _size_range(self, memory: str, log_depth: int, most: int) -> tuple[str, int, int, int]:
        """(key, value, lowest, highest) of the SRAM's size for log2 depths of 1 to ``most``."""
        key = f"LOG_{memory}_BUFF_SIZE"
        field, low, high = _KEYS[key]
        value: int = getattr(self, field)
        element = value - log_depth
        return key, value, max(low, element + 1), min(high, element + most)

    def _check_uop_bits(self) -> None:
        """A + max(A, I) + W <= 32, which implies A + I + W <= 32; names each key that alone can mend it."""
        i, w, a = self.isa_inp_bits, self.isa_wgt_bits, self.isa_acc_bits
        if a + max(a, i) + w <= 32:
            return
        keys, mends = [], []
        for memory, bits, log_depth, most in (
            ("INP", i, self.log_inp_depth, 32 - a - w if 2 * a + w <= 32 else 0),
            ("WGT", w, self.log_wgt_depth, 32 - a - max(a, i)),
            ("ACC", a, self.log_acc_depth, min((32 - w) // 2, 32 - w - i)),
        ):
            if bits > log_depth:
                key, value, low, high = f"ISA_{memory}_INDEX_BITS", bits, log_depth, most
            else:
                key, value, low, high = self._size_range(memory, log_depth, most)
            keys.append(f"{key} is {value}")
            if low <= high:
                mends.append(f"{key} is {value}; allowed: {low} to {high}")
        found = "; or ".join(mends) or f"{', '.join(keys)}; allowed: 32 bits in all"
        raise AcceleratorError(
            f"{found} (a micro-op's 32 bits hold ACC + max(ACC, INP) + WGT index bits, here {a} + {max(a, i)} + {w})"
        )

    # JSON ------------------------------------------------------------------------------------
    @classmethod
    def from_json(cls, text: Mapping[str, Any] | str, name: str = "custom") -> Accelerator:
        """Read VTA's flat JSON object (a mapping or its text); unknown keys are kept in ``extra``.

        Raises:
            AcceleratorError: broken JSON, a missing key, a wrong type or a value out of range.
        """
        if isinstance(text, str):
            data = parse_json(text, name, AcceleratorError)
        else:
            data = dict(text)
        if not isinstance(data, dict):
            raise AcceleratorError(f"{name}: expected a JSON object with VTA's keys, e.g. LOG_BLOCK")
        missing = [key for key in _REQUIRED if key not in data]
        if missing:
            raise AcceleratorError(f"{name}: missing {', '.join(missing)}; see `oneshot-ml2 accelerators` for examples")
        fields: dict[str, Any] = {}
        target = str(data.get("TARGET", ""))
        if target in _BOARD_DEFAULTS:
            fields["clock_mhz"], fields["bus_bits"] = _BOARD_DEFAULTS[target]
        extra = []
        fields["hls"] = _hls_of(data, name)
        if "BOARD" in data:
            fields["board"] = _board_of(data["BOARD"], name)
        for key, value in data.items():
            if key == "BOARD":
                continue
            if fields["hls"] is not None and (key == "DESIGN" or key in hls_keys.KEYS):
                continue
            if key in _KEYS:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise AcceleratorError(f"{name}: {key} is {value!r}; allowed: an integer")
                fields[_KEYS[key][0]] = value
            else:
                extra.append((key, json.dumps(value)))
        try:
            return cls(**fields, name=name, extra=tuple(extra))
        except AcceleratorError as error:
            raise AcceleratorError(f"{name}: {error}") from error

    def to_json(self) -> str:
        """VTA's JSON with our timing keys beside it; the inverse of :meth:`from_json`."""
        data = {key: json.loads(value) for key, value in self.extra}
        data |= {key: getattr(self, field) for key, (field, _, _) in _KEYS.items()}
        if self.hls is not None:
            data |= {"DESIGN": self.design} | self.hls.to_keys()
        if self.board is not None:
            data["BOARD"] = json.loads(self.board.text)
        return json.dumps(data, indent=2)

    @classmethod
    def of(cls, given: Accelerator | str | Path) -> Accelerator:
        """An accelerator as it is; anything else as `load` takes it."""
        return given if isinstance(given, Accelerator) else cls.load(given)

    @classmethod
    def load(cls, name: str | Path, warn: bool = True) -> Accelerator:
        """A preset by name, or a JSON file by path; ``warn``: as below, for files that describe a user's own hardware.

        Warns:
            OneShotWarning: a file of a board of the HLS design that does not say which design it describes.

        Raises:
            AcceleratorError: neither a preset nor a readable file (names the presets), or a bad file.
        """
        path = Path(name)
        if path.suffix == ".json" or path.exists():
            given = cls.from_json(read_text(path, AcceleratorError), name=path.stem)
            if warn:
                _warn_of_design(given, path)
            return given
        names = preset_names()
        if str(name) not in names:
            raise AcceleratorError(f"{unknown('accelerator', str(name), names)}; or give a path to a VTA JSON")
        return cls.from_json(_presets().joinpath(f"{name}.json").read_text(encoding="utf-8"), name=str(name))


def sram_fields(uop: int, inp: int, wgt: int, acc: int) -> dict[str, Any]:
    """Fields of an `Accelerator` with SRAMs of some sizes, log2 of their bytes; index widths are as they need."""
    given = {"uop": uop, "inp": inp, "wgt": wgt, "acc": acc}
    derived = dict.fromkeys(("uop_depth", *(f"isa_{name}_bits" for name in given)), 0)
    return derived | {f"log_{name}_buff_size": size for name, size in given.items()}


def _require(key: str, value: int, low: int, high: int, why: str = "") -> None:
    """Raise an AcceleratorError that names key, value and range unless low <= value <= high."""
    if not low <= value <= high:
        raise AcceleratorError(f"{key} is {value}; allowed: {low} to {high}" + (f" ({why})" if why else ""))


def _hls_of(data: Mapping[str, Any], name: str) -> HlsTiming | None:
    """The timing of the HLS design that a JSON object describes, None if it is of the Chisel design."""
    design = data.get("DESIGN", DESIGNS[0])
    if not isinstance(design, str) or design not in DESIGNS:
        raise AcceleratorError(f"{name}: DESIGN is {design!r}; allowed: {' or '.join(map(repr, DESIGNS))}")
    if design == "hls":
        try:
            return HlsTiming.from_keys(data)
        except AcceleratorError as error:
            raise AcceleratorError(f"{name}: {error}") from error
    given = [key for key in hls_keys.KEYS if key in data]
    if given:
        raise AcceleratorError(f'{name}: {given[0]} is of the HLS design; add "DESIGN": "hls", or leave it out')
    return None


def _board_of(data: Any, name: str) -> Board:
    """What a device was found to do, from the object of a JSON."""
    try:
        return Board.from_json(data)
    except AcceleratorError as error:
        raise AcceleratorError(f"{name}: {error}") from error


def _warn_of_design(accelerator: Accelerator, path: Path) -> None:
    """One line where a user's file may mean the design that its board runs, and says none."""
    extra = {key: json.loads(value) for key, value in accelerator.extra}
    board = extra.get("TARGET")
    # A board file is of the design that its maker was asked for.
    asked = accelerator.hls is not None or "DESIGN" in extra or accelerator.board is not None
    if not asked and str(board) in _HLS_BOARDS:
        warnings.warn(
            f"{path}: {board} boards run VTA's HLS design, and a JSON without DESIGN is timed as the Chisel design; "
            f'start from the preset {board}-hls, or say "DESIGN": "chisel"',
            OneShotWarning,
            stacklevel=3,
        )


def _presets() -> Any:
    return resources.files("oneshot_ml2").joinpath("data/accelerators")


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(entry.name[:-5] for entry in _presets().iterdir() if entry.name.endswith(".json"))
