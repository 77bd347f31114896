"""The perturbed device: its differences are seeded, documented, and what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.boards import KINDS, RULES, Differences, draw
from oneshot_ml2.devices.perturbed import PerturbedDevice, page_misses
from oneshot_ml2.devices.registry import device_kinds, open_device
from oneshot_ml2.devices.simulated import SimulatorDevice
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.workload.conv2d import Conv2d

SPACE = ScheduleSpace(Conv2d(1, 32, 14, 14, 64, 3, 3, padding=1), Accelerator.load("pynq"))


@pytest.fixture(scope="module")
def indices() -> np.ndarray:
    drawn = SPACE.sample(np.random.default_rng(0), 60)
    return drawn[SPACE.validity(drawn) == Reason.VALID][:12]


def custom(**figures: float | str) -> PerturbedDevice:
    return PerturbedDevice("paged", 0, Differences(**figures))  # type: ignore[arg-type]


def test_without_differences_it_is_the_simulator(indices: np.ndarray) -> None:
    ours, simulated = custom().measure_schedules(SPACE, indices), SimulatorDevice().measure_schedules(SPACE, indices)
    assert np.array_equal(ours.cycles, simulated.cycles)
    assert np.array_equal(ours.busy, simulated.busy)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_drawn_from_their_ranges_by_seed(kind: str) -> None:
    ranges, base = KINDS[kind].drawn, KINDS[kind].others
    first, second = draw(kind, 1), draw(kind, 2)
    assert first == draw(kind, 1) != second
    for figure in dataclasses.fields(Differences):
        value = getattr(first, figure.name)
        low, high = ranges.get(figure.name, (getattr(base, figure.name),) * 2)
        assert value == low == high if figure.name not in ranges else low <= value <= high
    assert first.rule in RULES


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_differs_from_the_simulator_and_leaves_something_valid(kind: str, indices: np.ndarray) -> None:
    true = PerturbedDevice(kind, 3).true_cycles(SPACE, indices)
    valid = true.reason == Reason.VALID
    assert valid.any()
    simulated = SPACE.measure(indices).cycles
    assert (true.cycles[valid] != simulated[valid]).any()
    assert (true.cycles[~valid] == -1).all()


def test_memory_only_costs(indices: np.ndarray) -> None:
    plain = custom().true_cycles(SPACE, indices).cycles
    for figures in ({"latency": 8.0}, {"bandwidth": 0.5}, {"page_miss": 30.0}, {"page_miss": 30.0, "banks": 8}):
        assert (custom(**figures).true_cycles(SPACE, indices).cycles > plain).all(), figures
    # A faster core clock waits more of its cycles for the same memory.
    assert (custom(clock_ratio=0.5).true_cycles(SPACE, indices).cycles > plain).all()


def test_rates_of_the_hls_design_differ_from_the_described_ones(indices: np.ndarray) -> None:
    space = ScheduleSpace(SPACE.workload, Accelerator.load("pynq-hls"))
    drawn = space.sample(np.random.default_rng(0), 60)
    drawn = drawn[space.validity(drawn) == Reason.VALID][:12]
    plain = custom().true_cycles(space, drawn).cycles
    assert np.array_equal(plain, space.measure(drawn).cycles)
    for figure in ("latency", "beat", "alu", "start"):
        slower = custom(**{figure: 1.5}).true_cycles(space, drawn).cycles
        assert (slower > plain).all() and (slower < 1.5 * plain).all(), figure
    # The RTL has none of these rates, and its boards are those that seeds drew before there were any.
    rtl = custom(beat=1.5, alu=1.5, start=1.5).true_cycles(SPACE, indices).cycles
    assert np.array_equal(rtl, SPACE.measure(indices).cycles)
    assert (draw("slow-memory", 0).latency, draw("noisy", 0).latency) == (9.369836444739033, 4.869541452426016)


def test_noise_is_seeded_and_averages_out(indices: np.ndarray) -> None:
    one = indices[:1]
    device = custom(noise=0.05)
    measured = [int(device.measure_schedules(SPACE, one).cycles[0]) for _ in range(60)]
    again = custom(noise=0.05)
    assert [int(again.measure_schedules(SPACE, one).cycles[0]) for _ in range(60)] == measured
    assert len(set(measured)) > 50
    true = int(device.true_cycles(SPACE, one).cycles[0])
    assert abs(np.mean(measured) / true - 1.0) < 0.03
    assert 0.03 < np.std(np.log(measured)) < 0.08


def test_failures_come_and_go(indices: np.ndarray) -> None:
    device = custom(failures=0.3, timeouts=0.2)
    reasons = np.concatenate([device.measure_schedules(SPACE, indices).reason for _ in range(20)])
    assert abs(np.mean(reasons == Reason.DEVICE_ERROR) - 0.3) < 0.1
    assert abs(np.mean(reasons == Reason.TIMEOUT) - 0.2) < 0.1
    assert (device.true_cycles(SPACE, indices).reason == Reason.VALID).all()


def test_a_small_micro_op_sram_and_the_rules_give_wrong_results() -> None:
    drawn = SPACE.sample(np.random.default_rng(1), 200)
    drawn = drawn[SPACE.validity(drawn) == Reason.VALID]
    for figures in (
        {"uop_share": 0.02},
        {"rule": "long_gemm", "rule_share": 0.01},
        {"rule": "wide_load", "rule_share": 0.05},
        {"rule": "short_strided_store", "rule_share": 0.5},
        {"rule": "wide_load_and_long_gemm", "rule_share": 0.05, "second_share": 0.01},
    ):
        wrong = custom(**figures).true_cycles(SPACE, drawn).reason == Reason.WRONG_RESULT
        assert 0 < wrong.sum() < len(drawn), figures


def test_what_does_not_lower_keeps_its_reason() -> None:
    drawn = SPACE.sample(np.random.default_rng(2), 100)
    expected = SPACE.validity(drawn)
    bad = drawn[expected != Reason.VALID]
    assert len(bad)
    found = custom().measure_schedules(SPACE, bad)
    assert np.array_equal(found.reason, expected[expected != Reason.VALID])
    assert (found.cycles == -1).all()


def test_programs_are_measured_as_schedules_are(indices: np.ndarray) -> None:
    measured = custom(page_miss=10.0).measure([SPACE.lower(int(i)) for i in indices])
    assert [m.cycles for m in measured] == custom(page_miss=10.0).measure_schedules(SPACE, indices).cycles.tolist()


def test_page_misses_of_one_page_and_of_many(indices: np.ndarray) -> None:
    program = SPACE.lower(int(indices[0]))
    assert page_misses(program, 1 << 40) == 1
    counts = [page_misses(program, size) for size in (64, 256, 1024, 4096)]
    assert counts == sorted(counts, reverse=True)


def test_banks_keep_pages_open(indices: np.ndarray) -> None:
    program = SPACE.lower(int(indices[0]))
    one, eight = page_misses(program, 1024, 1), page_misses(program, 1024, 8)
    # With as many banks as there are pages each page is opened once, all but those next to it beside another bank.
    many = page_misses(program, 1024, 1 << 20)
    assert many < eight < one
    assert many == page_misses(program, 1024, 1 << 21)


def test_a_rule_on_two_sizes_needs_both() -> None:
    drawn = SPACE.sample(np.random.default_rng(1), 200)
    drawn = drawn[SPACE.validity(drawn) == Reason.VALID]
    shares = {"rule_share": 0.03, "second_share": 0.03}
    both = custom(rule="wide_load_and_long_gemm", **shares).true_cycles(SPACE, drawn).reason == Reason.WRONG_RESULT
    wide = custom(rule="wide_load", rule_share=0.03).true_cycles(SPACE, drawn).reason == Reason.WRONG_RESULT
    long = custom(rule="long_gemm", rule_share=0.03).true_cycles(SPACE, drawn).reason == Reason.WRONG_RESULT
    assert np.array_equal(both, wide & long)
    assert both.any() and (wide & ~long).any() and (long & ~wide).any()


def test_instructions_and_the_alu_cost_what_is_written(indices: np.ndarray) -> None:
    programs = [SPACE.lower(int(i)) for i in indices]
    plain = custom().true_cycles(SPACE, indices).cycles
    issued = custom(instruction=10.0).true_cycles(SPACE, indices).cycles
    assert (issued - plain).tolist() == [10 * len(program.insns) for program in programs]
    slow = custom(slow_alu=4.0).true_cycles(SPACE, indices).cycles
    for program, before, after in zip(programs, plain.tolist(), slow.tolist()):
        timed = designs.measure(program)
        more = 3.0 * timed.alu
        assert after == round(before + more * (timed.compute_busy + more) / (before + more))


def test_a_share_of_the_programs_always_lies(indices: np.ndarray) -> None:
    drawn = SPACE.sample(np.random.default_rng(3), 300)
    drawn = drawn[SPACE.validity(drawn) == Reason.VALID]
    device, plain = custom(liars=0.2), custom().true_cycles(SPACE, drawn).cycles
    told = [device.measure_schedules(SPACE, drawn).cycles / plain for _ in range(2)]
    assert np.array_equal(*told)
    assert 0.1 < np.mean(told[0] < 0.61) < 0.3
    assert set(np.round(told[0], 2)) == {0.6, 1.0}
    assert np.array_equal(device.true_cycles(SPACE, drawn).cycles, plain)


def test_specifications() -> None:
    assert open_device("perturbed:paged:3").name == "perturbed:paged:3"
    assert open_device("perturbed:noisy").name == "perturbed:noisy:0"
    for spec, says in (("perturbed:nothing", "slow-memory"), ("perturbed:paged:x", "whole number")):
        with pytest.raises(DeviceError, match=says):
            open_device(spec)
    forms = [kind.form for kind in device_kinds().values()]
    assert forms[0] == "sim" and {"driver:PATH[?OPTION=N&...]", "log:FILE", "perturbed:KIND:SEED"} < set(forms)
    with pytest.raises(DeviceError, match=r"no device 'sim:1'.*There are: sim, .*driver:.*, perturbed:KIND:SEED"):
        open_device("sim:1")
    with pytest.raises(DeviceError, match="did you mean 'small-uop'"):
        open_device("perturbed:small_uop:1")
    with pytest.raises(DeviceError, match="short_strided_store"):
        custom(rule="nothing")
