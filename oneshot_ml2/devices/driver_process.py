"""The process that a VTA library runs in, apart from ours: it may hang, crash, or write where it must not.

It is started by `driver_library` as a script of the standard library alone. Requests come and answers go through two
pipes, in frames: the length of a header (4 bytes, little-endian), the header, JSON, and as many bytes as its ``bytes``
says. What the library prints goes where the process's output goes.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import threading
import time
from typing import Any

_CHUNK = 1 << 20

# Symbols of VTA's driver interface; those that only our own libraries have; and what only caches need.
_NEEDED = (
    "VTADeviceAlloc", "VTADeviceFree", "VTADeviceRun", "VTAMemAlloc", "VTAMemFree", "VTAMemGetPhyAddr",
    "VTAMemCopyFromHost", "VTAMemCopyToHost",
)  # fmt: skip
_CACHE = ("VTAFlushCache", "VTAInvalidateCache")


def send(fd: int, header: dict[str, Any], payload: bytes = b"") -> None:
    """Write a frame."""
    text = json.dumps({**header, "bytes": len(payload)}).encode()
    for part in (struct.pack("<I", len(text)) + text, payload):
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def receive(fd: int) -> tuple[dict[str, Any], bytes]:
    """Read a frame; EOFError at the end."""
    (length,) = struct.unpack("<I", _exactly(fd, 4))
    header = json.loads(_exactly(fd, length))
    return header, _exactly(fd, header["bytes"])


def _exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, _CHUNK))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Library:
    """A loaded library, its device and its allocations: (pointer, physical address, bytes) each."""

    def __init__(self, path: str, bits: int, cached: int, flush: bool) -> None:
        """Raises OSError: it does not load; LookupError: it lacks symbols, or gives no device."""
        self._lib = ctypes.CDLL(path)
        missing = [name for name in (*_NEEDED, *(_CACHE if flush else ())) if not hasattr(self._lib, name)]
        if missing:
            raise LookupError(f"it lacks {', '.join(missing)}")
        address = ctypes.c_uint64 if bits == 64 else ctypes.c_uint32
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        types: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "VTADeviceAlloc": (pointer, ()),
            "VTADeviceFree": (None, (pointer,)),
            "VTADeviceRun": (ctypes.c_int, (pointer, address, ctypes.c_uint32, ctypes.c_uint32)),
            "VTAMemAlloc": (pointer, (size, ctypes.c_int)),
            "VTAMemFree": (None, (pointer,)),
            "VTAMemGetPhyAddr": (address, (pointer,)),
            "VTAMemCopyFromHost": (None, (pointer, ctypes.c_char_p, size)),
            "VTAMemCopyToHost": (None, (pointer, pointer, size)),
            "VTAFlushCache": (None, (pointer, address, ctypes.c_int)),
            "VTAInvalidateCache": (None, (pointer, address, ctypes.c_int)),
            "VTAConfiguration": (ctypes.c_char_p, ()),
            "VTADeviceError": (ctypes.c_char_p, (pointer,)),
            "VTADeviceCycles": (ctypes.c_uint64, (pointer,)),
        }
        self._has = {name for name in types if hasattr(self._lib, name)}
        for name in self._has:
            function = getattr(self._lib, name)
            function.restype, function.argtypes = types[name]
        self._cached, self._flush = cached, flush
        self.allocations: list[tuple[int, int, int]] = []
        self._device = self._lib.VTADeviceAlloc()
        if not self._device:
            raise LookupError("VTADeviceAlloc gives no device")

    def configuration(self) -> str | None:
        """What it says that it is built for, if it does."""
        return self._lib.VTAConfiguration().decode() if "VTAConfiguration" in self._has else None

    def allocate(self, sizes: list[int]) -> list[int]:
        """Physical addresses of new allocations in place of those before; fewer than asked for if there is no room."""
        for pointer, _, _ in self.allocations:
            self._lib.VTAMemFree(pointer)
        self.allocations = []
        for size in sizes:
            pointer = self._lib.VTAMemAlloc(size, self._cached)
            if not pointer:
                break
            self.allocations.append((pointer, int(self._lib.VTAMemGetPhyAddr(pointer)), size))
        return [address for _, address, _ in self.allocations]

    def write(self, number: int, offset: int, content: bytes) -> None:
        """Copy into an allocation."""
        pointer, address = self._place(number, offset, len(content))
        self._lib.VTAMemCopyFromHost(pointer, content, len(content))
        if self._flush:
            self._lib.VTAFlushCache(pointer, address, len(content))

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Copy from an allocation."""
        pointer, address = self._place(number, offset, size)
        if self._flush:
            self._lib.VTAInvalidateCache(pointer, address, size)
        buffer = ctypes.create_string_buffer(size)
        self._lib.VTAMemCopyToHost(buffer, pointer, size)
        return buffer.raw

    def _place(self, number: int, offset: int, size: int) -> tuple[int, int]:
        pointer, address, there = self.allocations[number]
        if offset < 0 or offset + size > there:
            raise LookupError(f"{size} bytes at {offset} of an allocation of {there}")
        return pointer + offset, address + offset

    def run(self, address: int, count: int, wait: int, repeats: int = 1) -> dict[str, Any]:
        """Run instructions, several times or until one fails: what the library returns, the medians of ns of wall time
        and of cycles where it counts them, and its error."""
        took, cycles, status = [], [0], 0
        for _ in range(repeats):
            begin = time.perf_counter_ns()
            status = self._lib.VTADeviceRun(self._device, address, count, wait)
            took.append(time.perf_counter_ns() - begin)
            if "VTADeviceCycles" in self._has:
                cycles.append(int(self._lib.VTADeviceCycles(self._device)))
            if status:
                break
        error = self._lib.VTADeviceError(self._device).decode() if status and "VTADeviceError" in self._has else ""
        counted = sorted(cycles[1:] or cycles)[len(cycles[1:]) // 2]
        return {"status": int(status), "ns": sorted(took)[len(took) // 2], "cycles": counted, "error": error}

    def close(self) -> None:
        """Give everything back."""
        self.allocate([])
        self._lib.VTADeviceFree(self._device)


def _answer(library: Library, request: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Allocate, or write, run and read, as the request says."""
    if "sizes" in request:
        return {"addresses": library.allocate(request["sizes"])}, b""
    place = 0
    for number, offset, size in request["writes"]:
        library.write(number, offset, payload[place : place + size])
        place += size
    result: dict[str, Any] = {}
    if request.get("count"):
        result = library.run(request["address"], request["count"], request["wait"], request["repeats"])
    return result, b"".join(library.read(*one) for one in request["reads"])


def _leave_with(fd: int, busy: threading.Lock, seconds: float) -> None:
    """When the process that started this one has gone, so does this one: after the run, if that ends in time."""

    def watch() -> None:
        os.read(fd, 1)
        busy.acquire(timeout=seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(requests: int, answers: int, life: int) -> None:
    """Serve a library until the pipe of requests ends; the numbers are file descriptors."""
    opening, _ = receive(requests)
    busy = threading.Lock()
    _leave_with(life, busy, opening["limit"])
    try:
        library = Library(opening["path"], opening["bits"], opening["cached"], opening["flush"])
    except (OSError, LookupError) as error:
        send(answers, {"failed": str(error)})
        return
    send(answers, {"configuration": library.configuration()})
    while True:
        try:
            request, payload = receive(requests)
        except EOFError:
            library.close()
            return
        with busy:
            try:
                result, content = _answer(library, request, payload)
            except (LookupError, ValueError) as error:
                result, content = {"failed": str(error)}, b""
        send(answers, result, content)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
