"""`oneshot-ml2 driver build`: libraries from the shipped sources, and what is said when there can be none."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import RunCommand
from drivers import needs_compiler

from oneshot_ml2.devices.build import BACKENDS, board_of, config_header
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.vta.accelerator import Accelerator


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chip", ["pynq", "de10nano"])
def test_every_backend_is_built(run_command: RunCommand, tmp_path: Path, backend: str, chip: str) -> None:
    needs_compiler()
    out = tmp_path / "libvta.so"
    code, text, err = run_command("driver", "build", "--backend", backend, "--accelerator", chip, "-o", out)
    assert code == 0, err
    assert f"--device driver:{out}" in text
    assert out.stat().st_size > 1000
    if backend == "sim":
        one = DriverDevice(out)
        assert 0 < one.measure_empty() < 1
        one.check_accelerator(Accelerator.load(chip))
        one.close()
    else:
        assert {"pynq": "hls design at 0x43c00000", "de10nano": "chisel design at 0xff220000"}[chip] in text


def test_addresses_of_64_bits_and_registers_of_ones_own(run_command: RunCommand, tmp_path: Path) -> None:
    needs_compiler()
    out = tmp_path / "libvta.so"
    code, text, _ = run_command(
        "driver", "build", "--backend", "udmabuf", "--64", "--registers", "0xA0010000", "--design", "chisel", "-o", out
    )
    assert code == 0
    assert "chisel design at 0xa0010000" in text
    assert f"driver:{out}?address=64" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--backend", "udmabf"), "did you mean 'udmabuf'"),
        (("--backend", "sim", "--cc", "no-such-gcc -O2"), "no C compiler 'no-such-gcc -O2'; install it"),
        (("--backend", "sim", "--cc", "false"), "false cannot build it"),
        (("--backend", "xrt", "--registers", "0x43c00010"), "a multiple of 4096"),
        (("--backend", "xrt", "--registers", "here"), "a multiple of 4096"),
        (("--backend", "sim", "--accelerator", "pynk"), "did you mean 'pynq'"),
        (("--backend", "sim", "-o", "no/such/folder/libvta.so"), "no folder"),
    ],
)
def test_what_cannot_be_built_is_told(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_command("driver", "build", *arguments)
    assert code == 2
    assert says in err
    assert not list(tmp_path.iterdir())


def test_the_header_has_the_fields_of_the_spill_case() -> None:
    # Small SRAMs: the first factor is in the first word, as in VTA's own header.
    text = config_header(Accelerator(0, 4, 12, 12, 13, 13))
    assert "#define VTA_GEMM_DST_FACTOR_OUT_LOW 57\n" in text
    assert "#define VTA_GEMM_DST_FACTOR_IN_LOW 64\n" in text
    assert board_of(Accelerator.load("zcu104")).base == 0xA0000000
