"""Serve a board, or a simulator, to those who measure on it over the network: builds and starts the server in C."""

from __future__ import annotations

import argparse
import ipaddress
import socket
import subprocess
import tempfile
from pathlib import Path

from oneshot_ml2.commands.options import add_building, add_listing, building
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.devices.build import BACKENDS, build_server, configuration
from oneshot_ml2.devices.remote import read_token
from oneshot_ml2.devices.tcp import host_and_port
from oneshot_ml2.vta.accelerator import Accelerator

# Options that the server has, too, in seconds and MiB.
_NUMBERS = {
    "pool": "MiB of contents that are kept (default 64)",
    "limit": "seconds of a run at most (default 600)",
    "idle": "seconds that a client may be quiet while others wait (default 300)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 serve``."""
    parser.add_argument(
        "--driver", required=True, metavar="NAME", help="a backend, see below, or a library with VTA's driver interface"
    )
    add_building(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="only build it, to be copied to a board")
    parser.add_argument(
        "--listen", default="127.0.0.1:9090", metavar="HOST:PORT", help="where (default 127.0.0.1:9090)"
    )
    parser.add_argument("--token-file", metavar="FILE", help="what clients have to know; must, but on loopback")
    parser.add_argument("--name", metavar="NAME", help="what results call this board (default: this machine's name)")
    for name, text in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    parser.add_argument("--tracker", metavar="HOST:PORT", help="a TVM RPC tracker that hands this server out")
    parser.add_argument("--key", metavar="KEY", help="under which key")
    parser.add_argument("--tell", metavar="ADDRESS", help="the address that the tracker tells (default: what it sees)")
    add_listing(parser, "backends", {name: backend.help for name, backend in BACKENDS.items()})


def run(args: argparse.Namespace) -> int:
    """Build the server, and start it or say how to."""
    chip = Accelerator.load(args.accelerator)
    board, options = building(args, chip)
    linked = args.driver in BACKENDS
    if not linked and args.output is None and not Path(args.driver).is_file():
        raise OneShotError(
            f"--driver is {args.driver!r}: no library, and none of {', '.join(BACKENDS)}; `oneshot-ml2 driver build` "
            "makes libraries"
        )
    given = [] if linked else ["--driver", str(Path(args.driver).absolute())]
    if args.output is None:
        # Before it is built, which takes a while.
        given += _given(args)
    with tempfile.TemporaryDirectory() as work:
        out = Path(args.output or Path(work) / "vta-server")
        path = build_server(args.driver if linked else None, chip, out, args.cc, board, options)
        if args.output is not None:
            print(f"{path}: {path.stat().st_size:,} bytes, {args.driver} for {configuration(chip)}")
            more = "" if linked else f" --driver {args.driver}"
            print(f"start it with: {path}{more} --listen ADDRESS:9090 --token-file FILE")
            return 0
        return _serve([str(path), *given])


def _serve(command: list[str]) -> int:
    """Have the server run until it ends, or this process does."""
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    finally:
        process.terminate()
        process.wait()
    if code:
        raise OneShotError(f"the server ended with {code}; the line before says why")
    return 0


def _given(args: argparse.Namespace) -> list[str]:
    """The server's own arguments.

    Raises:
        OneShotError: it would be open to anybody, or something is not what it can be.
    """
    address, port = _numeric("--listen", args.listen)
    if not ipaddress.ip_address(address).is_loopback and args.token_file is None:
        raise OneShotError(
            f"--listen is {args.listen}, not loopback: whoever reaches it could run anything; give --token-file FILE"
        )
    given = ["--listen", _joined(address, port), "--name", args.name or socket.gethostname()]
    if args.token_file is not None:
        read_token("--token-file", args.token_file)
        given += ["--token-file", args.token_file]
    for name in _NUMBERS:
        value = getattr(args, name)
        if value is not None:
            if not (name != "pool") <= value <= 1_000_000:
                raise OneShotError(f"--{name} is {value}; allowed: {int(name != 'pool')} to 1,000,000")
            given += [f"--{name}", str(value)]
    if (args.tracker is None) != (args.key is None):
        raise OneShotError("--tracker and --key go together: under which key the tracker hands this server out")
    if args.tracker is not None:
        given += ["--tracker", _joined(*_numeric("--tracker", args.tracker)), "--key", args.key]
    return given + ([] if args.tell is None else ["--tell", args.tell])


def _numeric(option: str, text: str) -> tuple[str, int]:
    """An address in numbers, as the server needs it."""
    host, port = host_and_port(f"{option} {text}", text, "HOST:PORT")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise OneShotError(f"{option} is {text}: no address of {host!r} ({error.strerror or error})") from error
    return str(found[0]), port


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
