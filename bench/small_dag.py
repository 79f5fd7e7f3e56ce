"""The whole matrix of experiments at a smaller scale than the demo's, for tests and for bench/cluster.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uic_core.config import validate
from uic_core.overview.smoke import smaller
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]


def small_config() -> dict[str, Any]:
    """Return config/demo.yaml as `make smoke` makes it smaller, with shorter trainings and smaller detection."""
    demo = validate(read_yaml(ROOT / "config" / "demo.yaml"), "config/demo.yaml")
    config: dict[str, Any] = smaller(demo, Path("data")).model_dump() | {"results": "results"}
    for recipe in config["runs"].values():
        if "epochs" in recipe:
            recipe |= {"batch_size": min(16, recipe["images"] // 2 or 16), "epochs": 1}
    config["evaluations"]["detection"] |= {"train_scales": [120], "test_scale": 120}
    return config


def papers_config() -> dict[str, Any]:
    """Return the same without peers and nearest neighbours: for a queue, in which each job takes ten seconds more."""
    config = small_config()
    papers = read_yaml(ROOT / "config" / "paper.yaml")["runs"]
    config["runs"] = {name: recipe for name, recipe in config["runs"].items() if name in papers}
    del config["evaluations"]["knn"]
    return config
