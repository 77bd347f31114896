"""The board server in C and its device: what it gives, what it survives, and what it refuses."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCommand
from driver_programs import differs, random_layer
from drivers import library, needs_compiler
from servers import Running, running, server, start

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices import wire
from oneshot_ml2.devices.build import build_server
from oneshot_ml2.devices.raw import (
    CRASH,
    GONE,
    HANG,
    LATE,
    NO_RESULT,
    REFUSED,
    TIMED_OUT,
    WRONG,
    Fault,
    RawBoard,
    raw_board,
)
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.devices.wire import Code, Connection, Kind, ServerError
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import PAGE
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

PYNQ = Accelerator.load("pynq")
LAYER = Conv2d(1, 32, 10, 10, 48, 3, 3, padding=1)
# A compute instruction that does nothing, and FINISH.
EMPTY = np.array([[0, 0], [3, 0]], dtype="<u8").view(np.uint8).reshape(-1)
TOKEN = b"0123456789abcdef0123456789abcdef"


def board_of(one: Running, query: str = "limit=10") -> RawBoard:
    return raw_board(open_device(one.spec(query)))


def run_empty(board: RawBoard, repeats: int = 1) -> None:
    (address,) = board.allocate([PAGE]) or [0]
    board.run(address, 2, [(0, 0, EMPTY)], (), repeats)


def schedules(n: int) -> tuple[ScheduleSpace, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    space = ScheduleSpace(LAYER, PYNQ)
    drawn = space.canonical(np.random.default_rng(5).integers(0, len(space), 4000))
    return space, drawn[space.validity(drawn) == Reason.VALID][:n]


# What it gives -------------------------------------------------------------------------------
def test_programs_over_the_network_give_what_the_simulator_does() -> None:
    with running([server(PYNQ)]) as one:
        device = open_device(one.spec("limit=20&retries=0"))
        for seed in range(12):
            rng = np.random.default_rng([11, seed])
            assert not differs(device, *random_layer(rng, PYNQ), rng)  # type: ignore[arg-type]
        device.close()  # type: ignore[attr-defined]


def test_memory_goes_there_and_back_in_pieces_and_in_order() -> None:
    rng = np.random.default_rng(0)
    with running([server(PYNQ)]) as one:
        board = board_of(one)
        assert len(board.allocate([3 << 20, PAGE]) or []) == 2
        large = rng.integers(0, 256, (2 << 20) + 17, dtype=np.uint8)
        over, small = rng.integers(0, 256, 100, dtype=np.uint8), rng.integers(0, 256, 5000, dtype=np.uint8)
        # What is written later lies over what is written before, small over large and large over small.
        board.run(0, 0, [(0, 5, large), (0, 50, over), (1, 0, over), (1, 20, small[:4076])], ())
        large[45:145] = over
        expected = np.concatenate([over[:20], small[:4076]])
        found = board.run(0, 0, (), [(0, 5, large.size), (1, 0, 4096), (0, 50, 3)]).contents
        assert [np.array_equal(a, b) for a, b in zip(found, (large, expected, over[:3]))] == [True] * 3
        many = [(1, 8 * i, np.full(8, i % 251, np.uint8)) for i in range(500)]
        (back,) = board.run(0, 0, many, [(1, 0, 4000)]).contents
        assert back.reshape(-1, 8)[:, 0].tolist() == [i % 251 for i in range(500)]
        assert board.allocate([1 << 40]) is None
        board.close()


def test_contents_are_sent_once_also_after_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    ask = Connection.ask

    def counted(self: Connection, kind: Kind, body: bytes, timeout: float, queue: float = 0.0) -> bytes:
        sent.append(len(body))
        return ask(self, kind, body, timeout, queue)

    monkeypatch.setattr(Connection, "ask", counted)
    content = np.random.default_rng(1).integers(0, 256, 1 << 20, dtype=np.uint8)
    with running([server(PYNQ)]) as one:
        board, traffic = board_of(one), []
        for _ in range(2):
            board.allocate([2 << 20])
            sent.clear()
            board.run(0, 0, [(0, 0, content)], ())
            traffic.append(sum(sent))
            board.close()
        assert traffic[0] > content.size
        assert traffic[1] < 2000
        board.allocate([2 << 20])
        (back,) = board.run(0, 0, [(0, 7, content)], [(0, 7, content.size)]).contents
        assert np.array_equal(back, content)


@pytest.mark.parametrize("mib", [0, 1])
def test_a_pool_that_is_too_small_only_costs_traffic(mib: int) -> None:
    rng = np.random.default_rng(2)
    with running([server(PYNQ)], "--pool", str(mib)) as one:
        board = board_of(one)
        board.allocate([4 << 20])
        for size in (3 << 20, 70_000, 3 << 20, 1 << 20):
            content = rng.integers(0, 256, size, dtype=np.uint8)
            for _ in range(2):
                (back,) = board.run(0, 0, [(0, 3, content)], [(0, 3, size)]).contents
                assert np.array_equal(back, content)


def test_a_loaded_library_serves_as_a_linked_one() -> None:
    with running([server(PYNQ, None, None), "--driver", library(PYNQ)]) as one:
        device = open_device(one.spec())
        rng = np.random.default_rng(3)
        assert not differs(device, *random_layer(rng, PYNQ), rng)  # type: ignore[arg-type]
    with (
        running([server(PYNQ, None, None), "--driver", __file__]) as one,
        pytest.raises(DeviceError, match="test_server"),
    ):
        open_device(one.spec())


def test_addresses_of_64_bits() -> None:
    with running([server(PYNQ, None, "sim", "-DUSE_VTA64")], VTA_SIM_BASE=hex(0x2_0000_0000)) as one:
        board = board_of(one)
        assert board.allocate([PAGE]) == [0x2_0000_0000]
        assert board.options.bits == 64


def test_a_specification_travels_to_another_process() -> None:
    with running([server(PYNQ)]) as one:
        device = open_device(one.spec())
        copy = pickle.loads(pickle.dumps(device))
        assert (copy.name, copy.process.running) == (device.name, False)
        device.close()  # type: ignore[attr-defined]
        run_empty(copy.process)


# Faults --------------------------------------------------------------------------------------
NAMED = {"hang": HANG, "crash": CRASH, "wrong": WRONG, "late": LATE, "stale": NO_RESULT, "token": TIMED_OUT}


@pytest.mark.parametrize("fault", NAMED)
def test_a_fault_in_every_fifth_run_is_named_and_costs_no_schedule(fault: str) -> None:
    space, indices = schedules(4)
    with running([server(PYNQ)], VTA_FAULT=f"{fault}/5", VTA_LATE_MS="300") as one:
        device = open_device(one.spec("limit=1"))
        result = device.measure_schedules(space, indices)
        assert result.reason.tolist() == [Reason.VALID] * 4
        assert set(device.faults) == {NAMED[fault]}  # type: ignore[attr-defined]


def test_a_hung_run_is_reported_and_the_driver_begun_anew() -> None:
    with running([server(PYNQ)], VTA_FAULT="hang/2") as one:
        board = board_of(one, "limit=0.5")
        run_empty(board)
        begin = time.monotonic()
        with pytest.raises(Fault, match="no answer within the limit") as found:
            run_empty(board)
        assert found.value.kind == HANG
        assert 0.4 < time.monotonic() - begin < 6
        assert not board.running
        run_empty(board)
        # A run in a row is timed as one.
        with pytest.raises(Fault, match="hang"):
            run_empty(board, 5)


def test_a_crash_is_told_with_what_the_driver_said() -> None:
    with running([server(PYNQ)], VTA_FAULT="crash/2") as one:
        board = board_of(one)
        run_empty(board)
        with pytest.raises(Fault, match=f"died of signal {int(signal.SIGABRT)}") as found:
            run_empty(board)
        assert found.value.kind == CRASH
        assert "died of signal" in board.log()  # type: ignore[attr-defined]
        run_empty(board)
    with running([server(PYNQ)], VTA_FAULT="flood/1") as one, pytest.raises(DeviceError, match="gives no device"):
        open_device(one.spec())


def test_a_client_that_goes_in_the_middle_of_a_run_leaves_nothing() -> None:
    with running([server(PYNQ)], VTA_FAULT="hang/1") as one:
        board = board_of(one, "limit=2")
        (address,) = board.allocate([PAGE]) or [0]

        def run() -> None:
            with pytest.raises(Fault):
                board.run(address, 2, [(0, 0, EMPTY)], ())

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(0.5)
        board._connection._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
        thread.join()
        # Its run ends first; then the board is the next one's.
        other = board_of(one)
        other.allocate([PAGE])
        children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
        assert len(children) == 1


def test_a_server_that_is_started_again_is_found_again() -> None:
    space, indices = schedules(2)
    one = start([server(PYNQ)])
    device = open_device(one.spec("limit=5&reconnect=20"))
    assert device.measure_schedules(space, indices[:1]).reason[0] == Reason.VALID
    one.kill()
    later = threading.Timer(1.0, lambda: again.append(start([server(PYNQ)], port=one.port)))
    again: list[Running] = []
    later.start()
    try:
        assert device.measure_schedules(space, indices[1:]).reason[0] == Reason.VALID
        assert device.faults[GONE] >= 1  # type: ignore[attr-defined]
    finally:
        later.join()
        again[0].kill()
    device.process.patience = 0.5  # type: ignore[attr-defined]
    assert device.measure_schedules(space, indices[1:]).reason[0] == Reason.DEVICE_ERROR


# Clients -------------------------------------------------------------------------------------
def test_clients_get_the_board_in_the_order_in_which_they_came() -> None:
    order: list[int] = []

    def use(number: int) -> None:
        board = board_of(one)
        order.append(number)
        board.close()

    with running([server(PYNQ)]) as one:
        first = board_of(one)
        first.allocate([PAGE])
        threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        assert order == []
        first.close()
        for thread in threads:
            thread.join(20)
        assert order == [0, 1, 2, 3]


def test_a_quiet_client_is_left_for_one_that_waits() -> None:
    with running([server(PYNQ)], "--idle", "1") as one:
        quiet = board_of(one)
        quiet.allocate([PAGE])
        begin = time.monotonic()
        run_empty(board_of(one))
        assert time.monotonic() - begin < 8
        with pytest.raises(Fault) as found:
            quiet.run(0, 0, [(0, 0, EMPTY)], ())
        assert found.value.kind == GONE


def test_more_clients_than_there_is_room_for_do_no_harm() -> None:
    with running([server(PYNQ)]) as one:
        crowd = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(60)]
        time.sleep(0.3)
        for connection in crowd:
            connection.close()
        run_empty(board_of(one))


# Tokens --------------------------------------------------------------------------------------
def test_a_token_is_asked_for_and_never_sent(tmp_path: Path) -> None:
    token, other = tmp_path / "token", tmp_path / "other"
    token.write_bytes(TOKEN + b"\n")
    other.write_bytes(TOKEN[::-1])
    with running([server(PYNQ)], "--token-file", token) as one:
        run_empty(board_of(one, f"token-file={token}"))
        with pytest.raises(DeviceError, match="asks for a token; give it with"):
            open_device(one.spec())
        with pytest.raises(DeviceError, match="another one than the server's"):
            open_device(one.spec(f"token-file={other}"))
        with pytest.raises(DeviceError, match="cannot be read"):
            open_device(one.spec(f"token-file={tmp_path / 'none'}"))
        # Who listens in gets neither the token nor a proof that serves again.
        seen = bytearray()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def between() -> None:
                with listener.accept()[0] as near, socket.create_connection(("127.0.0.1", one.port)) as far:
                    for source, target in ((near, far), (far, near)) * 2:
                        part = source.recv(65536)
                        seen.extend(part)
                        target.sendall(part)

            thread = threading.Thread(target=between)
            thread.start()
            Connection("127.0.0.1", port, TOKEN, 10, 10).close()
            thread.join()
        assert len(seen) > 150
        assert TOKEN not in seen
    # A server that does not know it.
    with running([server(PYNQ)]) as one, pytest.raises(DeviceError, match="not the server that it should be"):
        open_device(one.spec(f"token-file={token}"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--listen", "0.0.0.0:0"), "is not loopback"),
        (("--listen", "[::]:0"), "is not loopback"),
        (("--listen", "localhost:9090"), "addresses are numbers"),
        (("--token-file", "/no/such"), "cannot be read"),
        (("--token-file", "/dev/null"), "has no token of 16 characters"),
        (("--pool", "-1"), "--pool is not what it can be"),
        (("--key", "a"), "usage"),
        (("--tracker", "here", "--key", "a"), "--tracker is here"),
        (("--tracker", "127.0.0.1:1", "--key", 'a"b'), "--key is not what it can be"),
        (("--driver", "x"), "usage"),
    ],
)
def test_what_a_server_is_not_started_with(arguments: tuple[str, ...], says: str) -> None:
    done = subprocess.run([server(PYNQ), *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert says in done.stderr


# Frames that are not what they should be -----------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        (Kind.ALLOCATE, b"", Code.MALFORMED),
        (Kind.ALLOCATE, struct.pack("<IIQ", 1, 2, 4096), Code.MALFORMED),
        (Kind.ALLOCATE, struct.pack("<IIQ", 1, 1, 0), Code.MALFORMED),
        (Kind.ALLOCATE, struct.pack("<II", 1, 1 << 29), Code.MALFORMED),
        (Kind.PLACE, struct.pack("<II", 0, 0), Code.MALFORMED),
        (Kind.PLACE, struct.pack("<IIIIQ", 1, 0, 0, 4097, 0) + bytes(32), Code.MALFORMED),
        (Kind.PLACE, struct.pack("<IIIIQ", 1, 0, 0, 16, (1 << 64) - 8) + bytes(32), Code.MALFORMED),
        (Kind.PUT, struct.pack("<IIQ", 0, 4, 0) + bytes(36), Code.DAMAGED),
        (Kind.PUT, struct.pack("<IIQ", 0, 5, 0) + bytes(36), Code.MALFORMED),
        (Kind.PUT, struct.pack("<IIQ", 1, 4, 0) + bytes(36), Code.MALFORMED),
        (Kind.RUN, bytes(31), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIII", 4096, 2, 9, 9, 0, 0, 0), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIII", 4096, 2, 9, 9, 1001, 0, 0), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIII", 4096, 257, 9, 9, 1, 0, 0), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIII", 4096, 1 << 31, 9, 9, 1, 0, 0), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIII", (1 << 64) - 16, 2, 9, 9, 1, 0, 0), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIII", 0, 0, 9, 9, 1, 257, 0), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIII", 0, 0, 9, 9, 1, 1, 0), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIIIIIQ", 0, 0, 9, 9, 1, 1, 0, 0, 4, 0) + bytes(3), Code.MALFORMED),
        (Kind.RUN, struct.pack("<QIIIIIIIIQ", 0, 0, 9, 9, 1, 0, 1, 0, 4, 4093), Code.MALFORMED),
        (Kind.GET, struct.pack("<IIQ", 0, 4096, 1) + bytes(32), Code.MALFORMED),
        (Kind.GET, b"", Code.MALFORMED),
        (Kind.PROVE, bytes(32), Code.MALFORMED),
        (77, b"", Code.MALFORMED),
    ],
)
def test_every_size_is_checked_before_it_is_used(kind: Kind, body: bytes, code: Code) -> None:
    with running([server(PYNQ)]) as one:
        connection = Connection("127.0.0.1", one.port, None, 10, 10)
        connection.ask(Kind.ALLOCATE, struct.pack("<IIQ", 1, 1, 4096), 10)
        with pytest.raises(ServerError) as found:
            connection.ask(kind, body, 10)
        assert found.value.code == code
        # The connection goes on, and what was allocated is there.
        assert len(connection.ask(Kind.GET, struct.pack("<IIQ", 0, 16, 0) + bytes(32), 10)) == 20
        connection.close()


def test_get_by_hash_says_that_it_is_the_same() -> None:
    with running([server(PYNQ)]) as one:
        connection = Connection("127.0.0.1", one.port, None, 10, 10)
        connection.ask(Kind.ALLOCATE, struct.pack("<IIQ", 1, 1, 4096), 10)
        place = struct.pack("<IIQ", 0, 100, 0)
        assert connection.ask(Kind.GET, place + wire.digest(bytes(100)), 10) == struct.pack("<I", 1)
        assert connection.ask(Kind.GET, place + wire.digest(bytes(99)), 10) == bytes(104)
        connection.ask(Kind.RESET, b"", 10)
        with pytest.raises(ServerError, match="within the allocations"):
            connection.ask(Kind.GET, place + bytes(32), 10)
        connection.close()


def _exchange(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(sent)
        found = b""
        while part := connection.recv(4096):
            found += part
        return found


def test_what_is_no_frame_is_answered_and_left() -> None:
    with running([server(PYNQ)]) as one:
        good = wire.frame(Kind.HELLO, 1, bytes(32))
        assert b"header is damaged" in _exchange(one.port, b"x" + good)
        head = bytearray(good[:20])
        head[4] = 9
        head += struct.pack("<I", wire.zlib.crc32(head))
        assert b"speaks version 1" in _exchange(one.port, bytes(head) + bytes(32))
        assert b"longer than is allowed" in _exchange(one.port, wire.frame(Kind.HELLO, 1, bytes(1000)))
        assert b"begin with a hello" in _exchange(one.port, wire.frame(Kind.RUN, 1, bytes(32)))
        # A client of TVM's own RPC is told that its key is not here.
        key = b"client:vta:0.123456789"
        assert _exchange(one.port, struct.pack("<ii", 0xFF271, len(key)) + key) == struct.pack("<I", 0xFF273)
        run_empty(board_of(one))


def test_a_damaged_body_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with running([server(PYNQ)]) as one:
        board = board_of(one)
        board.allocate([PAGE])
        frame, damaged = wire.frame, []

        def once(kind: int, number: int, body: bytes) -> bytes:
            good = frame(kind, number, body)
            if damaged or not body:
                return good
            damaged.append(number)
            return good[:-1] + bytes([good[-1] ^ 1])

        monkeypatch.setattr(wire, "frame", once)
        (back,) = board.run(0, 0, [(0, 0, EMPTY)], [(0, 0, EMPTY.size)]).contents
        assert damaged
        assert np.array_equal(back, EMPTY)


# Commands ------------------------------------------------------------------------------------
def test_serve_builds_a_server_and_says_how_to_start_it(run_command: RunCommand, tmp_path: Path) -> None:
    needs_compiler()
    out = tmp_path / "vta-server"
    code, text, err = run_command("serve", "--driver", "sim", "-o", out)
    assert code == 0, err
    assert f"start it with: {out} --listen ADDRESS:9090 --token-file FILE" in text
    assert os.access(out, os.X_OK)
    with running([out]) as one:
        run_empty(board_of(one))
    assert run_command("serve", "--driver", "xrt", "-o", out)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--driver", "sim", "--listen", "0.0.0.0:9090"), "give --token-file FILE"),
        (("--driver", "sim", "--listen", "9090"), "give it as HOST:PORT"),
        (("--driver", "sim", "--listen", "no.such.host.invalid:90"), "no address of"),
        (("--driver", "udmabf"), "none of sim, udmabuf, xrt"),
        (("--driver", "sim", "--limit", "0"), "--limit is 0; allowed: 1 to"),
        (("--driver", "sim", "--tracker", "127.0.0.1:9190"), "go together"),
        (("--driver", "sim", "--token-file", "no/such"), "cannot be read"),
    ],
)
def test_what_serve_refuses(run_command: RunCommand, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = run_command("serve", *arguments)
    assert code == 2
    assert says in err


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tcp:", "give it as tcp:HOST:PORT"),
        ("tcp:host", "give it as tcp:HOST:PORT"),
        ("tcp:127.0.0.1:99999", "give it as tcp:HOST:PORT"),
        ("tcp:127.0.0.1:1", "is the server started there"),
        ("tcp:127.0.0.1:1?limt=3", "did you mean 'limit'"),
        ("tcp:127.0.0.1:1?reconnect=x", "seconds, above 0"),
    ],
)
def test_specifications_that_are_refused(spec: str, says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        open_device(spec)


def test_refused_is_a_fault_that_is_named() -> None:
    with running([server(PYNQ)]) as one:
        board = board_of(one)
        board.allocate([PAGE])
        with pytest.raises(Fault, match="where no memory is") as found:
            board.run(0x7000_0000, 4, (), ())
        assert found.value.kind == REFUSED


# Other machines ------------------------------------------------------------------------------
@pytest.mark.parametrize("machine", ["arm-linux-gnueabihf", pytest.param("aarch64-linux-gnu", marks=pytest.mark.slow)])
def test_the_server_on_other_machines(machine: str) -> None:
    emulator = {"arm-linux-gnueabihf": "qemu-arm", "aarch64-linux-gnu": "qemu-aarch64"}[machine]
    for needed in (f"{machine}-gcc", emulator):
        needs_compiler(needed)
    with running([emulator, server(PYNQ, f"{machine}-gcc")], VTA_FAULT="hang/9") as one:
        device = open_device(one.spec("limit=3"))
        rng = np.random.default_rng(12)
        for _ in range(3):
            assert not differs(device, *random_layer(rng, PYNQ), rng)  # type: ignore[arg-type]
        run_empty(device.process, 3)  # type: ignore[attr-defined]
        assert set(device.faults) <= {HANG}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_server_with_a_boards_driver_builds_for_boards(tmp_path: Path) -> None:
    for machine in ("arm-linux-gnueabihf-gcc", "aarch64-linux-gnu-gcc"):
        needs_compiler(machine)
        for backend in ("udmabuf", "xrt", None):
            assert build_server(backend, PYNQ, tmp_path / "server", machine).stat().st_size > 10_000


# Sizes ---------------------------------------------------------------------------------------
def test_a_static_server_is_small(tmp_path: Path) -> None:
    needs_compiler("musl-gcc")
    small = build_server("sim", PYNQ, tmp_path / "server", "musl-gcc")
    assert small.stat().st_size < 200 << 10
    with running([small]) as one:
        run_empty(board_of(one))


def test_a_server_needs_little_memory_beside_its_pool() -> None:
    with running([server(PYNQ)], "--pool", "0") as one:
        device = open_device(one.spec())
        rng = np.random.default_rng(13)
        assert not differs(device, *random_layer(rng, PYNQ), rng)  # type: ignore[arg-type]
        children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
        assert len(children) == 1
        rows = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in (one.process.pid, *children)]
        used = sum(int(row.split()[1]) << 10 for part in rows for row in part if row.startswith("Pss:"))
        assert 0 < used < 4 << 20
