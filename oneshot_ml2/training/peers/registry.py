"""The peers by name, each registered by the file of this folder that has it; their training, files and choices."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.reading import FIGURES_DECODER, read_json
from oneshot_ml2.common.records import records
from oneshot_ml2.network.picking import legal_positions
from oneshot_ml2.training.peers.base import PeerKind, Progress
from oneshot_ml2.training.peers.inputs import FEATURE_VERSION, features, own_inputs, read_rows

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import Candidates
    from oneshot_ml2.spaces.space import ScheduleSpace
    from oneshot_ml2.training.peers.base import Peer, Report, Settings

_CHUNK = 1 << 13


@functools.cache
def peer_kinds() -> dict[str, PeerKind]:
    """The peers by the names of their files."""
    return {kind.name: kind for kind in records("oneshot_ml2.training.peers", PeerKind)}


def _card(folder: Path, name: str) -> dict[str, Any] | None:
    """A peer's card; None if there is none.

    Raises:
        OneShotError: an unreadable one.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        card = read_json(path, decoder=FIGURES_DECODER)
        if not isinstance(card, dict):
            raise ValueError("not an object")
        return card
    except (OneShotError, ValueError) as error:
        raise OneShotError(f"{path}: not a peer's card ({error}); delete it and train the peers anew") from error


def train_peers(
    corpora: Sequence[str | Path],
    settings: Settings,
    folder: str | Path,
    report: Report = print,
    only: Collection[str] = (),
) -> Iterator[str]:
    """Train those of `peer_kinds` that ``folder`` lacks of these corpora and settings; save each when it is done.

    A network's training goes on from its last epoch; ``seconds`` in its card are those of the last call.

    Args:
        only: names; none: all of them.

    Yields:
        The name of each that is in the folder now.

    Raises:
        CorpusError: see `read_rows`.
        OneShotError: a damaged checkpoint, or one of other corpora or settings.
        ModuleNotFoundError: xgboost is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(corpora, settings)
    report(f"{len(rows)} tasks, {len(rows.cycles)} valid samples")
    run = {
        "feature_version": FEATURE_VERSION,
        "corpus": sorted(rows.digests),
        "settings": dataclasses.asdict(settings),
        "tasks": len(rows),
        "samples": len(rows.cycles),
    }
    for name, kind in peer_kinds().items():
        if only and name not in only:
            continue
        card = _card(folder, name)
        if card is None or {key: card.get(key) for key in run} != run:
            began = time.monotonic()
            checkpoint = folder / f"{name}.checkpoint"
            peer = kind.train(rows, settings, Progress(checkpoint, json.dumps(run, sort_keys=True), report))
            write_whole(folder / kind.file, kind.content(peer))
            # The card says that the weights are complete.
            card = run | {"seconds": round(time.monotonic() - began, 1)}
            write_whole(folder / f"{name}.json", json.dumps(card, indent=1) + "\n")
            checkpoint.unlink(missing_ok=True)
        yield name


def load_peers(folder: str | Path) -> dict[str, Peer]:
    """The peers that `train_peers` left in a folder, by name.

    Raises:
        OneShotError: there is none, or one is damaged or of another feature version.
        ModuleNotFoundError: xgboost is not installed.
    """
    folder = Path(folder)
    advice = "train them with `python train/peers.py`"
    peers: dict[str, Peer] = {}
    for name, kind in peer_kinds().items():
        card, path = _card(folder, name), folder / kind.file
        if card is None:
            continue
        if card.get("feature_version") != FEATURE_VERSION:
            version = card.get("feature_version")
            raise OneShotError(f"{path}: of feature version {version}, this is {FEATURE_VERSION}; {advice}")
        try:
            peers[name] = kind.load(path)
        except (OneShotError, OSError, SafetensorError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OneShotError(f"{path}: damaged or foreign ({reason}); {advice}") from error
    if not peers:
        raise OneShotError(f"{folder}: no peer is there; {advice}")
    return peers


def score(peer: Peer, space: ScheduleSpace, given: Candidates) -> NDArray[np.float32]:
    """A peer's scores (n,) of candidates of a space, higher for faster."""
    out = np.empty(len(given), dtype=np.float32)
    for begin in range(0, len(given), _CHUNK):
        part = given.take(slice(begin, begin + _CHUNK))
        out[begin : begin + _CHUNK] = peer.score(features(space, part), own_inputs(space, part.values))
    return out


def first_legal(space: ScheduleSpace, given: Candidates, scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the ``k`` legal schedules of the highest scores, highest first, int64 (<= k,)."""
    order = given.indices[np.argsort(-scores, kind="stable")]
    return order[legal_positions(space, order, k)]
