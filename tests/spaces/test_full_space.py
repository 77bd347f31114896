"""Property tests of the `full` space: what lowers computes the reference, whatever order the tokens allow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from programs import ACCELERATORS, legal_order, smallest_workload

from oneshot_ml2.network import picking
from oneshot_ml2.spaces.full import knobs
from oneshot_ml2.spaces.full import space as full
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image, isa
from oneshot_ml2.vta.accelerator import Accelerator, preset_names
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.vta.program import Memory, Opcode, Program, element_bytes
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.drawn import random_workload
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d


def touched(program: Program, insn: np.ndarray, column: str, out: str, inn: str) -> np.ndarray:
    """The SRAM indices (steps,) of one operand of a GEMM or ALU, in order: micro-op ``column``, factors out and in."""
    outer, inner = np.arange(insn["iter_out"]), np.arange(insn["iter_in"])
    uops = program.uops[column][insn["uop_bgn"] : insn["uop_end"]]
    return (outer[:, None, None] * insn[out] + inner[None, :, None] * insn[inn] + uops).reshape(-1)


def check_portable(program: Program) -> None:
    """The portable programs of docs/hardware.md, as far as a static look tells; no access beside a buffer."""
    a, insns = program.accelerator, program.insns
    assert len(program.uops) <= 2048
    depth = {
        Memory.UOP: a.uop_depth,
        Memory.INP: a.inp_depth,
        Memory.WGT: a.wgt_depth,
        Memory.ACC: a.acc_depth,
        Memory.OUT: a.acc_depth,
    }
    for insn in insns:
        op = insn["op"]
        if op in (Opcode.LOAD, Opcode.STORE) and insn["x"]:
            size = element_bytes(a)[int(insn["mem"])]
            begin = int(insn["dram"]) * size
            end = begin + int((insn["y"] - 1) * insn["stride"] + insn["x"]) * size
            assert any(
                b.address <= begin and end <= b.address + b.elements * element_bytes(a)[b.memory]
                for b in program.buffers
            )
            height = insn["y"] + insn["top"] + insn["bottom"]
            count = height * (insn["x"] + insn["left"] + insn["right"])
            assert insn["y"] > 0
            assert insn["sram"] + count <= depth[int(insn["mem"])]
            if insn["mem"] in (Memory.INP, Memory.WGT):
                assert count < depth[int(insn["mem"])]
        elif op in (Opcode.GEMM, Opcode.ALU):
            assert insn["iter_out"] > 0 and insn["iter_in"] > 0 and insn["uop_end"] > insn["uop_bgn"]
            dst = touched(program, insn, "dst", "dst_out", "dst_in")
            src = touched(program, insn, "src", "src_out", "src_in")
            assert dst.max() < a.acc_depth
            for distance in (1, 2):
                assert (dst[distance:] != dst[:-distance]).all()
            if op == Opcode.GEMM:
                assert src.max() < a.inp_depth
                assert touched(program, insn, "wgt", "wgt_out", "wgt_in").max() < a.wgt_depth
            elif insn["use_imm"]:
                assert (dst == src).all()
            else:
                assert (src[1:] != dst[:-1]).all()
                assert src.max() < a.acc_depth
    isa.encode(insns, a)


def run_triples(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    done = 0
    used = set()
    while done < count:
        accelerator = ACCELERATORS[int(rng.integers(len(ACCELERATORS)))]
        workload = random_workload(rng)
        space = ScheduleSpace(workload, accelerator)
        indices = rng.integers(0, len(space), 400)
        good = indices[space.validity(indices) == 0]
        if len(good) == 0:
            continue
        result = space.measure(good[:5])
        tensors = workload.random_inputs(rng)
        want = workload.reference(tensors)
        for index, cycles in zip(good[:5], result.cycles, strict=True):
            program = space.lower(int(index))
            check_portable(program)
            assert cycles > 0
            order = legal_order(program.insns, rng)
            shuffled = dataclasses.replace(program, insns=program.insns[order])
            got = image.execute(shuffled, workload, tensors)
            assert np.array_equal(got, want), (accelerator, workload, space.schedule(int(index)))
            done += 1
        used.add(accelerator)
    assert len(used) >= min(6, count)


def test_lowered_programs_compute_the_reference() -> None:
    run_triples(seed=1, count=100)


@pytest.mark.slow
def test_lowered_programs_compute_the_reference_long() -> None:
    run_triples(seed=2, count=2000)


def test_canonical_aliases_lower_to_the_same_program() -> None:
    rng = np.random.default_rng(3)
    compared = 0
    while compared < 300:
        space = ScheduleSpace(random_workload(rng), ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        indices = rng.integers(0, len(space), 60)
        canonical = space.canonical(indices)
        assert np.array_equal(space.canonical(canonical), canonical)
        for index, other in zip(indices, canonical, strict=True):
            if index == other:
                continue
            try:
                program = space.lower(int(index))
            except InvalidSchedule as error:
                with pytest.raises(InvalidSchedule) as found:
                    space.lower(int(other))
                assert found.value.reason == error.reason
                continue
            same = space.lower(int(other))
            assert np.array_equal(program.insns, same.insns) and np.array_equal(program.uops, same.uops), (
                space.workload, space.schedule(int(index)), space.schedule(int(other)),
            )  # fmt: skip
            compared += 1


def test_space_of_a_resnet_layer_is_small_enough_to_score_whole() -> None:
    space = ScheduleSpace(Conv2d(1, 256, 14, 14, 512, 3, 3, stride=2, padding=1), Accelerator.load("pynq"))
    assert 1_000 < len(space.table()) <= 200_000


def check_computes(space: ScheduleSpace, index: int, rng: np.random.Generator) -> None:
    """The program of a schedule is portable, gives numpy's result, and takes no less than both bounds."""
    workload, program = space.workload, space.lower(index)
    check_portable(program)
    tensors = workload.random_inputs(rng)
    got = image.execute(program, workload, tensors)
    assert np.array_equal(got, workload.reference(tensors)), (workload, space.accelerator, space.schedule(index))
    cycles = int(space.measure(np.array([index])).cycles[0])
    assert max(engine_bound(workload, space.accelerator).bound, program.features["bound"]) <= cycles


def legal(space: ScheduleSpace, rng: np.random.Generator) -> np.ndarray:
    """Indices of some legal schedules of a space; of all canonical ones, if few are."""
    indices = rng.integers(0, len(space), 500)
    found = indices[space.validity(indices) == 0]
    return found if len(found) else space.table()[space.validity(space.table()) == 0]


# Every operator with one pixel of output, or nearly; blocks of 16 channels.
SMALLEST: tuple[Workload, ...] = (
    Conv2d(1, 16, 3, 3, 16, 3, 3),
    Conv2d(1, 16, 1, 1, 16, 3, 3, padding=1),
    Conv2d(1, 16, 2, 1, 32, 3, 3, padding=1, epilogue=Epilogue(bias=True, residual_shift=1)),
    Conv2d(1, 32, 7, 7, 16, 7, 7, stride=9, epilogue=Epilogue(bias=True, half_even=True)),
    Conv2d(1, 16, 1, 2, 16, 1, 2),
    Conv2d(1, 16, 5, 5, 16, 3, 3, dilation=2, epilogue=Epilogue(bias=True)),
    Conv2d(1, 40, 3, 3, 40, 3, 3, groups=40),
    Conv2d(1, 128, 3, 3, 128, 3, 3, groups=2),
    Conv2d(1, 1, 1, 1, 1, 1, 1),
    Conv2dTranspose(1, 16, 1, 1, 16, 1, 1),
    Conv2dTranspose(1, 16, 2, 2, 16, 2, 2, padding=1),
    Conv2dTranspose(1, 16, 1, 2, 32, 3, 3, 2, 1),
    MaxPool2d(1, 16, 1, 1, 1, 1),
    MaxPool2d(1, 32, 2, 2, 2, 2),
    MaxPool2d(1, 16, 3, 3, 3, 3, 1, epilogue=Epilogue(shift=0, clip=(-5, 100))),
    Dense(1, 1, 1),
    BatchMatmul(1, 1, 1, 1),
    BatchMatmul(2, 1, 40, 20, Epilogue(bias=True)),
)


@pytest.mark.parametrize("name", preset_names())
def test_smallest_layers_have_legal_schedules_on_every_preset(name: str) -> None:
    rng = np.random.default_rng(31)
    accelerator = Accelerator.load(name)
    layers = (*SMALLEST, *(smallest_workload(rng, accelerator.block) for _ in range(8)))
    for workload in layers:
        space = ScheduleSpace(workload, accelerator)
        found = legal(space, rng)
        assert len(found), (workload, name)
        check_computes(space, int(rng.choice(found)), rng)


def test_picks_of_smallest_layers() -> None:
    rng = np.random.default_rng(32)
    accelerator = Accelerator.load("pynq")
    for workload in SMALLEST:
        pick = picking.pick(workload, accelerator)
        check_computes(pick.space, pick.index, rng)


def test_a_gemm_a_tap_only_where_nothing_else_is_legal() -> None:
    rng = np.random.default_rng(33)
    folds = (knobs.FOLD_SPACE, knobs.FOLD_CI_ROWS, knobs.FOLD_CI_CO)
    with_taps = without = 0
    for draw in range(160):
        workload = smallest_workload(rng) if draw % 4 else random_workload(rng)
        space = ScheduleSpace(workload, ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        column = [knob.name for knob in space.knobs].index("fold")
        if knobs.FOLD_TAPS not in space.knobs[column].values:
            # The passes of a pool have loops of their own.
            assert space.knobs[column].values == (folds[:1] if workload.loops.pool else folds)
            without += 1
            continue
        indices = legal(space, rng)
        assert len(indices) and (space.values(indices)[:, column] == knobs.FOLD_TAPS).all()
        with_taps += 1
    assert min(with_taps, without) >= 10


@pytest.mark.parametrize(
    "workload",
    [
        Conv2d(1, 16, 2, 1, 16, 1, 1, stride=(1, 2)),
        Conv2d(1, 48, 3, 1, 48, 1, 1, stride=(1, 3), groups=48),
        Conv2d(1, 64, 3, 1, 64, 1, 1, stride=(1, 3), groups=2),
        Conv2dTranspose(1, 16, 3, 1, 16, 1, 1, (1, 3)),
        MaxPool2d(1, 16, 3, 1, 1, 1, (1, 3)),
        Conv2d(1, 16, 1, 3, 16, 1, 1, stride=(2, 1)),
    ],
    ids=str,
)
def test_strides_along_an_extent_of_one(workload: Workload) -> None:
    rng = np.random.default_rng(38)
    for accelerator in ACCELERATORS[:3]:
        space = ScheduleSpace(workload, accelerator)
        for index in rng.choice(legal(space, rng), 3):
            check_computes(space, int(index), rng)


def test_extents_of_one_and_strides_beyond_the_extent() -> None:
    rng = np.random.default_rng(34)
    layers = [smallest_workload(rng) for _ in range(120)] + [Conv2d(1, 16, 5, 5, 16, 3, 3, stride=1 << 20)]
    for workload in layers:
        space = ScheduleSpace(workload, ACCELERATORS[int(rng.integers(len(ACCELERATORS)))])
        found = legal(space, rng)
        for index in rng.choice(found, 3):
            check_computes(space, int(index), rng)


def test_one_row_where_every_output_reads_the_input_of_its_place() -> None:
    def extents(workload: Workload) -> list[int]:
        nest = make_nest(workload, ACCELERATORS[0])
        return [int(nest[name]) for name in ("oh", "ow", "ih", "iw")]

    assert extents(Conv2d(1, 16, 5, 7, 16, 1, 1)) == [1, 35, 1, 35]
    assert extents(Conv2d(1, 16, 255, 257, 16, 1, 1)) == [1, 65535, 1, 65535]
    assert extents(Conv2d(1, 16, 256, 256, 16, 1, 1)) == [256, 256, 256, 256]
    assert extents(Conv2d(1, 16, 5, 1, 16, 1, 1, stride=(1, 2))) == [5, 1, 5, 1]
    assert extents(Conv2dTranspose(1, 16, 5, 1, 16, 1, 1, (1, 2))) == [5, 1, 5, 1]
    assert extents(MaxPool2d(1, 16, 5, 1, 1, 1, (1, 2))) == [5, 1, 5, 1]
    assert extents(Dense(70_000, 16, 16)) == [1, 70_000, 1, 70_000]


# Rows or planes whose strides 16 bits do not count.
LONG: tuple[Workload, ...] = (
    Conv2d(1, 16, 256, 256, 16, 1, 1),
    Conv2d(1, 40, 320, 320, 20, 1, 1, epilogue=Epilogue(bias=True, residual_shift=1)),
    Conv2d(1, 16, 1, 65537, 16, 1, 1),
    Conv2d(1, 16, 65537, 1, 16, 1, 1),
    Conv2d(1, 32, 257, 256, 32, 1, 1, groups=32),
    Conv2d(1, 16, 3, 40_000, 16, 3, 3, stride=(2, 3), padding=1),
    Conv2d(1, 16, 2, 70_000, 16, 1, 1, stride=(1, 2)),
    MaxPool2d(1, 16, 1, 70_000, 1, 2),
    MaxPool2d(1, 16, 257, 256, 1, 1),
    Conv2dTranspose(1, 16, 256, 256, 16, 1, 1),
    Dense(66_000, 16, 32, Epilogue(bias=True)),
    BatchMatmul(1, 66_000, 32, 16),
)


@pytest.mark.slow
@pytest.mark.parametrize("workload", LONG, ids=str)
def test_long_rows_have_legal_schedules(workload: Workload) -> None:
    rng = np.random.default_rng(35)
    space = ScheduleSpace(workload, ACCELERATORS[0])
    indices = np.unique(rng.integers(0, len(space), 4000))
    found = indices[space.validity(indices) == 0]
    check_computes(space, int(rng.choice(found)), rng)


def test_a_large_image_has_a_legal_schedule() -> None:
    rng = np.random.default_rng(36)
    space = ScheduleSpace(LONG[0], ACCELERATORS[0])
    indices = np.unique(rng.integers(0, len(space), 4000))
    check_computes(space, int(indices[space.validity(indices) == 0][0]), rng)


def test_channels_that_lie_far_apart_move_one_by_one() -> None:
    rng = np.random.default_rng(39)
    layer = Conv2d(1, 48, 256, 257, 32, 1, 1, epilogue=Epilogue(bias=True, residual_shift=1))
    space = ScheduleSpace(layer, ACCELERATORS[0])
    indices = np.unique(rng.integers(0, len(space), 8000))
    values = space.values(indices)
    several = indices[(knobs.schedules(values)["tile_co"] > 1) & (knobs.schedules(values)["tile_ci"] > 1)]
    found = several[space.validity(several) == 0]
    full_rows = knobs.schedules(space.values(found))["tile_w"] == 257
    for chosen in (found[full_rows], found[~full_rows]):
        check_computes(space, int(rng.choice(chosen)), rng)


def test_kernels_of_many_taps_are_told_apart() -> None:
    # Every row of the kernel meets another number of outputs, so that each is a GEMM of its own.
    layer = Conv2d(1, 16, 129, 2, 16, 129, 2, padding=(128, 0, 1, 0))
    space = ScheduleSpace(layer, ACCELERATORS[0])
    whole = {"tile_h": 129, "tile_w": 2, "fold": knobs.FOLD_CI_ROWS, "pad": knobs.PAD_SKIP}
    indices = np.arange(len(space))
    for name, value in whole.items():
        column = [knob.name for knob in space.knobs].index(name)
        indices = indices[space.values(indices)[:, column] == value]
    found = indices[space.validity(indices) == 0]
    check_computes(space, int(found[0]), np.random.default_rng(37))


def test_tile_sizes_are_all_that_even_cuts_give() -> None:
    for extent in (*range(1, 400), 65_536):
        assert full._ceilings(extent) == sorted({-(-extent // m) for m in range(1, extent + 1)}, reverse=True)


@pytest.mark.parametrize("log_acc", range(9, 15))
def test_tiles_are_thinned_until_the_space_is_small(log_acc: int) -> None:
    """Thinning keeps both ends of a list: with few accumulators it once left more sizes than asked for, for ever."""
    chip = dataclasses.replace(Accelerator.load("pynq"), log_acc_buff_size=log_acc)
    layer = Conv2d(1, 16, 7, 7, 84 * 16, 3, 3, padding=1, epilogue=Epilogue(bias=True))
    assert len(ScheduleSpace(layer, chip)) <= full._LIMIT
