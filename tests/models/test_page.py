"""The HTML page: self-contained, free of a model's markup, and drawn without errors by a real browser."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from conftest import Browse

from oneshot_ml2.models import page as html_page
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import timeline
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue

PYNQ = Accelerator.load("pynq")
EVIL = "</script><script>document.documentElement.dataset.pwned = 1</script><!--"
IMAGE = '<img src=x onerror="document.documentElement.dataset.pwned = 1">\'&\u2028'
WORKLOADS: tuple[Workload, ...] = (
    Conv2d(1, 16, 12, 12, 32, 3, 3, 1, 1, 1, Epilogue(bias=True, shift=8, clip=(0, 127))),
    Dense(1, 64, 100, Epilogue(shift=6)),
)


def vta_layer(name: str, workload: Workload, chip: Accelerator) -> tuple[dict[str, Any], Program]:
    space = ScheduleSpace(workload, chip)
    index = int(picking.legal_by_estimate(space, 1)[0])
    assert index is not None
    program = space.lower(index)
    entry = {
        "layer": name, "operator": workload.to_dict()["op"], "where": "vta", "shape": list(workload.output_shape),
        "macs": 1000, "exponent": -3, "error": 0.0123, "error_alone": 0.0045, "workload": workload.to_dict(),
        "schedule": dict(space.schedule(index).knobs), "source": "fallback", "predicted_cycles": 1234.5,
        "cycles": timeline.timeline(program).cycles, "engine_bound": 700, "dram_bytes": 4096, "wrong_outputs": 0,
        "rows": None,
    }  # fmt: skip
    return entry, program


def host_layer(name: str) -> dict[str, Any]:
    return {
        "layer": name, "operator": "softmax", "where": "host", "shape": [1, 100], "macs": 0, "exponent": None,
        "error": None, "error_alone": None, "reason": f"computed in float32 {IMAGE}",
    }  # fmt: skip


def sample(chip: Accelerator = PYNQ) -> tuple[dict[str, Any], dict[str, Program]]:
    """What ``report.json`` of a small model holds, its strings as bad as they can be, and its programs."""
    programs = {}
    layers = [host_layer("input")]
    for name, workload in zip((f"conv {EVIL}", "a/b c#100%", "twin"), (WORKLOADS[0], *WORKLOADS)):
        entry, programs[name] = vta_layer(name, workload, chip)
        layers.append(entry)
    layers.append(host_layer(IMAGE))
    cycles = sum(layer.get("cycles", 0) for layer in layers)
    content = {
        "model": f"model {EVIL}",
        "accelerator": json.loads(chip.to_json()) | {"name": IMAGE},
        "quantization": "qdq",
        "calibration": {"samples": 2, "source": EVIL},
        "dram": {
            "total": 3 << 20,
            "constants": 1 << 20,
            "code": 1 << 19,
            "activations": 1 << 20,
            "separate": 1 << 21,
            "largest": {"buffer": f"weight of {EVIL}", "bytes": 1 << 18},
        },
        "rounding": "shift",
        "changes": [EVIL],
        "warnings": [IMAGE, "second"],
        "hurt": [
            {"layer": f"conv {EVIL}", "alone": 0.125, "outputs": 0.0625, "advice": f"{IMAGE}; train"},
            {"layer": "other", "alone": 0.125, "outputs": 0.0625, "advice": "second; train"},
        ],
        "task": {
            "source": EVIL,
            "samples": 3,
            "calibrated": False,
            "outputs": [
                {
                    "name": IMAGE,
                    "error": 0.01,
                    "cosine": 1.0,
                    "least": 0.99,
                    "agreement": 1.0,
                    "accuracy": 0.5,
                    "float_accuracy": 0.75,
                    "expected": None,
                    "float_expected": None,
                }
            ],
        },
        "ok": True,
        "checked": {"outputs": 0, "largest_difference": 0.0, "allowed_difference": 0.0},
        "cycles": cycles,
        "engine_bound": 2100,
        "milliseconds": cycles / 1e5,
        "milliseconds_spread": None,
        "macs_vta": 3000,
        "macs_host": 0,
        "seconds": {"import": 1.0, "quantize": 0.5, "pick": 0.25, "lower": 0.0, "build": 2.0, "check": 0.1},
        "peak_bytes": 2**30,
        "submissions": [
            {"layers": [layers[1]["layer"], layers[2]["layer"]], "cycles": 5000, "wrong_outputs": 0},
            {"layers": ["twin"], "cycles": 3000, "wrong_outputs": 0},
        ],
        "layers": layers,
    }
    return content, programs


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_page.page(*sample()), encoding="utf-8")
    return path


# Without a browser -------------------------------------------------------------------------------
class Tags(HTMLParser):
    """All start tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_is_fetched_and_nothing_of_the_model_is_markup(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    tags = Tags(text).tags
    assert [tag for tag, _ in tags].count("script") == 2
    assert not {"link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form"} & {
        tag for tag, _ in tags
    }
    assert not [
        attributes for _, attributes in tags if {"src", "href", "onerror", "onload", "onclick"} & set(attributes)
    ]
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text
    # The only address is the name of SVG's elements.
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}
    rest = re.sub(r'<title>[^<]*</title>|<script type="application/json"[^<]*</script>', "", text)
    assert "pwned" in text and "pwned" not in rest


def test_the_figures_of_the_report_are_in_the_page(written: Path) -> None:
    content, _ = sample()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', written.read_text(), re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["model"] == content["model"]
    assert data["warnings"] == [*content["warnings"], *content["changes"]]
    assert [hurt["advice"] for hurt in data["hurt"]] == [f"{IMAGE}; train", "second"]
    assert [layer["name"] for layer in data["layers"]] == [entry["layer"] for entry in content["layers"]]
    for layer, entry in zip(data["layers"], content["layers"]):
        assert layer["cycles"] == entry.get("cycles")
        assert layer["reason"] == entry.get("reason", "")
        if layer["cycles"] is not None:
            assert (layer["predicted"], layer["bytes"], layer["source"]) == (1234.5, 4096, "fallback")
            assert data["details"][layer["detail"]]["cycles"] == layer["cycles"]
    assert data["dram"] == content["dram"]
    # Equal programs are drawn once.
    assert [layer["detail"] for layer in data["layers"]] == [None, 0, 0, 1, None]


def on_hls() -> str:
    """The page of the sample as the HLS design's."""
    content, programs = sample(Accelerator.load("pynq-hls"))
    content["milliseconds_spread"] = 0.02
    for layer in content["layers"]:
        if "cycles" in layer:
            layer["rows"] = (1234, 56)
    return html_page.page(content, programs)


def test_the_hls_design_s_page_has_rows_and_a_spread(written: Path) -> None:
    assert '"spread":" \\u00b1 2 %"' in on_hls() and '"rows":[1234,56]' in on_hls() and "HLS design;" in on_hls()
    rtl = written.read_text(encoding="utf-8")
    assert '"spread":""' in rtl and '"rows":null' in rtl and "cycle-exact for the VTA;" in rtl


def test_a_layer_without_a_program_has_no_detail() -> None:
    content, _ = sample()
    assert '"details":[]' in html_page.page(content, {})


def test_wrong_results_are_said() -> None:
    content, programs = sample()
    content["ok"] = False
    content["layers"][1]["wrong_outputs"] = 7
    page = html_page.page(content, programs)
    assert "WRONG: 7" in page and "1 layers, 0 submissions differ" in page


def test_utilisation_counts_covered_cycles() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        cycles = int(rng.integers(1, 300))
        cuts = np.unique(rng.integers(0, cycles + 1, 2 * int(rng.integers(0, 8))))
        cuts = cuts[: len(cuts) // 2 * 2].reshape(-1, 2)
        slices = [timeline.Slice(timeline.Row.LOAD, int(a), int(b), "x", timeline.WORK) for a, b in cuts]
        steps = int(rng.integers(1, cycles + 1))
        fine = np.zeros(cycles * steps)
        for a, b in cuts:
            fine[a * steps : b * steps] = 1
        expected = fine.reshape(steps, cycles).mean(axis=1)
        np.testing.assert_allclose(html_page.utilisation(slices, cycles, steps), expected, atol=1e-9)


# With a browser ----------------------------------------------------------------------------------
def rows(document: str, kind: str) -> list[dict[str, str | None]]:
    return [attributes for tag, attributes in Tags(document).tags if tag == "tr" and attributes.get("class") == kind]


def detail(document: str) -> str:
    """The section of the chosen layer; empty if it is hidden."""
    found = re.search(r'<section id="detail"([^>]*)>(.*?)</section>', document, re.DOTALL)
    assert found is not None
    assert ("hidden" in found[1]) == (not found[2])
    return found[2]


def clicking(written: Path, tmp_path: Path, script: str) -> Path:
    """A copy of the page that does something once it is drawn."""
    path = tmp_path / "clicked.html"
    text = written.read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return path


def test_a_browser_draws_the_page(browse: Browse, written: Path) -> None:
    content, _ = sample()
    document = browse(written)
    assert (len(rows(document, "vta")), len(rows(document, "host"))) == (3, 2)
    assert detail(document) == ""
    tags = Tags(document).tags
    bars = [attributes for tag, attributes in tags if tag == "button" and "data-layer" in attributes]
    assert len(bars) == 3
    widths = [float(re.findall(r"width: ?([\d.]+)%", str(bar["style"]))[0]) for bar in bars]
    assert sum(widths) == pytest.approx(100, abs=0.01)
    assert html.escape(str(content["layers"][1]["layer"]), quote=False) in document
    assert f"{content['layers'][1]['cycles']:,}" in document
    assert "exact" in document and "TVM build 2.00 s" in document


def test_a_browser_draws_rows_of_the_hls_design(browse: Browse, tmp_path: Path) -> None:
    path = tmp_path / "hls.html"
    path.write_text(on_hls(), encoding="utf-8")
    content, _ = sample()
    document = browse(path, "#layer=" + quote(str(content["layers"][1]["layer"])))
    assert "rows read + stored" in document and detail(document).count("1,234 + 56") == 1
    assert "ms ± 2 %" in document and "memory read" not in detail(document)


def test_a_browser_draws_what_was_measured(browse: Browse, written: Path, tmp_path: Path) -> None:
    content, _ = sample()
    found = [{"predicted_ms": 2.0, "measured_ms": 3.0}, *[{"predicted_ms": 1.0, "measured_ms": None}] * 9]
    submissions = found[: len(content["submissions"])]
    measured = {"device": IMAGE, "runs": 2, "submissions": submissions, "host_ms": 7.25}
    path = tmp_path / "measured.html"
    path.write_text(html_page.with_measured(written.read_text(encoding="utf-8"), measured), encoding="utf-8")
    section = re.search(r'<section id="measured"([^>]*)>(.*?)</section>', browse(path), re.DOTALL)
    assert section is not None
    assert "hidden" not in section[1]
    assert "7.25 ms" in section[2]
    assert ("1.50" in section[2]) == bool(submissions)
    assert 'id="measured" aria-labelledby="h-measured" hidden' in browse(written)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_layer_opens_by_its_address(number: int, browse: Browse, written: Path) -> None:
    content, programs = sample()
    name = content["layers"][number]["layer"]
    document = browse(written, "#layer=" + quote(name, safe=""))
    assert [row["aria-selected"] for row in rows(document, "vta")] == [str(n == number).lower() for n in (1, 2, 3)]
    shown = detail(document)
    assert html.escape(name, quote=False) in shown
    tags = Tags(shown).tags
    images = [attributes for tag, attributes in tags if tag == "svg"]
    assert [str(image["aria-label"]).split(":")[0] for image in images] == [
        "load", "compute", "store", "memory read", "memory write", *timeline.ROWS,
    ]  # fmt: skip
    # The timeline shows slices of the trace as they are.
    line = timeline.timeline(programs[name])
    titles = set(re.findall(r"<title>(.*?)</title>", shown))
    told = {
        f"{s.name}, instruction {s.args['instruction']}: cycles {s.start:,} to {s.end:,} ({s.end - s.start:,})"
        for s in line.slices
        if "instruction" in s.args
    }
    assert len(titles & told) > 20
    assert "waits for a token from" in shown
    assert ("2 of 2" in shown, "1 of 2, with" in shown) == (number == 3, number < 3)


def test_clicks_choose_switch_and_close(browse: Browse, written: Path, tmp_path: Path) -> None:
    click = "document.querySelectorAll({!r})[{}].click();".format
    document = browse(clicking(written, tmp_path, click("#layers tr.vta", 2)))
    assert [row["aria-selected"] for row in rows(document, "vta")] == ["false", "false", "true"]
    assert ">twin</h2>" in detail(document)
    document = browse(clicking(written, tmp_path, click("#strip button", 1)))
    assert ">a/b c#100%</h2>" in detail(document)
    document = browse(clicking(written, tmp_path, click(".tools button", 1)), "#layer=" + quote("a/b c#100%"))
    assert ">twin</h2>" in detail(document)
    document = browse(
        clicking(written, tmp_path, click(".choice button", 0) + click(".tools button", 2)), "#layer=twin"
    )
    assert detail(document) == ""
    # No such layer: the page as it is at first.
    assert detail(browse(written, "#layer=%E0%A4%A")) == ""


def test_light_dark_and_narrow_windows(browse: Browse, written: Path, tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib reads the screenshots")
    brightness = []
    for scheme in ("1", "0"):
        image = tmp_path / f"{scheme}.png"
        browse(written, "#layer=twin", f"--screenshot={image}", "--window-size=1000,1400",
               f"--blink-settings=preferredColorScheme={scheme}")  # fmt: skip
        pixels = plt.imread(image)[..., :3]
        assert pixels.shape[:2] == (1400, 1000)
        assert len(np.unique((pixels * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 50
        brightness.append(pixels.mean())
    assert brightness[0] > 0.8 and brightness[1] < 0.35
    # Nothing but the table's own region is wider than a narrow window.
    script = "document.documentElement.dataset.wide = document.documentElement.scrollWidth - innerWidth;"
    document = browse(clicking(written, tmp_path, script), "#layer=twin", "--window-size=500,900")
    assert 'data-wide="0"' in document
