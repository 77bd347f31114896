"""Fine-tuning: what is measured, what is learnt of a board, what is kept, and that nothing worse is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import LAYERS, random_network

from oneshot_ml2.commands import finetune as finetune_command
from oneshot_ml2.commands import main
from oneshot_ml2.common.errors import OneShotError, WeightsError
from oneshot_ml2.devices.boards import KINDS, Differences
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.network import picking, predictor
from oneshot_ml2.network.calibration import COSTS, VERSION, Calibration, limits_of, traffic_of
from oneshot_ml2.network.predictor import NETWORKS, OUTPUTS, Predictor
from oneshot_ml2.spaces.base import BatchResult, opened_pages
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.full.traffic import NO_ROW, TRAFFIC
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import calibrate, finetune
from oneshot_ml2.tuning.calibrate import Board, Measured
from oneshot_ml2.tuning.log import LogError
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Memory, Opcode
from oneshot_ml2.vta.reasons import Reason

CHIP = Accelerator.load("pynq")
SPACES = [ScheduleSpace(layer.workload, CHIP) for layer in LAYERS]
LIMITS = limits_of(np.array([[0, 0.9, TRAFFIC.index("largest input load"), 1, np.log(20.0), np.log(30.0)]]))
KNOWN = Calibration(64, np.array([0.1, 0.2, 0.05, 0.0, 0.01, 0.0]), LIMITS)


def bound_network() -> Predictor:
    """A network that takes every schedule for valid and as fast as its bound."""
    network = random_network(trusting=8.0)
    tensors = dict(network.tensors)
    for name in NETWORKS:
        last = max(key for key in tensors if key.startswith(f"{name}.") and key.endswith(".weight"))
        tensors[last] = np.zeros_like(tensors[last])
        tensors[last.replace("weight", "bias")] = np.array([8.0, 0.0, -2.0], np.float32)
    assert len(OUTPUTS) == 3
    return replace(network, tensors=tensors)


@pytest.fixture(scope="module")
def board() -> Board:
    return Board(SPACES, bound_network())


@pytest.fixture(scope="module")
def legal() -> np.ndarray:
    drawn = SPACES[0].sample(np.random.default_rng(0), 150)
    return drawn[SPACES[0].validity(drawn) == Reason.VALID]


# The device in batches, and traffic ----------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_programs_one_by_one_say(kind: str) -> None:
    space = SPACES[1]
    drawn = space.sample(np.random.default_rng(1), 60)
    device = PerturbedDevice(kind, 2)
    batch, single = device.true_cycles(space, drawn), device._schedules(space, drawn, exact=True)
    for name in ("reason", "cycles", "busy"):
        assert np.array_equal(getattr(batch, name), getattr(single, name)), name


@pytest.mark.parametrize("rule", ["long_gemm", "short_strided_store"])
def test_a_batch_knows_the_other_rules(rule: str, legal: np.ndarray) -> None:
    device = PerturbedDevice("paged", 0, Differences(rule=rule, rule_share=0.01 if rule == "long_gemm" else 0.5))
    batch, single = device.true_cycles(SPACES[0], legal), device._schedules(SPACES[0], legal, exact=True)
    assert np.array_equal(batch.reason, single.reason)
    assert (batch.reason == Reason.WRONG_RESULT).any()


def test_traffic_is_what_programs_do(legal: np.ndarray) -> None:
    found = traffic_of(SPACES[0], full_features.candidates_at(SPACES[0], legal))
    true = np.empty((len(legal), 4))
    for i, index in enumerate(legal.tolist()):
        insns = SPACES[0].lower(index).insns
        moves, rows = (insns["x"] > 0), insns["x"] * insns["y"]
        loads, stores = moves & (insns["op"] == Opcode.LOAD), moves & (insns["op"] == Opcode.STORE)
        inp = loads & (insns["mem"] == Memory.INP)
        apart = stores & (insns["y"] > 1) & (insns["x"] < insns["stride"])
        uops = loads & (insns["mem"] == Memory.UOP)
        true[i] = (
            rows[inp].max(),
            insns["x"][apart].min(initial=NO_ROW),
            insns["y"][stores].sum(),
            (insns["sram"] + rows)[uops].max(),
        )
    columns = [TRAFFIC.index(name) for name in ("largest input load", "shortest output row", "output requests")]
    for column, exact in zip((*columns, TRAFFIC.index("micro-ops")), true.T):
        near = np.abs(np.log(found[:, column] / exact))
        assert np.mean(near < 0.01) > (0.3 if column == TRAFFIC.index("micro-ops") else 0.6), TRAFFIC[column]
        assert np.median(near) < 0.2, TRAFFIC[column]


# The calibration -------------------------------------------------------------------------------
def test_schedules_of_a_calibrated_board_have_the_same_indices(legal: np.ndarray) -> None:
    told = KNOWN.board(SPACES[0])
    assert told.accelerator.memory_latency == 64
    assert told.knobs == SPACES[0].knobs
    here, there = (full_features.candidates_at(space, legal) for space in (SPACES[0], told))
    assert np.array_equal(here.values, there.values)
    assert (there.bound > here.bound).all()


def test_no_calibration_changes_nothing(legal: np.ndarray) -> None:
    network = random_network(3)
    same = replace(network, tensors=network.tensors | Calibration.none(CHIP.memory_latency).to_tensors())
    a, b = network.score(SPACES[0], legal), same.score(SPACES[0], legal)
    assert np.allclose(a.cycles, b.cycles)
    assert np.allclose(a.p_valid, b.p_valid)
    assert a.risk is None and not np.asarray(b.risk).any()
    assert np.array_equal(a.cost, a.cycles)


def test_what_is_corrected_is_what_picks_are_made_by(legal: np.ndarray) -> None:
    measured = Measured.of([(0, index, int(Reason.VALID), 1, 1) for index in legal[:30].tolist()])
    given = full_features.candidates_at(SPACES[0], measured.index)
    for name in ("default@1", "default@2"):
        network = picking.load_pretrained(name)
        seen = Board(SPACES, network).seen(measured, CHIP.memory_latency)
        alone, together = network.judge(SPACES[0], given), picking.by_both(SPACES[0], network, given).scores
        voted = together if network.ranks_legal else alone
        assert np.allclose(seen.log_cycles, np.log(voted.cycles)) and np.allclose(seen.p_valid, alone.p_valid)
        assert network.ranks_legal == (name == "default@2")
        assert not np.allclose(alone.cycles, together.cycles, rtol=1e-3)


def test_a_calibration_adds_cost_and_risk(board: Board, legal: np.ndarray) -> None:
    plain, told = board.network.score(SPACES[0], legal), board.adapted(KNOWN).score(SPACES[0], legal)
    assert (told.cycles > plain.cycles).all()
    risk = KNOWN.risk(traffic_of(SPACES[0], full_features.candidates_at(SPACES[0], legal)))
    assert 0 < np.mean(risk > 0.8) < 1
    assert np.allclose(told.p_valid, plain.p_valid * (1 - risk), atol=1e-6)
    best = picking.best_of(told, len(legal))
    assert (risk[best] <= 0.5).all()


def test_weights_with_a_calibration_are_weights(board: Board, legal: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "board.safetensors"
    board.adapted(KNOWN).save(path)
    loaded = Predictor.load(path)
    assert loaded.calibration is not None
    assert loaded.calibration.latency == KNOWN.latency
    assert np.allclose(loaded.calibration.costs, KNOWN.costs)
    assert np.array_equal(loaded.score(SPACES[0], legal).cycles, board.adapted(KNOWN).score(SPACES[0], legal).cycles)
    picked = picking.pick(SPACES[0].workload, CHIP, path)
    assert picked.space.accelerator == CHIP


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency", np.array([0.0])),
        ("latency", np.array([1.0, 2.0])),
        ("costs", np.array([0.0, -0.1, 0.0, 0.0, 0.0, 0.0])),
        ("costs", np.zeros(3)),
        ("rates", np.array([1.0, 0.0, 1.0])),
        ("rates", np.ones(2)),
        ("pairs", np.array([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 99.0, 1.0, 0.0, 1.0]])),
        ("pairs", np.zeros((1, 6))),
        ("forest.leaf", np.zeros((1, 2))),
        ("limits", np.array([[0.0, 1.0, 99.0, 1.0, 0.0, 1.0]])),
        ("limits", np.zeros((1, 5))),
        ("more", np.zeros(1)),
    ],
)
def test_impossible_calibrations_are_refused(board: Board, tmp_path: Path, name: str, value: np.ndarray) -> None:
    from safetensors.numpy import save_file

    adapted = board.adapted(KNOWN)
    tensors = adapted.tensors | {f"calibration.{name}": value.astype(np.float32)}
    head = {"format": "oneshot-ml2 predictor", "feature_version": str(full_features.FEATURE_VERSION)}
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata=head | {"calibration_version": str(VERSION)})
    with pytest.raises(WeightsError, match="finetune"):
        Predictor.load(path)


def test_another_version_of_calibrations_is_refused(board: Board, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    head = {"format": "oneshot-ml2 predictor", "feature_version": str(full_features.FEATURE_VERSION)}
    path = tmp_path / "old.safetensors"
    for version in ({"calibration_version": "99"}, {}):
        save_file(board.adapted(KNOWN).tensors, path, metadata=head | version)
        with pytest.raises(WeightsError, match="version"):
            Predictor.load(path)


# The fit ---------------------------------------------------------------------------------------
def test_costs_are_found_and_never_below_zero() -> None:
    rng = np.random.default_rng(0)
    terms = np.column_stack([np.ones(200), rng.uniform(0, 1, (200, len(COSTS) - 1))])
    weight = np.ones(200)
    residual = terms @ np.array([0.05, 0.4, 0.2, 0.0, 0.0, 0.0]) + 0.005 * rng.standard_normal(200)
    residual[:6] += 2.0
    costs, loss = calibrate.fit_costs(terms, residual, weight)
    assert np.allclose(costs, [0.05, 0.4, 0.2, 0.0, 0.0, 0.0], atol=0.01)
    assert loss < 0.05
    costs, _ = calibrate.fit_costs(terms, -terms[:, 1], weight)
    assert costs[1] == 0 and costs[2] >= 0
    assert len(costs) == len(COSTS)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_limit_is_found_among_columns(sign: int) -> None:
    rng = np.random.default_rng(1)
    traffic = np.exp(rng.uniform(0, 8, (64, len(TRAFFIC))))
    failed = sign * np.log(traffic[:, 3]) > sign * 4.0
    known = Calibration(1, np.zeros(len(COSTS)), *calibrate.fit_limits(traffic, failed))
    (limit,) = finetune.described_limits(known, TRAFFIC)
    assert limit["what"] == TRAFFIC[3]
    assert limit["kind"] == ("at most" if sign > 0 else "at least")
    assert limit["probability"] > 0.9
    other = np.exp(rng.uniform(0, 8, (500, len(TRAFFIC))))
    fails = sign * np.log(other[:, 3]) > sign * 4.0
    assert np.mean((known.risk(other) > 0.5) == fails) > 0.95


def test_two_limits_and_none() -> None:
    rng = np.random.default_rng(2)
    traffic = np.exp(rng.uniform(0, 8, (300, len(TRAFFIC))))
    logs = np.log(traffic)
    found = calibrate.fit_limits(traffic, (logs[:, 0] > 6.0) | (logs[:, 3] < 2.0))
    known = Calibration(1, np.zeros(len(COSTS)), *found)
    assert {limit["what"] for limit in finetune.described_limits(known, TRAFFIC)} == {TRAFFIC[0], TRAFFIC[3]}
    assert [len(table) for table in calibrate.fit_limits(traffic, np.zeros(300, dtype=bool))] == [0, 0]


def test_a_slow_memory_is_told_by_its_latency(board: Board) -> None:
    measured = finetune.collect(board, PerturbedDevice("paged", 0, Differences(latency=8.0)), 64)
    known = calibrate.fit(board, measured)
    assert known.latency > 2 * CHIP.memory_latency
    before, after = finetune.cross_validate(board, measured)
    assert after["error"] < before["error"]


def test_slow_rows_of_the_hls_design_are_told_by_the_latency(board: Board) -> None:
    chip = Accelerator.load("pynq-hls")
    described = Board(
        [ScheduleSpace(space.workload, chip) for space in board.spaces], picking.predictor_of(None, design="hls")
    )
    measured = finetune.collect(described, PerturbedDevice("paged", 0, Differences(latency=4.0)), 64)
    known = calibrate.fit(described, measured)
    assert known.latency > 2 * described.described
    before, after = finetune.cross_validate(described, measured)
    assert after["error"] < before["error"]
    told = Calibration.none(3 * chip.memory_latency).board(described.spaces[0]).accelerator
    assert chip.hls is not None and told.hls is not None
    assert (told.hls.read_row, told.hls.pad) == (3 * chip.hls.read_row, chip.hls.pad)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_limit_of_two_sizes_is_found(sign: int) -> None:
    rng = np.random.default_rng(3)
    traffic = np.exp(rng.uniform(0, 8, (150, len(TRAFFIC))))
    logs = np.log(traffic)
    known = Calibration(
        1, np.zeros(len(COSTS)), *calibrate.fit_limits(traffic, (logs[:, 0] > 4.0) & (sign * logs[:, 9] > sign * 4.0))
    )
    (limit,) = finetune.described_limits(known, TRAFFIC)
    assert {limit["what"], limit["and"]["what"]} == {TRAFFIC[0], TRAFFIC[9]}
    other = np.exp(rng.uniform(0, 8, (500, len(TRAFFIC))))
    fails = (np.log(other[:, 0]) > 4.0) & (sign * np.log(other[:, 9]) > sign * 4.0)
    assert np.mean((known.risk(other) > 0.5) == fails) > 0.95
    again = Calibration.from_tensors(known.to_tensors())
    assert again is not None and np.allclose(again.risk(other), known.risk(other), atol=1e-3)


@pytest.mark.parametrize(
    ("differences", "cost"),
    [(Differences(instruction=20.0), "instructions"), (Differences(slow_alu=4.0), "alu")],
)
def test_what_instructions_and_the_alu_cost_is_told(board: Board, differences: Differences, cost: str) -> None:
    measured = finetune.collect(board, PerturbedDevice("paged", 0, differences), 64)
    before, after = finetune.cross_validate(board, measured)
    assert after["error"] < 0.7 * before["error"]
    known = calibrate.fit(board, measured)
    assert known.costs[COSTS.index(cost)] > 0.1


def test_rates_of_the_hls_design_are_told() -> None:
    chip = Accelerator.load("pynq-hls")
    spaces = [ScheduleSpace(space.workload, chip) for space in SPACES]
    described = Board(spaces, picking.predictor_of(None, design="hls"))
    assert all(1.0 in tried and len(tried) > 3 for tried in described.rates)
    measured = finetune.collect(described, PerturbedDevice("paged", 0, Differences(beat=1.5, start=2.0)), 48)
    known = calibrate.fit(described, measured)
    assert known.rates[0] > 1.1
    told = known.board(spaces[0]).accelerator.hls
    assert told is not None and chip.hls is not None
    assert told.wgt_beat == round(chip.hls.wgt_beat * known.rates[0])
    again = Calibration.from_tensors(known.to_tensors())
    assert again is not None and np.allclose(again.rates, known.rates)


def test_pages_are_those_that_rows_open() -> None:
    one = np.array([1.0])
    # Rows that follow each other, rows with gaps within a page, rows each in pages of their own.
    assert opened_pages(8 * one, 512 * one, 512.0) == pytest.approx(8 * 1.25)
    assert opened_pages(8 * one, 128 * one, 512.0) == pytest.approx(8 * 0.25)
    assert opened_pages(8 * one, 128 * one, 50_000.0) == pytest.approx(8 * 1.0625)


# Trees -----------------------------------------------------------------------------------------
def test_trees_are_taken_where_they_choose_better(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = finetune.collect(board, PerturbedDevice("paged", 2, Differences(instruction=20.0)), 64)
    choices = {False: 0.9, True: 0.95}
    monkeypatch.setattr(
        finetune,
        "cross_validate",
        lambda board, measured, boosted=False: ({"choice": 0.8}, {"choice": choices[boosted]}),
    )
    found = finetune.adapt(board, measured, {})
    card = found.network.card["finetuned"]
    assert card["method"] == "calibration and trees"
    assert card["ways"] == {"calibration": {"choice": 0.9}, "calibration and trees": {"choice": 0.95}}
    assert found.calibration.forest is not None
    plain = calibrate.fit(board, measured)
    valid = measured.take(measured.valid)
    errors = [np.abs(board.expected(known, valid) - np.log(valid.cycles)) for known in (plain, found.calibration)]
    assert errors[1].mean() < errors[0].mean()
    found.network.save(tmp_path / "trees.safetensors")
    loaded = Predictor.load(tmp_path / "trees.safetensors")
    some = SPACES[0].table()[:200]
    told = loaded.score(SPACES[0], some)
    assert np.array_equal(told.cycles, found.network.score(SPACES[0], some).cycles)
    assert not np.allclose(told.cycles, board.adapted(plain).score(SPACES[0], some).cycles)
    # Of equal ones the simpler; and without the library it is the only one.
    choices[True] = 0.9
    assert finetune.adapt(board, measured, {}).calibration.forest is None
    choices[True] = 0.95
    monkeypatch.setattr(finetune, "can_boost", lambda: False)
    card = finetune.adapt(board, measured, {}).network.card["finetuned"]
    assert (card["method"], list(card["ways"])) == ("calibration", ["calibration"])


def test_few_valid_measurements_leave_the_description(board: Board) -> None:
    rows = [(0, i, int(Reason.WRONG_RESULT), -1, 1) for i in range(3)]
    assert calibrate.fit(board, Measured.of(rows)).latency == CHIP.memory_latency
    nothing = calibrate.fit(board, Measured.of([]))
    assert not nothing.costs.any() and not len(nothing.limits)


def test_duels() -> None:
    rows = [(0, 0, 0, 100, 1), (0, 1, 0, 200, 1), (0, 2, int(Reason.WRONG_RESULT), -1, 1)]
    measured = Measured.of(rows)
    assert finetune.duels(np.array([1.0, 2.0, 3.0]), measured) == pytest.approx(1.0)
    # Of three pairs the slower one of one, and the failing one of two, are chosen: each half as good.
    assert finetune.duels(np.array([2.0, 1.0, 0.0]), measured) == pytest.approx(0.5)
    assert np.isnan(finetune.duels(np.array([1.0]), measured.take(slice(0, 1))))


# Collection ------------------------------------------------------------------------------------
def test_rounds() -> None:
    assert finetune.round_ends(1024) == [16, 64, 256, 1024]
    assert finetune.round_ends(100) == [16, 64, 100]
    assert finetune.round_ends(16) == [16]


def test_measurements_are_legal_different_and_spread(board: Board) -> None:
    measured = finetune.collect(board, open_device("perturbed:faulty:1"), 64)
    assert len(measured) == 64
    assert len(set(zip(measured.task.tolist(), measured.index.tolist()))) == 64
    assert set(np.bincount(measured.task)) == {16}
    assert set(measured.reason.tolist()) <= {Reason.VALID, Reason.WRONG_RESULT}
    # A smaller budget's are the first of a larger one's.
    fewer = finetune.collect(board, open_device("perturbed:faulty:1"), 16)
    assert np.array_equal(fewer.index, measured.index[:16])


def test_a_killed_run_goes_on_with_the_same_measurements(board: Board, tmp_path: Path) -> None:
    log, device = tmp_path / "log.jsonl", "perturbed:noisy:1"
    whole = finetune.collect(board, open_device(device), 64, 1, log)
    content = log.read_bytes()
    for cut in (30, len(content) // 3, len(content) - 5):
        log.write_bytes(content[:cut])
        again = finetune.collect(board, open_device(device), 64, 1, log)
        assert log.read_bytes() == content
        assert np.array_equal(again.cycles, whole.cycles)
    with pytest.raises(LogError, match="another run"):
        finetune.collect(board, open_device(device), 64, 2, log)
    log.write_text("{}\n[1, 2]\n")
    with pytest.raises(LogError):
        finetune.collect(board, open_device(device), 64, 1, log)


def test_a_damaged_log_loses_what_was_damaged(
    board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, device = tmp_path / "log.jsonl", "perturbed:slow-memory:1"
    finetune.collect(board, open_device(device), 32, 1, log)
    content = log.read_text()
    lines = content.splitlines(keepends=True)
    asked: list[int] = []
    measure = PerturbedDevice.measure_schedules

    def noting(self: PerturbedDevice, space: ScheduleSpace, indices: np.ndarray) -> BatchResult:
        asked.extend(indices.tolist())
        return measure(self, space, indices)

    monkeypatch.setattr(PerturbedDevice, "measure_schedules", noting)
    for damaged, lost in (
        ([*lines[:9], lines[9][:7], *lines[10:]], 1),
        ([*lines[:9], "[1, 2]\n", *lines[9:]], 0),
        ([lines[0], *(line for line in lines[1:] for _ in range(2))], 0),
    ):
        for copy in tmp_path.glob("log.jsonl*"):
            copy.unlink()
        asked.clear()
        log.write_text("".join(damaged))
        finetune.collect(board, open_device(device), 32, 1, log)
        assert log.read_text() == content
        assert len(set(asked)) == lost
        assert (tmp_path / "log.jsonl.damaged").read_text() == "".join(damaged)
        assert capsys.readouterr().err.count("\n") == 1


# Devices that lie ------------------------------------------------------------------------------
def test_programs_that_always_lie_are_not_believed() -> None:
    board = Board(SPACES, picking.predictor_of(None))
    device = PerturbedDevice("paged", 5, Differences(latency=6.0, bandwidth=0.6, noise=0.005, liars=0.2))
    measured = finetune.collect(board, device, 64, 5)
    lies = np.zeros(len(measured), dtype=bool)
    for task, space in enumerate(SPACES):
        own = np.flatnonzero((measured.task == task) & measured.valid)
        lies[own] = measured.cycles[own] < 0.8 * device.true_cycles(space, measured.index[own]).cycles
    assert 5 < lies.sum() < 30
    keep = calibrate.believed(board, measured)
    assert (keep & lies).sum() <= 0.2 * lies.sum()
    assert (~keep & ~lies).sum() <= 0.05 * len(measured)
    honest = finetune.collect(board, PerturbedDevice("paged", 5, Differences(latency=6.0, bandwidth=0.6)), 64, 5)
    assert calibrate.believed(board, honest).all()
    card = finetune.adapt(board, measured, {}).network.card["finetuned"]
    assert card["not_believed"] == (~keep).sum()


def lying(lies: float, seed: int, noise: float = 0.005) -> PerturbedDevice:
    return PerturbedDevice("paged", seed, Differences(latency=6.0, bandwidth=0.6, lies=lies, noise=noise))


def test_a_liars_measurements_are_the_true_ones(board: Board, tmp_path: Path) -> None:
    wrong = 0
    for seed in range(3):
        device, log = lying(0.2, seed), tmp_path / f"{seed}.jsonl"
        found = finetune.collect(board, device, 64, seed, log)
        for task, space in enumerate(SPACES):
            own = found.take((found.task == task) & found.valid)
            true = device.true_cycles(space, own.index).cycles
            wrong += int((np.abs(np.log(own.cycles / true)) > 0.05).sum())
        # It costs programs, no measurements; and a run that was cut goes on as if it had not been.
        assert len(found) <= 64 < found.attempts.sum()
        content = log.read_bytes()
        log.write_bytes(content[: len(content) // 2])
        finetune.collect(board, lying(0.2, seed), 64, seed, log)
        assert log.read_bytes() == content
    # A fifth of the answers are wrong; of what is believed, 3 of some 192 at most.
    assert wrong <= 3


@pytest.mark.slow
def test_what_is_adapted_to_a_liar_is_what_is_adapted_to_an_honest_board(board: Board) -> None:
    lost: dict[float, list[float]] = {0.0: [], 0.2: []}
    for seed in range(2):
        for lies, into in lost.items():
            device = lying(lies, seed)
            known = calibrate.fit(board, finetune.collect(board, device, 64, seed))
            for space in SPACES[:3]:
                picked = picking.pick(space.workload, CHIP, board.adapted(known)).index
                into.append(float(np.log(device.true_cycles(space, np.array([picked])).cycles[0])))
    # Of the lies believed at once came picks 15 % away, better or worse by chance.
    assert np.abs(np.array(lost[0.2]) - np.array(lost[0.0])).mean() < 0.03


def test_an_honest_board_is_asked_twice_in_the_first_round_only(board: Board) -> None:
    found = finetune.collect(board, lying(0.0, 1), 64)
    assert found.attempts.sum() <= 64 + 16 + 4
    assert finetune.collect(board, open_device("sim"), 64).attempts.sum() == 64


# The command -----------------------------------------------------------------------------------
@pytest.fixture
def arguments(tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    weights = tmp_path / "base.safetensors"
    board.network.save(weights)
    monkeypatch.setattr(finetune_command, "workloads_of", lambda source, size: [layer.workload for layer in LAYERS])
    return [
        *("finetune", "--accelerator", "pynq", "--device", "perturbed:slow-memory:0", "--budget", "24"),
        *("--weights", str(weights), "--out", str(tmp_path / "new.safetensors")),
    ]


@pytest.fixture
def says_afterwards(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have the cross-validation say how good choices are afterwards; before, it is 0.9."""

    def say(choice: float) -> None:
        figures = ({"choice": 0.9, "error": 0.2}, {"choice": choice, "error": 0.1})
        monkeypatch.setattr(finetune, "cross_validate", lambda board, measured, boosted=False: figures)

    return say


def test_the_command_writes_weights_and_card(
    arguments: list[str],
    tmp_path: Path,
    says_afterwards: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    says_afterwards(0.95)
    assert main.main(arguments) == 0
    assert "95.00%" in capsys.readouterr().out
    loaded = Predictor.load(tmp_path / "new.safetensors")
    card = loaded.card["finetuned"]
    assert card["measurements"] == card["budget"] == 24
    assert card["before"]["choice"] == 0.9
    assert card["device"] == "perturbed:slow-memory:0"
    assert card["base"] == predictor.digest(Predictor.load(tmp_path / "base.safetensors"))
    # Again from the log; and not on top of itself.
    assert main.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory_latency"] == card["memory_latency"]
    arguments[arguments.index("--weights") + 1] = str(tmp_path / "new.safetensors")
    assert main.main(arguments) == 2
    assert "fine-tuned already" in capsys.readouterr().err


def test_worse_weights_are_not_written(arguments: list[str], tmp_path: Path, says_afterwards, capsys) -> None:
    says_afterwards(0.89)
    assert main.main(arguments) == 2
    assert "nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "new.safetensors").exists()


def test_wrong_arguments(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*arguments, "--budget", "4"]) == 2
    assert "16 or more" in capsys.readouterr().err
    assert main.main([*arguments, "--out", str(tmp_path / "none" / "x")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_workloads(tmp_path: Path) -> None:
    assert len(finetune.workloads_of(None)) >= finetune.FOLDS
    with pytest.raises(OneShotError):
        finetune.workloads_of(str(tmp_path / "none.toml"))


def test_a_board_that_is_gone_stops_the_command(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(self: PerturbedDevice, space: ScheduleSpace, indices: np.ndarray) -> BatchResult:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(PerturbedDevice, "measure_schedules", gone)
        assert main.main([*arguments, "--failures", "6"]) == 2
    err = capsys.readouterr().err
    assert "6 schedules in a row" in err and "no route to host" in err
    # Nothing of it is in the log: the same command measures all.
    assert (tmp_path / "new.jsonl").read_bytes().count(b"\n") == 1
