"""Train the network on corpora."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
from pathlib import Path

import torch

from oneshot_ml2.common.files import check_writable, locked
from oneshot_ml2.training.data import map_features, write_features
from oneshot_ml2.training.loop import train
from oneshot_ml2.training.processes import Processes
from oneshot_ml2.training.settings import Settings, read_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 train``."""
    parser.add_argument("--corpus", metavar="CORPUS", nargs="+", required=True, help="files or folders of shards")
    parser.add_argument("--out", metavar="PATH", required=True, help="weights to write, e.g. pretrained/default@1")
    parser.add_argument("--settings", metavar="FILE", help="TOML settings; default: those of train/pretrain.toml")
    parser.add_argument("--epochs", type=int, metavar="N", help="replaces the settings' number of epochs")
    parser.add_argument("--seed", type=int, metavar="N", help="replaces the settings' seed")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all")


def run(args: argparse.Namespace) -> int:
    """Train; raises OneShotError for what the user can mend."""
    settings = read_settings(args.settings) if args.settings else Settings()
    given = {key: getattr(args, key) for key in ("epochs", "seed") if getattr(args, key) is not None}
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = dataclasses.replace(settings, **given)
    out = Path(args.out).with_suffix(".safetensors")
    check_writable(out.parent, "--out")
    features = out.with_suffix(".features")
    processes = Processes.joined()
    busy = f"{out}: another training writes it; wait for it, or give another --out"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out, busy) if processes.rank == 0 else contextlib.nullcontext():
            if processes.rank == 0:
                write_features(args.corpus, settings, features)
            processes.wait()
            data = map_features(features)
            if processes.rank == 0:
                valid = float(data.valid.mean())
                print(f"{len(data)} tasks, {len(data.valid)} samples, {valid:.1%} valid", flush=True)
            predictor = train(data, settings, out, progress=True, processes=processes)
            if processes.rank == 0:
                shutil.rmtree(features)
                print(f"{out}: trained in {predictor.card['training_seconds']:.0f} s; card and curves beside it")
    finally:
        processes.leave()
    return 0
