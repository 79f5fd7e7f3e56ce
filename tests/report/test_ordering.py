"""A demo's Table 4 says of each column whether supervised stands above random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uic_core.errors import InputError
from uic_core.report import cells, ordering, tables

CONFIG = Path(__file__).parents[2] / "config"
Matrix = dict[tuple[str, str], Path]

COLUMNS = {
    "Classification FC6-8": ("voc_classification_fc6_8", "map"),
    "Classification ALL": ("voc_classification_all", "map"),
    "Detection ALL": ("detection", "map"),
    "Segmentation ALL": ("segmentation", "miou"),
}


def table_4(matrix: Matrix, folder: Path, scale: str) -> str:
    arguments = ["--table", 4, "--tables", CONFIG / "tables.yaml", "--published", CONFIG / "published.csv"]
    arguments += ["--scale", scale, "--metrics", *(matrix[key] for key in cells.needed(CONFIG / "tables.yaml", 4))]
    tables.main([str(each) for each in [*arguments, "--out", folder / "t.md", "--csv", folder / "t.csv"]])
    return (folder / "t.md").read_text(encoding="utf-8")


def set_values(matrix: Matrix, column: str, **numbers: float) -> None:
    evaluation, key = COLUMNS[column]
    for run, number in numbers.items():
        path = matrix[run, evaluation]
        content = json.loads(path.read_text())
        content["values"][key]["value"] = number
        path.write_text(json.dumps(content))


def test_the_note_is_made_from_the_metrics(matrix: Matrix, tmp_path: Path) -> None:
    for column in COLUMNS:
        set_values(matrix, column, supervised=60.0, random_rgb=30.0, random_sobel=40.0)
    every = "- The ordering ImageNet Labels > Random-RGB and Random-Sobel shows in " + ", ".join(COLUMNS) + "."
    assert every in table_4(matrix, tmp_path, "demo").splitlines()
    set_values(matrix, "Detection ALL", supervised=1.26, random_rgb=0.5, random_sobel=1.31)
    told = (
        "shows in Classification FC6-8, Classification ALL, Segmentation ALL; it does **not** show in Detection ALL "
        "(1.3 beside 0.5 and 1.3)."
    )
    assert told in table_4(matrix, tmp_path, "demo")
    for column in COLUMNS:
        set_values(matrix, column, supervised=10.0)
    set_values(matrix, "Detection ALL", random_rgb=11.0)
    told = "Random-Sobel does **not** show in Classification FC6-8 (10.0 beside 30.0 and 40.0), "
    assert told in table_4(matrix, tmp_path, "demo")


def test_the_papers_scale_is_held_against_the_paper_instead(matrix: Matrix, tmp_path: Path) -> None:
    assert "The ordering" not in table_4(matrix, tmp_path, "paper")


def test_columns_without_one_of_the_rows_and_tables_without_an_expectation_say_nothing() -> None:
    declared = cells.read_tables(CONFIG / "tables.yaml")
    assert (
        ordering.note(declared[4], {("ImageNet Labels", "Detection ALL"): 3.0, ("Random-RGB", "Detection ALL"): 1.0})
        == ""
    )
    assert ordering.note(declared[1], {}) == ""


def test_an_unknown_row_is_named(tmp_path: Path) -> None:
    text = (CONFIG / "tables.yaml").read_text(encoding="utf-8")
    (tmp_path / "tables.yaml").write_text(text.replace("below: [Random-RGB,", "below: [Random-RBG,"), encoding="utf-8")
    with pytest.raises(InputError, match=r"tables\.4\.ordering: unknown row 'Random-RBG'; did you mean 'Random-RGB'"):
        cells.read_tables(tmp_path / "tables.yaml")
