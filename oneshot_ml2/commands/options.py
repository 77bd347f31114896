"""What several commands' options and help texts have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import listing
from oneshot_ml2.devices.base import Device, close, notes
from oneshot_ml2.devices.build import DESIGNS, Board, board_of
from oneshot_ml2.devices.registry import device_kinds
from oneshot_ml2.vta.accelerator import Accelerator


def add_device(parser: argparse.ArgumentParser, does: str, required: bool = False) -> None:
    """``--device SPEC`` (default ``sim``, unless it is required), and at the end of the help the devices there are."""
    forms = ", or ".join(kind.form for kind in device_kinds().values())
    if required:
        parser.add_argument("--device", required=True, metavar="SPEC", help=f"{does}: {forms}")
    else:
        parser.add_argument("--device", default="sim", metavar="SPEC", help=f"{does}: {forms} (default sim)")
    add_listing(parser, "devices", {kind.form: kind.help for kind in device_kinds().values()})


def add_building(parser: argparse.ArgumentParser) -> None:
    """What C sources are compiled for, and with what; `building` reads it."""
    parser.add_argument("--accelerator", default="pynq", metavar="NAME", help="preset or VTA JSON (default pynq)")
    parser.add_argument(
        "--cc", metavar="CC", help="C compiler and options, e.g. arm-linux-gnueabihf-gcc (default: this machine's)"
    )
    parser.add_argument(
        "--design", choices=DESIGNS, help="whose registers a board has (default: as the accelerator's TARGET)"
    )
    parser.add_argument("--registers", metavar="ADDRESS", help="where they begin, e.g. 0x43C00000 (default: as TARGET)")
    parser.add_argument("--64", dest="wide", action="store_true", help="physical addresses of 64 bits")


def building(args: argparse.Namespace, chip: Accelerator) -> tuple[Board, list[str]]:
    """The board, and options for the compiler.

    Raises:
        OneShotError: no such address of registers.
    """
    board = board_of(chip)
    try:
        base = board.base if args.registers is None else int(args.registers, 0)
    except ValueError:
        base = -1
    if base < 0 or base % 4096:
        raise OneShotError(f"--registers is {args.registers}; allowed: an address at a multiple of 4096")
    return replace(board, design=args.design or board.design, base=base), ["-DUSE_VTA64"] if args.wide else []


def finish(device: Device) -> None:
    """What a device says of what it did, on stderr; and give it back."""
    for line in notes(device):
        print(line, file=sys.stderr)
    close(device)


def add_listing(parser: argparse.ArgumentParser, title: str, entries: Mapping[str, str]) -> None:
    """Names and what each stands for, at the end of a command's help."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n\n".join([*filter(None, [parser.epilog]), f"{title}:\n{listing(entries)}"])
