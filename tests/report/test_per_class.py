"""Tables of classes show every run's numbers of every class, and where one has none."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from uic_core.report import cells, per_class
from uic_core.run import metrics

TABLES = Path(__file__).parents[2] / "config" / "tables.yaml"
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
