"""A small recipe of any method."""

from __future__ import annotations

from typing import Any

from uic_core.methods import METHODS, parse_run
from uic_core.recipe import Recipe

SETTINGS = {
    "method": "uic", "data": "imagenet", "arch": "alexnet", "sobel": True, "classes": 5, "image_size": 64, "resize": 73,
    "images": 0, "epochs": 2, "batch_size": 16, "lr": 0.01, "schedule": "linear", "momentum": 0.9, "weight_decay": 1e-4,
    "augmentation": "standard", "label_view": "training", "balanced": True, "pretrained": "start", "pca": 8,
    "kmeans_iterations": 3, "lr_steps": [1], "precision": "fp32", "seed": 3,
}  # fmt: skip
"""Of all methods; each reads its own."""


def recipe(**changes: Any) -> Any:
    """SETTINGS with these changes, as far as the method reads them."""
    keys = METHODS[changes.get("method", "uic")].recipe.model_fields
    made = parse_run({key: value for key, value in (SETTINGS | changes).items() if key in keys}, "test")
    assert isinstance(made, Recipe)
    return made
