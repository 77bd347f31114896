"""Joined programs: the same bytes as one by one, in every order that the tokens allow, and no slower."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from programs import ACCELERATORS, legal_order

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image, link, packing, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Flag, Memory, Opcode, Program, element_bytes
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.vta.tokens import runs_in_order
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.drawn import random_workload
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d


def lowered(workload: Workload, chip: Accelerator, rng: np.random.Generator) -> Program | None:
    space = ScheduleSpace(workload, chip)
    indices = rng.integers(0, len(space), 300)
    good = indices[space.validity(indices) == 0]
    return space.lower(int(good[0])) if len(good) else None


def placed(programs: list[Program], rng: np.random.Generator) -> tuple[Program, list[dict[str, int]]]:
    """The programs joined, all their buffers in one shuffled row; and the new addresses."""
    chip = programs[0].accelerator
    align, sizes = link.alignment(chip), element_bytes(chip)
    wanted = [
        (number, buffer)
        for number, program in enumerate(programs)
        for buffer in program.buffers
        if buffer.name != link.UOPS
    ]
    rng.shuffle(wanted)  # type: ignore[arg-type]
    placements: list[dict[str, int]] = [{} for _ in programs]
    uop_bytes, _ = link.code_bytes(programs)
    address = align + uop_bytes
    for number, buffer in wanted:
        placements[number][buffer.name] = address
        address = link.aligned(address + buffer.elements * sizes[buffer.memory], align)
    return link.link(programs, placements, align, address), placements


def test_joined_programs_compute_what_single_ones_do() -> None:
    rng = np.random.default_rng(5)
    used, cycles = set(), []
    for _ in range(60):
        chip = ACCELERATORS[int(rng.integers(len(ACCELERATORS)))]
        workloads = [random_workload(rng) for _ in range(int(rng.integers(1, 5)))]
        found = [(workload, lowered(workload, chip, rng)) for workload in workloads]
        layers = [(workload, program) for workload, program in found if program is not None]
        if not layers:
            continue
        programs = [program for _, program in layers]
        joined, placements = placed(programs, rng)
        assert runs_in_order(joined.insns)
        assert joined.insns["op"].tolist().count(Opcode.FINISH) == 1
        assert joined.dram_bytes >= joined.insn_address + 16 * len(joined.insns)
        dram = np.zeros(joined.dram_bytes, dtype=np.uint8)
        tensors = [workload.random_inputs(rng) for workload, _ in layers]
        for (workload, program), placement, operands in zip(layers, placements, tensors):
            for name, content in image.packed_tensors(workload, operands, program.accelerator).items():
                raw = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
                dram[placement[name] : placement[name] + raw.size] = raw
        order = legal_order(joined.insns, rng)
        simulator.run(dataclasses.replace(joined, insns=joined.insns[order]), dram)
        for number, ((workload, program), operands) in enumerate(zip(layers, tensors)):
            alone = image.dram_image(program, workload, operands)
            simulator.run(program, alone)
            old, new = program.buffer("output"), joined.buffer(f"{number}.output")
            size = old.elements * element_bytes(chip)[old.memory]
            assert np.array_equal(dram[new.address : new.address + size], alone[old.address : old.address + size]), (
                chip,
                workload,
            )
        singles = [designs.measure(program) for program in programs]
        together = designs.measure(joined)
        assert not together.hang
        # Instructions are fetched ahead now, in the middle of other loads: that may cost small layers something.
        cycles.append((together.cycles, sum(single.cycles for single in singles)))
        assert together.cycles <= 1.05 * cycles[-1][1]
        used.add(chip)
    assert sum(joined for joined, _ in cycles) <= sum(single for _, single in cycles)
    assert len(used) >= 5


def chained(workloads: list[Workload], chip: Accelerator, rng: np.random.Generator) -> tuple[Program, list[Program]]:
    """Programs of layers, each of which reads what the one before it wrote, joined; and the single ones."""
    programs = [lowered(workload, chip, rng) for workload in workloads]
    assert all(program is not None for program in programs)
    joined, placements = placed(programs, rng)  # type: ignore[arg-type]
    for before, after in itertools.pairwise(placements):
        after["data"] = before["output"]
    return link.link(programs, placements, joined.uop_address, joined.insn_address), programs  # type: ignore[arg-type, return-value]


EPILOGUE = Epilogue(True, 10, None, 6, (-128, 127))
CHAINS = (
    [Dense(3, 40, 70, EPILOGUE), Dense(3, 70, 33, EPILOGUE), Dense(3, 33, 70, EPILOGUE)],
    [Conv2d(1, 20, 12, 12, 32, 3, 3, 1, 1, epilogue=EPILOGUE), Conv2d(1, 32, 12, 12, 16, 3, 3, 2, 1, epilogue=EPILOGUE),
     MaxPool2d(1, 16, 6, 6, 2, 2), Conv2d(1, 16, 3, 3, 40, 1, 1, epilogue=EPILOGUE)],
    [MaxPool2d(1, 32, 9, 9, 3, 3, 1), Conv2d(1, 32, 7, 7, 32, 1, 1, epilogue=EPILOGUE),
     Conv2d(1, 32, 7, 7, 32, 3, 3, 1, 1, epilogue=EPILOGUE, groups=32),
     Conv2d(1, 32, 7, 7, 32, 1, 1, epilogue=EPILOGUE)],
)  # fmt: skip


@pytest.mark.parametrize("workloads", CHAINS, ids=["dense", "convolutions", "depthwise"])
def test_a_result_is_handed_to_the_next_layer(workloads: list[Workload]) -> None:
    """In whatever order the tokens allow, nothing is read before it is there, or overwritten before it is read."""
    rng = np.random.default_rng(2)
    early = 0
    for _ in range(12):
        chip = ACCELERATORS[int(rng.integers(len(ACCELERATORS)))]
        joined, programs = chained(workloads, chip, rng)
        tensors = [workload.random_inputs(rng) for workload in workloads]
        value = tensors[0]["data"]
        for workload, operands in zip(workloads, tensors):
            value = workload.reference({**operands, "data": value})
        early += takes_early(joined, len(programs))
        for _ in range(8):
            dram = np.zeros(joined.dram_bytes, dtype=np.uint8)
            for number, (workload, operands) in enumerate(zip(workloads, tensors)):
                for name, content in image.packed_tensors(workload, operands, chip).items():
                    if number == 0 or name != "data":
                        raw = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
                        address = joined.buffer(f"{number}.{name}").address
                        dram[address : address + raw.size] = raw
            order = legal_order(joined.insns, rng)
            simulator.run(dataclasses.replace(joined, insns=joined.insns[order]), dram)
            expected = packing.pack_activation(value, chip)
            begin = joined.buffer(f"{len(workloads) - 1}.output").address
            packed = dram[begin : begin + expected.nbytes].view(np.int8).reshape(expected.shape)
            assert np.array_equal(packing.unpack_activation(packed, value.shape), value)
    assert early


def takes_early(joined: Program, layers: int) -> int:
    """How many of some joined layers load something as soon as the GEMMs of the layer before are done."""
    insns = joined.insns
    begins = [int(np.flatnonzero(insns["dram"] == joined.buffer(f"{n}.uops").address // 4)[0]) for n in range(layers)]
    parts = itertools.pairwise([*begins, len(insns)])
    gemms = [np.flatnonzero((insns["op"][a:b] == Opcode.GEMM) & (insns["reset"][a:b] == 0)) + a for a, b in parts]
    return sum(bool(insns["flags"][rows[-1]] & Flag.PUSH_PREV) for rows in gemms if len(rows))


def test_the_next_weights_load_while_the_last_results_are_stored() -> None:
    """On a slow memory two layers take less than one and the other: by the weights' latency at least."""
    chip = dataclasses.replace(Accelerator.load("pynq"), memory_latency=300)
    rng = np.random.default_rng(4)
    for _ in range(5):
        joined, programs = chained(list(CHAINS[1][:2]), chip, rng)
        assert takes_early(joined, 2) == 1
        assert designs.measure(joined).cycles < sum(designs.measure(one).cycles for one in programs) - 300


def test_what_cannot_be_joined_is_refused() -> None:
    rng = np.random.default_rng(0)
    chip = Accelerator.load("pynq")
    program = lowered(Dense(2, 20, 20), chip, rng)
    assert program is not None
    joined, (place,) = placed([program], rng)
    assert len(joined.insns) == len(program.insns)
    uops, insns = joined.uop_address, joined.insn_address
    other = dataclasses.replace(program, accelerator=Accelerator.load("b8"))
    waiting = program.insns.copy()
    load = int(np.flatnonzero((waiting["op"] == Opcode.LOAD) & (waiting["mem"] == Memory.INP))[0])
    waiting["flags"][: load + 1] |= Flag.POP_NEXT
    outside = program.insns.copy()
    outside["dram"][load] = 1 << 24
    for programs, places, says in (
        ([], [], "cannot be joined with 0"),
        ([program], [place, place], "cannot be joined with 2"),
        ([program, other], [place, place], "different accelerators"),
        ([dataclasses.replace(program, insns=program.insns[:-1])], [place], "does not end as"),
        ([joined, joined], [place, place], "no address is given for the buffer"),
        ([program, dataclasses.replace(program, insns=waiting)], [place, place], "waits for compute already"),
        ([dataclasses.replace(program, insns=outside)], [place], "outside of its program's buffers"),
        ([program], [place | {"weight": place["weight"] + 8}], "does not suit its elements"),
    ):
        with pytest.raises(OneShotError, match=says):
            link.link(programs, places, uops, insns)
