"""A row of ours, of a run trained elsewhere, fills from its metrics files as the evaluations name their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uic_core import recipe
from uic_core.config import Config
from uic_core.data import voc
from uic_core.evaluate import fewshot, linear_probe, voc_classification
from uic_core.evaluate.probes import Curve
from uic_core.files import write_text
from uic_core.report import cells, tables
from uic_core.report.filled import fill
from uic_core.report.published import read_published
from uic_core.run import metrics
from uic_core.strict_yaml import read_yaml

CONFIG = Path(__file__).parents[2] / "config"


def probe_values(settings: Config) -> dict[str, metrics.Value]:
    layers = settings.evaluations.linear_probe.layers["alexnet"]
    curves = {layer: Curve(np.array([0.1, number / 100]), np.ones(2)) for number, layer in enumerate(layers, 31)}
    return linear_probe.values(curves, images=400)


def voc_values(settings: Config) -> dict[str, metrics.Value]:
    targets = np.tile(np.eye(len(voc.CLASSES), dtype=np.uint8), (2, 1))
    return voc_classification.values(targets.astype(np.float32), targets)  # every class found: 100 %


def fewshot_values(settings: Config) -> dict[str, metrics.Value]:
    protocol = settings.evaluations.fewshot
    columns = [f"{name}/{layer}" for name in protocol.resolutions for layer in protocol.layers["alexnet"]]
    return {column: fewshot.summary(np.array([0.5, 0.5 + number / 50])) for number, column in enumerate(columns)}


@pytest.mark.parametrize(
    ("number", "row", "evaluations", "expected"),
    [
        (3, {}, {"linear_probe": probe_values}, ["31.0", "32.0", "33.0", "34.0", "35.0"]),
        (
            4,
            {"absent": ["Detection ALL", "Segmentation ALL"]},
            {"voc_classification_fc6_8": voc_values, "voc_classification_all": voc_values},
            ["100.0", "100.0"],
        ),
        (5, {"fill": {"view": "upsampled"}}, {"fewshot": fewshot_values}, ["50.00", "51.00", "52.00", "53.00"]),
        (5, {"fill": {"view": "native"}}, {"fewshot": fewshot_values}, ["54.00", "55.00", "56.00", "57.00"]),
    ],
)
def test_an_extra_row_of_an_external_run(
    number: int,
    row: dict[str, Any],
    evaluations: dict[str, Callable[[Config], dict[str, metrics.Value]]],
    expected: list[str],
    tmp_path: Path,
) -> None:
    """The row stands in a copy of config/tables.yaml, the run in one of the config; the paper's rows stay cited."""
    content = read_yaml(CONFIG / "paper.yaml")
    content["runs"]["mine"] = {
        "method": "external", "path": "mine.pth", "format": "deepcluster", "arch": "alexnet", "sobel": True,
        "image_size": 224, "resize": 256,
    }  # fmt: skip
    settings = recipe.parse(Config, content, "test")
    wanted = read_yaml(CONFIG / "tables.yaml")
    table = wanted["tables"][number]
    texts = {column["name"]: "mine" for column in table["columns"] if column.get("text")}
    table["rows"].append(row | {"name": "Mine", "run": "mine", "extra": True, "texts": texts})
    write_text(tmp_path / "tables.yaml", recipe.yaml.safe_dump(wanted))
    found = cells.table(tmp_path / "tables.yaml", number)
    assert {pair for pair in cells.needed(tmp_path / "tables.yaml", number) if pair[0] == "mine"} == {
        ("mine", evaluation) for evaluation in evaluations
    }
    paths = []
    for evaluation, values in evaluations.items():
        came = metrics.provenance(metrics.Origin("mine", "c", "r", 0.97, (), ""), seed=0)
        metrics.write(
            path := tmp_path / f"{evaluation}.json",
            metrics.Metrics(
                evaluation=evaluation,
                run="mine",
                dataset=metrics.Dataset(name="d", fingerprint="0", sizes={}),
                values=values(settings),
                protocol=getattr(settings.evaluations, evaluation).model_dump(),
                provenance=came,
            ),
        )
        paths.append(path)
    published = read_published(CONFIG / "published.csv", number, found)
    page = tables.to_markdown(tables.page(fill(number, found, published, paths, "paper", partial=True)))
    (line,) = [line for line in page.splitlines() if "Mine" in line and line.startswith("|")]
    shown = [cell.strip(" *").partition("*")[0] for cell in line.strip("|").split("|")][1 + len(texts) :]
    assert [cell for cell in shown if cell[:1].isdigit()] == expected
