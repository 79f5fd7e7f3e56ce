"""Metrics files for the whole matrix, made of thin air."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uic_core.config import Config, validate
from uic_core.report import cells
from uic_core.run import metrics
from uic_core.strict_yaml import read_yaml

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture(scope="session")
def paper() -> Config:
    return validate(read_yaml(CONFIG / "paper.yaml"), "config/paper.yaml")


def protocol(config: Config, run: str, evaluation: str) -> dict[str, Any]:
    """The settings as the stages record them: the probes' by architecture are those of the run's."""
    settings: dict[str, Any] = getattr(config.evaluations, evaluation).model_dump()
    by_arch = {"linear_probe": ("layers", "crop", "images", "val_images"), "knn": ("layers", "images", "val_images")}
    arch = config.runs[run.partition("_seed")[0]].arch
    return settings | {key: settings[key][arch] for key in by_arch.get(evaluation, ())}


@pytest.fixture
def make_metrics(paper: Config) -> Callable[..., metrics.Metrics]:
    """Build metrics of the paper's settings; keywords replace parts of the provenance."""

    def make(run: str, evaluation: str, values: dict[str, metrics.Value], **changes: Any) -> metrics.Metrics:
        data = {"detection": "voc07", "segmentation": "voc_segmentation", "fewshot": "miniimagenet_test"}
        facts: dict[str, Any] = {
            "commit": "0123456789ab", "dirty": False, "date": "2026-01-02", "recipe_hash": "r", "checkpoint_hash": "c",
            "coverage": 1.0, "trained_by": "0123456789ab", "run_seeds": [0],
            "seed": 0, "versions": {}, "hardware": "cpu", "wall_seconds": 1.0, "peak_memory_mb": 1.0,
        }  # fmt: skip
        return metrics.Metrics(
            evaluation=evaluation,
            run=run,
            dataset=metrics.Dataset(
                name=data.get(evaluation, "imagenet"), fingerprint="00ff00ff00ff00ff", sizes={"train": 2000, "val": 400}
            ),
            values=values,
            protocol=protocol(paper, run, evaluation),
            provenance=metrics.Provenance(**{**facts, **changes}),
        )

    return make


@pytest.fixture
def matrix(tmp_path: Path, make_metrics: Callable[..., metrics.Metrics]) -> dict[tuple[str, str], Path]:
    """(run, evaluation) → metrics JSON with random values, for every cell of every table."""
    rng = random.Random(0)
    values: dict[tuple[str, str], dict[str, metrics.Value]] = {}
    for table in cells.read_tables(CONFIG / "tables.yaml").values():
        for source in table.sources().values():
            interval = {"ci95": 0.4, "n": 500} if source.evaluation == "fewshot" else {}
            value = metrics.Value(value=rng.uniform(10, 90), unit="%", **interval)
            values.setdefault((source.run, source.evaluation), {})[source.value] = value
    paths = {}
    for (run, evaluation), numbers in values.items():
        path = tmp_path / "metrics" / run / f"{evaluation}.json"
        metrics.write(path, make_metrics(run, evaluation, numbers))
        paths[run, evaluation] = path
    return paths
