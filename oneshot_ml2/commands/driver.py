"""Build a VTA driver library: a simulator, or the code for a board."""

from __future__ import annotations

import argparse

from oneshot_ml2.commands.options import add_building, add_listing, building
from oneshot_ml2.devices.build import BACKENDS, build, configuration
from oneshot_ml2.vta.accelerator import Accelerator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 driver``."""
    parser.add_argument("action", choices=("build",), help="what to do")
    parser.add_argument("--backend", required=True, metavar="NAME", help="what the library is for, see below")
    parser.add_argument("-o", "--output", default="libvta.so", metavar="FILE", help="the library (default libvta.so)")
    add_building(parser)
    add_listing(parser, "backends", {name: backend.help for name, backend in BACKENDS.items()})


def run(args: argparse.Namespace) -> int:
    """Build the library and say how to use it."""
    chip = Accelerator.load(args.accelerator)
    board, options = building(args, chip)
    path = build(args.backend, chip, args.output, args.cc, board, options)
    query = "?address=64" if args.wide else ""
    where = "" if args.backend == "sim" else f", {board.design} design at {board.base:#x}"
    print(f"{path}: {args.backend} for {configuration(chip)}{where}")
    print(f"use it with --device driver:{path}{query}")
    return 0
