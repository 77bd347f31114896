"""npy and npz files from elsewhere: numbers only, nothing unpickled, nothing allocated that the file cannot hold."""

from __future__ import annotations

import ast
import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER = 10_000
_MOST_DIMENSIONS = 32
# Bytes that an .npz file may unpack to: so much of any file, and so many times its size.
_UNPACKED, _RATIO = 1 << 28, 64
# What Python's literals, zip files and their packing raise when they are damaged.
_FAILURES = (
    ValueError, TypeError, SyntaxError, RecursionError, MemoryError, EOFError, OverflowError, KeyError, IndexError,
    AttributeError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read(source: Path | bytes) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of a ``.npy`` file, or those of an ``.npz`` file by name; of a path or of the file's content.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, holds other things than real numbers, or claims more than it has.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        magic = file.read(len(_MAGIC))
        file.seek(0)
        try:
            return _npy(file, size) if magic == _MAGIC else _npz(file, size)
        except _FAILURES as error:
            raise ValueError(str(error) or type(error).__name__) from error


def _npy(file: IO[bytes], size: int) -> NDArray[Any]:
    """The array of a stream of ``size`` bytes."""
    head = _exactly(file, 8)
    if head[:6] != _MAGIC or head[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("no .npy file of a known version")
    form = "<H" if head[6] == 1 else "<I"
    (length,) = struct.unpack(form, _exactly(file, struct.calcsize(form)))
    if length > _LARGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    dtype, shape, order = _parse_header(_exactly(file, length).decode("latin1"))
    needed = math.prod(shape) * dtype.itemsize
    if needed > size - 8 - struct.calcsize(form) - length:
        raise ValueError(f"its header claims {needed:,} bytes, which it has not")
    content = np.empty(needed, np.uint8)
    done = 0
    while done < needed:
        step = file.readinto(content[done:].data)  # type: ignore[attr-defined]
        if not step:
            raise ValueError("it ends too early")
        done += step
    return content.view(dtype).reshape(shape, order=order)


def _exactly(file: IO[bytes], count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise ValueError("it ends too early")
    return content


def _parse_header(text: str) -> tuple[np.dtype[Any], tuple[int, ...], Any]:
    head = ast.literal_eval(text)
    if not isinstance(head, dict) or set(head) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header is none")
    if not isinstance(head["descr"], str) or type(head["fortran_order"]) is not bool:
        raise ValueError("its header is of other types")
    dtype = np.dtype(head["descr"])
    if dtype.kind not in "biuf":
        raise ValueError(f"it holds {head['descr'][:20]!r}; allowed: numbers such as float32")
    shape = head["shape"]
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("its shape is none")
    if not all(type(extent) is int and 0 <= extent < 1 << 62 for extent in shape):
        raise ValueError("its shape is not one of whole numbers")
    return dtype, shape, "F" if head["fortran_order"] else "C"


def _npz(file: IO[bytes], size: int) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise ValueError("it is packed in a way that numpy does not use")
        total = sum(member.file_size for member in members)
        if total > _UNPACKED + _RATIO * size:
            raise ValueError(f"its members claim {total:,} bytes, far more than its {size:,}")
        arrays: dict[str, NDArray[Any]] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"member {name[:40]!r} occurs twice")
            with archive.open(member) as content:
                arrays[name] = _npy(content, member.file_size)
        return arrays
