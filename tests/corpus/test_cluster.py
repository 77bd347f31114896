"""Collecting on a cluster: the scheduling with a made-up pool, and (slow) Ray itself with two nodes on this machine."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_space  # noqa: F401
import pytest

from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.corpus import cluster, collect
from oneshot_ml2.corpus.cluster import WorkerLost, distribute
from oneshot_ml2.corpus.format import TaskSamples
from oneshot_ml2.corpus.manage import verify_corpus
from oneshot_ml2.corpus.plan import Plan, Task, read_plan
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.corpus.sampling import attempt
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.lists import Layer

ROOT = Path(__file__).parent.parent.parent
CHIPS = tuple(Accelerator.load(name) for name in ("pynq", "ultra96", "b8", "b32"))


def make(**settings: Any) -> Plan:
    layers = tuple(Layer(f"l{k}", Dense(1, 64, k), 1) for k in (16, 32, 48))
    values = {"layers": layers, "accelerators": CHIPS, "tasks": 12, "samples": 40, "space": "fake", "shard_tasks": 2}
    return Plan(**(values | settings))


class FakePool:
    """Measures in this process; ``fate(task, nth submission of it)`` says what becomes of a submission."""

    def __init__(self, plan: Plan, fate: Callable[[Task, int], str], slots: Callable[[], int] = lambda: 4) -> None:
        self.plan, self.fate, self.slots, self.rng = plan, fate, slots, random.Random(0)
        self.calls: list[tuple[Task, str]] = []
        self.submitted: Counter[Task] = Counter()
        self.dropped: list[int] = []
        self.most = 0

    def submit(self, task: Task) -> int:
        self.submitted[task] += 1
        self.calls.append((task, self.fate(task, self.submitted[task])))
        return len(self.calls) - 1

    def wait(self, calls: Sequence[int], seconds: float) -> list[int]:
        self.most = max(self.most, len(calls))
        ended = [call for call in calls if self.calls[call][1] != "hangs"]
        picked = self.rng.sample(ended, min(len(ended), 2))
        # A pool may also say once more what it has said before.
        return picked + picked[:1]

    def result(self, call: int) -> TaskSamples | OneShotError:
        task, fate = self.calls[call]
        if fate == "dies":
            raise WorkerLost("killed")
        return attempt(task, self.plan, open_device("sim"))

    def drop(self, call: int) -> None:
        self.dropped.append(call)


def collected_by(pool: FakePool, out: Path, monkeypatch: pytest.MonkeyPatch, warn: Any = None) -> None:
    monkeypatch.setattr(cluster, "results", lambda tasks, *_: distribute(tasks, pool, warn))
    collect.collect(pool.plan, out, cluster="fake", progress=False)


def same(first: Path, second: Path, plan: Plan) -> bool:
    """Whether both hold the plan's tasks, each once, with the same samples."""
    for folder in (first, second):
        with open_corpus(folder) as opened:
            assert Counter((task.workload, task.accelerator) for task in opened) == Counter(plan.drawn)
    return bool(verify_corpus(first)["digest"] == verify_corpus(second)["digest"])


@pytest.mark.parametrize("fate", ["none", "some die", "some hang", "both"])
def test_nothing_is_lost_and_nothing_double(tmp_path, monkeypatch, fate):
    plan = make()
    rng = random.Random(1)

    def chance(task: Task, nth: int) -> str:
        if "die" in fate or fate == "both":
            if nth <= 3 and rng.random() < 0.5:
                return "dies"
        return "hangs" if ("hang" in fate or fate == "both") and nth == 1 and rng.random() < 0.3 else "ends"

    # A submission is late at once, so that the same task is often under way twice.
    monkeypatch.setattr(cluster, "_LATE", 0.0 if "hang" in fate or fate == "both" else 1e9)
    monkeypatch.setattr(cluster, "_LATE_FACTOR", 0.0)
    pool = FakePool(plan, chance)
    warnings: list[str] = []
    collected_by(pool, tmp_path / "cluster", monkeypatch, warnings.append)
    collect.collect(plan, tmp_path / "local", progress=False)
    assert same(tmp_path / "cluster", tmp_path / "local", plan)
    deaths = sum(what == "dies" for call, (_, what) in enumerate(pool.calls) if call not in pool.dropped)
    assert len(warnings) == deaths
    assert (max(pool.submitted.values()) > 1) == (fate != "none")
    assert pool.most <= 8 and (fate != "none" or pool.most == 4)


def test_a_task_of_a_hanging_worker_is_given_to_one_other(monkeypatch):
    plan = make()
    monkeypatch.setattr(cluster, "_LATE", 0.05)
    monkeypatch.setattr(cluster, "_LATE_FACTOR", 0.0)
    pool = FakePool(plan, lambda task, nth: "hangs" if task == plan.drawn[3] and nth == 1 else "ends")
    tasks = [task for task, _ in distribute(plan.drawn, pool)]
    assert Counter(tasks) == Counter(plan.drawn)
    assert pool.submitted[plan.drawn[3]] == 2
    assert 3 in pool.dropped


def test_a_task_that_kills_its_workers_ends_the_run_and_the_rest_is_kept(tmp_path, monkeypatch):
    plan = make()
    pool = FakePool(plan, lambda task, nth: "dies" if task == plan.drawn[4] else "ends")
    with pytest.raises(CorpusError, match=r"5 workers died of it, perhaps for want of memory \(killed\)"):
        collected_by(pool, tmp_path, monkeypatch)
    kept = verify_corpus(tmp_path)["tasks"]
    assert 4 <= kept < 12
    pool = FakePool(plan, lambda task, nth: "ends")
    collected_by(pool, tmp_path, monkeypatch)
    assert len(pool.calls) == 12 - kept
    collect.collect(plan, tmp_path / "local", progress=False)
    assert same(tmp_path, tmp_path / "local", plan)


def test_a_cluster_that_loses_all_nodes(monkeypatch):
    monkeypatch.setattr(cluster, "_EMPTY", 0.05)
    plan = make()
    with pytest.raises(CorpusError, match="no nodes any more"):
        list(distribute(plan.drawn, FakePool(plan, lambda task, nth: "hangs", lambda: 0)))
    # Nodes that come back in time go on.
    monkeypatch.setattr(cluster, "_EMPTY", 1e9)
    slots = iter([2, 0, 0])
    pool = FakePool(plan, lambda task, nth: "ends", lambda: next(slots, 3))
    assert len(list(distribute(plan.drawn, pool))) == 12


def test_stopping_early_drops_what_is_under_way():
    plan = make()
    pool = FakePool(plan, lambda task, nth: "ends")
    stream = distribute(plan.drawn, pool)
    next(stream)
    stream.close()
    assert len(pool.dropped) == 3 == len(pool.calls) - 1


def test_other_versions_are_refused():
    here = cluster.identity("full")
    assert here == cluster.identity("full") != cluster.identity("fake")
    cluster.compare("a", here, here)
    with pytest.raises(CorpusError, match=r"node a: oneshot-ml2 is 9\.9 there and 0\..* here, code is missing there"):
        cluster.compare("a", {k: v for k, v in here.items() if k != "code"} | {"oneshot-ml2": "9.9"}, here)
    with pytest.raises(CorpusError, match=r"node b: No module.*install the same oneshot-ml2\[cluster\]"):
        cluster.compare("b", "No module named 'oneshot_ml2'", here)
    plan = make()
    with pytest.raises(CorpusError, match="space fake is 3 there and 4 here"):
        cluster._measure(plan.drawn[0], plan, "sim", cluster.identity("fake") | {"space fake": "4"})
    assert len(cluster._measure(plan.drawn[0], plan, "sim", cluster.identity("fake"))) == 40


def plan_file(folder: Path) -> Path:
    (folder / "w.toml").write_text('[[workload]]\nop = "dense"\nn = 1\nc = 256\nk = 128\n')
    (folder / "plan.toml").write_text(
        'workloads = "w.toml"\naccelerators = "chips"\ntasks = 1\nsamples = 20\nshard_tasks = 1\n'
    )
    (folder / "chips").mkdir()
    (folder / "chips" / "pynq.json").write_text(CHIPS[0].to_json())
    return folder / "plan.toml"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "allowed: local, auto or HOST:PORT"),
        ("ray://head:10001", "allowed: local"),
        ("127.0.0.1:1", "no Ray there"),
        ("127.0.0.1:99999", "no Ray there"),
    ],
)
def test_bad_addresses(tmp_path, run_command, address, message):
    options = ("--plan", plan_file(tmp_path), "--out", tmp_path / "out", "--cluster", address)
    code, _, stderr = run_command("collect", *options, "--quiet")
    assert code == 2 and message in stderr and stderr.count("\n") == 1


def test_without_ray(tmp_path, run_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ("--plan", plan_file(tmp_path), "--out", tmp_path / "out", "--quiet")
    code, _, stderr = run_command("collect", *options, "--cluster", "local")
    assert code == 2 and "pip install 'oneshot-ml2[cluster]'" in stderr
    assert run_command("collect", *options, "--workers", "1")[0] == 0
    # Nothing is left to do, so that no cluster is needed.
    assert run_command("collect", *options, "--cluster", "local")[0] == 0


# With Ray ------------------------------------------------------------------------------------

WORKLOADS = "".join(
    f'[[workload]]\nop = "conv2d"\nn = 1\nc = {c}\nh = {size}\nw = {size}\nk = {k}\nr = 3\ns = 3\npadding = 1\n'
    for c, k, size in ((32, 32, 28), (64, 64, 14), (64, 128, 14), (128, 64, 7), (128, 128, 14), (32, 64, 28))
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A plan of 24 tasks, each of which takes about as long as it takes to kill a worker."""
    plan_file(tmp_path)
    (tmp_path / "w.toml").write_text(WORKLOADS)
    (tmp_path / "plan.toml").write_text(
        'workloads = "w.toml"\naccelerators = "chips"\ntasks = 24\nsamples = 1000\nshard_tasks = 1\n'
    )
    for chip in CHIPS[1:]:
        (tmp_path / "chips" / f"{chip.name}.json").write_text(chip.to_json())
    return tmp_path


@pytest.fixture
def nodes() -> Iterator[Any]:
    """An empty Ray cluster on this machine, whose nodes know this package."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    found = Cluster()
    yield found
    found.shutdown()


def add_node(nodes: Any, cpus: int = 1, path: Path = ROOT) -> Any:
    variables = {"PYTHONPATH": str(path), "RAY_USAGE_STATS_ENABLED": "0"}
    settings = {"num_cpus": cpus, "object_store_memory": 80 << 20, "env_vars": variables, "include_dashboard": False}
    try:
        return nodes.add_node(**settings)
    except Exception:
        # Ray gives a node 30 s to start, which a busy machine may miss.
        return nodes.add_node(**settings)


def start(project: Path, address: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from oneshot_ml2.commands.main import main; sys.exit(main())",
        "collect",
    ]
    command += ["--plan", "plan.toml", "--out", "out", "--cluster", address, "--json"]
    # Elsewhere than in the checkout, since Ray has workers look into the driver's folder first.
    return subprocess.Popen(
        command,
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def shards(project: Path) -> int:
    return len(list((project / "out").glob("*.h5")))


def wait_for_shards(project: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while shards(project) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    assert shards(project) >= count


def kill_worker(node: Any) -> None:
    """SIGKILL a worker of a node that is measuring."""
    (raylet,) = node.all_processes["raylet"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                busy = (folder / "cmdline").read_bytes().startswith(b"ray::_measure")
            except OSError:
                continue
            if busy and parent == raylet.process.pid:
                os.kill(int(folder.name), signal.SIGKILL)
                return
        time.sleep(0.01)
    raise AssertionError("no worker is measuring")


@pytest.mark.slow
def test_workers_a_node_and_the_driver_are_killed(project, nodes):
    head, second = add_node(nodes), add_node(nodes)
    process = start(project, nodes.address)
    wait_for_shards(project, 2, process)
    kill_worker(head)
    kill_worker(second)
    wait_for_shards(project, 4, process)
    kill_worker(second)
    wait_for_shards(project, 6, process)
    nodes.remove_node(second, allow_graceful=False)
    wait_for_shards(project, 8, process)
    process.kill()
    process.communicate(timeout=60)
    before = verify_corpus(project / "out")["tasks"]
    assert 8 <= before < 24

    process = start(project, nodes.address)
    wait_for_shards(project, before + 1, process)
    joined = add_node(nodes)
    kill_worker(head)
    kill_worker(joined)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout.count("\n") == 1, stdout
    summary = json.loads(stdout)
    assert summary["tasks"] == 24 and summary["tasks_before"] == before
    assert "measured again, since its worker was lost" in stderr
    plan = read_plan(project / "plan.toml")
    collect.collect(plan, project / "local", progress=False)
    assert same(project / "out", project / "local", plan)


@pytest.mark.slow
def test_unfit_clusters_are_refused(project, nodes):
    def refused(message: str) -> None:
        process = start(project, nodes.address)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 2 and message in stderr, stderr
        assert shards(project) == 0

    add_node(nodes, cpus=0)
    refused("no node with a CPU")
    other = project / "other"
    skipped = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "oneshot_ml2", other / "oneshot_ml2", ignore=skipped)
    names = other / "oneshot_ml2" / "common" / "version.py"
    names.write_text(names.read_text().replace('__version__ = "', '__version__ = "9.'))
    node = add_node(nodes, path=other)
    refused("oneshot-ml2 is 9.")
    nodes.remove_node(node)
    (other / "oneshot_ml2" / "corpus" / "cluster.py").unlink()
    add_node(nodes, path=other)
    refused("install the same oneshot-ml2[cluster] on every node")


@pytest.mark.slow
def test_a_cluster_of_its_own(project):
    pytest.importorskip("ray")
    process = start(project, "local")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["tasks"] == 24 and "invalid" in stderr
    plan = read_plan(project / "plan.toml")
    collect.collect(plan, project / "local", progress=False)
    assert same(project / "out", project / "local", plan)
