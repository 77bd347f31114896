"""What several commands' options and help texts have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from oneshot_ml2.common.names import listing
from oneshot_ml2.devices.base import Device, notes
from oneshot_ml2.devices.registry import device_kinds


def add_device(parser: argparse.ArgumentParser, does: str, required: bool = False) -> None:
    """``--device SPEC`` (default ``sim``, unless it is required), and at the end of the help the devices there are."""
    forms = ", or ".join(kind.form for kind in device_kinds().values())
    if required:
        parser.add_argument("--device", required=True, metavar="SPEC", help=f"{does}: {forms}")
    else:
        parser.add_argument("--device", default="sim", metavar="SPEC", help=f"{does}: {forms} (default sim)")
    add_listing(parser, "devices", {kind.form: kind.help for kind in device_kinds().values()})


def print_notes(device: Device) -> None:
    """What a device says of what it did, on stderr."""
    for line in notes(device):
        print(line, file=sys.stderr)


def add_listing(parser: argparse.ArgumentParser, title: str, entries: Mapping[str, str]) -> None:
    """Names and what each stands for, at the end of a command's help."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n\n".join([*filter(None, [parser.epilog]), f"{title}:\n{listing(entries)}"])
