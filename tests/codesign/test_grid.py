"""The grid: every member legal, none twice, and enough of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneshot_ml2.codesign.grid import default_grid, legal, members, name_of, read_grid
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator


@pytest.mark.parametrize("design", DESIGNS)
def test_the_default_grid(design: str) -> None:
    grid = default_grid(design)
    assert len(grid) >= 20_000
    assert len(set(grid)) == len(grid) == len({chip.name for chip in grid})
    assert all(chip.design == design for chip in grid)
    assert all(legal(chip) for chip in grid)
    stock = Accelerator.load("pynq-hls" if design == "hls" else "pynq")
    sizes = (15, 15, 18, 17) if design == "hls" else (13, 15, 18, 17)
    assert name_of(stock.with_srams(*sizes)) in {chip.name for chip in grid}


def test_the_hls_design_has_as_many_inputs_as_accumulators() -> None:
    lists = {"block": (4,), "batch": (0, 1), "bus": (6, 7), "uop": (10,), "inp": (8, 9), "wgt": (7,), "acc": ()}
    grid = list(members("hls", lists))
    assert len(grid) == 8
    assert all(chip.inp_depth == chip.acc_depth and 8 * chip.inp_bytes >= chip.bus_bits for chip in grid)
    wide = Accelerator.load("pynq-hls").with_srams(15, 14, 18, 17)
    assert not legal(wide)
    assert legal(Accelerator.load("pynq").with_srams(15, 14, 18, 17))


def test_a_grid_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"LOG_WGT_BUFF_SIZE": [16, 17, 18], "LOG_INP_BUFF_SIZE": 15, "LOG_BLOCK": [4, 5]}))
    found = read_grid(path, "chisel")
    assert sorted((chip.log_block, chip.log_wgt_buff_size) for chip in found) == [
        (4, 16), (4, 17), (4, 18), (5, 16), (5, 17), (5, 18),
    ]  # fmt: skip
    path.write_text(json.dumps({"LOG_INP_BUFF_SIZE": [14, 15]}))
    assert [(chip.design, chip.log_inp_buff_size) for chip in read_grid(path, "hls")] == [("hls", 15)]
    path.write_text(json.dumps([json.loads(Accelerator.load(name).to_json()) for name in ("pynq", "b8", "pynq")]))
    assert read_grid(path, "chisel") == [Accelerator.load("pynq"), Accelerator.load("b8")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("3", "expected an object"),
        ('{"LOG_BLOK": 4}', "unknown LOG_BLOK"),
        ('{"LOG_BLOCK": ["x"]}', "LOG_BLOCK"),
        ('{"LOG_BLOCK": []}', "no legal accelerator"),
        ('{"LOG_BLOCK": 60}', "no legal accelerator"),
        ("[]", "no legal accelerator"),
        ("[1]", "grid.json"),
        ('[{"LOG_BLOCK": 4}]', "missing"),
    ],
)
def test_bad_grids(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(content)
    with pytest.raises(OneShotError, match=told):
        read_grid(path, "hls")


def test_an_unknown_design() -> None:
    with pytest.raises(OneShotError, match="chisel, hls"):
        default_grid("opencl")
