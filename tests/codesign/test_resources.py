"""What accelerators take: held against builds that were published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshot_ml2.codesign.fpga import FPGAS, load_fpga
from oneshot_ml2.codesign.resources import (
    Overhead,
    blocks_of,
    budget_of,
    calibrated,
    memories,
    resources_of,
)
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.accelerator import Accelerator

PYNQ = Accelerator.load("pynq-hls")
ULTRA = PYNQ.with_srams(15, 14, 17, 17)


def test_the_pynq_build() -> None:
    """1x16 with 8 bits on an xc7z020: 231 BRAM18, 220 DSP blocks (all there are), 19,058 LUTs."""
    taken = resources_of(PYNQ, FPGAS["xc7z020"])
    assert taken.sram == 108.5
    assert taken.bram36 == pytest.approx(115.5, rel=0.10)
    assert taken.dsp == 220
    assert taken.lut == pytest.approx(19_058, rel=0.30)


def test_a_build_with_narrow_numbers() -> None:
    """1x16 with inputs and weights of 4 bits on an xczu3eg: 186 BRAM18, 268 DSP blocks, 20,187 LUTs."""
    taken = resources_of(ULTRA, FPGAS["xczu3eg"], widths=(4, 4, 32))
    assert taken.sram == 73.0
    assert taken.bram36 == pytest.approx(93.0, rel=0.10)
    assert taken.dsp == 268
    assert taken.lut == pytest.approx(20_187, rel=0.30)


def test_blocks_of_memory_in_their_cheapest_shape() -> None:
    shapes = FPGAS["xc7z020"].shapes
    assert blocks_of(2048, 128, shapes) == 15
    assert blocks_of(512, 36, shapes) == 1
    assert blocks_of(513, 36, shapes) == 2
    assert blocks_of(8192, 32, shapes) == 16
    assert blocks_of(1, 1, shapes) == 1


def test_memories_are_those_of_the_accelerator() -> None:
    found = memories(PYNQ)
    assert found == {"uop": (8192, 32), "inp": (2048, 128), "wgt": (1024, 2048), "acc": (2048, 512), "out": (2048, 128)}
    assert memories(PYNQ, (4, 4, 32))["wgt"] == (2048, 1024)


def test_products_beyond_the_dsp_blocks_are_built_of_luts() -> None:
    small, large = FPGAS["xc7z020"], FPGAS["xczu7ev"]
    wide = Accelerator.load("b32")
    assert resources_of(wide, large).dsp == 32 * 32 + 12
    assert resources_of(wide, small).dsp == small.dsp
    assert resources_of(wide, small).lut > resources_of(wide, large).lut


def test_more_of_anything_takes_no_less() -> None:
    fpga = FPGAS["xczu7ev"]
    before = resources_of(PYNQ, fpga)
    for sizes in ((15, 15, 17, 17), (15, 14, 18, 17), (14, 15, 18, 17), (15, 15, 18, 16)):
        less = resources_of(PYNQ.with_srams(*sizes), fpga)
        assert less.bram36 < before.bram36 and less.dsp == before.dsp


def test_a_block_of_intel_is_smaller() -> None:
    taken = resources_of(PYNQ, FPGAS["5cseba6"])
    # Of the Cyclone V's 557 blocks of 10 Kb.
    assert 100 < taken.bram36 < FPGAS["5cseba6"].bram36
    assert taken.dsp == 90


def test_budgets() -> None:
    fpga = FPGAS["xc7z020"]
    taken = resources_of(PYNQ, fpga)
    assert budget_of(fpga).holds(PYNQ, taken)
    assert not budget_of(fpga, max_bram=100).holds(PYNQ, taken)
    assert not budget_of(fpga, max_dsp=200).holds(PYNQ, taken)
    assert not budget_of(fpga).holds(Accelerator.load("ultra96"), taken), "a bus of 128 bits"
    for limits in ({"max_bram": 0.0}, {"max_bram": 141.0}, {"max_dsp": 0}, {"max_dsp": 221}):
        with pytest.raises(OneShotError, match="xc7z020 has"):
            budget_of(fpga, **limits)  # type: ignore[arg-type]


def test_clocks_say_where_they_are_from() -> None:
    fpga = FPGAS["xc7z020"]
    assert fpga.clock_of(16).mhz == fpga.clock_of(4).mhz == 100
    assert "missed timing" in fpga.clock_of(16).source
    assert fpga.clock_of(32).source.startswith("assumed")
    assert all(clock.source for device in FPGAS.values() for clock in device.clocks)


def test_an_fpga_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"lut": 1000, "dsp": 20, "bram36": 30, "bus_bits": 64, "clock_mhz": 50}))
    mine = load_fpga(path)
    assert (mine.name, mine.lut, mine.dsp, mine.bram36, mine.bus_bits) == ("mine", 1000, 20, 30, 64)
    assert mine.clock_of(64).mhz == 50


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "{",
        '{"lut": 1, "dsp": 1}',
        '{"lut": 1, "dsp": 1, "bram36": 1, "ram": 2}',
        '{"lut": true, "dsp": 1, "bram36": 1}',
        '{"lut": 1, "dsp": -1, "bram36": 1}',
        '{"lut": 1, "dsp": 1, "bram36": 1, "memory": "uram"}',
    ],
)
def test_bad_files_of_fpgas(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(OneShotError, match=r"mine\.json"):
        load_fpga(path)


def test_an_unknown_fpga_names_those_there_are() -> None:
    with pytest.raises(OneShotError, match="xc7z020"):
        load_fpga("xc7z02")


def test_ones_own_builds_calibrate(tmp_path: Path) -> None:
    path = tmp_path / "builds.json"
    chip = json.loads(PYNQ.to_json())
    small = json.loads(PYNQ.with_srams(15, 14, 17, 16).to_json())
    fpga = FPGAS["xc7z020"]
    bare = [resources_of(c, fpga, Overhead(bram36=0, lut=0)) for c in (PYNQ, PYNQ.with_srams(15, 14, 17, 16))]
    builds: list[dict[str, Any]] = [
        {"accelerator": chip, "fpga": "xc7z020", "bram36": bare[0].bram36 + 10, "lut": bare[0].lut + 9000},
        {"accelerator": small, "fpga": "xc7z020", "bram36": bare[1].bram36 + 12},
    ]
    path.write_text(json.dumps(builds))
    found = calibrated(path)
    assert found.bram36 == pytest.approx(11) and found.lut == pytest.approx(9000)
    assert found.bram36_margin == found.lut_margin == 0.05
    assert resources_of(PYNQ, fpga, found).bram36 == pytest.approx(bare[0].bram36 + 11)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "[1]", '[{"accelerator": {}}]', '[{"accelerator": 3, "bram36": 1}]'],
)
def test_bad_builds(content: str, tmp_path: Path) -> None:
    path = tmp_path / "builds.json"
    path.write_text(content)
    with pytest.raises(OneShotError, match=r"builds\.json"):
        calibrated(path)


def test_a_build_without_figures(tmp_path: Path) -> None:
    path = tmp_path / "builds.json"
    path.write_text(json.dumps([{"accelerator": json.loads(PYNQ.to_json()), "fpga": "xc7z020"}]))
    with pytest.raises(OneShotError, match="build 1: neither bram36 nor lut"):
        calibrated(path)
