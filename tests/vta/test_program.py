"""Instructions as records: the words that they share, and what is kept of buffers."""

from __future__ import annotations

import numpy as np

from oneshot_ml2.vta.program import COLUMNS, INSN, Buffer, Memory, insns_of, joined, words_of


def test_fields_of_different_opcodes_share_words() -> None:
    insns = insns_of([range(COLUMNS), range(100, 100 + COLUMNS)])
    assert insns.dtype == INSN and insns.shape == (2,)
    for names in (("mem", "reset"), ("sram", "uop_bgn"), ("wgt_out", "alu_op", "right"), ("wgt_in", "use_imm")):
        assert all((insns[name] == insns[names[0]]).all() for name in names)
    assert [insns[name][1] for name in ("op", "flags", "mem", "dram", "imm")] == [100, 101, 102, 104, 113]
    insns["stride"][0] = -5
    assert words_of(insns)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, -5, 8, 9, 10, 11, 12, 13]


def test_joined_programs_are_records_of_the_same_kind() -> None:
    words = np.arange(3 * COLUMNS).reshape(3, COLUMNS)
    both = joined([insns_of(words)[:2], insns_of(words)[1:]])
    assert both.dtype == INSN
    assert np.array_equal(words_of(both), words[[0, 1, 1, 2]])
    assert np.array_equal(words_of(both[::2]), words[[0, 1]])


def test_a_buffer_is_spelt_with_its_memory_as_a_number() -> None:
    # Compiled folders hold a hash of it.
    assert repr(Buffer("data", Memory.INP, 4096, 3)) == "Buffer(name='data', memory=2, address=4096, elements=3)"
