"""What runs on a device took, in print, as JSON and on the report's page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCommand
from drivers import library
from graph_models import SMALL_SHAPE, example, needs, save_small_net

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import page
from oneshot_ml2.vta.accelerator import Accelerator

needs("tvm", "onnx")

PYNQ = Accelerator.load("pynq")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_net(tmp_path_factory.mktemp("measured") / "build")


def data_of(path: Path) -> dict[str, object]:
    text = path.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0]
    data = json.loads(text)
    assert isinstance(data, dict)
    return data


def test_a_run_on_a_device_tells_what_it_took(run_command: RunCommand, build: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.repeat(example(SMALL_SHAPE, 5), 3, 0))
    html, spec = tmp_path / "page.html", f"driver:{library(PYNQ)}?limit=10"
    given = ("run", build, "--input", tmp_path / "x.npy", "--device", spec)
    code, text, err = run_command(*given, "--html", html)
    assert code == 0, err
    assert text.splitlines()[-1].startswith("VTA ")
    code, text, err = run_command(*given, "--json")
    assert code == 0, err
    found = json.loads(text)["measured"]
    assert found["device"] == spec
    assert found["runs"] == 3
    (one,) = found["submissions"]
    report = json.loads((build / "report.json").read_text())
    assert one["predicted_ms"] == pytest.approx(report["submissions"][0]["cycles"] / 1e5)
    assert one["measured_ms"] > 0
    assert found["host_ms"] > 0
    # The page is the model's, and that.
    before, after = data_of(build / "report.html"), data_of(html)
    measured = after.pop("measured")
    assert after == before
    assert isinstance(measured, dict)
    assert measured["device"] == spec


def test_without_a_device_there_is_nothing_to_show(run_command: RunCommand, build: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", example(SMALL_SHAPE, 5))
    code, _, err = run_command("run", build, "--input", tmp_path / "x.npy", "--html", tmp_path / "p.html")
    assert code == 2
    assert "name it with --device driver:PATH" in err
    code, text, _ = run_command("run", build, "--input", tmp_path / "x.npy")
    assert code == 0
    assert "host" not in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no data"),
        ('<script type="application/json" id="data">{</script>', "report page"),
        ('<script type="application/json" id="data">[]</script>', "it has no submissions"),
        ('<script type="application/json" id="data">{"submissions": []}</script>', "other submissions"),
    ],
)
def test_a_damaged_page_is_refused(text: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        page.with_measured(text, {"submissions": [{}]})
