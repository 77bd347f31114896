"""JSON and TOML from elsewhere, by the one reader of each and by those that use it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshot_ml2.common.errors import AcceleratorError, OneShotError
from oneshot_ml2.common.reading import DEEPEST, read_json, read_toml, whole_number
from oneshot_ml2.corpus import plan
from oneshot_ml2.evaluation import crosscheck, optimum
from oneshot_ml2.network import weights
from oneshot_ml2.network.card import read_card
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.log import Header, read_log
from oneshot_ml2.tuning.refine import read_compiled
from oneshot_ml2.vta import accelerator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.lists import read_layers

DEEP = "[" * 100_000 + "]" * 100_000


def refused(
    read: Callable[[Path], object], path: Path, content: str | bytes, error: type[OneShotError], says: str
) -> None:
    """Reading a file of such content fails in one line that names the file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (DEEP, "nested deeper"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested deeper"),
        ('{"a": ' + "9" * 5000 + "}", "a whole number of 5000 digits"),
        ('{"a": 18446744073709551616}', "a whole number of 20 digits"),
        ('{"a": 1e999}', "finite"),
        ('{"a": NaN}', "finite"),
        ('{"a": -Infinity}', "finite"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ("", "not JSON"),
        (b"\xff\xfe{}", "UTF-8"),
    ],
)
def test_json_that_is_refused(content: str | bytes, says: str, tmp_path: Path) -> None:
    refused(lambda path: read_json(path, AcceleratorError), tmp_path / "a.json", content, AcceleratorError, says)


def test_json_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = {"a": [1, -(1 << 63), (1 << 64) - 1, 0.5, "\U0001f600é", None, True], "b": {"a": {}}}
    path.write_text(json.dumps(values))
    assert read_json(path) == values
    path.write_text("[" * DEEPEST + "]" * DEEPEST)
    read_json(path)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(OneShotError, match="more than 64 MiB"):
        read_json("/dev/zero")
    with pytest.raises(OneShotError, match="more than 4 MiB"):
        read_toml("/dev/zero")
    with pytest.raises(OneShotError, match="cannot read"):
        read_json(tmp_path)
    with pytest.raises(OneShotError, match="cannot read"):
        read_json("a\0b")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = " + DEEP, "nested deeper"),
        ("x = 0x" + "f" * 5000, "a whole number of 20000 bits"),
        ("x = " + "9" * 5000, "not TOML"),
        ("x = inf", "finite"),
        ("x = nan", "finite"),
        ("x = 1e999", "finite"),
        ("a." * 50_000 + "a = 1", "dots"),
        (".".join("a" * 70) + " = 1", "nested deeper"),
        ("x = 1\nx = 2", "not TOML"),
        (b"x = '\xff'", "UTF-8"),
    ],
)
def test_toml_that_is_refused(content: str | bytes, says: str, tmp_path: Path) -> None:
    refused(read_toml, tmp_path / "a.toml", content, OneShotError, says)


@pytest.mark.parametrize(
    "read",
    [
        Accelerator.load, optimum.read_tasks, optimum.read_optima, crosscheck.crosscheck, read_log, read_layers,
        plan.read_plan, lambda path: read_compiled(path.parent),
    ],
)  # fmt: skip
@pytest.mark.parametrize("content", [DEEP, '{"a": ' + "9" * 5000 + "}", '{"a": NaN}', "x = 0x" + "f" * 5000])
def test_every_reader_uses_them(read: Callable[[Path], Any], content: str, tmp_path: Path) -> None:
    path = tmp_path / "schedules.json"
    path.write_text(content + "\n")
    with pytest.raises(OneShotError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [30_000_000_000, 1 << 62, -1, True, 15.0, "15", None])
@pytest.mark.parametrize(
    "key", ["LOG_UOP_BUFF_SIZE", "LOG_INP_BUFF_SIZE", "LOG_BLOCK", "ISA_UOP_INDEX_BITS", "UOP_DEPTH"]
)
def test_accelerators_are_checked_before_any_shift(key: str, value: Any) -> None:
    data = json.loads(Accelerator.load("pynq").to_json()) | {key: value}
    with pytest.raises(AcceleratorError, match=key):
        Accelerator.from_json(json.dumps(data))
    fields = {field: data[name] for name, (field, _, _) in accelerator._KEYS.items()}
    with pytest.raises(AcceleratorError, match=key):
        Accelerator(**fields)


@pytest.mark.parametrize("value", ["4", "text", 1.0, True, None, [1], 1 << 80])
def test_a_knob_is_a_whole_number(value: Any) -> None:
    space = ScheduleSpace(Dense(1, 64, 64), Accelerator.load("pynq"))
    knobs = dict(space.schedule(0).knobs)
    name = next(iter(knobs))
    with pytest.raises(OneShotError, match=f"knob {name} is"):
        space.index_of(Schedule("full", tuple((knobs | {name: value}).items())))


def test_cards_hold_figures(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    path.with_suffix(".json").write_text('{"tau": NaN}')
    assert math.isnan(read_card(path)["tau"])
    for content in (DEEP, '{"a": ' + "9" * 5000 + "}"):
        path.with_suffix(".json").write_text(content)
        with pytest.raises(OneShotError, match=r"some\.json"):
            read_card(path)


def test_whole_numbers() -> None:
    assert whole_number(3, "x", 0, 3) == 3
    for value in (True, 1.0, "1", None, 4, -1, 10**5000):
        with pytest.raises(ValueError, match="x is"):
            whole_number(value, "x", 0, 3)


def _optimum(**changes: Any) -> str:
    row = {"schema": 1, "task": "t", "workload": "w", "accelerator": "a", "count": 1, "version": "v", "size": 1}
    row |= {"timed": 1, "best": 1, "best_timed": 1, "best_index": 0, "bound_at_stop": 1, "closed": True, "seconds": 0.5}
    return json.dumps(row | {"sample_cycles": [1, -1]} | changes) + "\n"


@pytest.mark.parametrize(
    "changes",
    [{"best": 1.5}, {"best": True}, {"best": None}, {"closed": 1}, {"seconds": "1"}, {"seconds": -1.0}, {"task": 3},
     {"sample_cycles": 3}, {"sample_cycles": [0.5]}, {"best": -2}, {"sample_cycles": [[]]}],
)  # fmt: skip
def test_rows_of_optima_have_their_types(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text(_optimum())
    assert optimum.read_optima(path)["t"].best == 1
    path.write_text(_optimum(**changes))
    with pytest.raises(OneShotError, match="not a table of optima"):
        optimum.read_optima(path)
    path.write_text(_optimum() + _optimum(**changes))
    assert optimum.read_optima(path)["t"].best == 1
    assert "line 2 skipped" in capsys.readouterr().err


def _log(**changes: Any) -> str:
    chip, workload = Accelerator.load("pynq"), Dense(1, 64, 64)
    header = Header(workload, chip, "full", "random", 0, "sim", 10).to_dict()
    trial = {"trial": 0, "index": 3, "reason": "valid", "cycles": 100, "attempts": 1}
    head = {key: value for key, value in changes.items() if key in header}
    rest = {key: value for key, value in changes.items() if key not in header}
    return json.dumps(header | head) + "\n" + json.dumps(trial | rest) + "\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 1 << 40}, {"index": -1}, {"index": 3.0}, {"index": True}, {"index": "3"},
        {"cycles": 0}, {"cycles": 1e300},
        {"cycles": None}, {"cycles": 1 << 63}, {"cycles": 100.5}, {"reason": "hang"}, {"reason": []},
        {"attempts": 0.5},
        {"trial": True},
    ],
)  # fmt: skip
def test_values_of_trials(changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(_log())
    assert read_log(path).best == (3, 100)
    path.write_text(_log(**changes))
    assert len(read_log(path)) == 0
    assert "line 2 skipped" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"seed": 0.5}, {"batch": 0}, {"batch": "10"}, {"settings": 3}, {"space": "other"}])
def test_values_of_a_logs_header(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(_log(**changes))
    with pytest.raises(OneShotError) as caught:
        read_log(path)
    assert "\n" not in str(caught.value)


def test_a_log_cut_in_its_first_line_is_not_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(_log()[:100])
    with pytest.raises(OneShotError, match="cut short"):
        read_log(path)
    path.write_text("")
    with pytest.raises(OneShotError, match="empty"):
        read_log(path)


@pytest.mark.parametrize("card", [{"feature_version": 99}, {"samples": "many"}, {"settings": []}, [1]])
def test_a_card_that_is_not_that_of_the_weights(card: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.find_pretrained().read_bytes())
    assert Predictor.load(path).card == {}
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(OneShotError, match="card"):
        Predictor.load(path)
