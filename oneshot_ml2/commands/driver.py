"""Build a VTA driver library: a simulator, or the code for a board."""

from __future__ import annotations

import argparse
from dataclasses import replace

from oneshot_ml2.commands.options import add_listing
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.devices.build import BACKENDS, DESIGNS, board_of, build, configuration
from oneshot_ml2.vta.accelerator import Accelerator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 driver``."""
    parser.add_argument("action", choices=("build",), help="what to do")
    parser.add_argument("--backend", required=True, metavar="NAME", help="what the library is for, see below")
    parser.add_argument("--accelerator", default="pynq", metavar="NAME", help="preset or VTA JSON (default pynq)")
    parser.add_argument("-o", "--output", default="libvta.so", metavar="FILE", help="the library (default libvta.so)")
    parser.add_argument(
        "--cc", metavar="CC", help="C compiler and options, e.g. arm-linux-gnueabihf-gcc (default: this machine's)"
    )
    parser.add_argument(
        "--design", choices=DESIGNS, help="whose registers a board has (default: as the accelerator's TARGET)"
    )
    parser.add_argument("--registers", metavar="ADDRESS", help="where they begin, e.g. 0x43C00000 (default: as TARGET)")
    parser.add_argument("--64", dest="wide", action="store_true", help="physical addresses of 64 bits")
    add_listing(parser, "backends", {name: backend.help for name, backend in BACKENDS.items()})


def run(args: argparse.Namespace) -> int:
    """Build the library and say how to use it."""
    chip = Accelerator.load(args.accelerator)
    board = board_of(chip)
    try:
        base = board.base if args.registers is None else int(args.registers, 0)
    except ValueError:
        base = -1
    if base < 0 or base % 4096:
        raise OneShotError(f"--registers is {args.registers}; allowed: an address at a multiple of 4096")
    board = replace(board, design=args.design or board.design, base=base)
    options = ["-DUSE_VTA64"] if args.wide else []
    path = build(args.backend, chip, args.output, args.cc, board, options)
    query = "?address=64" if args.wide else ""
    where = "" if args.backend == "sim" else f", {board.design} design at {board.base:#x}"
    print(f"{path}: {args.backend} for {configuration(chip)}{where}")
    print(f"use it with --device driver:{path}{query}")
    return 0
