"""TVM, on the host: imported once, and kept quiet."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from oneshot_ml2.common.errors import ModelError


def import_tvm() -> Any:
    """TVM; PyTorch is kept out of its import unless it is loaded already, as that takes seconds.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if "tvm" not in sys.modules and "torch" not in sys.modules:
        # tvm_ffi imports torch if it can; None makes that fail, and the entry is gone again afterwards.
        sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            with whole_tvm():
                import tvm
        finally:
            if sys.modules.get("torch", "") is None:
                del sys.modules["torch"]
    with whole_tvm():
        import tvm
        from tvm import relax  # noqa: F401

    return tvm


@contextlib.contextmanager
def whole_tvm() -> Iterator[None]:
    """Imports of TVM, which goes on without its libraries where they do not load, and then lacks parts of itself.

    Raises:
        ModelError: so it did.
    """
    try:
        yield
    except (AttributeError, OSError) as error:
        raise ModelError(
            f"TVM's libraries do not load ({error}); give it more memory (ulimit -v), or install apache-tvm anew"
        ) from error


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep native code's notes (TVM prints one for every constant that it saves or loads) off stderr."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
