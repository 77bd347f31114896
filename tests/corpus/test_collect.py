from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fake_space
import numpy as np
import pytest
from killing import alive

from oneshot_ml2.commands import collect as collect_command
from oneshot_ml2.commands import corpus as corpus_command
from oneshot_ml2.common import files
from oneshot_ml2.common.errors import CorpusError, DeviceError, OneShotError
from oneshot_ml2.corpus import collect, sampling
from oneshot_ml2.corpus.manage import verify_corpus
from oneshot_ml2.corpus.plan import Plan, _flat, draw_tasks, make_plan, read_plan
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.evaluation.optimum import Task, read_tasks
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.lists import Layer

LAYERS = (
    Layer("small", Conv2d(1, 16, 8, 8, 32, 3, 3, padding=1), 30),
    Layer("large", Conv2d(1, 64, 8, 8, 32, 3, 3, padding=1), 1),
    Layer("dense", Dense(1, 64, 16), 1),
)
CHIPS = tuple(Accelerator.load(name) for name in ("pynq", "ultra96", "b8", "b32", "lat1", "bus256"))


def make(**settings) -> Plan:
    values = {"layers": LAYERS, "accelerators": CHIPS, "tasks": 9, "samples": 120, "space": "fake", "seed": 5}
    return Plan(**(values | settings))


def run(plan: Plan, out: Path, **settings):
    return collect.collect(plan, out, progress=False, **settings)


def digest(folder: Path) -> str:
    return verify_corpus(folder)["digest"]


WORKLOADS = """
[[workload]]
op = "conv2d"
name = "small"
count = 3
n = 1
c = 16
h = 8
w = 8
k = 32
r = 3
s = 3
[[workload]]
op = "dense"
n = 1
c = 64
k = 16
[[workload]]
op = "dense"
n = 1
c = 64
k = 16
count = 4
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "w.toml").write_text(WORKLOADS)
    (tmp_path / "chips").mkdir()
    for chip in CHIPS[:3]:
        (tmp_path / "chips" / f"{chip.name}.json").write_text(chip.to_json())
    (tmp_path / "plan.toml").write_text(
        'workloads = "w.toml"\naccelerators = "chips"\nspace = "fake"\ntasks = 6\nsamples = 50\nshard_tasks = 1\n'
        "[samplers]\nrandom = 0.25\n[task_draw]\nprior = 1.0\n[exploration]\nrounds = 3\n"
    )
    return tmp_path


# Plans ---------------------------------------------------------------------------------------


def test_read_plan(project):
    plan = read_plan(project / "plan.toml")
    assert [layer.count for layer in plan.layers] == [3, 5]
    assert (plan.tasks, plan.samples, plan.explore, plan.prior, plan.rounds) == (6, 50, 0.75, 1.0, 3)
    assert [chip.name for chip in plan.accelerators] == ["b8", "pynq", "ultra96"]
    assert read_plan(project / "plan.toml", {"seed": 9, "tasks": 3}).tasks == 3
    alone = make_plan({"workloads": str(project / "w.toml"), "accelerators": str(project / "chips")})
    assert alone.tasks == 2 and alone.space == "full"


def test_plan_excludes_by_shape_and_accelerator(project):
    (project / "held.toml").write_text('[[workload]]\nop = "dense"\nn = 8\nc = 64\nk = 16\n')
    text = (project / "plan.toml").read_text().replace("tasks = 6", "tasks = 1")
    head = 'exclude_workloads = "held.toml"\nexclude_accelerators = ["chips/b8.json"]\n'
    (project / "plan.toml").write_text(head + text)
    plan = read_plan(project / "plan.toml")
    assert [layer.name for layer in plan.layers] == ["small"]
    assert [chip.name for chip in plan.accelerators] == ["pynq", "ultra96"]


def test_plan_excludes_operators(project):
    text = (project / "plan.toml").read_text().replace("tasks = 6", "tasks = 2")
    for given in ('"dense"', '["dense", "max_pool2d"]'):
        (project / "plan.toml").write_text(f"exclude_operators = {given}\n{text}")
        assert [layer.workload.op for layer in read_plan(project / "plan.toml").layers] == ["conv2d"]
    (project / "plan.toml").write_text(f'exclude_operators = "max_pool"\n{text}')
    with pytest.raises(CorpusError, match=r"'max_pool'.*max_pool2d"):
        read_plan(project / "plan.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tasks = 6", "tasks = 7", "tasks is 7; allowed: 2 to 6"),
        ("tasks = 6", "tasks = 1", "tasks is 1"),
        ("tasks = 6", 'tasks = "6"', "allowed: int"),
        ("samples", "sampels", "unknown key 'sampels'"),
        ("random = 0.25", "random = 0.25\nexplore = 0.5", "sum of 1"),
        ("random = 0.25", "random = 0.0", "above 0"),
        ("rounds = 3", "rounds = 0", "rounds is 0"),
        ('accelerators = "chips"', "", "--accelerators"),
        ('"chips"', '"."', "no accelerators"),
        ("tasks = 6", "tasks = ", "not TOML"),
    ],
)
def test_bad_plans(project, old, new, message):
    path = project / "plan.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CorpusError, match=message):
        read_plan(path)


def test_shipped_plans_parse():
    import tomllib

    folder = Path(__file__).parent.parent.parent / "datasets" / "plans"
    for path in sorted(folder.glob("*.toml")):
        _flat(tomllib.loads(path.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["second", "wide", "wide_hls"])
def test_no_task_of_the_plans_is_of_an_evaluation_set(name):
    folder = Path(__file__).parent.parent.parent / "datasets"
    paths = [path for path in (folder / "evaluation").glob("*.json") if path.stem != "best_known"]
    evaluated: dict[Accelerator, list[Task]] = {}
    for task in (task for path in paths for task in read_tasks(path)):
        evaluated.setdefault(task.accelerator, []).append(task)
    nests = {chip: [make_nest(task.workload, chip) for task in tasks] for chip, tasks in evaluated.items()}
    shapes = {task.workload.shape_key for tasks in evaluated.values() for task in tasks}
    plan = read_plan(folder / f"plans/{name}.toml")
    assert not {layer.workload.shape_key for layer in plan.layers} & shapes
    assert not any(make_nest(workload, chip) in nests.get(chip, []) for workload, chip in plan.drawn)
    trained = {chip for chip in plan.accelerators if chip in evaluated}
    # Accelerators that both have are those of the sets of unseen workloads on seen accelerators.
    assert len(trained) == (0 if name == "wide_hls" else 64)


def test_tasks_cover_and_balance():
    plan = make(tasks=14)
    tasks = draw_tasks(plan)
    assert len(set(tasks)) == 14 and tasks == draw_tasks(make(tasks=14))
    assert tasks != draw_tasks(make(tasks=14, seed=6))
    assert {workload for workload, _ in tasks} == {layer.workload for layer in LAYERS}
    load = Counter(chip for _, chip in tasks)
    assert set(load) == set(CHIPS) and max(load.values()) - min(load.values()) <= 2
    assert len(set(draw_tasks(make(tasks=18)))) == 18


def test_a_plan_may_be_cut_short(project, run_command):
    plan = make(tasks=14, first=5)
    assert plan.drawn == draw_tasks(make(tasks=14))[:5]
    assert plan.digest("sim") != make(tasks=14).digest("sim") == make(tasks=14, first=14).digest("sim")
    path = project / "plan.toml"
    path.write_text(path.read_text().replace("tasks = 6", "tasks = 6\nfirst = 2"))
    assert len(read_plan(path).drawn) == 2
    code, printed, err = run_command(
        "collect", "--plan", path, "--out", project / "first", "--first", "1", "--samples", "4", "--workers", "1",
        "--quiet", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(printed)["tasks"] == 1
    path.write_text(path.read_text().replace("first = 2", "first = 7"))
    with pytest.raises(CorpusError, match="first is 7; allowed: 0 to 6"):
        read_plan(path)


def test_prior_follows_counts():
    favoured = [sum(w == LAYERS[0].workload for w, _ in make(tasks=8, prior=p, seed=s).drawn)
                for p in (1.0, 0.0) for s in range(20)]  # fmt: skip
    assert sum(favoured[:20]) > 1.5 * sum(favoured[20:])


# Samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_samples_are_canonical_distinct_and_bounded_in_invalid_ones(layer):
    plan = make(samples=300, invalid_share=0.1)
    task = sampling.collect_task((LAYERS[layer].workload, CHIPS[0]), plan, open_device("sim"))
    space = task.space()
    indices = space.index(task.values)
    assert len(task) == len(np.unique(indices)) == 300
    assert np.array_equal(space.canonical(indices), indices)
    assert np.array_equal(space.validity(indices), task.reason)
    assert 0 < (task.reason != Reason.VALID).sum() <= 30
    assert (task.sampler == 0).sum() == 120


def test_exploration_is_dense_where_programs_are_fast():
    task = sampling.collect_task((LAYERS[1].workload, CHIPS[0]), make(samples=400), open_device("sim"))
    random, explored = (task.cycles[task.valid & (task.sampler == s)] for s in (0, 1))
    assert explored.min() <= random.min()
    assert np.median(explored) < np.percentile(random, 15)


def test_random_draws_are_uniform_over_canonical_schedules():
    plan = make(samples=4000, explore=0.0, invalid_share=1.0)
    task = sampling.collect_task((LAYERS[1].workload, CHIPS[0]), plan, open_device("sim"))
    # k0 = 1 folds k5: its canonical schedules are 1 in 57.
    assert abs((task.values[:, 0] == 1).mean() - 1 / 57) < 0.01
    counts = np.bincount(np.log2(task.values[:, 4]).astype(int), minlength=8)
    assert counts.min() > 400 and counts.max() < 600


def test_small_space_is_exhausted():
    plan = make(samples=5000, explore=0.0, invalid_share=1.0)
    task = sampling.collect_task((LAYERS[0].workload, CHIPS[0]), plan, open_device("sim"))
    assert len(task) == len(task.space().table()) == 729 - 2 * 81


@pytest.mark.parametrize(
    ("workload", "changes", "legal"),
    [
        (Conv2d(1, 192, 35, 35, 64, 3, 3), {"log_uop_buff_size": 5, "uop_depth": 0, "isa_uop_bits": 0}, 0),
        (Conv2d(1, 192, 35, 35, 64, 1, 1), {"log_inp_buff_size": 4, "isa_inp_bits": 0, "instruction_queue": 4}, 16),
    ],
)
def test_where_hardly_a_schedule_is_legal_all_are_found_soon(workload, changes, legal, monkeypatch):
    chip = dataclasses.replace(CHIPS[2], **changes)
    looked = []
    validity = ScheduleSpace.validity

    def counted(space, indices):
        looked.append(len(indices))
        return validity(space, indices)

    monkeypatch.setattr(ScheduleSpace, "validity", counted)
    plan = make(space="full", samples=96, seeded=0.4, rounds=2, invalid_share=0.2)
    task = sampling.collect_task((workload, chip), plan, open_device("sim"))
    space = task.space()
    every = space.table()[validity(space, space.table()) == Reason.VALID]
    assert len(every) == legal and len(task) < 96
    assert set(space.index(task.values[task.valid])) == set(every)
    # Twice all of them at most, where draws without end told it of a million.
    assert sum(looked) <= 2 * len(space.table())


def test_seeds_differ_between_tasks():
    first, second = (
        sampling.collect_task((LAYERS[1].workload, chip), make(), open_device("sim")) for chip in CHIPS[:2]
    )
    assert not np.array_equal(first.values, second.values)


# Collecting ----------------------------------------------------------------------------------


def test_collect_and_resume(tmp_path):
    plan = make(shard_tasks=2)
    summary = run(plan, tmp_path / "a")
    assert summary["tasks"] == 9 and summary["tasks_before"] == 0 and summary["samples"] == 9 * 120
    names = sorted(path.name for path in (tmp_path / "a").glob("*.h5"))
    assert names == [f"shard-{i:05d}.h5" for i in range(5)]
    whole = digest(tmp_path / "a")
    with open_corpus(tmp_path / "a") as opened:
        assert {(task.workload, task.accelerator) for task in opened} == set(plan.drawn)
        origin = opened[0].provenance
    assert origin["seed"] == 5 and origin["device"] == "sim" and origin["package"] and origin["time"]
    (tmp_path / "a" / names[1]).unlink()
    (tmp_path / "a" / names[4]).unlink()
    (tmp_path / "a" / ".shard-00004.h5.k3_dead9.oneshot-ml2").write_bytes(b"half")
    again = run(plan, tmp_path / "a")
    assert again["tasks_before"] == 6 and again["samples"] == 3 * 120
    assert digest(tmp_path / "a") == whole
    assert not list((tmp_path / "a").glob(".*"))
    assert run(plan, tmp_path / "a")["samples"] == 0


def test_other_plan_is_refused(tmp_path):
    run(make(), tmp_path)
    for other in (make(seed=6), make(samples=121), make(tasks=8), make(layers=LAYERS[:2])):
        with pytest.raises(CorpusError, match="another plan"):
            run(other, tmp_path)
    run(make(shard_tasks=1), tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CorpusError, match=r"no manifest\.json"):
        run(make(), tmp_path)


def test_other_space_version_is_refused(tmp_path, monkeypatch):
    run(make(), tmp_path)
    monkeypatch.setattr(sys.modules["fake_space"], "SPACE_VERSION", 4)
    with pytest.raises(CorpusError, match="space version"):
        run(make(), tmp_path)


def test_two_collectors_in_one_folder(tmp_path):
    with files.locked(tmp_path / collect.MANIFEST, "busy"), pytest.raises(CorpusError, match="another collector"):
        run(make(), tmp_path)


def test_pair_without_a_space_is_marked_done(tmp_path):
    layers = (*LAYERS, Layer("odd", Dense(1, 64, 13)))
    warnings: list[str] = []
    run(make(layers=layers), tmp_path, warn=warnings.append)
    assert warnings and all("13 channels do not fit" in warning for warning in warnings)
    with open_corpus(tmp_path) as opened:
        assert len(opened) == 9 and (opened.counts == 0).sum() == len(warnings)
    assert run(make(layers=layers), tmp_path)["tasks_before"] == 9
    with pytest.raises(OneShotError, match="do not fit"):
        run(make(layers=layers[3:], tasks=1), tmp_path / "none")


def test_full_disk(tmp_path, monkeypatch):
    calls = []
    real = os.fsync

    def fills(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fills)
    with pytest.raises(CorpusError, match="No space left on device; free some space and run the same command again"):
        run(make(shard_tasks=2), tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "shard-00000.h5",
    ]
    assert run(make(shard_tasks=2), tmp_path)["tasks_before"] == 2


def test_keyboard_interrupt_keeps_finished_tasks(tmp_path, monkeypatch):
    real, calls = fake_space.measure_batch, []

    def stop(*arguments):
        calls.append(0)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sys.modules["fake_space"], "measure_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(make(), tmp_path / "a")
    assert verify_corpus(tmp_path / "a")["tasks"] == 2
    run(make(), tmp_path / "a")
    run(make(), tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


# In processes --------------------------------------------------------------------------------


def start(project: Path, out: Path, workers: int, delay: float = 0.0, *more: str) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, fake_space.__file__, "--plan", str(project / "plan.toml"), "--out", str(out)]
    command += ["--workers", str(workers), "--json", *more]
    environment = os.environ | {"PYTHONPATH": str(root), "FAKE_DELAY": str(delay)}

    def heed_interrupts() -> None:
        # Where the tests themselves run in the background of a shell, interrupts are ignored, and that is inherited.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def wait_for_shards(out: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(out.glob("*.h5"))) < count and time.monotonic() < deadline:
        time.sleep(0.02)


def test_results_do_not_depend_on_workers(project):
    digests = set()
    for workers in (1, 2):
        out = project / f"out{workers}"
        process = start(project, out, workers)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert json.loads(stdout)["samples"] == 300
        assert "invalid" in stderr
        digests.add(digest(out))
    assert len(digests) == 1


@pytest.mark.parametrize(("sign", "workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 2), (signal.SIGINT, 1)])
def test_killed_and_resumed(project, sign, workers):
    out, delay = project / "out", 0.15
    process = start(project, out, workers, delay)
    wait_for_shards(out, 2)
    if sign == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, sign)
    _, stderr = process.communicate(timeout=30)
    if sign == signal.SIGINT:
        assert process.returncode == 130 and "run the same command to go on" in stderr
    deadline = time.monotonic() + 10
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process.pid), "orphaned workers"
    before = verify_corpus(out)["tasks"]
    assert 2 <= before < 6
    process = start(project, out, 1)
    stdout, stderr = process.communicate(timeout=60)
    assert json.loads(stdout)["tasks_before"] == before, stderr
    run(read_plan(project / "plan.toml"), project / "whole")
    assert digest(out) == digest(project / "whole")


# Devices and command lines -------------------------------------------------------------------


def test_devices():
    device = open_device("sim")
    assert device.name == "sim"
    space = ScheduleSpace(LAYERS[0].workload, CHIPS[0], "fake")
    assert len(device.measure_schedules(space, np.arange(5)).cycles) == 5
    for spec in ("rpc://tracker:9190/pynq", "rpc:x"):
        with pytest.raises(DeviceError, match="give it as rpc:HOST:PORT/KEY"):
            open_device(spec)
    with pytest.raises(DeviceError, match="There are: sim"):
        open_device("simulator")


def command(module, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args(arguments))


def test_command_lines(project, capsys):
    out = str(project / "out")
    options = ["--plan", str(project / "plan.toml"), "--out", out, "--workers", "1", "--quiet"]
    assert command(collect_command, *options) == 0
    assert "6 tasks (0 were done before), 300 schedules" in capsys.readouterr().out
    assert command(corpus_command, "verify", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 300
    assert command(corpus_command, "merge", out, "--out", str(project / "all.h5")) == 0
    assert command(corpus_command, "info", str(project / "all.h5")) == 0
    assert "invalid share" in capsys.readouterr().out
    parts = ["split", str(project / "all.h5"), "--out", str(project / "parts"), "--json"]
    assert command(corpus_command, *parts, "--accelerators", str(project / "chips" / "b8.json")) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["train"] == 4 and counts["accelerators"] == 2
    with pytest.raises(CorpusError, match="nothing to split by"):
        command(corpus_command, *parts)
    with pytest.raises(CorpusError, match="workers"):
        command(collect_command, *options[:-3], "--workers", "-1")
