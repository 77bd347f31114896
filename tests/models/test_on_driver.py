"""Compiled models through VTA's driver interface: what the simulator gives, whatever the library does meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCommand
from drivers import library
from graph_models import SMALL_SHAPE, example, needs, save_small_net
from numpy.typing import NDArray
from servers import running, server

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.raw import CRASH, HANG, NO_RESULT, TIMED_OUT, WRONG, Options
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.models import executable
from oneshot_ml2.models.compile import compile as compile_model
from oneshot_ml2.vta.accelerator import Accelerator

needs("tvm", "onnx")

PYNQ = Accelerator.load("pynq")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_net(tmp_path_factory.mktemp("models") / "build")


def results(folder: Path, device: DriverDevice | None, seed: int = 0) -> dict[str, NDArray[Any]]:
    model = executable.load(folder)
    model.device = device
    rng = np.random.default_rng(seed)
    return model.run(
        {
            one.name: rng.standard_normal(one.shape, dtype=np.float32)
            if one.limit is None
            else rng.integers(0, one.limit, one.shape).astype(np.float32)
            for one in model.inputs
        }
    )


def test_run_gives_on_a_driver_what_it_gives_on_the_simulator(
    run_command: RunCommand, build: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", example(SMALL_SHAPE, 5))
    for name, spec in (("sim", "sim"), ("driver", f"driver:{library(PYNQ)}?limit=10&check=1")):
        out = tmp_path / f"{name}.npy"
        code, text, err = run_command("run", build, "--input", tmp_path / "x.npy", "--output", out, "--device", spec)
        assert code == 0, err
    assert np.array_equal(np.load(tmp_path / "sim.npy"), np.load(tmp_path / "driver.npy"))
    assert "driver:" in text
    assert "an empty run takes" in err
    # And back: what a device has run says nothing of the next run.
    code, text, _ = run_command("run", build, "--input", tmp_path / "x.npy", "--device", "sim")
    assert code == 0
    assert "(simulated)" in text


@pytest.mark.parametrize("options", [{"largest": 1 << 15}, {"flush": True}])
def test_a_model_in_pieces_of_memory(build: Path, options: dict[str, Any]) -> None:
    device = DriverDevice(library(PYNQ), Options(limit=10, **options))
    (found,), (expected,) = results(build, device).values(), results(build, None).values()
    assert np.array_equal(found, expected)
    device.close()


@pytest.mark.parametrize(
    ("fault", "kind"), [("hang", HANG), ("crash", CRASH), ("wrong", WRONG), ("stale", NO_RESULT), ("token", TIMED_OUT)]
)
def test_a_model_on_a_device_that_fails_in_every_fifth_run(
    build: Path, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str
) -> None:
    monkeypatch.setenv("VTA_FAULT", f"{fault}/5")
    device = DriverDevice(library(PYNQ), Options(limit=1.0, check=True))
    for seed in range(6):
        (found,), (expected,) = results(build, device, seed).values(), results(build, None, seed).values()
        assert np.array_equal(found, expected)
    assert set(device.faults) == {kind}
    device.close()


def test_a_device_that_always_fails_ends_the_run_with_a_word(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = DriverDevice(library(PYNQ), Options(limit=1.0, retries=1))
    device.measure_empty()
    device.close()
    monkeypatch.setenv("VTA_FAULT", "crash/1")
    with pytest.raises(DeviceError, match="failed 2 times, the last: crash: its process died of SIGABRT"):
        results(build, device)


def test_a_library_for_another_accelerator_does_not_run_a_model(build: Path) -> None:
    device = DriverDevice(library(Accelerator.load("b8")), Options(limit=10))
    with pytest.raises(DeviceError, match="is built for 1x8"):
        results(build, device)
    device.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("squeezenet", 64), ("mobilenet_v2", 64), ("bert_tiny", 32), ("vit_tiny", 64)],
)
def test_models_of_the_zoo(tmp_path: Path, name: str, size: int) -> None:
    compile_model(name, PYNQ, size=size).save(tmp_path / "build")
    device = DriverDevice(library(PYNQ), Options(limit=60, retries=0))
    found, expected = results(tmp_path / "build", device), results(tmp_path / "build", None)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in found)
    assert not device.faults
    device.close()


def test_a_model_runs_on_a_server_and_on_the_first_of_several(build: Path) -> None:
    expected = results(build, None)
    with running([server(PYNQ)], VTA_FAULT="crash/7") as one, running([server(PYNQ)]) as other:
        for spec in (one.spec("check=1"), f"{one.spec()},{other.spec()}"):
            device = open_device(spec)
            found = results(build, device)  # type: ignore[arg-type]
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
            device.close()  # type: ignore[attr-defined]
