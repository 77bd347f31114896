"""VTA's JSON in and out, the presets, and errors that say key, value and range."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_ml2.commands import accelerators as accelerators_command
from oneshot_ml2.common.errors import AcceleratorError, OneShotWarning
from oneshot_ml2.vta.accelerator import Accelerator, preset_names
from oneshot_ml2.vta.hls_keys import KEYS, HlsTiming

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
    assert chips["ultra96-hls"] == chips["zcu104-hls"]
    assert len(set(chips.values())) == len(chips) - 2


@pytest.mark.parametrize("board", ["pynq", "ultra96", "zcu104"])
def test_a_board_is_another_machine_by_design(board: str) -> None:
    rtl, hls = Accelerator.load(board), Accelerator.load(f"{board}-hls")
    assert (rtl.design, hls.design) == ("chisel", "hls")
    assert rtl != hls and rtl == dataclasses.replace(hls, hls=None)
    # What was written before there were designs is written as it was.
    assert not {"DESIGN", *KEYS} & set(json.loads(rtl.to_json()))
    assert {"DESIGN", *KEYS} <= set(json.loads(hls.to_json()))
    assert Accelerator.from_json(hls.to_json()) == hls


def test_a_slower_memory_is_the_latency_s_or_that_of_rows() -> None:
    rtl, hls = Accelerator.load("pynq"), Accelerator.load("pynq-hls")
    assert rtl.with_memory(2.5) == dataclasses.replace(rtl, memory_latency=40)
    assert rtl.with_memory(0.0).memory_latency == 1 and rtl.with_memory(1e6).memory_latency == 65535
    assert all(rtl.with_memory(latency / 16).memory_latency == latency for latency in range(1, 400))
    assert hls.hls is not None
    rows = {"read_row": round(2.5 * hls.hls.read_row), "store_row": round(2.5 * hls.hls.store_row)}
    assert hls.with_memory(2.5) == dataclasses.replace(hls, hls=dataclasses.replace(hls.hls, **rows))
    assert hls.hls.scaled({"wgt_beat": 0.0, "pad": 1e9}).to_keys() == hls.hls.to_keys() | {
        "HLS_WGT_BEAT": KEYS["HLS_WGT_BEAT"].low,
        "HLS_PAD": KEYS["HLS_PAD"].high,
    }


def test_the_hls_design_has_its_keys_at_their_defaults() -> None:
    chip = Accelerator.from_json(PUBLIC | {"DESIGN": "hls", "HLS_PAD": 170})
    assert chip.hls == HlsTiming(pad=170)
    assert "DESIGN" not in dict(chip.extra)
    explicit = Accelerator.from_json(PUBLIC | {"DESIGN": "chisel"})
    assert explicit.hls is None
    assert json.loads(explicit.to_json())["DESIGN"] == "chisel"
    assert explicit == Accelerator.from_json(PUBLIC)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"DESIGN": "opencl"}, "DESIGN is 'opencl'; allowed: 'chisel' or 'hls'"),
        ({"DESIGN": ["hls"]}, "DESIGN is ['hls']; allowed: 'chisel' or 'hls'"),
        ({"DESIGN": "hls", "HLS_PAD": -1}, "HLS_PAD is -1; allowed: an integer 0 to 100000 (1/100 cycle)"),
        ({"DESIGN": "hls", "HLS_CALL": 1.5}, "HLS_CALL is 1.5; allowed: an integer 0 to 1000000000 (ns)"),
        ({"DESIGN": "hls", "HLS_ALU_OP": True}, "HLS_ALU_OP is True; allowed: an integer 1 to 10000 (1/100 cycle)"),
        ({"HLS_PAD": 1}, 'HLS_PAD is of the HLS design; add "DESIGN": "hls", or leave it out'),
    ],
)
def test_a_bad_design_is_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(AcceleratorError, match=re.escape(f"mine: {says}")):
        Accelerator.from_json(PUBLIC | changes, "mine")


def test_a_file_of_an_hls_board_says_which_design_it_means(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(PUBLIC), encoding="utf-8")
    with pytest.warns(OneShotWarning, match=r"mine\.json: pynq boards run VTA's HLS design.*the preset pynq-hls"):
        assert Accelerator.load(path).hls is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Accelerator.load("pynq")
        # Plans and lists of tasks are of many machines.
        Accelerator.load(path, warn=False)
        for changes in ({"DESIGN": "chisel"}, {"DESIGN": "hls"}, {"TARGET": "sim"}, {"TARGET": ["pynq"]}):
            path.write_text(json.dumps(PUBLIC | changes), encoding="utf-8")
            Accelerator.load(path)


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
    ("changes", "says"),
    [
        ({"LOG_INP_WIDTH": 4}, "LOG_INP_WIDTH is 4; allowed: 3 to 3"),
        ({"LOG_WGT_WIDTH": 2}, "LOG_WGT_WIDTH is 2; allowed: 3 to 3"),
        ({"LOG_ACC_WIDTH": 4}, "LOG_ACC_WIDTH is 4; allowed: 5 to 5"),
        ({"LOG_BLOCK": 7}, "LOG_BLOCK is 7; allowed: 1 to 6"),
        ({"LOG_BATCH": -1}, "LOG_BATCH is -1; allowed: 0 to 6"),
        ({"LOG_BATCH": 5, "LOG_BLOCK": 6}, "LOG_BATCH is 5; allowed: 0 to 4 (an ACC element has at most 4096 bytes)"),
        ({"LOG_UOP_BUFF_SIZE": 16}, "LOG_UOP_BUFF_SIZE is 16; allowed: 4 to 15"),
        ({"LOG_UOP_BUFF_SIZE": 1}, "LOG_UOP_BUFF_SIZE is 1; allowed: 4 to 15"),
        ({"LOG_INP_BUFF_SIZE": 21}, "LOG_INP_BUFF_SIZE is 21; allowed: 5 to 20 (2 to 65536 elements"),
        ({"LOG_INP_BUFF_SIZE": 4}, "LOG_INP_BUFF_SIZE is 4; allowed: 5 to 20 (2 to 65536 elements"),
        ({"LOG_WGT_BUFF_SIZE": 25}, "LOG_WGT_BUFF_SIZE is 25; allowed: 9 to 24 (2 to 65536 elements"),
        ({"LOG_ACC_BUFF_SIZE": 18}, "LOG_ACC_BUFF_SIZE is 18; allowed: 7 to 17 (2 to 2048 elements"),
        (
            {"LOG_INP_BUFF_SIZE": 17},
            "LOG_INP_BUFF_SIZE is 17; allowed: 5 to 15; or LOG_WGT_BUFF_SIZE is 18; allowed: 9 to 16",
        ),
        (
            {"LOG_WGT_BUFF_SIZE": 19},
            "LOG_WGT_BUFF_SIZE is 19; allowed: 9 to 18; or LOG_ACC_BUFF_SIZE is 17; allowed: 7 to 16",
        ),
        ({"BUS_BITS": 32}, "BUS_BITS is 32; allowed: 64 to 512"),
        ({"BUS_BITS": 96}, "BUS_BITS is 96; allowed: 64, 128, 256 or 512"),
        ({"BURST_LEN_BITS": 9}, "BURST_LEN_BITS is 9; allowed: 1 to 8"),
        ({"MEMORY_LATENCY": 0}, "MEMORY_LATENCY is 0; allowed: 1 to 65535"),
        ({"INSTRUCTION_QUEUE": 1}, "INSTRUCTION_QUEUE is 1; allowed: 2 to 65536"),
        ({"CLOCK_MHZ": -5}, "CLOCK_MHZ is -5; allowed: 1 to 10000"),
        ({"UOP_DEPTH": 8193}, "UOP_DEPTH is 8193; allowed: 4 to 8192"),
        ({"UOP_DEPTH": 2048, "LOG_UOP_BUFF_SIZE": 12}, "UOP_DEPTH is 2048; allowed: 4 to 1024 (10 index bits)"),
        ({"ISA_UOP_INDEX_BITS": 14}, "ISA_UOP_INDEX_BITS is 14; allowed: 13 to 13"),
        ({"ISA_UOP_INDEX_BITS": 12}, "ISA_UOP_INDEX_BITS is 12; allowed: 13 to 13"),
        ({"ISA_INP_INDEX_BITS": 10}, "ISA_INP_INDEX_BITS is 10; allowed: 11 to 16"),
        ({"ISA_INP_INDEX_BITS": 17}, "ISA_INP_INDEX_BITS is 17; allowed: 11 to 16"),
        ({"ISA_WGT_INDEX_BITS": 9}, "ISA_WGT_INDEX_BITS is 9; allowed: 10 to 16"),
        ({"ISA_ACC_INDEX_BITS": 12}, "ISA_ACC_INDEX_BITS is 12; allowed: 11 to 11"),
        (
            {"ISA_INP_INDEX_BITS": 12},
            "ISA_INP_INDEX_BITS is 12; allowed: 11 to 11; or LOG_WGT_BUFF_SIZE is 18; allowed: 9 to 17",
        ),
        (
            {"ISA_INP_INDEX_BITS": 16, "ISA_WGT_INDEX_BITS": 16},
            "ISA_INP_INDEX_BITS is 16, ISA_WGT_INDEX_BITS is 16, LOG_ACC_BUFF_SIZE is 17; allowed: 32 bits in all",
        ),
    ],
)
def test_errors_name_value_and_range(changes: dict[str, int], says: str) -> None:
    with pytest.raises(AcceleratorError) as caught:
        Accelerator.from_json(PUBLIC | changes, name="mine")
    assert str(caught.value).startswith(f"mine: {says}")


def accepted(values: dict[str, int]) -> bool:
    """The limits of docs/hardware.md once more, with our at most 64 rows; the index widths are the SRAMs'."""
    batch, block = values["LOG_BATCH"], values["LOG_BLOCK"]
    u = values["LOG_UOP_BUFF_SIZE"] - 2
    i = values["LOG_INP_BUFF_SIZE"] - batch - block
    w = values["LOG_WGT_BUFF_SIZE"] - 2 * block
    a = values["LOG_ACC_BUFF_SIZE"] - batch - block - 2
    return (
        0 <= batch <= 6 and block >= 1
        and min(u - 1, i, w, a) >= 1 and max(i, w, a) <= 16
        and 8 + u + (u + 1) + 28 <= 64 and 4 * a + 20 <= 64
        and a + max(a, i) + w <= 32 and 2 * (a + i + w) <= 64
        and max(2 * block, batch + block + 2) <= 12
        and min(values["LOG_INP_BUFF_SIZE"], values["LOG_WGT_BUFF_SIZE"], values["LOG_ACC_BUFF_SIZE"]) >= 4
    )  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {
            "LOG_BATCH": st.integers(-1, 7),
            "LOG_BLOCK": st.integers(0, 7),
            "LOG_UOP_BUFF_SIZE": st.integers(2, 17),
            "LOG_INP_BUFF_SIZE": st.integers(3, 29),
            "LOG_WGT_BUFF_SIZE": st.integers(3, 29),
            "LOG_ACC_BUFF_SIZE": st.integers(3, 29),
        }
    )
)
def test_ranges_in_errors_hold(values: dict[str, int]) -> None:
    seen: set[str] = set()
    # Whatever an error asks for is enough to go on: each mend ends it, and the last one gives an accelerator.
    for _ in range(2 * len(values)):
        try:
            Accelerator.from_json(values)
        except AcceleratorError as error:
            message = str(error)
        else:
            assert accepted(values)
            return
        assert not accepted(values)
        assert message not in seen
        seen.add(message)
        ranges = re.findall(r"(LOG_\w+) is (-?\d+); allowed: (\d+) to (\d+)", message)
        assert ranges, message
        for key, value, low, high in ranges:
            assert int(value) == values[key]
            assert not int(low) <= int(value) <= int(high)
            if "micro-op" in message:
                assert accepted(values | {key: int(low)}) and accepted(values | {key: int(high)})
                assert not accepted(values | {key: int(high) + 1}) and not accepted(values | {key: int(low) - 1})
        key, value, low, high = ranges[0]
        values = values | {key: min(max(int(value), int(low)), int(high))}
    pytest.fail("the errors do not end")


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
    accelerators_command.add_arguments(parser)
    assert accelerators_command.run(parser.parse_args([])) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in preset_names())
    assert accelerators_command.run(parser.parse_args(["--json"])) == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(data) == preset_names()
    assert data["pynq"]["LOG_BLOCK"] == 4


def test_held_out_accelerators_are_unseen() -> None:
    sets = Path(__file__).parent.parent.parent / "datasets" / "accelerators"
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


def test_wide_accelerators_cover_what_is_legal_and_are_not_near_those_of_evaluation(monkeypatch) -> None:
    datasets = Path(__file__).parent.parent.parent / "datasets"
    monkeypatch.syspath_prepend(str(datasets))
    rules = importlib.import_module("make_accelerators")
    wide, wide_hls, held_out, outside, hls_held_out = (
        [Accelerator.load(path) for path in sorted((datasets / "accelerators" / name).glob("*.json"))]
        for name in ("wide", "wide-hls", "heldout", "outside", "heldout-hls")
    )
    boards = [Accelerator.load(name) for name in rules.BOARDS]
    rules.check_wide(wide, wide_hls, held_out + outside, hls_held_out + boards)
    for chips in (wide, wide_hls):
        places = np.array([rules.wide_place(chip) for chip in chips])
        # All but the largest INP and WGT SRAMs, which only fit an ISA with few accumulators.
        assert (places.min(axis=0) <= 0.1).all() and (places.max(axis=0) >= 0.85).all()
    rates = np.array([[getattr(chip.hls, name) for name in rules.RATES] for chip in wide_hls])
    assert (rates.min(axis=0) <= 10).all() and (rates.max(axis=0) >= 8_000).all()
