"""JSON Lines: every whole line counts, nothing that could be a measurement is lost, one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneshot_ml2.common import json_lines
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.json_lines import dumped, find, open_lines

HEADER = {"format": "test", "seed": 1}


def read(data: Any) -> int:
    """An entry is {"n": number, "more": [..]}."""
    return int(data["n"])


def line(n: int) -> str:
    return dumped({"n": n, "more": [n, {"n_": 7}]})


def whole(count: int = 6) -> str:
    return dumped(HEADER) + "".join(map(line, range(count)))


def go_on(path: Path, header: dict[str, Any] | None = HEADER, **options: Any) -> json_lines.Opened[int]:
    with open_lines(path, read, header, **options) as opened:
        return opened


def in_order(entries: Any) -> bool:
    return list(entries) == list(range(len(entries)))


# Reading ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("damage", "kept", "skipped"),
    [
        (lambda lines: [*lines[:3], lines[3][:9] + "\n", *lines[4:]], [0, 1, 3, 4, 5], (4,)),
        (lambda lines: [*lines[:3], lines[3][:9], *lines[4:]], [0, 1, 3, 4, 5], (4,)),
        (lambda lines: [*lines[:3], lines[3][:-1], *lines[4:]], [0, 1, 2, 3, 4, 5], (4,)),
        (lambda lines: [*lines[:3], "what is this?\n", *lines[3:]], [0, 1, 2, 3, 4, 5], (4,)),
        (lambda lines: [*lines[:3], '{"other": [1]}\n', *lines[3:]], [0, 1, 2, 3, 4, 5], (4,)),
        (lambda lines: [*lines[:3], "\n", *lines[3:]], [0, 1, 2, 3, 4, 5], ()),
        (lambda lines: [lines[0], *lines], [0, 1, 2, 3, 4, 5], (2,)),
        (lambda lines: [*lines[:3], dumped({"format": "other"}), line(99), *lines[:1], *lines[3:]],
         [0, 1, 2, 3, 4, 5], (4, 5, 6)),
        (lambda lines: ["noise\n", *lines], [0, 1, 2, 3, 4, 5], (1,)),
        (lambda lines: [*lines[:3], "\x00" * 4096 + lines[3], *lines[4:]], [0, 1, 2, 3, 4, 5], (4,)),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], [0, 1, 2, 3, 4, 5], ()),
        (lambda lines: [*lines[:-1], lines[-1][:-4]], [0, 1, 2, 3, 4], ()),
        (lambda lines: [*lines[:-1], lines[-1][:-1] + lines[1][:7]], [0, 1, 2, 3, 4, 5], (7,)),
        (lambda lines: [*lines[:3], "[" * 100_000 + "\n", "{" * 100_000 + "\n", *lines[3:]],
         [0, 1, 2, 3, 4, 5], (4, 5)),
        (lambda lines: [*lines[:3], '{"n": ' + "9" * 6000 + "}\n", *lines[3:]], [0, 1, 2, 3, 4, 5], (4,)),
    ],
)  # fmt: skip
def test_whole_lines_are_read_past_whatever_is_between(damage: Any, kept: list[int], skipped: tuple[int, ...]) -> None:
    content = "".join(damage(whole().splitlines(keepends=True))).encode()
    found = find(content, read, headed=True)
    assert (found.header, found.entries, found.skipped, found.problem) == (HEADER, kept, skipped, "")
    assert [json.loads(text)["n"] for text in found.texts] == kept


def test_bytes_that_are_no_text_spoil_their_line_only() -> None:
    lines = whole().encode().splitlines(keepends=True)
    lines[3] = lines[3][:8] + b"\xff" + lines[3][8:]
    lines[4] = b'{"n": 3, "more": "\xff"}\n'
    found = find(b"".join(lines), read, headed=True)
    assert (found.entries, found.skipped) == ([0, 1, 4, 5], (4, 5))


@pytest.mark.parametrize("content", ["", '{"format": "te', "{}\n", "nonsense", "[1]\n[2]\n"])
def test_what_nothing_can_be_read_of_is_called_what_it_is(content: str) -> None:
    problem = find(content.encode(), read, headed=True).problem
    assert problem and ("empty" in problem) == (not content)


def test_random_damage_loses_what_it_hits_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    clean = whole(20).encode()
    ends = [place for place, byte in enumerate(clean) if byte == 10]
    for _ in range(500):
        content, kind = bytearray(clean), int(rng.integers(4))
        at = int(rng.integers(ends[0] + 1, len(clean)))
        size = int(rng.integers(1, 60))
        if kind == 0:
            content[at : at + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        elif kind == 1:
            del content[at : at + size]
        elif kind == 2:
            content[at:at] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
        else:
            content = content[:at]
        hit = at if kind == 2 else at + size - 1 if kind < 2 else len(clean)
        first = int(np.searchsorted(ends, at - 1 if kind == 2 else at)) - 1
        last = int(np.searchsorted(ends, hit))
        unharmed = [n for n in range(20) if n < first or n >= last]
        found = find(bytes(content), read, headed=True)
        assert set(unharmed) <= set(found.entries), (kind, at, size)


# Going on --------------------------------------------------------------------------------------
def test_a_file_is_begun_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "log.jsonl"
    with open_lines(path, read, HEADER) as opened:
        opened.append([{"n": 0, "more": [0, {"n_": 7}]}])
    assert path.read_text() == whole(1)
    assert go_on(path).entries == [0]
    assert path.read_text() == whole(1)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["log.jsonl"]
    assert capsys.readouterr().err == ""


def test_only_a_cut_last_line_is_taken_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    content = whole().encode()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        opened = go_on(path, ordered=in_order)
        rest = path.read_bytes()
        assert in_order(opened.entries) and not opened.known
        assert content.startswith(rest) and rest.endswith(b"\n")
        # A line that lacks its newline alone is whole.
        assert len(opened.entries) == max(content[: cut + 1].count(b"\n") - 1, 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ordered", [None, in_order])
def test_a_damaged_file_is_kept_and_what_was_whole_in_it_counts(
    ordered: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.jsonl"
    lines = whole().splitlines(keepends=True)
    damaged = "".join([*lines[:3], lines[3][:9], *lines[4:], line(3)[:6]])
    path.write_text(damaged)
    opened = go_on(path, ordered=ordered)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "line 4" in err and "log.jsonl.damaged" in err
    assert (tmp_path / "log.jsonl.damaged").read_text() == damaged
    kept = [0, 1, 3, 4, 5]
    if ordered is None:
        assert (opened.entries, opened.known) == (kept, [])
        assert path.read_text() == dumped(HEADER) + "".join(line(n) for n in kept)
    else:
        assert (opened.entries, opened.known) == ([], kept)
        assert path.read_text() == dumped(HEADER)
    # A second process knows them, too, and says nothing again.
    again = go_on(path, ordered=ordered)
    assert again.entries + again.known == kept
    assert capsys.readouterr().err == ""


def test_lines_of_two_writers_are_told_by_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    mixed = dumped(HEADER) + "".join(line(n) for n in (0, 0, 1, 2, 1, 3))
    for number in (1, 2):
        path.write_text(mixed)
        opened = go_on(path, ordered=in_order)
        assert opened.entries == [] and set(opened.known) == {0, 1, 2, 3}
        assert "lines of several runs" in capsys.readouterr().err
        copies = sorted(copy.name for copy in tmp_path.glob("*.damaged*"))
        assert copies == ["log.jsonl.damaged", "log.jsonl.damaged-2"][:number]


@pytest.mark.parametrize(
    "content", ["{}\n", "[1, 2]\n", "not ours, and without an end", dumped({"format": "test", "seed": 2}), "\x00" * 99]
)
def test_other_files_are_refused_and_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(OneShotError, match="another"):
        go_on(path)
    assert path.read_text() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_table_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    assert go_on(path, None).entries == []
    path.write_text(line(0) + line(1)[:5])
    assert go_on(path, None).entries == [0]
    assert path.read_text() == line(0)
    # Its first row was cut: nothing says that it is a table, so it is kept.
    path.write_text(line(0)[:5])
    assert go_on(path, None).entries == []
    assert (tmp_path / "table.jsonl.damaged").read_text() == line(0)[:5]
    path.write_text('{"n": "many"}\n')
    with pytest.raises(OneShotError, match="no file of this kind"):
        go_on(path, None)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = (
        "import sys; from oneshot_ml2.common.json_lines import open_lines\n"
        f"with open_lines(sys.argv[1], dict, {HEADER!r}): print('ready', flush=True); sys.stdin.read()"
    )
    root = Path(json_lines.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": str(root)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with pytest.raises(OneShotError, match="another process is at work"):
            go_on(path)
        other.kill()
        other.communicate()
    assert go_on(path).entries == []


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    with open_lines(path, read, HEADER) as opened:
        opened.append([{"n": 0}])
        before = path.read_bytes()

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="space"):
                opened.append([{"n": 1}])
        assert path.read_bytes() == before
        opened.append([{"n": 1}])
    assert go_on(path).entries == [0, 1]
