"""The whole matrix of experiments at a smaller scale than the demo's, for tests and for bench/cluster.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uic_core.files import read_yaml

ROOT = Path(__file__).parents[1]


def small_config() -> dict[str, Any]:
    """Return config/demo.yaml, as small as still proves that the parts fit."""
    config: dict[str, Any] = read_yaml(ROOT / "config" / "demo.yaml")
    config["datasets"]["folders"]["imagenet"] |= {"classes": 4, "train_images": 48, "val_images": 16}
    config["datasets"]["voc07"] |= {"trainval_images": 20, "test_images": 20}
    config["datasets"]["voc_segmentation"] |= {"train_images": 6, "val_images": 4}
    config["datasets"]["miniimagenet"] |= {
        "train_classes": 2, "val_classes": 1, "test_classes": 5, "images_per_class": 20
    }  # fmt: skip
    for recipe in config["runs"].values():
        heavy = recipe["arch"] != "alexnet"
        if recipe["method"] != "random":
            recipe |= {"images": 16 if heavy else 0, "batch_size": 8 if heavy else 16, "epochs": 1}
        recipe["classes"] = 4 if recipe["method"] == "supervised" else 6
    evaluations = config["evaluations"]
    probe = evaluations["linear_probe"]
    few = {key: dict.fromkeys(probe[key], 16) for key in ("images", "val_images")}
    probe |= few | {"epochs": 2, "lr_steps": [1]}
    evaluations["clusters"] |= {"grid_classes": 2, "grid_images": 3, "min_images": 2}
    for name in ("fc6_8", "all"):
        evaluations[f"voc_classification_{name}"] |= {"iterations": 3, "crops": 2}
    evaluations["proposals"] |= {"max_boxes": 50}
    evaluations["detection"] |= {"iterations": 3, "lr_steps": [2], "train_scales": [120], "test_scale": 120}
    evaluations["segmentation"] |= {"iterations": 4, "lr_steps": [2, 3]}
    evaluations["fewshot"] |= {"episodes": 20}
    return config
