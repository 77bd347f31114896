from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.corpus import collect
from oneshot_ml2.corpus.plan import Plan
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.network.predictor import NETWORKS, OUTPUTS, Predictor
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training import data as training_data
from oneshot_ml2.training import loop, processes
from oneshot_ml2.training.checkpoint import load_checkpoint, save_checkpoint
from oneshot_ml2.training.data import Data
from oneshot_ml2.training.network import Network, start_from, to_predictor
from oneshot_ml2.training.settings import Settings, read_settings
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason

ROOT = Path(__file__).parent.parent.parent
SETTINGS = Settings(
    scan=(8,),
    main=(16, 8),
    epochs=4,
    tasks_per_batch=4,
    samples_per_task=32,
    validity_samples=40,
    held_workloads=0.25,
    held_accelerators=1,
)


@pytest.fixture(scope="module")
def data(small_corpus: Path) -> Data:
    return training_data.read_data([small_corpus], SETTINGS)


def same(one: Predictor, two: Predictor) -> bool:
    return one.tensors.keys() == two.tensors.keys() and all(
        np.array_equal(one.tensors[name], two.tensors[name]) for name in one.tensors
    )


def test_targets_are_the_corpus_s_own(small_corpus: Path, data: Data):
    with open_corpus(small_corpus) as corpus:
        tasks = list(corpus)
    assert len(data) == len(tasks) == len(networks.LAYERS) * len(networks.CHIPS)
    for t, task in enumerate(tasks):
        rows = data.rows(t)
        n = len(task)
        assert np.array_equal(data.timed[rows][:n], task.valid)
        assert not data.timed[rows][n:].any()
        cycles = np.exp(data.log_bound[rows] + data.log_ratio[rows])[:n][task.valid]
        assert np.allclose(cycles, task.cycles[task.valid], rtol=1e-5)
        assert (data.log_ratio[rows] >= 0).all()


def test_mapped_features_are_those_in_memory(small_corpus: Path, data: Data, tmp_path: Path, monkeypatch):
    training_data.write_features([small_corpus], SETTINGS, tmp_path / "features")
    mapped = training_data.map_features(tmp_path / "features")
    for field in dataclasses.fields(Data):
        one, two = getattr(mapped, field.name), getattr(data, field.name)
        if isinstance(two, np.ndarray):
            assert one.dtype == two.dtype and np.array_equal(one, two), field.name
        else:
            assert one == two, field.name
    assert isinstance(mapped.schedules.base, np.memmap)
    # They are made once; other settings make them anew.
    wanted = training_data._made_of(tmp_path / "features" / "head.json")
    monkeypatch.setattr(training_data, "_columns_of", None)
    training_data.write_features([small_corpus], SETTINGS, tmp_path / "features")
    with pytest.raises(TypeError):
        training_data.write_features([small_corpus], dataclasses.replace(SETTINGS, seed=8), tmp_path / "features")
    assert wanted is not None and training_data._made_of(tmp_path / "features" / "head.json") is None


def test_two_processes_train_together(small_corpus: Path, tmp_path: Path):
    settings = tmp_path / "s.toml"
    text = "scan = [8]\nmain = [16, 8]\nepochs = 4\ntasks_per_batch = 4\nsamples_per_task = 32\n"
    settings.write_text(text + "validity_samples = 20\nheld_workloads = 0.25\nheld_accelerators = 1")
    out = tmp_path / "weights"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "oneshot_ml2", "train", "--corpus", small_corpus, "--out", out, "--settings", settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    # One of them speaks and writes.
    assert done.stdout.count("epoch 4/4") == done.stdout.count("trained in") == 1
    card = Predictor.load(out.with_suffix(".safetensors")).card
    losses = [entry["loss"] for entry in card["history"]]
    assert card["processes"] == 2 and losses[-1] < losses[0]
    assert not out.with_suffix(".features").exists() and not out.with_suffix(".checkpoint").exists()


def test_processes_share_each_batch():
    tasks = np.arange(7)
    shares = [processes.Processes(rank, 3).share(tasks) for rank in range(3)]
    assert np.array_equal(np.sort(np.concatenate(shares)), tasks)
    assert np.array_equal(processes.Processes(2, 3).share(tasks[:2]), tasks[:2])
    alone = processes.Processes()
    assert alone.mean(3.5) == 3.5 and alone.together(torch.nn.Identity()).__class__ is torch.nn.Identity


def test_drawn_validity_is_that_of_lowering():
    from oneshot_ml2.vta.accelerator import Accelerator

    space = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"))
    values, valid = training_data.draw_unmeasured(space, 200, np.random.default_rng(0))
    assert np.array_equal(valid, space.validity(space.index(values)) == Reason.VALID)
    assert 0 < valid.sum() < len(valid)


def test_held_out_tasks_share_nothing_with_those_trained_on(data: Data):
    splits = training_data.split_tasks(data, SETTINGS)
    trained_shapes = {data.shapes[t] for t in splits["train"]}
    trained_chips = {data.accelerators[t] for t in splits["train"]}
    assert len(splits["train"]) and len(splits["workload"]) and len(splits["both"])
    assert not trained_shapes & {data.shapes[t] for name in ("workload", "both") for t in splits[name]}
    assert not trained_chips & {data.accelerators[t] for name in ("accelerator", "both") for t in splits[name]}
    assert sum(len(tasks) for tasks in splits.values()) == len(data)


def test_training_learns_and_a_killed_run_ends_as_one_that_was_not(data: Data, tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = loop.train(data, SETTINGS, tmp_path / "whole")
        loop.train(data, SETTINGS, tmp_path / "killed", stop_after=1)
        assert not (tmp_path / "killed.safetensors").exists()
        assert (tmp_path / "killed.checkpoint").exists()
        loop.train(data, SETTINGS, tmp_path / "killed", stop_after=3)
        resumed = loop.train(data, SETTINGS, tmp_path / "killed")
    finally:
        torch.set_num_threads(threads)
    assert same(whole, resumed)
    assert same(whole, Predictor.load(tmp_path / "killed.safetensors"))
    assert not (tmp_path / "killed.checkpoint").exists()
    assert (tmp_path / "killed.png").read_bytes()[:4] == b"\x89PNG"
    card = resumed.card
    losses = [entry["loss"] for entry in card["history"]]
    assert losses[-1] < losses[0]
    assert card["corpus"] == data.digests
    assert set(card["validation"]) == {"workload", "both"}
    assert card["settings"]["epochs"] == 4
    assert math.isfinite(card["validation"]["workload"]["auroc"])


def test_checkpoints_of_other_runs_or_damaged_ones_are_refused(data: Data, tmp_path: Path):
    out = tmp_path / "some"
    loop.train(data, SETTINGS, out, stop_after=1)
    with pytest.raises(OneShotError, match="of another corpus or other settings; delete it"):
        loop.train(data, dataclasses.replace(SETTINGS, seed=2), out)
    checkpoint = tmp_path / "some.checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    with pytest.raises(OneShotError, match="damaged checkpoint"):
        loop.train(data, SETTINGS, out)


def test_the_committed_settings_are_the_defaults():
    assert read_settings(ROOT / "train/pretrain.toml") == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'; allowed: scan, main, epochs"),
        ('epochs = "3"', "epochs is '3'; allowed: int"),
        ("main = [1.5]", "main is"),
        ("main = []", "main need widths"),
        ("epochs = 0", "epochs is at least 1"),
        ("samples_per_task = 1", "samples_per_task at least 2"),
        ("=", "not TOML"),
    ],
)
def test_bad_settings_say_why(tmp_path: Path, text: str, message: str):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(OneShotError, match=message):
        read_settings(path)


def test_nothing_to_train_on_is_an_error(data: Data, tmp_path: Path):
    nothing = dataclasses.replace(data, timed=np.zeros_like(data.timed))
    with pytest.raises(CorpusError, match="no task with a valid sample"):
        loop.train(nothing, SETTINGS, tmp_path / "x")
    with pytest.raises(CorpusError, match="no samples to train on"):
        training_data.make_data([], [])


def test_the_command_trains(small_corpus: Path, tmp_path: Path, run_command):
    settings = tmp_path / "s.toml"
    settings.write_text("scan = [8]\nmain = [8]\nepochs = 9\nvalidity_samples = 20\nheld_accelerators = 1")
    out = tmp_path / "weights"
    code, text, _ = run_command("train", "--corpus", small_corpus, "--out", out, "--settings", settings, "--epochs", 1)
    assert code == 0
    assert "trained in" in text
    assert Predictor.load(out.with_suffix(".safetensors")).card["settings"]["epochs"] == 1
    code, _, err = run_command("train", "--corpus", tmp_path / "absent", "--out", out)
    assert code == 2 and "absent" in err


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype"])
def test_checkpoints_without_their_tensors_are_refused(change, tmp_path):
    path = tmp_path / "c.safetensors"
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_checkpoint(path, network, average, optimizer, {"fingerprint": "f"})
    assert load_checkpoint(path, network, average, optimizer, "f") == {"fingerprint": "f"}
    tensors = load_file(path)
    if change == "missing":
        del tensors["optimizer.weight.exp_avg"]
    elif change == "unknown":
        tensors["network.more"] = torch.ones(1)
    else:
        old = tensors["network.weight"]
        tensors["network.weight"] = old[:1].clone() if change == "shape" else old.double()
    save_file(tensors, path, {"state": json.dumps({"fingerprint": "f"})})
    before = network.weight.clone()
    with pytest.raises(OneShotError, match="damaged checkpoint"):
        load_checkpoint(path, network, average, optimizer, "f")
    assert torch.equal(network.weight, before)


def test_a_network_starts_from_weights_that_see_less(data: Data):
    """What is said of the RTL stays; features that the weights do not see have no say yet."""
    version = full_features.HLS_FEATURE_VERSION
    weights = networks.random_network(widths=(16, 8))
    seen = full_features.FEATURE_SETS[version]
    rng = np.random.default_rng(2)
    mean, scale = rng.normal(size=len(seen.all)), rng.uniform(0.5, 2.0, size=len(seen.all))
    begun = Network(Settings(scan=(16, 8), main=(16, 8)), mean.astype(np.float32), scale.astype(np.float32))
    start_from(begun, weights, seen)
    space = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"))
    given = full_features.candidates_at(space, rng.integers(0, len(space), size=300))
    rows = np.empty((len(given), len(seen.schedule)), dtype=np.float32)
    full_features.Encoder.of(space, version).encode(given, rows)
    task = torch.from_numpy(full_features.task_features(space, version)[None])
    with torch.inference_mode():
        outputs = begun(task, torch.from_numpy(rows[None]))
    for name, output in zip(NETWORKS, outputs, strict=True):
        ratio = weights.judge(space, given, name).log_ratio
        assert np.allclose(output[0, :, OUTPUTS.index("log(T / LB)")].numpy(), ratio, atol=1e-3)
    with pytest.raises(OneShotError, match="hidden layers of scan are of other widths"):
        start_from(Network(SETTINGS, mean.astype(np.float32), scale.astype(np.float32)), weights, seen)
    with pytest.raises(OneShotError, match="see other features"):
        start_from(begun, networks.random_network(version=version), data.seen)


def test_a_network_that_predicts_beside_waiting_starts_from_what_waiting_alone_tells(data: Data):
    version = full_features.WAITS_FEATURE_VERSION
    weights = networks.random_network(widths=(16, 8))
    seen = full_features.FEATURE_SETS[version]
    settings = Settings(scan=(16, 8), main=(16, 8))
    begun = Network(settings, np.zeros(len(seen.all), np.float32), np.ones(len(seen.all), np.float32))
    start_from(begun, weights, seen)
    network = to_predictor(begun, *(np.zeros(len(seen.task), np.float32) for _ in range(2)), {}, version=version)
    space = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"))
    given = full_features.candidates_at(space, np.random.default_rng(2).integers(0, len(space), size=300))
    for name in NETWORKS:
        assert np.allclose(network.judge(space, given, name).cycles, full_features.waiting(space, given), rtol=1e-4)
    # The weights are what they were, and validity is told as they tell it.
    assert weights.tensors["main.2.bias"][OUTPUTS.index("log(T / LB)")] != 0
    assert np.abs(network.judge(space, given).p_valid - 0.5).max() > 0.01


def test_latencies_are_learnt_beside_waiting_where_the_settings_say_so(small_corpus: Path, tmp_path: Path):
    settings = dataclasses.replace(SETTINGS, epochs=1, waits=True)
    made = training_data.read_data([small_corpus], settings)
    plain = training_data.read_data([small_corpus], SETTINGS)
    assert made.seen.version == full_features.WAITS_FEATURE_VERSION
    timed = made.timed
    truths = [(one.log_bound + one.log_ratio)[timed] for one in (made, plain)]
    assert np.allclose(*truths, atol=1e-4)
    assert np.abs(made.log_ratio[timed]).mean() < np.abs(plain.log_ratio[timed]).mean()
    network = loop.train(made, settings, tmp_path / "weights")
    loaded = Predictor.load(tmp_path / "weights.safetensors")
    assert loaded.seen == made.seen and network.seen.beside
    space = ScheduleSpace(networks.SMALL, Accelerator.load("pynq"))
    scores = loaded.score(space, np.arange(50))
    assert (scores.cycles >= scores.bound).all()


def test_corpora_of_the_hls_design_bring_its_features(tmp_path: Path):
    chips = (Accelerator.load("pynq"), Accelerator.load("pynq-hls"))
    plan = Plan(layers=networks.LAYERS[:1], accelerators=chips, tasks=2, samples=20)
    collect.collect(plan, tmp_path / "corpus", progress=False)
    training_data.write_features([tmp_path / "corpus"], SETTINGS, tmp_path / "features")
    mapped = training_data.map_features(tmp_path / "features")
    loaded = training_data.read_data([tmp_path / "corpus"], SETTINGS)
    assert mapped.seen.version == loaded.seen.version == full_features.HLS_FEATURE_VERSION
    assert np.array_equal(mapped.schedules, loaded.schedules) and np.array_equal(mapped.tasks, loaded.tasks)
    flags = mapped.tasks[:, mapped.seen.task.index("HLS design")]
    assert [chip.design == "hls" for chip in mapped.accelerators] == flags.tolist()
    network = loop.train(mapped, dataclasses.replace(SETTINGS, epochs=1), tmp_path / "weights")
    assert network.card["designs"] == ["chisel", "hls"]
    assert Predictor.load(tmp_path / "weights.safetensors").seen == mapped.seen
