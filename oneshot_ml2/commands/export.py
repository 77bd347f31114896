"""Write a compiled model as a C99 project that needs neither Python nor TVM."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneshot_ml2.common.files import check_writable
from oneshot_ml2.models import executable
from oneshot_ml2.models.c_export.export import check_folder, export
from oneshot_ml2.vta.accelerator import Accelerator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 export``."""
    parser.add_argument("model", help="folder that `oneshot-ml2 compile MODEL -o DIR` wrote")
    parser.add_argument("--to-c", required=True, metavar="DIR", help="the folder of the C project")
    parser.add_argument("--embed", action="store_true", help="weights and programs as C, too, instead of model.bin")
    parser.add_argument("--accelerator", metavar="NAME", help="refuse a model that is compiled for another one")


def run(args: argparse.Namespace) -> int:
    """Export, and say how to go on."""
    folder = Path(args.to_c)
    check_folder(folder)
    check_writable(folder, "--to-c")
    chip = None if args.accelerator is None else Accelerator.load(args.accelerator)
    stored = executable.read(args.model, chip)
    made = export(stored, folder, args.embed)
    mib = 2**20
    print(
        f"{folder}: {stored.name} for {stored.accelerator.name}, {made.submissions} submissions and {made.steps} steps "
        f"of the host; data {made.data / mib:,.2f} MiB"
    )
    print(
        f"memory of the host: arena {made.arena / mib:,.2f} MiB, constants {made.constants / mib:,.2f} MiB; "
        f"of the VTA: {made.dram / mib:,.2f} MiB in one piece"
    )
    print(f"build and try it: make -C {folder} && {folder}/model --self-test")
    return 0
