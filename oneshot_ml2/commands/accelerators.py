"""List the shipped accelerators."""

from __future__ import annotations

import argparse
import json

from oneshot_ml2.vta.accelerator import Accelerator, preset_names

_COLUMNS = (
    "name",
    "batch x block",
    "UOP",
    "INP",
    "WGT",
    "ACC",
    "SRAM KiB",
    "bus bits",
    "burst beats",
    "latency",
    "MHz",
    "peak MACs/cycle",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``oneshot-ml2 accelerators``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, preset name -> VTA JSON")


def run(args: argparse.Namespace) -> int:
    """Print the presets: a table (SRAM depths in elements, latency in cycles), or with ``--json`` their full JSON."""
    chips = [Accelerator.load(name) for name in preset_names()]
    if args.json:
        print(json.dumps({chip.name: json.loads(chip.to_json()) for chip in chips}, indent=2))
        return 0
    rows = [_COLUMNS, *(_row(chip) for chip in chips)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        cells = (text.ljust(width) if i == 0 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths)))
        print("  ".join(cells).rstrip())
    print(
        "\nUOP, INP, WGT and ACC are depths in elements. "
        "Any accelerator, or the path of a VTA JSON, goes with --accelerator."
    )
    return 0


def _row(chip: Accelerator) -> tuple[str, ...]:
    sizes = (4 * chip.uop_depth, 1 << chip.log_inp_buff_size, 1 << chip.log_wgt_buff_size, 1 << chip.log_acc_buff_size)
    values = (
        chip.uop_depth,
        chip.inp_depth,
        chip.wgt_depth,
        chip.acc_depth,
        round(sum(sizes) / 1024),
        chip.bus_bits,
        chip.burst_beats,
        chip.memory_latency,
        chip.clock_mhz,
        chip.batch * chip.block**2,
    )
    return (chip.name, f"{chip.batch} x {chip.block}", *(f"{value:,}" for value in values))
