"""What a run leaves: its checkpoint, labels and history; and those of a run that does not train."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from uic_core import checkpoint
from uic_core.data import partition
from uic_core.data.index import Index
from uic_core.data.partition import Labels
from uic_core.errors import InputError
from uic_core.files import atomic, write_text
from uic_core.layout import CHECKPOINT
from uic_core.methods import METHODS
from uic_core.methods.labels import draw_initial
from uic_core.models.network import Network
from uic_core.recipe import Recipe, Training
from uic_core.run import metrics, trained

RESULTS = (CHECKPOINT, "labels.npy", "history.jsonl")


def keep_initial(recipe: Recipe, index: Index, network: Network, folder: Path) -> None:
    """Write the results of a run that does not train: its initial weights and labels, and an empty history."""
    check(recipe, index)
    write_history(folder, [])
    write_results(folder, recipe, network, index, draw_initial(len(index), recipe.classes, recipe.seed), {})
    trained.write(folder, RESULTS, recipe=recipe.hash())


def write_results(
    folder: Path, recipe: Recipe, network: Network, index: Index, labels: Labels, extra: dict[str, str]
) -> None:
    """Write labels.npy, then checkpoint.safetensors with `extra` in its header. Raises InputError for a full disk."""
    (folder / trained.NAME).unlink(missing_ok=True)  # of an earlier training
    with atomic(folder / "labels.npy") as temporary:
        np.save(temporary, partition.of_first_head(labels))
    checkpoint.save(folder / CHECKPOINT, network, recipe, {"data": index.fingerprint, **extra})


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write history.jsonl, one line per epoch."""
    write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in history))


def remark(recipe: Training, start: metrics.Origin | None, loss: float, say: Callable[[str], None]) -> str:
    """What every number of a run must be read with: that it diverged, or what it starts from; else ''.

    Args:
        loss: the last epoch's mean.
        say: prints a line.
    """
    # Held against a guess alone: a loss that exploded within the first epoch does not rise any more.
    guess = math.log(recipe.classes)
    told = metrics.diverged(guess, loss, guess, recipe.lr)
    if told:
        say(f"{told}; lower lr in the recipe")
        told = f"pretraining {told}"
    before = f"it starts from run {start.run}: {start.remark}" if start and start.remark else ""
    return "; ".join(filter(None, (before, told)))


def check(recipe: Recipe, index: Index) -> None:
    """Refuse a recipe whose classes do not fit the images. Raises InputError."""
    if recipe.classes > len(index):
        raise InputError(f"classes: {recipe.classes} for the {len(index)} images of {index.name}; lower classes")
    try:
        METHODS[recipe.method].check(recipe, len(index.classes))
    except ValueError as error:
        raise InputError(f"{index.name}: {error}") from None
