"""The `autotvm` space: knobs and validity as TVM's, and programs that compute the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.spaces.autotvm import space as autotvm
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import isa, packing, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import PAGE, Memory, Opcode
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue

PYNQ = Accelerator.load("pynq")


def _variant(**fields: Any) -> Accelerator:
    derived = {"uop_depth": 0, "isa_uop_bits": 0, "isa_inp_bits": 0, "isa_wgt_bits": 0, "isa_acc_bits": 0}
    return dataclasses.replace(PYNQ, **(derived | fields))


BLOCK8 = _variant(log_block=3, log_inp_buff_size=14, log_wgt_buff_size=16, log_acc_buff_size=16)
BLOCK32 = _variant(log_block=5, log_uop_buff_size=14, log_wgt_buff_size=19)
BATCH2 = _variant(log_batch=1, log_inp_buff_size=16, log_acc_buff_size=18)
BATCH4 = _variant(log_batch=2, log_block=3, log_inp_buff_size=16, log_wgt_buff_size=16, log_acc_buff_size=18)
FEW_UOPS = _variant(uop_depth=16, isa_uop_bits=13, isa_inp_bits=11, isa_wgt_bits=10, isa_acc_bits=11)


def _run(space: ScheduleSpace, index: int, seed: int = 0) -> None:
    """Lower, execute and compare with the reference, bit for bit."""
    workload, accelerator = space.workload, space.accelerator
    assert isinstance(workload, Conv2d)
    program = space.lower(index)
    tensors = workload.random_inputs(np.random.default_rng(seed))
    dram = np.zeros(program.dram_bytes, dtype=np.uint8)
    for name, packed in (
        ("data", packing.pack_activation(tensors["data"], accelerator)),
        ("weight", packing.pack_weight(tensors["weight"], accelerator)),
    ):
        address = program.buffer(name).address
        dram[address : address + packed.size] = packed.ravel().view(np.uint8)
    simulator.run(program, dram)
    blocks = (workload.n // accelerator.batch, workload.k // accelerator.block, workload.out_h, workload.out_w)
    shape = (*blocks, accelerator.batch, accelerator.block)
    address = program.buffer("output").address
    output = dram[address : address + int(np.prod(shape))].view(np.int8).reshape(shape)
    result = packing.unpack_activation(output, workload.output_shape)
    np.testing.assert_array_equal(result, workload.reference(tensors), err_msg=str(space.schedule(index)))


WORKLOADS = [
    (PYNQ, Conv2d(1, 32, 14, 14, 64, 3, 3, padding=1)),
    (PYNQ, Conv2d(1, 64, 14, 14, 32, 1, 1, stride=2)),
    (PYNQ, Conv2d(2, 32, 12, 10, 32, 1, 1, epilogue=Epilogue(shift=5, clip=(-100, 90)))),
    (PYNQ, Conv2d(1, 32, 9, 12, 64, 5, 3, stride=(2, 1), padding=(2, 1), epilogue=Epilogue(shift=10, clip=None))),
    (PYNQ, Conv2d(1, 64, 8, 8, 32, 2, 2, stride=2, epilogue=Epilogue(shift=0, clip=(-128, 127)))),
    (PYNQ, Conv2d(1, 16, 6, 6, 16, 1, 1, epilogue=Epilogue(shift=0, clip=None))),
    (BLOCK8, Conv2d(1, 32, 10, 10, 16, 3, 3, padding=1)),
    (BLOCK32, Conv2d(1, 64, 8, 8, 128, 3, 3, stride=2, padding=1)),
    (BATCH2, Conv2d(4, 32, 8, 8, 32, 3, 3, padding=1)),
    (BATCH4, Conv2d(8, 16, 6, 6, 32, 1, 1)),
    (FEW_UOPS, Conv2d(1, 32, 8, 8, 64, 3, 3, padding=1)),
]


@pytest.mark.parametrize("case", range(len(WORKLOADS)))
def test_programs_compute_the_reference(case: int) -> None:
    accelerator, workload = WORKLOADS[case]
    space = ScheduleSpace(workload, accelerator, "autotvm")
    valid = np.flatnonzero(space.validity(np.arange(len(space))) == Reason.VALID)
    threads = space.values(valid)[:, 5:].prod(axis=1)
    assert set(threads) == {1, 2} or case == 5
    rng = np.random.default_rng(case)
    for index in rng.choice(valid, size=min(12, len(valid)), replace=False):
        _run(space, int(index))


def test_validity_is_what_lowering_says() -> None:
    space = ScheduleSpace(Conv2d(1, 64, 14, 14, 64, 3, 3, padding=1), BLOCK8, "autotvm")
    reasons = space.validity(np.arange(len(space)))
    assert len(set(reasons)) > 5
    outcome = space.measure(np.arange(len(space)))
    np.testing.assert_array_equal(outcome.reason, reasons)
    assert ((outcome.cycles > 0) == (reasons == Reason.VALID)).all()
    for index in np.random.default_rng(0).choice(len(space), size=40, replace=False):
        if reasons[index] == Reason.VALID:
            program = space.lower(int(index))
            timed = designs.measure(program)
            assert timed.cycles == outcome.cycles[index] and not timed.hang
            np.testing.assert_array_equal(outcome.busy[index], [timed.load_busy, timed.compute_busy, timed.store_busy])
        else:
            with pytest.raises(InvalidSchedule) as caught:
                space.lower(int(index))
            assert caught.value.reason == reasons[index]


def test_whole_spaces_of_our_own_table() -> None:
    # Sizes, valid shares and optima of the table on the RTL that tests/data/autotvm_rtl_extract.json is drawn from.
    for workload, size, valid, best in (
        (Conv2d(1, 64, 56, 56, 128, 3, 3, stride=2, padding=1), 1728, 138, 262544),
        (Conv2d(1, 64, 56, 56, 128, 1, 1, stride=2), 1728, 315, 67258),
        (Conv2d(1, 256, 14, 14, 512, 3, 3, stride=2, padding=1), 480, 40, 239178),
        (Conv2d(1, 256, 14, 14, 512, 1, 1, stride=2), 480, 132, 37817),
    ):
        space = ScheduleSpace(workload, PYNQ, "autotvm")
        outcome = space.measure(np.arange(len(space)))
        good = outcome.reason == Reason.VALID
        assert (len(space), good.sum(), outcome.cycles[good].min()) == (size, valid, best)


def test_knobs_and_index_order() -> None:
    space = ScheduleSpace(Conv2d(1, 256, 14, 14, 512, 1, 1, stride=2), PYNQ, "autotvm")
    assert len(space) == 480
    assert str(space.schedule(203)) == "tile_b=1 tile_h=7 tile_w=7 tile_ci=1 tile_co=16 oc_nthread=2 h_nthread=1"
    batched = ScheduleSpace(Conv2d(4, 16, 4, 4, 16, 1, 1), PYNQ, "autotvm")
    assert batched.knobs[0].values == (1, 2, 4)
    assert len(batched.table()) * 3 == len(batched)
    # tile_b changes nothing.
    first, second = batched.lower(0), batched.lower(1)
    np.testing.assert_array_equal(first.insns, second.insns)
    np.testing.assert_array_equal(first.uops, second.uops)


def test_resident_kernels_are_loaded_once_and_evicted_ones_again() -> None:
    workload = Conv2d(1, 32, 8, 8, 64, 3, 3, padding=1)
    values = np.array([1, 4, 8, 1, 1, 2, 1])

    def loads(accelerator: Accelerator) -> int:
        insns = autotvm.lower(workload, accelerator, values).insns
        assert autotvm.validity(workload, accelerator, values[None])[0] == Reason.VALID
        return int(((insns["op"] == Opcode.LOAD) & (insns["mem"] == Memory.UOP) & (insns["x"] > 0)).sum())

    assert loads(PYNQ) == 10
    assert loads(FEW_UOPS) > 10
    kernel = np.array([[1, 4, 8, 1, 4, 1, 1]])
    assert autotvm.validity(workload, FEW_UOPS, kernel)[0] == Reason.UOP_OVERFLOW


def test_token_flow_ends_as_the_run_time_ends_it() -> None:
    # docs/hardware.md, TVM's template: the last four are push store, push load, a NOP that pops both, FINISH.
    program = ScheduleSpace(Conv2d(1, 32, 8, 8, 32, 1, 1), PYNQ, "autotvm").lower(0)
    assert program.insns["op"][-1] == Opcode.FINISH
    assert program.insns["flags"][-2] == 3
    assert program.insn_address % PAGE == 0 and program.uop_address % PAGE == 0
    assert (program.insns["op"] == Opcode.GEMM).any()
    np.testing.assert_array_equal(isa.decode(isa.encode(program.insns, PYNQ), PYNQ)["flags"], program.insns["flags"])


@pytest.mark.parametrize(
    ("workload", "accelerator", "word"),
    [
        (Dense(1, 64, 64), PYNQ, "conv2d only"),
        (Conv2d(1, 32, 8, 8, 32, 3, 3, dilation=2), PYNQ, "dilation"),
        (Conv2d(1, 32, 8, 8, 32, 3, 3, padding=(1, 0, 1, 1)), PYNQ, "symmetric"),
        (Conv2d(1, 3, 8, 8, 32, 3, 3), PYNQ, "channels"),
        (Conv2d(1, 32, 8, 8, 32, 3, 3), BATCH2, "batch"),
        (Conv2d(1, 32, 8, 8, 32, 3, 3, epilogue=Epilogue(bias=True)), PYNQ, "bias"),
        (Conv2d(1, 32, 8, 8, 32, 3, 3, epilogue=Epilogue(residual_shift=0)), PYNQ, "residual"),
        (Conv2d(1, 1 << 16, 256, 256, 16, 1, 1), PYNQ, "bytes"),
    ],
)
def test_workloads_outside_the_template(workload: Conv2d | Dense, accelerator: Accelerator, word: str) -> None:
    with pytest.raises(WorkloadError, match=word):
        autotvm.validity(workload, accelerator, np.ones((1, 7), dtype=np.int64))


def test_fields_that_would_be_truncated() -> None:
    # The channel blocks of a 300x300 output lie further apart than a stride can say.
    space = ScheduleSpace(Conv2d(1, 16, 300, 300, 64, 1, 1), PYNQ, "autotvm")
    index = int(space.index(np.array([[1, 1, 100, 1, 4, 1, 1]]))[0])
    assert space.validity(np.array([index]))[0] == Reason.FIELD_OVERFLOW
    with pytest.raises(InvalidSchedule):
        next(autotvm.programs(space.workload, PYNQ, space.values(np.array([index]))))
