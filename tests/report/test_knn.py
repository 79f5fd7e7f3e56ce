"""The table of nearest neighbours shows every run's numbers by layer, k and T, and what is missing."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.resealed import rewrite
from uic_core.config import Config
from uic_core.report import knn
from uic_core.run import metrics

RUNS = ["uic_3k", "uic_vgg16_strong", "uic_resnet50_mlp_strong", "deepcluster"]
Make = Callable[..., metrics.Metrics]


@pytest.fixture
def paths(tmp_path: Path, paper: Config, make_metrics: Make) -> dict[str, Path]:
    """Run → metrics: the values of a run rise from 10, 20, 30 or 40."""
    section = paper.evaluations.knn
    assert section is not None
    found = {}
    for number, run in enumerate(RUNS, 1):
        names = section.values_of(paper.runs[run].arch)
        values = {
            name: metrics.Value(value=10.0 * number + place / 4, unit="%", ci95=0.4, n=50_000)
            for place, name in enumerate(names)
        }
        found[run] = tmp_path / run / "knn.json"
        metrics.write(found[run], make_metrics(run, "knn", values))
    return found


def make(folder: Path, paths: list[Path], *more: str) -> tuple[str, list[dict[str, str]]]:
    arguments: list[Any] = ["--metrics", *paths, "--runs", *RUNS, "--scale", "paper", "--html", folder / "knn.html"]
    knn.main([str(each) for each in [*arguments, "--out", folder / "knn.md", "--csv", folder / "knn.csv", *more]])
    with (folder / "knn.csv").open(newline="") as file:
        return (folder / "knn.md").read_text(), list(csv.DictReader(file))


def lines_of(text: str) -> list[list[str]]:
    """The cells of every line, without their links."""
    text = re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", text)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_every_number_is_there_by_layer_and_the_best_of_a_column_is_bold(
    tmp_path: Path, paths: dict[str, Path]
) -> None:
    text, records = make(tmp_path, list(reversed(paths.values())))
    lines = lines_of(text)
    assert lines[0] == ["Run", *(f"k = {k}, T = {t}" for k in (10, 20, 200) for t in (0.07, 0.1))]
    assert [line[0] for line in lines[2:]] == [
        "*conv5*", "`uic_3k`", "`deepcluster`", "*fc7*", "`uic_3k`", "`uic_vgg16_strong`", "`deepcluster`", "*conv13*",
        "`uic_vgg16_strong`", "*avgpool*", "`uic_resnet50_mlp_strong`", "*mlp*", "`uic_resnet50_mlp_strong`",
    ]  # fmt: skip
    assert "| [10.0](../metrics/uic_3k/knn.json#conv5/k10/t0.07) |" in re.sub(" +", " ", text)
    assert lines[3] == ["`uic_3k`", "10.0", "10.2", "10.5", "10.8", "11.0", "11.2"]
    assert lines[4] == [
        "`deepcluster`",
        *(f"**{value}**" for value in ("40.0", "40.2", "40.5", "40.8", "41.0", "41.2")),
    ]
    assert lines[10] == ["`uic_vgg16_strong`", "20.0", "20.2", "20.5", "20.8", "21.0", "21.2"]  # alone: best of nothing
    assert "95 % intervals: ± 0.4 points or less." in text
    assert "Commit: 0123456789ab." in text
    assert len(records) == 4 * 6 + 6 + 6 + 2 * 6
    (one,) = [
        record for record in records
        if (record["run"], record["layer"], record["neighbours"], record["temperature"])
        == ("deepcluster", "fc7", "200", "0.1")
    ]  # fmt: skip
    assert (float(one["value"]), one["ci95"], one["n"]) == (40 + 11 / 4, "0.4", "50000")
    assert "<strong>40.0</strong>" in (tmp_path / "knn.html").read_text()


def test_fault_67_the_numbers_of_a_run_that_diverged_are_marked(
    tmp_path: Path, paths: dict[str, Path], seen: Callable[[object], None]
) -> None:
    remark = "pretraining diverged: the training loss ended at 27.7, a guess has 2.3; lr 0.05"
    text = paths["deepcluster"].read_text()
    assert '"remark": ""' in text
    rewrite(paths["deepcluster"], text.replace('"remark": ""', f'"remark": "{remark}"'))
    text, records = make(tmp_path, list(paths.values()))
    (note,) = (line for line in text.splitlines() if "diverged" in line)
    seen(note)
    assert f"`deepcluster`: {remark}." in note
    assert {record["run"]: record["remark"] for record in records} == {**dict.fromkeys(RUNS, ""), "deepcluster": remark}


def test_a_run_without_metrics_is_named_or_left_out_of_the_partial_table(
    tmp_path: Path, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    there = [path for run, path in paths.items() if run != "deepcluster"]
    with pytest.raises(SystemExit) as stop:
        make(tmp_path, there)
    assert stop.value.code == 2
    assert "no metrics of run 'deepcluster', evaluation 'knn'" in capsys.readouterr().err
    assert not (tmp_path / "knn.md").exists()
    text, records = make(tmp_path, there, "--partial")
    assert "**Partial.** 1 of 4 runs are missing" in text
    assert "`deepcluster`" not in "".join(map("".join, lines_of(text)))
    assert {record["run"] for record in records} == {run for run in RUNS if run != "deepcluster"}
    text, records = make(tmp_path, [], "--partial")
    assert "4 of 4 runs are missing" in text
    assert records == []


def test_numbers_of_another_recipe_or_changed_by_hand_are_refused(
    tmp_path: Path, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make(tmp_path, list(paths.values()), "--recipes", "uic_3k=other")
    assert "is of recipe r, but run 'uic_3k' of the config has other" in capsys.readouterr().err
    content = paths["uic_3k"].read_text()
    paths["uic_3k"].write_text(content.replace('"value": 10.0', '"value": 90.0'))
    with pytest.raises(SystemExit):
        make(tmp_path, list(paths.values()))
    assert "its checksum is wrong: it was changed by hand" in capsys.readouterr().err


def test_a_value_that_the_protocol_names_and_the_file_lacks_is_an_error(
    tmp_path: Path, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(paths["uic_3k"].read_text())
    del content["values"]["fc7/k20/t0.1"]
    rewrite(paths["uic_3k"], json.dumps(content))
    with pytest.raises(SystemExit):
        make(tmp_path, list(paths.values()))
    assert f"{paths['uic_3k']}: no value 'fc7/k20/t0.1'; delete the file" in capsys.readouterr().err


def test_of_several_seeds_the_deviation_is_shown(tmp_path: Path, paths: dict[str, Path]) -> None:
    found = metrics.read(paths["uic_3k"])
    values = {
        name: value.model_copy(update={"std": 0.3, "seeds": 3, "ci95": None}) for name, value in found.values.items()
    }
    metrics.write(paths["uic_3k"], found.model_copy(update={"values": values}))
    text, _ = make(tmp_path, list(paths.values()))
    assert lines_of(text)[3][1] == "10.0 ± 0.3"
    assert "[10.0 ± 0.3](../metrics/uic_3k/knn.seeds.json#conv5/k10/t0.07)" in text
    assert "±: standard deviation over seeds." in text
