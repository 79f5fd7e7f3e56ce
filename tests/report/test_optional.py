"""Optional rows: computed as far as the config can, cited where it cannot, and everywhere the same."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uic_core.config import Config, read, validate
from uic_core.errors import InputError
from uic_core.overview import plan, status
from uic_core.overview.rates import assumed
from uic_core.report import cells, per_class, tables
from uic_core.report.check_cells import check_cells
from uic_core.report.published import read_published
from uic_core.run import metrics
from uic_core.strict_yaml import read_yaml

CONFIG = Path(__file__).parents[2] / "config"
TABLES = """
tables:
  1:
    title: A table
    tolerance: 1.0
    stub: Methods
    columns:
      - {name: conv1, evaluation: linear_probe, value: conv1}
      - {name: conv3, evaluation: linear_probe, value: conv3}
      - {name: NMI, evaluation: clusters, value: nmi}
      - {name: mAP, evaluation: detection, value: map}
    rows:
      - {name: Ours, run: uic_3k}
      - {name: "Peer [1]", run: peer, optional: true}
      - {name: Study, run: study, optional: true, extra: true}
    footnotes:
      - {row: Ours, text: Of ours.}
      - {row: "Peer [1]", text: Of the peer.}
      - {row: Study, column: NMI, text: Of the study.}
"""
PUBLISHED = """table,row,column,value,source
1,Ours,conv1,12.8,paper
1,Ours,conv3,41.2,paper
1,Ours,NMI,38.5,paper
1,Ours,mAP,54.9,paper
1,Peer [1],conv3,43.0,[1] Someone 2020
1,Peer [1],NMI,36.4,[1] Someone 2020
"""
THEIRS = {"method": "external", "path": "their.pth", "format": "selflabel", "arch": "alexnet", "sobel": False,
          "image_size": 224, "resize": 256}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """The paper's config with the tables above and more runs; `ours` stands for the recipe of uic_3k."""

    def config(**runs: Any) -> Config:
        content = read_yaml(CONFIG / "paper.yaml")
        for name, text in (("tables", TABLES), ("published", PUBLISHED)):
            (tmp_path / name).write_text(text)
            content[name] = str(tmp_path / name)
        content["results"] = str(tmp_path / "results")
        content["runs"] |= {name: content["runs"]["uic_3k"] if run == "ours" else run for name, run in runs.items()}
        return validate(content, "mine.yaml")

    return config


def rows(found: Config) -> dict[str, str]:
    """Of each row: c for a number that is computed, p for one of the paper alone, - for none; (c) where both are."""
    check_cells(found.tables_file, found)
    table = cells.table(found.tables_file, 1, found.computable)
    published, sources = read_published(found.published_file, 1, table), table.sources()
    kinds = {(False, False): "-", (False, True): "p", (True, False): "c", (True, True): "(c)"}
    return {
        row.name: " ".join(
            kinds[(row.name, each.name) in sources, (row.name, each.name) in published] for each in table.columns
        )
        for row in table.rows
    }


OURS = "(c) (c) (c) (c)"


def test_a_row_without_its_run_is_cited_and_an_extra_one_is_left_out(config: Callable[..., Config]) -> None:
    found = config()
    assert rows(found) == {"Ours": OURS, "Peer [1]": "- p p -"}
    table = cells.table(found.tables_file, 1, found.computable)
    assert [row.run for row in table.rows] == ["uic_3k", ""]
    assert [note.text for note in table.footnotes] == ["Of ours."]
    assert cells.table(found.tables_file, 1) == table, "a stage that is told of nothing cites"


def test_a_row_with_its_run_is_computed_where_the_paper_has_no_number_too(config: Callable[..., Config]) -> None:
    found = config(peer="ours", study="ours")
    assert rows(found) == {"Ours": OURS, "Peer [1]": "c (c) (c) c", "Study": "c c c c"}
    table = cells.table(found.tables_file, 1, found.computable)
    assert [note.text for note in table.footnotes] == ["Of ours.", "Of the peer.", "Of the study."]


def test_a_table_that_loses_all_its_rows_is_left_out() -> None:
    """config/cifar10_small.yaml has no further fine-tuning and no few-shot: Tables 2 and 5 of the study."""
    config = read([CONFIG / "cifar10_small.yaml"])
    assert set(cells.read_tables(config.tables_file, config.computable)) == {1, 3, 4, 6, 7}
    whole = read([CONFIG / "cifar10.yaml"])
    assert set(cells.read_tables(whole.tables_file, whole.computable)) == {1, 2, 3, 4, 5, 6, 7}


def test_what_refuses_the_run_is_cited(config: Callable[..., Config]) -> None:
    """A run that was trained elsewhere has no pseudo-labels."""
    assert rows(config(peer=THEIRS))["Peer [1]"] == "c (c) p c"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("run: peer, optional", "optional", "extra and optional belong to computed rows; name its run"),
        ("{name: conv1, evaluation: linear_probe, value: conv1}", "{name: conv1, evaluation: linear_probe, value: fc6}",
         "row 'Ours', column 'conv1': takes 'fc6'"),
    ],
)  # fmt: skip
def test_optional_rows_are_checked(config: Callable[..., Config], old: str, new: str, message: str) -> None:
    found = config(peer="ours")
    assert old in TABLES
    found.tables_file.write_text(TABLES.replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)):
        check_cells(found.tables_file, found)


def test_plan_and_status_know_the_runs_that_are_there(config: Callable[..., Config]) -> None:
    for found, expected in ((config(), False), (config(peer=THEIRS), True)):
        keys = plan.everything(found).keys()
        assert (("external", "peer") in keys) == (("linear_probe", "peer") in keys) == expected
        assert ("clusters", "peer") not in keys
        assert ("peer" in plan.report(found, assumed(found, 312, 8))) == expected
        known = {run.name: run.missing for run in status.runs(found)}
        assert known.get("peer") == (("linear_probe", "detection", "knn") if expected else None)


def test_the_table_shows_both_kinds_and_says_which_is_which(
    config: Callable[..., Config], make_metrics: Callable[..., metrics.Metrics], tmp_path: Path
) -> None:
    """The stage is told which are computed: with no metrics of them a number is missing, not cited."""
    found = config(peer=THEIRS)
    paths = []
    for evaluation, values in {"linear_probe": ("conv1", "conv3"), "clusters": ("nmi",), "detection": ("map",)}.items():
        numbers = {name: metrics.Value(value=40.0, unit="%") for name in values}
        path = tmp_path / f"{evaluation}.json"
        metrics.write(path, make_metrics("uic_3k", evaluation, numbers))
        paths.append(path)
        if evaluation == "linear_probe":
            told = make_metrics("uic_3k", evaluation, numbers).model_copy(update={"run": "peer"})
            metrics.write(tmp_path / "peer.json", told)
            paths.append(tmp_path / "peer.json")

    def made(*computed: str) -> tuple[str, str, list[dict[str, str]]]:
        out = tmp_path / "t.md", tmp_path / "t.csv"
        arguments = ["--table", 1, "--tables", found.tables_file, "--published", found.published_file]
        arguments += ["--scale", "paper", "--metrics", *paths]
        arguments += ["--out", out[0], "--csv", out[1], "--partial", "--computed", *computed]
        tables.main([str(argument) for argument in arguments])
        text = out[0].read_text()
        (line,) = re.findall(r"^\| .*Peer.*", text, flags=re.MULTILINE)
        with open(out[1], newline="", encoding="utf-8") as file:
            return " ".join(line.split()), text, list(csv.DictReader(file))

    line, text, _ = made()
    assert line == "| Peer [1] | - | 43.0 | 36.4 | - |"
    assert "Other rows are cited as the paper prints them." in text
    assert "Of the peer" not in text
    line, text, records = made(*("/".join(each) for each in cells.needed(found.tables_file, 1, found.computable)))
    assert line == "| **Peer [1]**ᵇ | **40.0** | **40.0** (43.0, −3.0 ✗) | 36.4 | – |"
    assert "Other numbers are cited as the paper prints them." in text
    assert "ᵇ Of the peer." in text
    assert "no metrics of run 'peer', evaluation 'detection'" in text
    assert [record["run"] for record in records if record["row"] == "Peer [1]"] == ["peer", "peer", "", "peer"]


def test_classes_and_samples_are_those_of_computed_rows(config: Callable[..., Config]) -> None:
    found = config(peer=THEIRS)
    assert cells.shown_runs(found.tables_file, "detection") == {"uic_3k": "Ours"}
    assert cells.shown_runs(found.tables_file, "detection", found.computable) == {"uic_3k": "Ours", "peer": "Peer [1]"}
    found.tables_file.write_text(TABLES.replace("run: uic_3k}", "run: uic_3k, absent: [mAP]}"))
    assert cells.by_class(found.tables_file) == []
    assert cells.by_class(found.tables_file, found.computable) == ["detection"]


def test_a_stage_reads_pairs(make_metrics: Callable[..., metrics.Metrics], tmp_path: Path) -> None:
    """The table of classes has a column for each row that is computed."""
    text = (CONFIG / "tables.yaml").read_text()
    old = "{name: ImageNet Labels, run: supervised}"
    assert old in text
    (tmp_path / "tables.yaml").write_text(text.replace(old, "{name: ImageNet Labels, run: supervised, optional: true}"))
    paths = []
    for run in ("supervised", "random_rgb", "random_sobel", "deepcluster", "uic_3k_fft"):
        paths.append(tmp_path / f"{run}.json")
        numbers = {name: metrics.Value(value=40.0, unit="%") for name in ("map", "ap/cat")}
        metrics.write(paths[-1], make_metrics(run, "detection", numbers))
    out = [tmp_path / f"t.{kind}" for kind in ("md", "csv", "html")]
    for computed, expected in ((["supervised/detection"], True), (["supervised/segmentation"], False)):
        arguments = ["--task", "detection", "--metrics", *paths, "--tables", tmp_path / "tables.yaml"]
        arguments += ["--scale", "paper"]
        arguments += ["--out", out[0], "--csv", out[1], "--html", out[2], "--computed", *computed]
        per_class.main([str(argument) for argument in arguments])
        assert ("ImageNet Labels" in out[0].read_text()) == expected
