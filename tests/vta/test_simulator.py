"""Functional simulator: semantics of the RTL (docs/hardware.md, Meaning) and memories measured on it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from random_programs import row

from oneshot_ml2.common import resources
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.evaluation.replay import read_runs
from oneshot_ml2.models.unfold import unfolded
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image as packed
from oneshot_ml2.vta import simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import MICRO_OP, AluOp, Memory, Opcode, Program, element_bytes, insns_of
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.drawn import random_workload
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import read_layers

DATA = Path(__file__).parent.parent / "data"
RESNET18 = resources.find("workloads", "resnet18.toml")
GEOMETRIES = [
    Accelerator(0, 4, 15, 15, 18, 17),
    Accelerator(0, 3, 13, 14, 16, 16),
    Accelerator(1, 4, 15, 15, 18, 18, isa_inp_bits=11, isa_acc_bits=11),
    Accelerator(2, 3, 15, 16, 16, 18),
    Accelerator(0, 5, 15, 16, 20, 18),
]
PYNQ = GEOMETRIES[0]
UOPS, INSNS, SPACE = 0x1000, 0x8000, 0x10000


def run(
    accelerator: Accelerator, insns: list[list[int]], uops: list[tuple[int, int, int]], dram: np.ndarray
) -> np.ndarray:
    """DRAM after the program; its micro-ops are loaded to SRAM first."""
    load = row(Opcode.LOAD, 0, Memory.UOP, 0, UOPS // 4, 1, len(uops), len(uops))
    loaded = np.array([*map(tuple, uops)], MICRO_OP)
    program = Program(accelerator, insns_of([load, *insns, row(Opcode.FINISH)]), loaded, INSNS, UOPS, buffers=())
    simulator.run(program, dram)
    return dram


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, 4 * SPACE, np.uint8)


def place(accelerator: Accelerator, memory: int, address: int) -> int:
    return address // element_bytes(accelerator)[memory]


@pytest.mark.parametrize("path", sorted(DATA.glob("rtl_*.h5")), ids=lambda path: path.stem)
def test_measured_memories(path: Path) -> None:
    runs = read_runs(path)
    for run_index, expected in enumerate(runs.dram_sha256):
        if not expected:
            continue
        dram = runs.dram(run_index)
        simulator.execute_checked(runs.program(run_index), runs.accelerator, dram)
        assert hashlib.sha256(dram.data).hexdigest() == expected


@pytest.mark.parametrize("accelerator", GEOMETRIES, ids=lambda a: a.bitstream)
def test_gemm_against_numpy(accelerator: Accelerator) -> None:
    """Eight results of four products each, started from zeros by a reset, shifted into range."""
    a = accelerator
    dram = image()
    inp = dram[SPACE : SPACE + 4 * 8 * a.inp_bytes].view(np.int8).reshape(8, 4, a.batch, a.block).copy()
    wgt = dram[2 * SPACE : 2 * SPACE + 4 * a.wgt_bytes].view(np.int8).reshape(4, a.block, a.block).copy()
    after = run(
        a,
        [
            row(Opcode.LOAD, 0, Memory.INP, 0, place(a, Memory.INP, SPACE), 1, 32, 32),
            row(Opcode.LOAD, 0, Memory.WGT, 0, place(a, Memory.WGT, 2 * SPACE), 2, 2, 2),
            row(Opcode.GEMM, 0, 1, 0, 1, 8, 1, 1, 0),
            row(Opcode.GEMM, 0, 0, 0, 4, 8, 1, 1, 0, 4, 0, 0, 0),
            row(Opcode.ALU, 0, 0, 0, 1, 8, 1, 1, 0, 1, 0, AluOp.SHR, 1, 9),
            row(Opcode.STORE, 0, Memory.OUT, 0, place(a, Memory.OUT, 3 * SPACE), 2, 4, 6),
        ],
        [(0, k, k) for k in range(4)],
        dram,
    )
    expected = np.einsum("rkbm,knm->rbn", inp.astype(np.int64), wgt.astype(np.int64)) >> 9
    stored = after[3 * SPACE : 3 * SPACE + 10 * a.inp_bytes].view(np.int8).reshape(10, a.batch, a.block)
    np.testing.assert_array_equal(stored[[0, 1, 2, 3, 6, 7, 8, 9]], expected.astype(np.int8))


def alu(op: int, use_imm: int, imm: int, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """ACC[0] after one ALU instruction: its four bytes through four shifts and stores; x, y int32 (16,)."""
    dram = np.zeros(4 * SPACE, np.uint8)
    dram[SPACE : SPACE + 64] = x.astype(np.int32).view(np.uint8)
    dram[SPACE + 64 : SPACE + 128] = (x if y is None else y).astype(np.int32).view(np.uint8)
    insns = [
        row(Opcode.LOAD, 0, Memory.ACC, 0, SPACE // 64, 1, 2, 2),
        row(Opcode.ALU, 0, 0, 0 if use_imm else 1, 1 if use_imm else 2, 1, 1, 0, 0, 0, 0, op, use_imm, imm),
    ]
    for byte in range(4):
        insns.append(row(Opcode.ALU, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, AluOp.SHR, 1, 8 if byte else 0))
        insns.append(row(Opcode.STORE, 0, Memory.OUT, 0, (2 * SPACE) // 16 + byte, 1, 1, 1))
    after = run(PYNQ, insns, [(0, 0, 0), (0, 1, 0)], dram)
    planes = after[2 * SPACE : 2 * SPACE + 64].reshape(4, 16).astype(np.uint32)
    return sum(planes[byte] << np.uint32(8 * byte) for byte in range(4)).view(np.int32)


X = np.random.default_rng(3).integers(-(2**31), 2**31, 16).astype(np.int32)
Y = np.random.default_rng(4).integers(-(2**31), 2**31, 16).astype(np.int32)


@pytest.mark.parametrize(
    ("op", "imm", "expected"),
    [
        (AluOp.MIN, -5, np.minimum(X, -5)),
        (AluOp.MAX, 7, np.maximum(X, 7)),
        (AluOp.ADD, -32768, X - np.int32(32768)),
        (AluOp.SHR, 3, X >> 3),
        (AluOp.SHR, 35, X >> 3),
        (AluOp.SHR, -4, X << 4),
        (AluOp.SHR, -36, X << 4),
    ],
)
def test_alu_immediate(op: int, imm: int, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(alu(op, 1, imm, X), expected)


@pytest.mark.parametrize(
    ("op", "imm", "expected"),
    [
        (AluOp.MIN, 0, np.minimum(X, Y)),
        (AluOp.MAX, 0, np.maximum(X, Y)),
        (AluOp.ADD, 0, X + Y),
        (AluOp.SHR, 0, X >> (Y & 31)),
        (AluOp.SHR, -1, X << (-Y & 31)),
    ],
)
def test_alu_tensor(op: int, imm: int, expected: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(alu(op, 0, imm, X, Y), expected)


def test_immediate_reads_the_source_element() -> None:
    dram = image()
    x = dram[SPACE : SPACE + 64].copy().view(np.int32)
    insns = [
        row(Opcode.LOAD, 0, Memory.ACC, 5, SPACE // 64, 1, 1, 1),
        row(Opcode.ALU, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, AluOp.ADD, 1, 1),
        row(Opcode.STORE, 0, Memory.OUT, 0, 2 * SPACE // 16, 1, 1, 1),
    ]
    after = run(PYNQ, insns, [(0, 5, 0)], dram)
    np.testing.assert_array_equal(after[2 * SPACE : 2 * SPACE + 16].view(np.int8), (x + 1).astype(np.int8))


def test_neither_loads_nor_resets_reach_the_output_sram() -> None:
    insns = [
        row(Opcode.LOAD, 0, Memory.ACC, 0, SPACE // 64, 1, 1, 1),
        row(Opcode.ALU, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, AluOp.MAX, 1, 0),
        row(Opcode.LOAD, 0, Memory.ACC, 0, (SPACE + 64) // 64, 1, 1, 1),
        row(Opcode.GEMM, 0, 1, 0, 1, 1, 1),
        row(Opcode.STORE, 0, Memory.OUT, 0, 2 * SPACE // 16, 1, 1, 1),
    ]
    dram = image()
    first = np.maximum(dram[SPACE : SPACE + 64].copy().view(np.int32), 0)
    after = run(PYNQ, insns, [(0, 0, 0)], dram)
    np.testing.assert_array_equal(after[2 * SPACE : 2 * SPACE + 16].view(np.int8), first.astype(np.int8))


def test_pads_strides_and_wraps() -> None:
    """A padded ACC load that wraps at the SRAM's end, copied out by adding 0."""
    dram = image()
    source = dram[SPACE : SPACE + 64 * 40].copy().view(np.int32).reshape(40, 16)
    insns = [
        row(Opcode.LOAD, 0, Memory.ACC, 2040, SPACE // 64, 3, 4, 9, 1, 2, 3, 1),
        row(Opcode.ALU, 0, 0, 0, 1, 48, 1, 1, 0, 1, 0, AluOp.ADD, 1, 0),
        row(Opcode.STORE, 0, Memory.OUT, 2040, 2 * SPACE // 16, 1, 48, 48),
    ]
    after = run(PYNQ, insns, [(2040, 2040, 0)], dram)
    expected = np.zeros((6, 8, 16), np.int32)
    for r in range(3):
        expected[1 + r, 3:7] = source[9 * r : 9 * r + 4]
    stored = after[2 * SPACE : 2 * SPACE + 16 * 48].view(np.int8).reshape(6, 8, 16)
    np.testing.assert_array_equal(stored, expected.astype(np.int8))


def test_micro_ops_alias_at_the_depth() -> None:
    small = Accelerator(0, 4, 15, 15, 18, 17, uop_depth=2048)
    for accelerator, taken in ((small, 1), (PYNQ, 0)):
        insns = [
            row(Opcode.LOAD, 0, Memory.UOP, 2048, UOPS // 4 + 1, 1, 1, 1),
            row(Opcode.LOAD, 0, Memory.ACC, 0, SPACE // 64, 1, 2, 2),
            row(Opcode.ALU, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, AluOp.ADD, 1, 0),
            row(Opcode.STORE, 0, Memory.OUT, taken, 2 * SPACE // 16, 1, 1, 1),
        ]
        dram = image()
        x = dram[SPACE : SPACE + 128].copy().view(np.int32).reshape(2, 16)
        after = run(accelerator, insns, [(0, 0, 0), (1, 1, 0)], dram)
        np.testing.assert_array_equal(after[2 * SPACE : 2 * SPACE + 16].view(np.int8), x[taken].astype(np.int8))


def odd_depth(depth: int) -> Accelerator:
    return dataclasses.replace(PYNQ, uop_depth=depth)


@pytest.mark.parametrize("depth", [5, 100, 2047, 4097])
def test_micro_ops_of_any_depth(depth: int) -> None:
    """Every micro-op up to the last one is the one that was loaded there; the next index is an error."""
    uops = [(k % 8, k % 8, 0) for k in range(depth)]
    stored = row(Opcode.STORE, 0, Memory.OUT, 0, 2 * SPACE // 16, 1, 8, 8)
    add = [Opcode.ALU, 0, 0, 0, depth, 1, 1, 0, 0, 0, 0, AluOp.ADD, 1, 1]
    loads = row(Opcode.LOAD, 0, Memory.ACC, 0, SPACE // 64, 1, 8, 8)
    dram = image()
    start = dram[SPACE : SPACE + 64 * 8].copy().view(np.int32).reshape(8, 16)
    after = run(odd_depth(depth), [loads, row(*add), stored], uops, dram)
    added = np.bincount(np.arange(depth) % 8, minlength=8)[:, None]
    # What no micro-op touches has not reached the output SRAM.
    expected = np.where(added > 0, start + added, 0).astype(np.int8)
    np.testing.assert_array_equal(after[2 * SPACE : 2 * SPACE + 128].view(np.int8).reshape(8, 16), expected)
    add[4] += 1
    past = (
        row(*add),
        row(Opcode.GEMM, 0, 0, depth, depth + 1, 1, 1),
        row(Opcode.ALU, 0, 0, 1, 1, 1, 1),
        row(Opcode.LOAD, 0, Memory.UOP, depth - 1, UOPS // 4, 1, 2, 2),
        row(Opcode.LOAD, 0, Memory.UOP, 0, UOPS // 4, 1, depth - 1, 0, 0, 0, 1, 1),
    )
    for insn in past:
        with pytest.raises(OneShotError, match=f"instruction 1 goes past the {depth} micro-ops"):
            run(odd_depth(depth), [insn], uops, image())


@pytest.mark.parametrize(
    ("insn", "message"),
    [
        (row(Opcode.LOAD, 0, Memory.INP, 0, 1 << 20, 1, 1, 1), "leaves the DRAM image"),
        (row(Opcode.STORE, 0, Memory.OUT, 0, 1 << 20, 1, 1, 1), "leaves the DRAM image"),
        (row(Opcode.LOAD, 0, Memory.ACC_8BIT, 0, 0, 1, 1, 1), "unknown to the RTL"),
        (row(Opcode.ALU, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, AluOp.MUL, 1, 2), "unknown to the RTL"),
    ],
)
def test_bad_programs(insn: list[int], message: str) -> None:
    with pytest.raises(OneShotError, match=message):
        run(PYNQ, [insn], [(0, 0, 0)], image())


def test_bad_images() -> None:
    with pytest.raises(OneShotError, match="the program needs"):
        run(PYNQ, [], [(0, 0, 0)], np.zeros(100, np.uint8))
    with pytest.raises(OneShotError, match="contiguous uint8"):
        run(PYNQ, [], [(0, 0, 0)], np.zeros(SPACE, np.int8))


def test_traffic() -> None:
    insns = insns_of(
        [
            row(Opcode.LOAD, 0, Memory.UOP, 0, 0, 1, 7, 7),
            row(Opcode.LOAD, 0, Memory.INP, 0, 0, 3, 5, 9, 1, 1, 1, 1),
            row(Opcode.LOAD, 0, Memory.WGT, 0, 0, 2, 4, 4),
            row(Opcode.LOAD, 0, Memory.ACC, 0, 0, 1, 3, 3),
            row(Opcode.LOAD, 0, Memory.ACC_8BIT, 0, 0, 1, 2, 2),
            row(Opcode.GEMM, 0, 1, 0, 9, 9, 9),
            row(Opcode.GEMM, 0, 0, 1, 4, 5, 6),
            row(Opcode.ALU, 0, 0, 0, 2, 3, 4),
            row(Opcode.STORE, 0, Memory.OUT, 0, 0, 2, 5, 5),
            row(Opcode.FINISH),
        ]
    )
    assert simulator.traffic(insns, PYNQ) == {
        "inp_load_nbytes": 15 * 16,
        "wgt_load_nbytes": 8 * 256,
        "acc_load_nbytes": 5 * 64,
        "uop_load_nbytes": 28,
        "out_store_nbytes": 160,
        "gemm_counter": 90,
        "alu_counter": 24,
    }


def random_depth(rng: np.random.Generator) -> int:
    """A UOP_DEPTH, most of them no power of two, spread in the logarithm or at the border of a power."""
    near = (1 << int(rng.integers(2, 14))) + int(rng.integers(-1, 2))
    return int(np.clip(near if rng.integers(2) else np.exp(rng.uniform(np.log(4), np.log(8192))), 4, 8192))


def check_exact(space: ScheduleSpace, index: int, rng: np.random.Generator) -> None:
    """The schedule's micro-ops fit the SRAM and its result is the reference; or it does not lower for its reason."""
    reason = space.validity(np.array([index]))[0]
    if reason != Reason.VALID:
        with pytest.raises(InvalidSchedule) as caught:
            space.lower(index)
        assert caught.value.reason == reason
        return
    program, depth = space.lower(index), space.accelerator.uop_depth
    loads = program.insns[(program.insns["op"] == Opcode.LOAD) & (program.insns["mem"] == Memory.UOP)]
    assert (loads["sram"] + loads["x"] <= depth).all()
    works = program.insns[np.isin(program.insns["op"], (Opcode.GEMM, Opcode.ALU))]
    assert (works["uop_end"] <= depth).all()
    tensors = space.workload.random_inputs(rng)
    got = packed.execute(program, space.workload, tensors)
    np.testing.assert_array_equal(got, space.workload.reference(tensors), err_msg=f"{space.schedule(index)} {depth}")


def some(space: ScheduleSpace, rng: np.random.Generator, indices: np.ndarray, valid: int) -> list[int]:
    """Of some schedules an invalid one and a few valid ones, as far as there are any."""
    shuffled = rng.permutation(indices)
    good = space.validity(shuffled) == Reason.VALID
    return [int(i) for i in [*shuffled[~good][:1], *shuffled[good][:valid]]]


def exact_layers(depth: int) -> dict[str, int]:
    """ResNet-18's layers by the kind of space that has an exact schedule of them."""
    chip, rng, exact = odd_depth(depth), np.random.default_rng(depth), {"full": 0, "autotvm": 0}
    for layer in read_layers(RESNET18):
        templates = {"full": unfolded(layer.workload, chip) or layer.workload}
        if isinstance(layer.workload, Conv2d) and layer.workload.c % chip.block == 0:
            templates["autotvm"] = dataclasses.replace(layer.workload, epilogue=Epilogue())
        for kind, workload in templates.items():
            space = ScheduleSpace(workload, chip, kind)
            chosen = some(space, rng, space.table(), 1)
            for index in chosen:
                check_exact(space, index, rng)
            exact[kind] += bool((space.validity(np.array(chosen)) == Reason.VALID).any())
    return exact


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "full", "template"), [(5, 5, 14), (100, 16, 14), (2047, 16, 14), (4097, 16, 14)])
def test_resnet18_with_depths_that_are_no_powers_of_two(depth: int, full: int, template: int) -> None:
    # In `full`, five micro-ops do for 1x1 convolutions and the dense layer alone; what does not lower says so.
    assert exact_layers(depth) == {"full": full, "autotvm": template}


def test_random_depths_are_exact() -> None:
    rng = np.random.default_rng(11)
    for kind in ("full", "autotvm") * 25:
        workload = random_workload(rng)
        if kind == "autotvm":
            channels, size = (int(x) for x in rng.integers(1, 4, 2))
            workload = Conv2d(1, 16 * channels, 3 * size, 6, 32, size, 3, padding=size // 2, epilogue=Epilogue())
        space = ScheduleSpace(workload, odd_depth(random_depth(rng)), kind)
        for index in some(space, rng, rng.integers(0, len(space), 500), 2):
            check_exact(space, index, rng)
