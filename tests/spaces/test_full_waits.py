"""What the closed form knows of waiting, against the timing of the RTL."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from oneshot_ml2.common.metrics import kendall_tau
from oneshot_ml2.spaces.full.features import Candidates, Encoder, candidates_at, waiting
from oneshot_ml2.spaces.full.knobs import (
    BIAS_ADD,
    BIAS_GEMM,
    BIAS_LOAD,
    FLOW_SP_INP,
    FLOW_SP_INP_ALL_WGT,
    HEAD_DOUBLING,
    KNOBS,
)
from oneshot_ml2.spaces.full.waits import WAITS
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import HlsTiming
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d

BIASED = Epilogue(bias=True, shift=8)
CONV = Conv2d(1, 64, 20, 20, 32, 3, 3, padding=1, epilogue=BIASED)
# Chips that no network has seen; the second has bursts of two beats on top.
FAR = Accelerator(0, 4, 13, 13, 18, 14, memory_latency=20_000, instruction_queue=2, name="far")
SHORT = dataclasses.replace(FAR, burst_len_bits=1, instruction_queue=4)
STORING = Accelerator(1, 5, 9, 18, 20, 16, memory_latency=4, name="storing")
NEAR = dataclasses.replace(FAR, memory_latency=300, instruction_queue=512)


def timed(workload: Workload, chip: Accelerator, n: int, seed: int = 1) -> tuple[Candidates, NDArray[np.float64]]:
    """Valid ones among ``n`` canonical schedules, and their cycles."""
    space = ScheduleSpace(workload, chip)
    indices = np.random.default_rng(seed).permutation(space.table())[:n]
    result = space.measure(indices)
    valid = result.reason == Reason.VALID
    return candidates_at(space, indices[valid]), result.cycles[valid].astype(np.float64)


@pytest.mark.parametrize(
    ("chip", "least", "most"),
    [(FAR, 0.85, 0.16), (SHORT, 0.75, 0.42), (NEAR, 0.92, 0.06)],
    ids=["queue of two", "bursts of two beats", "near"],
)
@pytest.mark.parametrize("workload", [CONV, Dense(4, 256, 512, epilogue=BIASED)], ids=["conv", "dense"])
def test_schedules_are_ordered_as_by_the_timing(
    workload: Workload, chip: Accelerator, least: float, most: float
) -> None:
    """``least``: Kendall's tau, ``most``: the mean error of log T."""
    given, cycles = timed(workload, chip, 600)
    assert len(given) > 60
    guess = waiting(ScheduleSpace(workload, chip), given)
    tau = kendall_tau(cycles, guess)
    assert tau > least and np.abs(np.log(cycles / guess)).mean() < most
    # What knows nothing of queues and fetching orders them worse.
    assert tau > kendall_tau(cycles, given.estimate) + 0.05


@pytest.mark.parametrize(
    ("workload", "chip", "knobs", "most"),
    [
        (
            BatchMatmul(3, 72, 24, 40, epilogue=BIASED),
            Accelerator(2, 2, 8, 15, 12, 16, bus_bits=512, memory_latency=540, name="wide"),
            {"tile_co": 1, "tile_w": 18, "bias": BIAS_LOAD},
            0.15,
        ),
        (
            MaxPool2d(1, 96, 27, 27, 3, 3, padding=1),
            Accelerator(4, 3, 14, 14, 17, 18, bus_bits=256, memory_latency=221, name="pool"),
            {"inp_buffers": 1},
            0.06,
        ),
        (
            Conv2d(1, 16, 21, 21, 16, 3, 3, padding=1, epilogue=BIASED),
            Accelerator(2, 3, 12, 14, 17, 13, bus_bits=256, memory_latency=7560, burst_len_bits=1, name="short"),
            {},
            0.2,
        ),
        (
            Dense(24, 256, 128, epilogue=BIASED),
            dataclasses.replace(FAR, memory_latency=8000, instruction_queue=64),
            {"bias": BIAS_LOAD, "wgt_buffers": 2, "dataflow": FLOW_SP_INP},
            0.12,
        ),
        (BatchMatmul(6, 24, 64, 40, epilogue=BIASED), NEAR, {"dataflow": FLOW_SP_INP}, 0.03),
        (BatchMatmul(6, 24, 64, 40, epilogue=BIASED), NEAR, {"dataflow": FLOW_SP_INP_ALL_WGT}, 0.06),
        (Dense(8, 1024, 64), NEAR, {"head": HEAD_DOUBLING}, 0.02),
        (
            Conv2d(1, 32, 12, 12, 64, 1, 1, epilogue=Epilogue(bias=True, shift=8, residual_shift=0)),
            dataclasses.replace(NEAR, memory_latency=3000),
            {"dataflow": FLOW_SP_INP_ALL_WGT, "acc_buffers": 1, "bias": BIAS_ADD},
            0.04,
        ),
        (
            Conv2d(1, 32, 24, 24, 64, 1, 1, epilogue=BIASED),
            Accelerator(1, 5, 15, 9, 20, 18, bus_bits=128, memory_latency=27, name="held"),
            {"inp_buffers": 1, "acc_buffers": 2, "bias": BIAS_GEMM},
            0.08,
        ),
        (
            BatchMatmul(6, 24, 64, 34, epilogue=BIASED),
            Accelerator(5, 5, 15, 21, 18, 23, memory_latency=224, name="added"),
            {"bias": BIAS_ADD},
            0.03,
        ),
        (Dense(60, 32, 320, epilogue=BIASED), STORING, {"acc_buffers": 2, "bias": BIAS_GEMM}, 0.05),
        (Dense(60, 32, 320, epilogue=BIASED), STORING, {"acc_buffers": 2, "drain": 16}, 0.05),
        (
            CONV,
            dataclasses.replace(NEAR, burst_len_bits=1, memory_latency=3000, instruction_queue=64),
            {},
            0.1,
        ),
        (
            Conv2d(1, 64, 14, 14, 96, 1, 1, epilogue=Epilogue(shift=8)),
            dataclasses.replace(SHORT, memory_latency=3000, bus_bits=128, instruction_queue=8),
            {},
            0.14,
        ),
        (
            Conv2d(1, 64, 18, 18, 24, 3, 3, padding=1, epilogue=BIASED),
            Accelerator(0, 3, 13, 13, 15, 15, bus_bits=128, burst_len_bits=1, memory_latency=10_437, name="odd"),
            {"tile_w": 1},
            0.05,
        ),
        (
            Conv2d(1, 288, 43, 43, 288, 3, 3, padding=1, groups=288, epilogue=BIASED),
            Accelerator(
                1,
                5,
                13,
                19,
                17,
                19,
                bus_bits=512,
                burst_len_bits=4,
                memory_latency=20_000,
                instruction_queue=8,
                name="many",
            ),
            {"tile_co": 9, "inp_buffers": 1, "acc_buffers": 1},
            0.135,
        ),
    ],
    ids=[
        "rows of biases of one beat",
        "a pool's only buffer",
        "rows of three beats in bursts of two",
        "biases and weights that keep the queue filled",
        "groups with inputs of their own",
        "groups with inputs of their own and all weights",
        "heads that double",
        "residuals in buffers of their own",
        "what is added within the last step holds its operands",
        "biases that are loaded once",
        "stores that take longest",
        "stores of the last tile from its first piece on",
        "chunks of instructions behind the bursts of a LOAD",
        "chunks of instructions that come free hide others",
        "rows that start within a burst",
        "biases of more bursts than a LOAD lets through",
    ],
)
def test_what_fills_and_empties_the_memory_s_queue_and_frees_a_buffer(
    workload: Workload, chip: Accelerator, knobs: dict[str, int], most: float
) -> None:
    """``most``: the mean error of log T of schedules with these knobs."""
    given, cycles = timed(workload, chip, 1500)
    chosen = np.ones(len(given), dtype=np.bool_)
    for name, value in knobs.items():
        chosen &= given.values[:, KNOBS.index(name)] == value
    assert chosen.sum() > 10
    guess = waiting(ScheduleSpace(workload, chip), given)
    assert np.abs(np.log(cycles / guess))[chosen].mean() < most


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"instruction_queue": 2}, "load_waits"),
        ({"burst_len_bits": 1}, "fetch_waits"),
        ({"memory_latency": 3000}, "opening"),
    ],
    ids=["queue", "burst", "latency"],
)
def test_what_a_property_costs_is_told(changes: dict[str, int], column: str) -> None:
    """A queue of 2, bursts of two beats or ten times the latency, beside the chip without."""
    some, cycles = timed(CONV, NEAR, 200)
    worse = dataclasses.replace(NEAR, **changes)
    slower = ScheduleSpace(CONV, worse).measure(some.indices).cycles / cycles
    before, after = (Encoder.of(ScheduleSpace(CONV, chip)).waits(some) for chip in (NEAR, worse))
    ratio = np.exp(np.log(slower * before[:, 0] / after[:, 0]).mean())
    assert np.exp(np.log(slower).mean()) > 1.1 and 0.85 < ratio < 1.18
    place = WAITS.index(column)
    assert (after[:, place] >= before[:, place]).all() and (after[:, place] > before[:, place]).any()


def test_the_hls_design_has_its_own_estimate() -> None:
    space = ScheduleSpace(CONV, dataclasses.replace(NEAR, hls=HlsTiming()))
    given = candidates_at(space, space.table()[:50])
    assert np.array_equal(waiting(space, given), given.estimate)
