"""The ``oneshot-ml2`` command: finds the subcommand's module, and turns errors into one line and an exit code.

A subcommand is a module in this folder, with what it does as the first line of its docstring, ``add_arguments(parser)``
and ``run(args) -> exit code``; only the chosen one is imported.
Exit codes: 0 done; 1 done, but a result is wrong; 2 an error; 128 + the signal that ended it (130 Ctrl-C, 143 SIGTERM,
129 SIGHUP, 141 nobody reads the output).
"""

from __future__ import annotations

import argparse
import atexit
import errno
import importlib
import os
import platform
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import listing, unknown
from oneshot_ml2.common.terminal import PROG, Interrupts, standard_streams, warnings_in_one_line
from oneshot_ml2.common.version import __version__

# Shown first, in the order in which one meets them; the others follow by name.
_FIRST = ("compile", "run", "accelerators", "weights", "trace", "inspect")
# Beside the commands in their folder.
_NOT_COMMANDS = ("__init__", "main", "options")


def _commands() -> dict[str, str]:
    """Name -> what it does: the file in this folder, and the first line of its docstring; none of them is imported."""
    found = {}
    for path in Path(__file__).parent.glob("*.py"):
        if path.stem not in _NOT_COMMANDS:
            with path.open(encoding="utf-8") as file:
                found[path.stem] = file.readline().strip().strip('"')
    first = [name for name in _FIRST if name in found]
    return {name: found[name] for name in [*first, *sorted(found.keys() - {*first})]}


COMMANDS = _commands()
# Third-party packages that only some commands need -> the extra that brings them.
_EXTRAS = {"matplotlib": "train", "xgboost": "tuner", "ray": "cluster"}
# Modules -> the packages that they come in, where those have other names.
_PACKAGES = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}
# What libraries say, under exceptions of many kinds, when they get no memory.
_OUT_OF_MEMORY = (
    "cannot allocate memory", "can't allocate memory", "failed to map segment", "out of memory", "bad_alloc",
    "not enough memory", "memory allocation failed", "can't start new thread",
)  # fmt: skip
# Libraries whose versions a report needs.
_VERSIONS = ("numpy", "numba", "torch", "tvm")
_DEBUG = "print the traceback of every error"
_EPILOG = f"`{PROG} COMMAND --help` lists a command's options."


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` lists what there is\n")


def _overview() -> argparse.ArgumentParser:
    commands = listing({name: text[:1].lower() + text[1:].rstrip(".") for name, text in COMMANDS.items()})
    parser = _Parser(
        prog=PROG,
        usage=f"{PROG} [-h] [--version] [--debug] COMMAND ...",
        description="Schedules for VTA accelerators, picked at compile time with zero measurements.\n\n"
        f"commands:\n{commands}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help=_DEBUG)
    return parser


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        parser = _overview()
        parser.parse_args(argv)
        parser.print_help()
        return 0
    if argv[0] not in COMMANDS:
        raise OneShotError(unknown("command", argv[0], COMMANDS))
    module = importlib.import_module(f"oneshot_ml2.commands.{argv[0]}")
    parser = _Parser(prog=f"{PROG} {argv[0]}", description=COMMANDS[argv[0]], allow_abbrev=False)
    module.add_arguments(parser)
    # Taken by `main`, wherever it stands; here for the help.
    parser.add_argument("--debug", action="store_true", help=_DEBUG)
    return int(module.run(parser.parse_args(argv[1:])))


def _finish(argv: Sequence[str]) -> int:
    """The exit code of a command line whose output is written."""
    try:
        code = _dispatch(argv)
    except SystemExit as stop:
        # argparse's, after --help or a line on what is wrong; 1 would mean a wrong result.
        code = 2 if stop.code else 0
    sys.stdout.flush()
    return code


def _out_of_memory(error: BaseException) -> bool:
    """Whether it, or what it came from, is the lack of memory."""
    seen: BaseException | None = error
    while seen is not None:
        lack = isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM)
        if lack or any(phrase in str(seen).lower() for phrase in _OUT_OF_MEMORY):
            # What says so itself knows more about it.
            return not (seen is error and isinstance(seen, OneShotError))
        seen = seen.__cause__ or seen.__context__
    return False


def _memory_limit() -> str:
    """What to add to an error of a process whose memory is limited: libraries fail in ways that do not tell."""
    try:
        import resource
    except ImportError:
        return ""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    return f"; memory is limited to {limit >> 20:,} MiB (ulimit -v), which may be the cause"


def _known(error: BaseException) -> str | None:
    """What to tell about an error that has its cause outside of this package; None: it is a fault."""
    if _out_of_memory(error):
        what = f"{str(error).rstrip(': ')}: " if isinstance(error, OneShotError) else ""
        return (
            f"{what}out of memory; close other programs, raise the limit (ulimit -v, or the container's), or give "
            "fewer layers, schedules or workers at once"
        )
    if isinstance(error, OneShotError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _EXTRAS:
            return f"this needs {package}, which is not installed: pip install 'oneshot-ml2[{_EXTRAS[package]}]'"
        if package not in ("", "oneshot_ml2"):
            return f"this needs {package}, which is not installed: pip install {_PACKAGES.get(package, package)}"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            return f"the disk is full{where}; free some space, then the same command goes on with what is done"
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return None


def _fault(error: BaseException, argv: Sequence[str], debug: bool) -> str:
    """What to tell about an error that should not have come this far; its traceback goes to a file."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in frames]
    inside = [name for name in packages if name not in sys.stdlib_module_names and name != "__main__"]
    ours = not inside or inside[-1] == "oneshot_ml2"
    whose = "a fault of ours" if ours else f"a fault of ours or of the library {inside[-1]}"
    text = f"this is {whose}: {type(error).__name__}: {str(error)[:300]}{_memory_limit()}"
    if debug:
        return f"{text}; please report it with the traceback above"
    about = [
        f"{PROG} {__version__}, Python {platform.python_version()}, {platform.platform()}",
        *(f"{name} {getattr(sys.modules.get(name), '__version__', '-')}" for name in _VERSIONS),
        shlex.join([PROG, *argv]),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"{PROG}-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write("\n".join([*about, "", *traceback.format_exception(error)]))
    except OSError:
        return f"{text}; please report it with its traceback, which --debug prints"
    return f"{text}; please report it, traceback in {file.name}"


def _tell(message: str) -> None:
    # Whatever a library puts into its message, the user gets one line.
    print(f"{PROG}: {' '.join(message.split())}", file=sys.stderr)


# The exit code of a process that a signal has ended.
_ended: list[int] = []


def _leave() -> None:
    """At the very end: a KeyboardInterrupt on its way through some libraries makes Python end itself by SIGINT."""
    if _ended:
        os._exit(_ended[0])


def _interrupted(error: BaseException, received: signal.Signals) -> int:
    """The exit code after a signal; ``error`` is what it became on its way, maybe with a word on what was kept."""
    said = str(error) if isinstance(error, KeyboardInterrupt) else ""
    how = "interrupted" if received == signal.SIGINT else f"ended by {received.name}"
    _tell(f"{how}; {said or 'nothing is half-written, and finished work is kept'}")
    return 128 + received


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's, which then ends with it) and return its exit code."""
    if argv is None:
        # The first that is registered is called last.
        atexit.register(_leave)
    given = list(sys.argv[1:] if argv is None else argv)
    options = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in options
    words = [word for word in options if word != "--debug"] + given[len(options) :]
    with standard_streams() as stdout, warnings_in_one_line(), Interrupts() as interrupts:
        try:
            code = _finish(words)
            # argparse keeps such errors to itself.
            if stdout.failure is not None:
                raise stdout.failure
            return code
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exception(error)
            received = interrupts.received
            if received is not None or isinstance(error, KeyboardInterrupt):
                code = _interrupted(error, received or signal.SIGINT)
                _ended[:] = [code] if argv is None else []
                return code
            if stdout.failure is not None:
                if isinstance(stdout.failure, BrokenPipeError):
                    # The reader, such as `head`, has left.
                    return 128 + signal.SIGPIPE
                _tell(f"error: cannot write to standard output: {stdout.failure.strerror}; what was saved is kept")
                return 2
            _tell(f"error: {_known(error) or _fault(error, given, debug)}")
            return 2
