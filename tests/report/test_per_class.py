"""Tables of classes show every run's numbers of every class, and where one has none."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from uic_core import config
from uic_core.evaluations import BY_CLASS
from uic_core.report import cells, per_class, summary
from uic_core.report.page import to_markdown
from uic_core.run import metrics

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "config" / "tables.yaml"
KEYS = {"detection": ("ap/", "map"), "segmentation": ("iou/", "miou")}


def write(folder: Path, make_metrics: Callable[..., metrics.Metrics], task: str) -> dict[str, Path]:
    """Run → metrics: class 'cat' rises from run to run, only the last run has 'dog'."""
    prefix, mean = KEYS[task]
    runs = list(cells.shown_runs(TABLES, task))
    paths = {}
    for number, run in enumerate(runs):
        values = {mean: 40.0 + number, f"{prefix}cat": 30.0 + number}
        if run == runs[-1]:
            values[f"{prefix}dog"] = 77.0
        numbers = {name: metrics.Value(value=value, unit="%", n=60) for name, value in values.items()}
        paths[run] = folder / run / f"{task}.json"
        metrics.write(paths[run], make_metrics(run, task, numbers))
    return paths


def make(folder: Path, task: str, paths: list[Path]) -> tuple[str, list[dict[str, str]], str]:
    arguments = ["--task", task, "--metrics", *paths, "--tables", TABLES, "--scale", "paper"]
    outs = [folder / f"{task}.{kind}" for kind in ("md", "csv", "html")]
    per_class.main([str(each) for each in [*arguments, "--out", outs[0], "--csv", outs[1], "--html", outs[2]]])
    with outs[1].open(newline="") as file:
        records = list(csv.DictReader(file))
    return outs[0].read_text(), records, outs[2].read_text()


def test_the_runs_of_table_4_are_shown() -> None:
    expected = ["supervised", "random_rgb", "random_sobel", "deepcluster", "uic_3k_fft"]
    for task in KEYS:
        assert list(cells.shown_runs(TABLES, task)) == expected
    assert cells.shown_runs(TABLES, "detection")["uic_3k_fft"] == "Ours"


@pytest.mark.parametrize("task", list(KEYS))
def test_every_number_is_there_and_the_best_is_bold(
    tmp_path: Path, make_metrics: Callable[..., metrics.Metrics], task: str
) -> None:
    paths = write(tmp_path, make_metrics, task)
    text, records, html = make(tmp_path, task, list(reversed(paths.values())))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["Class", *cells.shown_runs(TABLES, task).values()]
    assert lines[2] == ["cat", "30.0", "31.0", "32.0", "33.0", "**34.0**"]
    assert lines[3] == ["dog", "–", "–", "–", "–", "**77.0**"]
    assert lines[4] == ["**mAP**" if task == "detection" else "**mIU**", "40.0", "41.0", "42.0", "43.0", "**44.0**"]
    assert {(record["run"], record["class"]): float(record["value"]) for record in records} == {
        **{(run, "cat"): 30.0 + number for number, run in enumerate(paths)},
        **{(run, KEYS[task][1]): 40.0 + number for number, run in enumerate(paths)},
        ("uic_3k_fft", "dog"): 77.0,
    }
    assert "<strong>77.0</strong>" in html


def test_a_run_without_metrics_is_named(
    tmp_path: Path, make_metrics: Callable[..., metrics.Metrics], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write(tmp_path, make_metrics, "detection")
    del paths["random_sobel"]
    with pytest.raises(SystemExit) as stop:
        make(tmp_path, "detection", list(paths.values()))
    assert stop.value.code == 2
    assert "no metrics of run 'random_sobel', evaluation 'detection'" in capsys.readouterr().err
    assert not (tmp_path / "detection.md").exists()


def test_what_an_evaluation_says_of_its_classes_is_so() -> None:
    """Its values have these names, and Snakemake's report has the captions of its figure and its table."""
    paper = config.read([ROOT / "config" / "paper.yaml"])
    assert list(BY_CLASS) == list(KEYS)
    for task, facts in BY_CLASS.items():
        assert (facts.prefix, facts.mean) == KEYS[task]
        first, *others = paper.evaluations.one(task).values_of("alexnet")
        assert first == facts.mean
        assert sum(name.startswith(facts.prefix) for name in others) >= 20
        for kind in ("fig", "table"):
            assert (ROOT / "workflow" / "report" / f"{kind}_{task}.rst").is_file()


def test_an_evaluation_that_describes_its_classes_is_shown_as_the_others_are(
    tmp_path: Path, make_metrics: Callable[..., metrics.Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "voc_classification_all"
    facts = replace(BY_CLASS["detection"], name="Classification", title="AP, classification (%)", without="no object")
    monkeypatch.setitem(BY_CLASS, task, facts)
    monkeypatch.setitem(KEYS, task, (facts.prefix, facts.mean))
    assert cells.by_class(TABLES) == list(KEYS)
    paths = write(tmp_path, make_metrics, task)
    text, records, _ = make(tmp_path, task, list(paths.values()))
    assert "**AP, classification (%).**" in text
    assert "–: no object." in text
    assert len(records) == 2 * len(paths) + 1
    listed = to_markdown(summary.page({}, {}, {}, cells.by_class(TABLES), "paper"))
    assert f"[Classification](figures/{task}.png)" in listed
    assert f"[Classification by class](tables/{task}.md)" in listed
