"""VTA's JSON in and out, the presets, and errors that say key, value and range."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from oneshot_ml2 import list_accelerators
from oneshot_ml2.accelerator import Accelerator, preset_names
from oneshot_ml2.errors import AcceleratorError

PUBLIC = {
    "TARGET": "pynq",
    "HW_VER": "0.0.2",
    "LOG_INP_WIDTH": 3,
    "LOG_WGT_WIDTH": 3,
    "LOG_ACC_WIDTH": 5,
    "LOG_BATCH": 0,
    "LOG_BLOCK": 4,
    "LOG_UOP_BUFF_SIZE": 15,
    "LOG_INP_BUFF_SIZE": 15,
    "LOG_WGT_BUFF_SIZE": 18,
    "LOG_ACC_BUFF_SIZE": 17,
}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_round_trips(name: str) -> None:
    chip = Accelerator.load(name)
    assert chip.name == name
    again = Accelerator.from_json(chip.to_json())
    assert again == chip
    assert hash(again) == hash(chip)
    assert again.extra == chip.extra


def test_presets_differ_and_have_the_named_shapes() -> None:
    chips = {name: Accelerator.load(name) for name in preset_names()}
    assert {"pynq", "ultra96", "zcu104", "de10nano", "b8", "b32", "b64", "b2x16", "b4x8", "half"} <= set(chips)
    assert chips["b4x8"].bitstream == "4x8_i8w8a32_15_16_16_18"
    assert chips["b32"].bitstream == "1x32_i8w8a32_15_16_20_18"
    assert chips["b64"].bitstream == "1x64_i8w8a32_15_17_22_19"
    assert chips["pynq"].bitstream == "1x16_i8w8a32_15_15_18_17"
    assert (chips["b2x16"].batch, chips["b2x16"].block) == (2, 16)
    assert chips["tsim"].uop_depth == 2048
    # The Zynq UltraScale+ boards are the same VTA.
    assert chips["ultra96"] == chips["zcu104"]
    assert len(set(chips.values())) == len(chips) - 1


def test_public_json_gives_the_derived_quantities() -> None:
    chip = Accelerator.from_json(json.dumps(PUBLIC))
    assert (chip.uop_depth, chip.inp_depth, chip.wgt_depth, chip.acc_depth) == (8192, 2048, 1024, 2048)
    assert (chip.inp_bytes, chip.wgt_bytes, chip.acc_bytes) == (16, 256, 64)
    assert (chip.isa_uop_bits, chip.isa_inp_bits, chip.isa_wgt_bits, chip.isa_acc_bits) == (13, 11, 10, 11)
    assert chip == Accelerator.load("pynq")


def test_unknown_keys_survive() -> None:
    text = json.dumps(PUBLIC | {"MY_NOTE": {"board": "mine", "rev": [1, 2]}})
    data = json.loads(Accelerator.from_json(text).to_json())
    assert data["MY_NOTE"] == {"board": "mine", "rev": [1, 2]}
    assert data["TARGET"] == "pynq"
    assert json.loads(Accelerator.from_json(json.dumps(data)).to_json()) == data


def test_target_selects_the_board_constants() -> None:
    chip = Accelerator.from_json(PUBLIC | {"TARGET": "ultra96"})
    assert (chip.clock_mhz, chip.bus_bits) == (333, 128)
    assert Accelerator.from_json(PUBLIC | {"TARGET": "ultra96", "BUS_BITS": 64}).bus_bits == 64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LOG_INP_WIDTH", 4),
        ("LOG_ACC_WIDTH", 4),
        ("LOG_BLOCK", 7),
        ("LOG_BATCH", -1),
        ("LOG_UOP_BUFF_SIZE", 16),
        ("LOG_INP_BUFF_SIZE", 17),
        ("LOG_WGT_BUFF_SIZE", 19),
        ("LOG_ACC_BUFF_SIZE", 18),
        ("BUS_BITS", 96),
        ("BURST_LEN_BITS", 9),
        ("MEMORY_LATENCY", 0),
        ("INSTRUCTION_QUEUE", 1),
        ("UOP_DEPTH", 8193),
    ],
)
def test_errors_name_value_and_range(key: str, value: int) -> None:
    with pytest.raises(AcceleratorError, match=r"is -?\d+; allowed: ") as caught:
        Accelerator.from_json(PUBLIC | {key: value}, name="mine")
    message = str(caught.value)
    assert message.startswith("mine: ")
    if key not in ("LOG_INP_BUFF_SIZE", "LOG_WGT_BUFF_SIZE", "LOG_ACC_BUFF_SIZE"):
        assert f"{key} is {value}" in message


@pytest.mark.parametrize("value", ["15", 15.0, True, None])
def test_values_must_be_integers(value: object) -> None:
    with pytest.raises(AcceleratorError, match=r"LOG_INP_BUFF_SIZE is .*; allowed: an integer"):
        Accelerator.from_json(PUBLIC | {"LOG_INP_BUFF_SIZE": value})


def test_broken_json() -> None:
    with pytest.raises(AcceleratorError, match="not JSON"):
        Accelerator.from_json('{"LOG_BLOCK": 4,')
    with pytest.raises(AcceleratorError, match="expected a JSON object"):
        Accelerator.from_json("[1, 2]")
    with pytest.raises(AcceleratorError, match="missing LOG_BATCH"):
        Accelerator.from_json({"LOG_BLOCK": 4})


def test_load_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(PUBLIC), encoding="utf-8")
    assert Accelerator.load(path).name == "mine"
    assert Accelerator.load(str(path)) == Accelerator.load("pynq")
    with pytest.raises(AcceleratorError, match="cannot read"):
        Accelerator.load(tmp_path / "absent.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AcceleratorError, match="cannot read"):
        Accelerator.load(path)


def test_unknown_preset_names_the_closest() -> None:
    with pytest.raises(AcceleratorError, match="did you mean 'pynq'") as caught:
        Accelerator.load("pinq")
    assert "zcu104" in str(caught.value)


def test_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    list_accelerators.add_arguments(parser)
    assert list_accelerators.run(parser.parse_args([])) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in preset_names())
    assert list_accelerators.run(parser.parse_args(["--json"])) == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(data) == preset_names()
    assert data["pynq"]["LOG_BLOCK"] == 4


def test_held_out_accelerators_are_unseen() -> None:
    sets = Path(__file__).parent.parent / "datasets" / "accelerators"
    training, held_out = (
        [Accelerator.load(path) for path in sorted((sets / name).glob("*.json"))] for name in ("train", "heldout")
    )
    assert len(set(training)) == len(training) >= 24
    assert len(set(held_out)) == len(held_out) >= 8
    assert {Accelerator.load(name) for name in ("pynq", "ultra96", "zcu104", "de10nano")} <= set(training)
    fields = ("log_block", "log_batch", "bus_bits", "burst_len_bits", "memory_latency")
    srams = ("log_uop_buff_size", "log_inp_buff_size", "log_wgt_buff_size", "log_acc_buff_size")
    for chip in held_out:
        for other in training:
            differing = sum(getattr(chip, field) != getattr(other, field) for field in fields)
            differing += any(getattr(chip, field) != getattr(other, field) for field in srams)
            assert differing >= 2
    trained = {(chip.block, chip.batch, chip.bus_bits) for chip in training}
    assert 3 * sum((chip.block, chip.batch, chip.bus_bits) not in trained for chip in held_out) >= len(held_out)
