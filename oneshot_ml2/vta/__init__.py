"""The VTA backend: workload and accelerator to nest, plan, instructions, results and cycles (no TVM, no torch)."""

from __future__ import annotations

from pathlib import Path


def _drop_stale_kernels() -> None:
    """Remove compiled kernels older than any source here: numba only compares each with its own file's date."""
    folder = Path(__file__).parent
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        try:
            if index.stat().st_mtime < newest:
                index.unlink()
        except OSError:
            # Another process was faster, or the folder is read-only: numba then has its cache elsewhere.
            continue


_drop_stale_kernels()
