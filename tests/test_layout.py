"""Logs and benchmarks lead to the jobs that wrote them. The whole workflow's are in tests/workflow/test_dag.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from uic_core.layout import Layout


@pytest.mark.parametrize(
    ("log", "made"),
    [
        ("data/check_voc07", "data/voc07.checked"), ("data/cache_imagenet", "index/imagenet_train_cached.npz"),
        ("data/imagenet", "data/imagenet.yaml"), ("data/proposals_test", "proposals/voc07_test.npz"),
        ("report/table4", "tables/table4.md"), ("report/table_detection", "tables/detection.md"),
        ("report/table_knn", "tables/knn.md"), ("uic_3k/knn", "metrics/uic_3k/knn.json"),
        ("report/fig_curves", "figures/curves.png"), ("report/table_speed", "tables/speed.md"),
        ("report/fig3", "figures/fig3.png"), ("report/fig_detection", "figures/detection.png"),
        ("report/summary", "README.md"), ("report/index_page", "index.html"),
        ("uic_3k/recipe", "runs/uic_3k/recipe.yaml"),
        ("uic_3k/finetune", "runs/uic_3k/checkpoint.safetensors"), ("uic_3k/export", "export/uic_3k/README.md"),
        ("uic_3k/seeds_linear_probe", "metrics/uic_3k/linear_probe.seeds.json"),
        ("uic_3k/voc_classification_all", "metrics/uic_3k/voc_classification_all.json"),
    ],
)  # fmt: skip
def test_a_log_leads_to_the_file_of_its_job(log: str, made: str) -> None:
    """Names as the rules have them: what is there has not failed."""
    results = Layout(Path("results"))
    assert results.made_by(results.root / "logs" / f"{log}.log") == results.root / made


@pytest.mark.parametrize("evaluation", ["knn", "linear_probe.seeds"])
def test_metrics_lead_to_their_log_and_back(evaluation: str) -> None:
    results = Layout(Path("results"))
    log = results.metrics_log("uic_3k", evaluation)
    assert log == results.root / "logs/uic_3k" / {"knn": "knn.log"}.get(evaluation, "seeds_linear_probe.log")
    assert results.made_by(log) == results.metrics("uic_3k", evaluation)
