"""Instruction packing against the vectors compiled from VTA's header (docs/hardware.md, Instructions)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import row

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta import isa
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import MICRO_OP, AluOp, Flag, Memory, Opcode, insns_of, words_of

D = Accelerator(0, 4, 15, 15, 18, 17)
E = Accelerator(0, 5, 14, 15, 19, 17)
S = Accelerator(0, 4, 12, 12, 13, 13)

# field: masks of D, E and S, written w1_w0.
COMMON = {
    "uop_bgn": (
        "0000000000000000_00000000001fff00",
        "0000000000000000_00000000000fff00",
        "0000000000000000_000000000003ff00",
    ),
    "uop_end": (
        "0000000000000000_00000007ffe00000",
        "0000000000000000_00000001fff00000",
        "0000000000000000_000000001ffc0000",
    ),
    "iter_out": (
        "0000000000000000_0001fff800000000",
        "0000000000000000_00007ffe00000000",
        "0000000000000000_000007ffe0000000",
    ),
    "iter_in": (
        "0000000000000000_7ffe000000000000",
        "0000000000000000_1fff800000000000",
        "0000000000000000_01fff80000000000",
    ),
    "dst_factor_out": (
        "00000000000007ff_0000000000000000",
        "00000000000003ff_0000000000000000",
        "0000000000000000_fe00000000000000",
    ),
    "dst_factor_in": (
        "00000000003ff800_0000000000000000",
        "00000000000ffc00_0000000000000000",
        "000000000000007f_0000000000000000",
    ),
}
ONLY_GEMM = {
    "src_factor_out": (
        "00000001ffc00000_0000000000000000",
        "000000003ff00000_0000000000000000",
        "0000000000007f80_0000000000000000",
    ),
    "src_factor_in": (
        "00000ffe00000000_0000000000000000",
        "000000ffc0000000_0000000000000000",
        "00000000007f8000_0000000000000000",
    ),
    "wgt_factor_out": (
        "003ff00000000000_0000000000000000",
        "0001ff0000000000_0000000000000000",
        "000000000f800000_0000000000000000",
    ),
    "wgt_factor_in": (
        "ffc0000000000000_0000000000000000",
        "03fe000000000000_0000000000000000",
        "00000001f0000000_0000000000000000",
    ),
}
ONLY_ALU = {
    "src_factor_out": (
        "00000001ffc00000_0000000000000000",
        "000000003ff00000_0000000000000000",
        "0000000000003f80_0000000000000000",
    ),
    "src_factor_in": (
        "00000ffe00000000_0000000000000000",
        "000000ffc0000000_0000000000000000",
        "00000000001fc000_0000000000000000",
    ),
    "alu opcode": (
        "0000700000000000_0000000000000000",
        "0000070000000000_0000000000000000",
        "0000000000e00000_0000000000000000",
    ),
    "use_imm": (
        "0000800000000000_0000000000000000",
        "0000080000000000_0000000000000000",
        "0000000001000000_0000000000000000",
    ),
    "imm": (
        "ffff000000000000_0000000000000000",
        "0ffff00000000000_0000000000000000",
        "000001fffe000000_0000000000000000",
    ),
}
MEMORY = {
    "sram_base": "0000000000000000_0000000003fffc00",
    "dram_base": "0000000000000000_03fffffffc000000",
    "x_size": "00000000ffff0000_0000000000000000",
    "x_pad_0": "0f00000000000000_0000000000000000",
}


@pytest.mark.parametrize(("index", "accelerator"), list(enumerate([D, E, S])))
@pytest.mark.parametrize(
    ("opcode", "masks"),
    [
        (Opcode.LOAD, {name: (mask,) * 3 for name, mask in MEMORY.items()}),
        (Opcode.STORE, {name: (mask,) * 3 for name, mask in MEMORY.items()}),
        (Opcode.GEMM, COMMON | ONLY_GEMM),
        (Opcode.ALU, COMMON | ONLY_ALU),
    ],
)
def test_field_masks(index: int, accelerator: Accelerator, opcode: int, masks: dict[str, tuple[str, ...]]) -> None:
    a = accelerator
    fields = {
        name: ((1 << width) - 1) << start
        for name, _, start, width in isa.layout(
            opcode, (a.isa_uop_bits, a.isa_inp_bits, a.isa_wgt_bits, a.isa_acc_bits)
        )
    }
    for name, expected in masks.items():
        assert f"{fields[name] >> 64:016x}_{fields[name] & (2**64 - 1):016x}" == expected[index], name


GEMM_ROW = row(Opcode.GEMM, Flag.POP_PREV | Flag.PUSH_PREV, 0, 5, 47, 14, 3, 1, 0, 2, 1, 0, 1)
ALU_ROW = row(Opcode.ALU, Flag.PUSH_NEXT, 0, 47, 48, 4, 98, 98, 1, 98, 1, AluOp.SHR, 1, -8)
VECTORS = [
    (
        row(Opcode.LOAD, Flag.POP_NEXT | Flag.PUSH_NEXT, Memory.INP, 0x123, 0x89ABCDEF, 14, 9, 56, 1, 2, 3, 4),
        [(0x432100380009000E, 0x0226AF37BC048D50)] * 3,
    ),
    (
        row(Opcode.STORE, Flag.POP_PREV | Flag.PUSH_PREV, Memory.OUT, 7, 0x10000, 2, 28, 784),
        [(0x00000310001C0002, 0x0000040000001E29)] * 3,
    ),
    (
        GEMM_ROW,
        [
            (0x0040000200800001, 0x0006007005E0052A),
            (0x0002000040200001, 0x0001801C02F0052A),
            (0x0000000010008100, 0x02001801C0BC052A),
        ],
    ),
    (
        ALU_ROW,
        [
            (0xFFF8B00218800862, 0x00C4002006002F44),
            (0x0FFF8B0046200462, 0x0031000803002F44),
            (0x000001FFF1607101, 0xC403100080C02F44),
        ],
    ),
    (row(Opcode.LOAD, Flag.POP_PREV, Memory.UOP), [(0, 8)] * 3),
    (row(Opcode.FINISH), [(0, 3)] * 3),
]


@pytest.mark.parametrize(("index", "accelerator"), list(enumerate([D, E, S])))
@pytest.mark.parametrize(("insn", "expected"), VECTORS)
def test_whole_instructions(
    index: int, accelerator: Accelerator, insn: list[int], expected: list[tuple[int, int]]
) -> None:
    words = isa.encode(insns_of([insn]), accelerator)
    assert (int(words[0, 1]), int(words[0, 0])) == expected[index]
    np.testing.assert_array_equal(words_of(isa.decode(words, accelerator)), [insn])
    np.testing.assert_array_equal(isa.from_bytes(isa.to_bytes(words)), words)


@pytest.mark.parametrize(
    ("accelerator", "masks", "word"),
    [
        (D, (0x7FF, 0x3FF800, 0xFFC00000), 0x02C0A864),
        (E, (0x3FF, 0xFFC00, 0x1FF00000), 0x00B05464),
        (S, (0x7F, 0x7F80, 0xF8000), 0x00058AE4),
    ],
)
def test_micro_ops(accelerator: Accelerator, masks: tuple[int, ...], word: int) -> None:
    assert tuple(((1 << width) - 1) << start for _, start, width in isa.uop_layout(accelerator)) == masks
    assert isa.encode_uops(np.array([(100, 21, 11)], MICRO_OP), accelerator).tolist() == [word]
    assert isa.decode_uops(np.array([word], np.uint32), accelerator).tolist() == [(100, 21, 11)]


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_decoded_words_survive_a_round_trip(pairs: list[tuple[int, int]]) -> None:
    for accelerator in (D, E, S):
        insns = isa.decode(np.array(pairs, np.uint64), accelerator)
        known = insns[insns["op"] <= Opcode.ALU]
        np.testing.assert_array_equal(isa.decode(isa.encode(known, accelerator), accelerator), known)


@pytest.mark.parametrize("insn", [vector[0] for vector in VECTORS])
def test_every_field_is_checked(insn: list[int]) -> None:
    a = D
    for name, column, _, width in isa.layout(insn[0], (a.isa_uop_bits, a.isa_inp_bits, a.isa_wgt_bits, a.isa_acc_bits)):
        if column == "op":
            continue
        limit = 1 << (15 if name == "imm" else width)
        for bad in (limit, -limit - 1):
            wrong = insns_of([row(Opcode.FINISH), insn])
            wrong[column][1] = bad
            with pytest.raises(OneShotError, match=f"instruction 1: {name} is {bad}; allowed"):
                isa.encode(wrong, a)


def test_bad_input() -> None:
    with pytest.raises(OneShotError, match="opcode is 5"):
        isa.encode(insns_of([row(5)]), D)
    with pytest.raises(OneShotError, match="micro-op 1: wgt is 1024; allowed: 0 to 1023"):
        isa.encode_uops(np.array([(0, 0, 0), (0, 0, 1024)], MICRO_OP), D)
    with pytest.raises(OneShotError, match="multiple of 16"):
        isa.from_bytes(b"abc")
    with pytest.raises(OneShotError, match="shape"):
        isa.encode(np.zeros((2, 3), np.int64), D)


def test_undefined_opcodes_keep_their_flags() -> None:
    insns = isa.decode(np.array([[5 | Flag.POP_NEXT << 3 | 0xFF00, 7]], np.uint64), D)
    assert (insns["op"][0], insns["flags"][0]) == (5, Flag.POP_NEXT)
    assert not words_of(insns)[0, 2:].any()


def test_disassembly() -> None:
    assert isa.disassemble(insns_of([vector[0] for vector in VECTORS]), np.array([(1, 2, 3)], MICRO_OP)) == [
        "     0  LOAD INP sram 291 dram 0x89abcdef y 14 x 9 stride 56 pad y 1,2 x 3,4 pop_next push_next",
        "     1  STORE OUT sram 7 dram 0x10000 y 2 x 28 stride 784 pop_prev push_prev",
        "     2  GEMM uop 5..47 iter 14,3 dst 1,0 src 2,1 wgt 0,1 pop_prev push_prev",
        "     3  ALU SHR imm -8 uop 47..48 iter 4,98 dst 98,1 src 98,1 push_next",
        "     4  LOAD UOP nop pop_prev",
        "     5  FINISH",
        "uop      0  dst 1 src 2 wgt 3",
    ]
    assert insns_of([ALU_ROW])["imm"] == [-8]
