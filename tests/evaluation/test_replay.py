"""Replay of measured runs: equality on the shipped extracts, and refusal of damaged files."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from oneshot_ml2.commands import inspect as inspect_command
from oneshot_ml2.commands import replay as replay_command
from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.evaluation import replay
from oneshot_ml2.vta import isa, program
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Memory, Opcode

DATA = Path(__file__).parent.parent / "data"
FILES = sorted(DATA.glob("rtl_*.h5"))
KEYS = {
    "file",
    "runs",
    "cycles_equal",
    "traces_checked",
    "traces_equal",
    "memories_checked",
    "memories_equal",
    "max_relative_error",
    "cycles_per_second",
}


def command(module: object, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return module.run(parser.parse_args(arguments))  # type: ignore[attr-defined]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "rtl_pynq.h5", tmp_path / "runs.h5"))


def test_all_extracts_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(FILES) == 7
    assert command(replay_command, *map(str, FILES), "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    for entry in files:
        assert set(entry) == KEYS
        assert entry["cycles_equal"] == entry["runs"] > 0
        assert entry["traces_equal"] == entry["traces_checked"] == entry["runs"]
        assert entry["memories_equal"] == entry["memories_checked"]
        assert entry["max_relative_error"] == 0
    assert sum(entry["memories_checked"] for entry in files) > 50


def test_texts_may_have_lengths_of_their_own(copy: Path) -> None:
    expected = replay.read_runs(copy).dram_sha256
    with h5py.File(copy, "r+") as file:
        texts = [text.decode() for text in file["dram_sha256"][:]]
        del file["dram_sha256"]
        file.create_dataset("dram_sha256", data=texts, dtype=h5py.string_dtype())
    assert replay.read_runs(copy).dram_sha256 == expected


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(replay_command, str(FILES[0])) == 0
    assert FILES[0].name in capsys.readouterr().out


def test_differences_are_counted(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file["cycles"][0] *= 2
        file["trace"][0, 0] += 1
        sums = file["dram_sha256"][:]
        first = int(np.flatnonzero(sums != b"")[0])
        sums[first] = b"0" * 64
        file["dram_sha256"][:] = sums
    report = replay.replay(replay.read_runs(copy))
    assert report.cycles_equal == report.runs - 1
    assert report.traces_equal == report.traces_checked - 1
    assert report.memories_equal == report.memories_checked - 1
    assert report.max_relative_error == 0.5


def test_hang_flag_must_agree(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file["hang"][0] = 1
    report = replay.replay(replay.read_runs(copy))
    assert (report.cycles_equal, report.max_relative_error) == (report.runs - 1, 1.0)


def test_unpipelined_units_are_not_timed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(copy, "r+") as file:
        description = json.loads(file.attrs["accelerator"])
        file.attrs["accelerator"] = json.dumps(description | {"PIPELINED_GEMM": False})
    report = replay.replay(replay.read_runs(copy))
    assert report.status == "not modelled"
    assert (report.cycles_equal, report.traces_checked, report.cycles_per_second) == (0, 0, 0)
    assert command(replay_command, str(copy)) == 0
    assert "not modelled" in capsys.readouterr().out
    assert command(replay_command, str(copy), "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["status"] == "not modelled"


def test_damaged_files_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        replay.read_runs(tmp_path / "none.h5")
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes(copy.read_bytes()[:5000])
    with pytest.raises(CorpusError, match="not a readable HDF5"):
        replay.read_runs(truncated)
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    with pytest.raises(CorpusError, match="not a file of measured runs"):
        replay.read_runs(foreign)
    with h5py.File(copy, "r+") as file:
        file.attrs["schema"] = "other/1"
    with pytest.raises(CorpusError, match="other/1"):
        replay.read_runs(copy)


@pytest.mark.parametrize("column", ["insns", "cycles", "uop_offset"])
def test_missing_and_short_columns_are_refused(copy: Path, column: str) -> None:
    with h5py.File(copy, "r+") as file:
        values = file[column][:]
        del file[column]
    with pytest.raises(CorpusError, match=column):
        replay.read_runs(copy)
    with h5py.File(copy, "r+") as file:
        file[column] = values[:-1]
    with pytest.raises(CorpusError, match="complete"):
        replay.read_runs(copy)


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(inspect_command, str(DATA / "rtl_pynq.h5"), "--run", "0", "--timing") == 0
    text = capsys.readouterr().out
    assert "FINISH" in text and "cycles" in text
    runs = replay.read_runs(DATA / "rtl_pynq.h5")
    raw = tmp_path / "program.bin"
    raw.write_bytes(isa.to_bytes(isa.encode(runs.program(0), runs.accelerator)))
    assert command(inspect_command, str(raw), "--accelerator", "pynq", "--json") == 0
    assert json.loads(capsys.readouterr().out)["instructions"] == isa.disassemble(runs.program(0))


def test_inspect_says_what_is_missing(tmp_path: Path) -> None:
    raw = tmp_path / "program.bin"
    raw.write_bytes(b"x" * 17)
    with pytest.raises(OneShotError, match="--accelerator"):
        inspect_command.read_program(raw)
    with pytest.raises(OneShotError, match="multiple of 16"):
        inspect_command.read_program(raw, Accelerator.load("pynq"))
    with pytest.raises(OneShotError, match="--run 0"):
        inspect_command.read_program(DATA / "rtl_pynq.h5")
    with pytest.raises(OneShotError, match="cannot read"):
        inspect_command.read_program(tmp_path / "none")


def test_garbage_is_not_timed(tmp_path: Path) -> None:
    """Twelve loads of 65,535 rows of 65,535 weights each would take hours."""
    raw = tmp_path / "garbage.bin"
    pynq = Accelerator.load("pynq")
    load = [Opcode.LOAD, 0, Memory.WGT, 0, 0, 65535, 65535, 65535, 0, 0, 0, 0, 0, 0]
    raw.write_bytes(isa.to_bytes(isa.encode(program.insns_of([load] * 12), pynq)))
    began = time.perf_counter()
    with pytest.raises(OneShotError, match="bursts; timed are at most"):
        command(inspect_command, str(raw), "--accelerator", "pynq", "--timing")
    assert time.perf_counter() - began < 5
    assert command(inspect_command, str(raw), "--accelerator", "pynq") == 0


def test_runs_that_compute_for_years_are_refused(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        sums = file["dram_sha256"][:]
        run = int(np.flatnonzero(sums != b"")[0])
        insns = file["insns"][:]
        begin = int(file["insn_offset"][run])
        # A GEMM whose loops are all 0, which go around once: 2^14 x 2^14 x all micro-ops.
        insns[begin] = [2, *[0] * 15]
        file["insns"][...] = insns
    with pytest.raises(OneShotError, match=r"computes .* operations"):
        replay.replay(replay.read_runs(copy))


def test_a_stream_has_instructions(tmp_path: Path) -> None:
    raw = tmp_path / "program.bin"
    raw.write_bytes(b"")
    with pytest.raises(OneShotError, match="no instructions"):
        inspect_command.read_program(raw, Accelerator.load("pynq"))
    raw.write_bytes(bytes(16))
    with pytest.raises(OneShotError, match="--address"):
        command(inspect_command, str(raw), "--accelerator", "pynq", "--timing", "--address", "-16")
