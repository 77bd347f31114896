"""`rpc:`: servers of ours behind TVM's own tracker."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graph_models import needs
from servers import running, server

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.raw import raw_board
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.devices.several import Boards
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import PAGE

needs("tvm", "tornado", "psutil")

PYNQ = Accelerator.load("pynq")


def summary(port: int) -> dict[str, dict[str, int]]:
    """What the tracker says of its keys."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(struct.pack("<i", 0x2F271))
        connection.recv(4)
        connection.sendall(struct.pack("<i", 3) + b"[6]")
        (size,) = struct.unpack("<i", connection.recv(4))
        return json.loads(connection.recv(size))[1]["queue_info"]


def wait_for(port: int, key: str, free: int) -> None:
    deadline = time.monotonic() + 30
    while summary(port).get(key, {}).get("free") != free:
        assert time.monotonic() < deadline, summary(port)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def tracker() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end",
         str(port + 1)], stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None, "the tracker has ended"
            assert time.monotonic() < deadline
            time.sleep(0.3)
    yield port
    process.terminate()
    process.wait(20)


def test_a_server_is_found_used_and_free_again(tracker: int) -> None:
    with running([server(PYNQ)], "--tracker", f"127.0.0.1:{tracker}", "--key", "one"):
        wait_for(tracker, "one", 1)
        device = open_device(f"rpc:127.0.0.1:{tracker}/one?limit=5")
        assert isinstance(device, DriverDevice)
        assert summary(tracker)["one"]["free"] == 0
        board = raw_board(device)
        board.allocate([PAGE])
        content = np.arange(200, dtype=np.uint8)
        assert np.array_equal(board.run(0, 0, [(0, 9, content)], [(0, 9, 200)]).contents[0], content)
        board.close()
        # It is handed out again, also to who held it before.
        wait_for(tracker, "one", 1)
        board.allocate([PAGE])
        wait_for(tracker, "one", 0)
        device.close()
    wait_for(tracker, "one", 0)


def test_several_of_a_key_and_who_waits_for_one(tracker: int) -> None:
    where = ("--tracker", f"127.0.0.1:{tracker}", "--key", "farm")
    with running([server(PYNQ)], *where, "--name", "a"), running([server(PYNQ)], *where, "--name", "b"):
        wait_for(tracker, "farm", 2)
        both = open_device(f"rpc:127.0.0.1:{tracker}/farm?boards=2")
        assert isinstance(both, Boards)
        assert sorted(member.name for member in both.members) == ["a", "b"]
        with pytest.raises(DeviceError, match="no free server with the key 'farm'"):
            open_device(f"rpc:127.0.0.1:{tracker}/farm?queue=0.5")
        release = threading.Timer(1.0, both.close)
        release.start()
        open_device(f"rpc:127.0.0.1:{tracker}/farm?queue=30").close()  # type: ignore[attr-defined]
        release.join()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("rpc:127.0.0.1:9190", "give it as rpc:HOST:PORT/KEY"),
        ("rpc:127.0.0.1/vta", "give it as rpc:HOST:PORT/KEY"),
        ("rpc:127.0.0.1:1/vta", "cannot be used"),
        ("rpc:127.0.0.1:1/vta?boards=0", "allowed: 1 to 1000"),
        ("rpc:127.0.0.1:1/vta?keu=0", "no option of rpc"),
    ],
)
def test_specifications_that_are_refused(spec: str, says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        open_device(spec)


@pytest.mark.parametrize(
    "answer", [b"abcd", struct.pack("<ii", 0x2F271, -1), struct.pack("<ii", 0x2F271, 2) + b"{]",
               struct.pack("<ii", 0x2F271, 2) + b"12", struct.pack("<ii", 0x2F271, 13) + b'[0, ["a", 1]]']
)  # fmt: skip
def test_what_is_no_tracker_is_told(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection = listener.accept()[0]
            connection.sendall(answer)
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DeviceError, match=r"cannot be used: .*tracker"):
            open_device(f"rpc:127.0.0.1:{listener.getsockname()[1]}/vta?queue=1")
        thread.join()


def test_a_tracker_that_comes_later_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with running([server(PYNQ)], "--tracker", f"127.0.0.1:{port}", "--key", "late"):
        time.sleep(0.5)
        with socket.create_server(("127.0.0.1", port)) as listener:
            listener.settimeout(20)
            connection = listener.accept()[0]
            assert connection.recv(4) == struct.pack("<i", 0x2F271)
            connection.sendall(struct.pack("<i", 0x2F271))
            (size,) = struct.unpack("<i", connection.recv(4))
            assert b'"server:late"' in connection.recv(size)
            connection.close()
