"""The studies in train/ and the plots in benchmarks/, on a corpus and a task that are tiny."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType

import networks
import numpy as np
import pytest

from oneshot_ml2.codesign.fpga import FPGAS
from oneshot_ml2.codesign.grid import members
from oneshot_ml2.codesign.models import Model
from oneshot_ml2.codesign.resources import budget_of
from oneshot_ml2.devices.board_files import chip_keys
from oneshot_ml2.evaluation import evaluate, optimum
from oneshot_ml2.evaluation.optimum import Optimum, Task
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training import loop
from oneshot_ml2.training.data import Data, read_data
from oneshot_ml2.training.settings import Settings, read_settings
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import Layer

ROOT = Path(__file__).parent.parent
SPACE = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"))
TASK = Task(Layer("small", networks.SMALL, 3), Accelerator.load("pynq"), "accelerators/pynq.json")
SETTINGS = """
scan = [8]
main = [8]
tasks_per_batch = 4
samples_per_task = 16
validity_samples = 20
held_workloads = 0.25
held_accelerators = 1
"""


@pytest.fixture(scope="module")
def data(small_corpus: Path) -> Data:
    return read_data([small_corpus], Settings(validity_samples=20))


@pytest.fixture(scope="module")
def known() -> Optimum:
    return optimum.find_optimum(TASK, limit=1e9)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, known: Optimum):
    """A script as a module, the frozen sets being one tiny task."""
    monkeypatch.setattr(evaluate, "known_tasks", lambda name, limit=0: [(TASK, known)])

    def by_name(name: str) -> ModuleType:
        kind, name = name.split("/")
        monkeypatch.syspath_prepend(str(ROOT / kind))
        return importlib.import_module(name)

    return by_name


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    monkeypatch.setattr("sys.argv", [script.__name__, *map(str, argv)])
    return int(script.main())


def test_the_learning_curve_goes_on_where_it_was(small_corpus: Path, tmp_path: Path, monkeypatch, load, capsys):
    script = load("train/learning_curve")
    (tmp_path / "s.toml").write_text(SETTINGS)
    out = tmp_path / "figures" / "curve"
    given = ["--corpus", small_corpus, "--work", tmp_path / "work", "--out", out, "--settings", tmp_path / "s.toml"]
    given += ["--sets", "workloads"]
    monkeypatch.setattr(script, "SHARES", (0.5, 1.0))
    assert run(script, monkeypatch, *given, "--epochs", 1) == 0
    points = json.loads(out.with_suffix(".json").read_text())
    assert list(points) == ["share 0.5000", "share 1.0000"]
    assert [p["facts"]["settings"]["epochs"] for p in points.values()] == [2, 1]
    few, all_of_them = (p["trained_on"] for p in points.values())
    assert few == round(all_of_them / 2)
    assert 0 < points["share 1.0000"]["sets"]["workloads"]["geomean"] <= 1
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(loop, "train", None)
    assert run(script, monkeypatch, *given, "--epochs", 1) == 0
    with pytest.raises(TypeError):
        run(script, monkeypatch, *given, "--epochs", 2)
    assert run(script, monkeypatch, "--corpus", tmp_path / "absent", *given[2:]) == 2
    assert "absent" in capsys.readouterr().err


def test_every_variant_is_trained_and_used(small_corpus: Path, tmp_path: Path, monkeypatch, load):
    script = load("train/ablation")
    (tmp_path / "s.toml").write_text(SETTINGS)
    out = tmp_path / "ablation"
    given = ["--corpus", small_corpus, "--work", tmp_path / "work", "--out", out, "--settings", tmp_path / "s.toml"]
    assert run(script, monkeypatch, *given, "--epochs", 1, "--sets", "workloads") == 0
    points = json.loads(out.with_suffix(".json").read_text())
    assert list(points) == list(script.VARIANTS)
    assert all(0 < point["sets"]["workloads"]["geomean"] <= 1 for point in points.values())
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_variants_change_what_they_say_and_nothing_else(data: Data, load):
    script = load("train/ablation")
    assert [full_features.TASK_FEATURES[i] for i in script.ACCELERATOR][:2] == ["batch", "block"]
    assert "memory latency" in [full_features.TASK_FEATURES[i] for i in script.ACCELERATOR]

    for features in (script.ACCELERATOR, script.BOUNDED):
        less = script.without(data, features)
        both = [np.hstack([np.repeat(d.tasks, np.diff(d.offsets), axis=0), d.schedules]) for d in (less, data)]
        assert not both[0][:, list(features)].any()
        rest = np.setdiff1d(np.arange(len(full_features.FEATURES)), features)
        assert np.array_equal(both[0][:, rest], both[1][:, rest])

    cycles = script.absolute(data)
    assert np.allclose(cycles.log_ratio[data.timed], (data.log_bound + data.log_ratio)[data.timed])
    assert not cycles.log_bound.any()

    random = script.only(data, ~data.guided)
    fewer = script.only(data, script.as_many(data))
    for t in range(len(data)):
        rows = data.rows(t)
        assert random.timed[rows].sum() == fewer.timed[rows].sum() < data.timed[rows].sum()
    assert not (random.timed & data.guided).any() and (fewer.timed & data.guided).any()
    assert np.array_equal(random.valid, data.valid)

    network, few = networks.random_network(), SPACE.table()[:50]
    assert (script.trusting(network).score(SPACE, few).p_valid > 0.999).all()
    assert np.array_equal(script.trusting(network).score(SPACE, few).log_ratio, network.score(SPACE, few).log_ratio)
    plain = network.score(SPACE, few)
    absolute = script.Unbounded(network.tensors, {}).score(SPACE, few)
    assert np.allclose(absolute.cycles * plain.bound, plain.cycles)
    # What a blind network does not see may change: its bias from the standardisation stays.
    seen = script.blind(network, tuple(range(len(full_features.FEATURES)))).score(SPACE, few)
    assert np.ptp(seen.log_ratio) == 0


def test_a_share_of_the_tasks_is_trained_on(data: Data, tmp_path: Path):
    settings = dataclasses.replace(
        read_settings(ROOT / "train/pretrain.toml"),
        scan=(4,), main=(4,), epochs=1, task_share=0.5, held_workloads=0.25, held_accelerators=1,
    )  # fmt: skip
    whole = loop.train(data, dataclasses.replace(settings, task_share=1.0), tmp_path / "whole")
    half = loop.train(data, settings, tmp_path / "half")
    assert (half.tensors["low"] >= whole.tensors["low"]).all()
    assert not np.array_equal(half.tensors["mean"], whole.tensors["mean"])


def test_quality_against_time(tmp_path: Path, monkeypatch, load, capsys):
    script = load("benchmarks/quality_against_time")
    out = tmp_path / "figures" / "time"
    assert run(script, monkeypatch, "--sets", "workloads", "--out", out) == 0
    points = json.loads(out.with_suffix(".json").read_text())["sets"]["workloads"]
    assert {"pick", "verify 4", "simulation x1", "simulation x10"} <= set(points)
    assert points["simulation x10"]["seconds"] == pytest.approx(10 * points["simulation x1"]["seconds"])
    assert points["verify 256"]["geomean"] >= points["pick"]["geomean"] > 0
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "verify 256" in capsys.readouterr().out


def test_reliability(tmp_path: Path, monkeypatch, load, known):
    script = load("benchmarks/reliability")
    out = tmp_path / "reliability"
    assert run(script, monkeypatch, "--sets", "workloads", "--out", out) == 0
    found = json.loads(out.with_suffix(".json").read_text())["sets"]["workloads"]
    assert sum(found["count"]) == found["samples"] == len(known.sample_cycles)
    assert found["error"] < 0.2
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert run(script, monkeypatch, "--out", out, "--weights", tmp_path / "absent.safetensors") == 2


# What boards did, and boards -------------------------------------------------------------------
def test_the_study_of_records(tmp_path: Path, monkeypatch, load):
    script = load("benchmarks/tuning_study")
    chip = Accelerator.load("pynq-hls")
    layers = []
    for number, out in enumerate((64, 32)):
        space = ScheduleSpace(Conv2d(1, 64, 14, 14, out, 3, 3, padding=1), chip, "autotvm")
        some = space.sample(np.random.default_rng(number), 300)
        found = space.measure(some)
        errors = np.where(found.cycles > 0, 0, 2)
        errors[np.flatnonzero(found.cycles > 0)[::9]] = 4
        rows = [
            [
                int(index),
                space.values(np.array([index]))[0].tolist(),
                int(error),
                [cycles / 1e5] if error == 0 else None,
            ]
            for index, error, cycles in zip(some, errors, found.cycles.tolist())
        ]
        shape = {"n": 1, "ci": 64, "h": 14, "w": 14, "co": out, "kernel": [3, 3], "stride": [1, 1], "pad": [1, 1, 1, 1]}
        layers.append({"workload": shape, "rows": rows})
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"accelerator": dict(chip_keys(chip)), "tuning": {"net": layers}}))
    given = [
        "tuning_study",
        "--logs",
        str(path),
        "--seeds",
        "1",
        "--tuners",
        "random",
        "ml2-warm",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr("sys.argv", given)
    script.main()
    text = (tmp_path / "tuning_logs.md").read_text()
    assert "Mean regret" in text and "2 of 2 ran" in text
    assert "| layer | random | ml2-warm |" in text and "net:0 -> pynq net:1" in text
    rows = [json.loads(line) for line in (tmp_path / "tuning_logs.jsonl").read_text().splitlines()]
    assert [row["tuner"] for row in rows] == ["network"] * 2 + ["finetune"] * 2 + ["random", "ml2-warm"] * 2
    assert all(row["regret"] < 0.06 for row in rows[:2])
    # Again: nothing is made anew.
    monkeypatch.setattr("tuning_logs.run_one", None)
    script.main()
    assert (tmp_path / "tuning_logs.md").read_text() == text


def test_the_report_on_boards(load):
    script = load("benchmarks/tuning_boards")
    task = "full perturbed:banked:0 C4"
    rows = [
        {"task": task, "tuner": "search", "seed": 0, "best": 1000, "closed": True},
        {"task": task, "tuner": "autotvm", "seed": 0, "trials": 100, "invalid": 60, "chosen": 1100,
         "improvements": [[5, 4, 1500], [80, 50, 1015]]},
        {"task": task, "tuner": "ml2-warm", "seed": 0, "trials": 40, "invalid": 0, "chosen": 990,
         "improvements": [[1, 0, 1200], [8, 0, 990]]},
    ]  # fmt: skip
    # T* is the least of all, which the first tuner came not within 2 % of.
    text = script.report(rows)
    assert "| banked | 101.0 (100.0%, +0.0%) | 8.0 (7.9%, -100.0%) |" in text
    lies = [
        row | {"task": f"full perturbed:{board}:0 C4", "improvements": [[10, 0, cycles]], "chosen": cycles}
        for board, cycles in (("liar", 1020), ("honest", 1000))
        for row in rows[2:]
    ]
    assert "| full perturbed:liar:0 C4 | ml2-warm | 0 | 1.020 | 10 | 1.000 | 10 |" in script.report([*rows, *lies])


# The list of models ----------------------------------------------------------------------------
def test_the_list_of_models_is_one_of_records(load):
    architectures = load("benchmarks/architectures")
    names = [model.name for model in architectures.ARCHITECTURES]
    assert len(set(names)) == len(names) >= 60
    kinds = {model.exporter for model in architectures.ARCHITECTURES}
    assert kinds == {"torchscript", "dynamo", "file"}
    exporting = load("benchmarks/exporting")
    for model in architectures.ARCHITECTURES:
        for of in model.inputs:
            few = exporting.draw(dataclasses.replace(of, shape=tuple(min(extent, 16) for extent in of.shape)), 2, 0)
            assert len(few) == 2 * min(of.shape[0], 16) and np.isfinite(few).all()
            assert (few.dtype == np.int64) == (of.below > 0)
            assert not of.below or ((few >= 0).all() and (few < of.below).all())


def test_images_are_smooth_wherever_their_channels_are(load):
    exporting, architectures = load("benchmarks/exporting"), load("benchmarks/architectures")
    for shape, rows, channels in (((1, 3, 32, 32), 2, 1), ((1, 32, 32, 3), 1, 3)):
        image = exporting.draw(architectures.Input("x", shape), 1, 0)
        assert abs(image.mean()) < 1e-5 and abs(image.std() - 1) < 1e-3
        assert np.abs(np.diff(image, axis=rows)).mean() < 0.7 * np.abs(np.diff(image, axis=channels)).mean()
    few = exporting.draw(architectures.Input("x", (1, 3, 8, 8)), 3, 0)
    assert not np.array_equal(few[0], few[1])


def test_each_model_has_its_limits_and_its_row(load, tmp_path: Path):
    script = load("benchmarks/models")
    python = ["python", "-c"]
    ended = script.run([*python, "print(1); import sys; sys.exit('oneshot-ml2: error: no')"], tmp_path / "log", 60, 4)
    assert (ended.code, script._plain(ended.line, tmp_path)) == (1, "no")
    late = script.run([*python, "import time; time.sleep(60)"], tmp_path / "log", 0.5, 4)
    assert late.code < 0 and late.seconds < 30 and "not done after" in late.line
    large = script.run([*python, "x = bytearray(1 << 30)"], tmp_path / "log", 60, 0.25)
    assert (large.code, large.line) == (1, "MemoryError")
    dead = script.run([*python, "import os; os.kill(os.getpid(), 11)"], tmp_path / "log", 60, 4)
    assert dead.line == "ended by SIGSEGV"


def test_the_table_of_models(load, tmp_path: Path):
    script = load("benchmarks/models")
    np.savez(tmp_path / "want.npz", a=np.array([3.0, 4.0]), b=np.array([[1.0]]))
    np.savez(tmp_path / "got.npz", a=np.array([3.0, 4.5]), b=np.array([[1.0]]))
    found = script.compared(tmp_path / "want.npz", tmp_path / "got.npz")
    assert found["error"] == found["errors"]["a"] == pytest.approx(0.1)
    np.savez(tmp_path / "odd.npz", b=np.zeros((1, 1)), a=np.zeros(2))
    assert "its outputs are b, a" in script.compared(tmp_path / "want.npz", tmp_path / "odd.npz")["refused"]
    row = {
        "model": "resnet18", "source": "torchvision", "exporter": "torchscript", "inputs": {"x": [1, 3, 224, 224]},
        "seconds": 130.0, "cpu_seconds": 90.0, "gib": 1.5, "macs": 1_000_000, "share": 0.995, "exact": True,
        "cycles": 1234, "of_bound": 0.9, "arena": 3 << 20, **found,
    }  # fmt: skip
    worse = row | {"model": "unet", "share": 0.5, "seconds": 10.0}
    refused = {"model": "vgg11", "source": "torchvision", "stage": "compile", "refused": "operator X is not supported"}
    # The newest row of a model counts.
    script.write_report([row | {"cycles": 1}, worse, refused, row], tmp_path / "models.md")
    text = (tmp_path / "models.md").read_text()
    assert "3 of the list's " in text and "1 of them compile with at least 99%" in text
    assert "Over 120 s or 3 GiB: resnet18." in text
    assert "| 1,234 |" in text and "| 1 |" not in text
    assert "- vgg11 (compile): operator X is not supported" in text


# Searches for an accelerator --------------------------------------------------------------------
@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_the_best_member_is_known_without_evaluating_all(load, margin: float):
    script = load("benchmarks/codesign")
    rng = np.random.default_rng(0)
    times = rng.uniform(1.0, 10.0, 400)
    times[:20] = np.inf
    floors = np.where(np.isfinite(times), times * rng.uniform(0.7, 1.0, 400), 5.0)
    floors[:10] = np.inf
    known, asked = np.full(400, np.nan), []

    def evaluate(places: list[int]) -> None:
        asked.extend(places)
        known[places] = times[places]

    script.until_proven(floors, lambda: known, evaluate, margin, 7)
    assert len(asked) == len(set(asked)) < 100 and not set(asked) & set(range(10))
    assert np.nanmin(known) == times.min()
    # Whatever is not known is farther.
    assert (floors[np.isnan(known)] > times.min() * (1 + margin)).all()
    again = len(asked)
    script.until_proven(floors, lambda: known, evaluate, margin, 7)
    assert len(asked) == again


def test_the_best_of_a_small_grid_is_that_of_all_evaluations(load, tmp_path: Path):
    script = load("benchmarks/codesign")
    lists = {
        "block": (3, 4),
        "batch": (0,),
        "bus": (6,),
        "uop": (9, 11, 13),
        "inp": (6, 8, 10),
        "wgt": (4, 7),
        "acc": (),
    }
    chips = list(members("hls", lists))
    model = Model("small", (Layer("a", networks.SMALL, 2),))
    floors = script.swept(model, chips, script.Floors(), None, "floors")
    budgets = [budget_of(FPGAS["xc7z020"], most) for most in (None, 40.0)]
    with script.evaluations(tmp_path / "some.jsonl") as some, script.evaluations(tmp_path / "all.jsonl") as every:
        every.make(model, chips, "all")
        whole = every.of(model, chips)
        assert np.isfinite(whole).any() and (floors[np.isfinite(whole)] <= whole[np.isfinite(whole)]).all()
        study = script.Study(model, chips, floors, budgets, some)
        for budget in budgets:
            study.prove(budget, 0.0)
            held = study.held(budget)
            assert study.table(budget, whole, 0).best == (whole[held] * study.scale(budget, held)).min()
        assert len(some.known) < len(chips)
    with script.evaluations(tmp_path / "some.jsonl") as again:
        assert again.known == some.known


def test_a_search_is_told_floors_of_what_nobody_has_evaluated(load):
    script = load("benchmarks/codesign")
    ms, floors = np.array([2.0, np.nan, np.nan, 1.0]), np.array([1.5, 1.5, 1.005, 0.9])
    knobs = np.arange(28, dtype=np.int64).reshape(4, 7)
    table = script.Table(knobs, ms, floors, np.array([3.0, 1.0, 2.0, 4.0]))
    assert [table.time(place) for place in range(4)] == [2.0, 1.5, 1.005, 1.0] and table.best == 1.0
    course = script.course_of(table, script.ours, 0)
    assert course.needed == 2 and course.regrets[0] == pytest.approx(0.5)
    assert course.regrets[-1] == 0.0
    lazy = script.Table(knobs, ms.copy(), floors, table.predicted, lambda place: 1.7 if place == 1 else None)
    assert lazy.time(1) == 1.7 == lazy.ms[1] and lazy.time(2) == 1.005
    for search in (script.by_chance, script.genetic, script.three_knobs):
        assert len(script.course_of(table, search, 1).regrets) == len(script.EVALUATIONS)
