"""The ``oneshot-ml2`` command: finds the subcommand's module, and turns errors into one line and an exit code.

A subcommand's module has ``add_arguments(parser)`` and ``run(args) -> exit code``; only the chosen one is imported.
Exit codes: 0 done; 1 done, but a result is wrong; 2 an error that the message helps to mend; 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from oneshot_ml2 import __version__
from oneshot_ml2.errors import OneShotError

PROG = "oneshot-ml2"
# Subcommand -> (module, what it does).
COMMANDS: dict[str, tuple[str, str]] = {
    "compile": ("compile", "pick a schedule for every layer of a model with zero measurements, lower and run them"),
    "run": ("run_model", "run a compiled model on an input"),
    "accelerators": ("list_accelerators", "list the shipped accelerators"),
    "weights": ("list_weights", "list the shipped weights"),
    "trace": ("trace", "write a trace of a layer or a compiled model, cycle by cycle, that Perfetto opens"),
    "inspect": ("inspect_program", "disassemble a VTA program"),
    "replay": ("replay", "hold the simulators against measured runs"),
    "crosscheck": ("crosscheck", "hold the autotvm space against TVM's tables and tuning records"),
    "collect": ("collect", "measure schedules into a corpus"),
    "corpus": ("corpus_cli", "look into, check, merge and split corpora"),
    "train": ("training", "train the network on corpora"),
    "evaluate": ("evaluate", "hold the zero-measurement picks and other ways to pick against the optimum"),
    "refine": ("refine", "better schedules by a few measurements on a device: ML2Tuner, and other tuners"),
    "history": ("history", "show what is in tuning logs, and how the runs converged"),
    "optimum": ("optimum", "search the least latency of the tasks of an evaluation set, exactly"),
}
# Third-party packages that only some commands need -> the extra that brings them.
_EXTRAS = {"matplotlib": "train", "xgboost": "tuner", "ray": "cluster", "tvm": "tvm", "tvm_ffi": "tvm", "onnx": "onnx"}
_EPILOG = f"`{PROG} COMMAND --help` lists a command's options."


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` lists what there is\n")


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = _Parser(
        prog=PROG,
        usage=f"{PROG} [-h] [--version] COMMAND ...",
        description="Schedules for VTA accelerators, picked at compile time with zero measurements.\n\n"
        f"commands:\n{commands}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _unknown(command: str) -> OneShotError:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return OneShotError(f"no command {command!r}{hint} There are: {', '.join(COMMANDS)}")


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        parser = _overview()
        parser.parse_args(argv)
        parser.print_help()
        return 0
    if argv[0] not in COMMANDS:
        raise _unknown(argv[0])
    name, text = COMMANDS[argv[0]]
    module = importlib.import_module(f"oneshot_ml2.{name}")
    parser = _Parser(prog=f"{PROG} {argv[0]}", description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(argv[1:])))


def _fail(message: str, code: int = 2) -> int:
    # Whatever a library puts into its message, the user gets one line.
    print(f"{PROG}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's) and return its exit code; argparse's own exits pass through."""
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except OneShotError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(f"\n{PROG}: interrupted; nothing is half-written, and finished work is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has left; keep the interpreter from flushing to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return _fail(f"this needs {package}, which is not installed: pip install 'oneshot-ml2[{_EXTRAS[package]}]'")
    except MemoryError:
        return _fail("out of memory; close other programs, or give fewer layers, schedules or workers at once")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            return _fail(f"the disk is full{where}; free some space, then the same command goes on with what is done")
        return _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))


if __name__ == "__main__":
    sys.exit(main())
