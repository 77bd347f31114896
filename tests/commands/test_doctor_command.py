"""`oneshot-ml2 doctor`: its table, its file, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import RunCommand
from drivers import library

from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import FEATURES

PYNQ = Accelerator.load("pynq")


def test_a_broken_device_ends_with_one_and_leaves_a_file(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VTA_BROKEN", "outer-weight")
    out = tmp_path / "board.json"
    words = ("doctor", "--device", f"driver:{library(PYNQ)}", "-o", str(out), "--no-times", "--json", "--soak", "1s")
    code, stdout, _ = run_command(*words)
    told = json.loads(stdout)
    assert code == 1
    assert [one["feature"] for one in told["findings"] if one["verdict"] == "wrong"] == ["gemm_outer_wgt"]
    assert told["soak"]["difference"] is None
    assert told["accelerator"] == json.loads(out.read_text())
    known = Accelerator.load(out).board
    assert known is not None and known.avoided == ("gemm_outer_wgt",)


def test_its_list_asks_no_device(run_command: RunCommand) -> None:
    code, stdout, _ = run_command("doctor", "--list")
    assert code == 0 and all(name in stdout for name in FEATURES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "sim"), "gives no access to its memory"),
        (("--device", "sim", "--soak", "ten"), "--soak is 'ten'"),
        (("--device", "driver:/nowhere.so"), "no library"),
    ],
)
def test_what_it_cannot_do_is_an_error(run_command: RunCommand, words: tuple[str, ...], message: str) -> None:
    code, _, stderr = run_command("doctor", *words)
    assert code == 2 and message in stderr and len(stderr.strip().splitlines()) == 1
