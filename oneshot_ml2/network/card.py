"""The card beside a file of weights: what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.common.reading import FIGURES_DECODER, read_json


def read_card(weights: Path) -> dict[str, Any]:
    """The model card beside weights; empty if there is none.

    Raises:
        WeightsError: an unreadable card.
    """
    path = weights.with_suffix(".json")
    advice = "use the card that came with the weights, or remove it"
    try:
        card = read_json(path, WeightsError, FIGURES_DECODER) if path.exists() else {}
    except WeightsError as error:
        raise WeightsError(f"cannot read the model card {path}: {error}; {advice}") from error
    fits = isinstance(card, dict) and type(card.get("samples", 0)) is int and type(card.get("settings", {})) is dict
    if not fits:
        raise WeightsError(f"{path}: not a model card; {advice}")
    return card
