"""What the doctor finds of a device's time, on boards that play a design with parameters of their own."""

from __future__ import annotations

import dataclasses
import json

import pytest
from played_board import PlayedBoard

from oneshot_ml2.devices.doctor.examine import Report, examine
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import RIGHT, SLOW
from oneshot_ml2.vta.hls_keys import RATES, HlsTiming

PYNQ = Accelerator.load("pynq-hls")
# Unlike the presets, and unlike one another.
MACHINES = [
    HlsTiming(read_row=6100, store_row=3900, wgt_beat=190, alu_op=230, load_start=300, compute_start=1900,
              store_start=200, pad=300, submission=9000),
    HlsTiming(read_row=3700, store_row=7100, wgt_beat=260, alu_op=150, load_start=2100, compute_start=900,
              store_start=3000, pad=900, submission=21_000),
]  # fmt: skip


def examined(chip: Accelerator, played: Accelerator, submission: float, counts: bool, noise: float = 0.0) -> Report:
    return examine(PlayedBoard(played, submission, counts, noise), "played", chip, shown=False)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("machine", MACHINES)
def test_parameters_of_the_hls_design_are_found(machine: HlsTiming, counts: bool) -> None:
    played = dataclasses.replace(PYNQ, hls=machine)
    noise = 0.0 if counts else 0.002
    report = examined(PYNQ, played, machine.submission * 1e-9, counts, noise)
    assert report.healthy and report.chip.hls is not None
    for name in (*RATES, "submission"):
        assert getattr(report.chip.hls, name) == pytest.approx(getattr(machine, name), rel=0.05), name
    told = json.loads(report.chip.to_json())["BOARD"]
    assert told["timing"]["HLS_READ_ROW"]["value"] == report.chip.hls.read_row
    assert told["timing_deviation"] < 0.01


def test_parameters_of_the_chisel_design_are_found() -> None:
    chip = Accelerator.load("de10nano")
    for latency, burst in ((40, 4), (9, 6)):
        played = dataclasses.replace(chip, memory_latency=latency, burst_len_bits=burst)
        report = examined(chip, played, 12e-6, counts=False)
        assert report.healthy
        assert (report.chip.memory_latency, report.chip.burst_len_bits) == (latency, burst)
        assert report.findings["time_submission"].sentence.startswith("12.0 us")


def test_what_is_slow_is_called_slow() -> None:
    assert PYNQ.hls is not None
    played = dataclasses.replace(PYNQ, hls=dataclasses.replace(PYNQ.hls, alu_op=2 * PYNQ.hls.alu_op))
    report = examined(PYNQ, played, 7e-6, counts=True)
    assert report.findings["time_alu"].verdict == SLOW and report.findings["time_gemm"].verdict == RIGHT
    assert report.healthy
