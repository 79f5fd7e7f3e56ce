"""config/tables.yaml and config/published.csv agree with the paper and with each other; mistakes are named."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from uic_core import config
from uic_core.errors import InputError
from uic_core.report import cells
from uic_core.report.check_cells import check_cells
from uic_core.report.published import read_published
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[2]
TABLES, PUBLISHED = ROOT / "config" / "tables.yaml", ROOT / "config" / "published.csv"

SMALL = """
tables:
  1:
    title: A table
    tolerance: 1.0
    stub: Methods
    columns:
      - {name: Arch, text: true}
      - {name: conv3, evaluation: linear_probe, value: "{view}conv3"}
      - {name: NMI, evaluation: clusters, value: nmi}
    rows:
      - {name: Ours, texts: {Arch: AlexNet}, run: uic_3k, fill: {view: ""}, cells: {NMI: {run: uic_5k}}}
      - {name: "Cited [1]", texts: {Arch: AlexNet}}
    footnotes:
      - {row: Ours, column: NMI, text: A note.}
"""
SMALL_PUBLISHED = """table,row,column,value,source
1,Ours,conv3,41.2,paper
1,Ours,NMI,38.5,paper
1,Cited [1],conv3,43.0,[1] Someone 2020
"""


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    tables, published = tmp_path / "tables.yaml", tmp_path / "published.csv"
    tables.write_text(SMALL)
    published.write_text(SMALL_PUBLISHED)
    return tables, published


PRINTED = Path(__file__).with_name("paper_tables.tsv").read_text(encoding="utf-8")
"""The seven tables as the paper prints them: a heading, the header's lines, then a line a row, tabs between cells."""


@pytest.mark.parametrize("number", range(1, 8))
def test_rows_columns_and_numbers_are_the_papers(number: int) -> None:
    """Every cell of every row, in the paper's order: words, numbers, and '-' where it has none."""
    (printed,) = re.findall(rf"^Table {number}\n(.*?)(?=^Table|\Z)", PRINTED, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split("\t") for line in printed.splitlines()]
    first = next(place for place, line in enumerate(lines) if re.search(r"\d\d\.\d", "".join(line)))
    table = cells.table(TABLES, number)
    published = read_published(PUBLISHED, number, table)
    expected = [line for line in lines[first:] if len(line) > 1]
    rows = [row for row in table.rows if not row.extra]
    assert len(rows) == len(expected)
    for row, line in zip(rows, expected, strict=True):
        shown = [row.shown or row.name]
        for column in table.columns:
            cell = published.get((row.name, column.name))
            shown.append(row.texts[column.name] if column.text else cell.text if cell else "-")
        assert shown == (line[:-1] if number == 7 else line)  # whose header splits one column in two
    headings = [row.heading for row in rows if row.heading]
    assert headings == [line[0] for line in lines[first:] if len(line) == 1]


def test_the_papers_columns_are_named_as_it_names_them() -> None:
    for number in (1, 2, 3, 5, 6, 7):
        (printed,) = re.findall(rf"^Table {number}\n(.*?)(?=^Table|\Z)", PRINTED, flags=re.MULTILINE | re.DOTALL)
        header = " ".join(printed.splitlines()[:2]).split()
        table = cells.table(TABLES, number)
        for column in table.columns:
            assert all(word in header for word in (column.shown or column.name).split()), column.name


def test_every_published_number_is_of_a_table() -> None:
    with open(PUBLISHED, newline="") as file:
        records = list(csv.DictReader(file))
    assert Counter(int(record["table"]) for record in records) == {1: 15, 2: 6, 3: 68, 4: 44, 5: 16, 6: 17, 7: 17}


def test_rows_shared_by_tables_have_the_same_numbers() -> None:
    # Property of the paper (docs/protocol.md, Table 1): these rows are one and the same result.
    read = {n: read_published(PUBLISHED, n, table) for n, table in cells.read_tables(TABLES).items()}
    for column in ("conv3", "conv4", "conv5"):
        ours = {read[1]["UIC 3k (FFT)", column].text, read[2]["UIC 3k, ✓", column].text, read[3]["Ours", column].text}
        assert ours == {read[6]["UIC (Ours)", column].text}
        assert read[3]["DeepCluster [2]", column] == read[6]["DeepCluster [2]", column]


@pytest.mark.parametrize("number", range(1, 8))
def test_every_number_of_a_method_that_is_run_is_computed(number: int) -> None:
    table = cells.table(TABLES, number)
    published = read_published(PUBLISHED, number, table)
    for row in table.rows:
        if row.run and not row.extra:
            computed = {column for name, column in table.sources() if name == row.name}
            assert computed == {column for name, column in published if name == row.name}


@pytest.mark.parametrize("name", ["paper.yaml", "demo.yaml"])
def test_runs_are_in_the_config(name: str) -> None:
    runs = config.validate(read_yaml(ROOT / "config" / name), name).runs
    for number in cells.read_tables(TABLES):
        assert {run for run, _ in cells.needed(TABLES, number)} <= set(runs)


@pytest.mark.parametrize("name", ["paper.yaml", "demo.yaml"])
def test_every_cell_is_of_a_layer_that_is_evaluated(name: str) -> None:
    check_cells(TABLES, config.validate(read_yaml(ROOT / "config" / name), name))


MOCO = {
    "method": "external", "path": "their.pth", "format": "moco", "arch": "resnet50", "sobel": False,
    "image_size": 224, "resize": 256,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "evaluations.linear_probe.layers.resnet50_mlp",
            ["avgpool"],
            "tables.7: row 'UIC + strong aug (Ours), Res50 + MLP-head', column 'Top-1': takes 'mlp', which evaluations."
            "linear_probe.layers.resnet50_mlp of the config does not make (it makes, in %: avgpool, avgpool/top5, ",
        ),
        (
            "evaluations.fewshot.layers.alexnet",
            ["conv3", "conv4", "conv5"],
            "tables.5: row 'UIC 3k, 224×224', column 'conv5+MP': takes 'upsampled/conv5+MP', which "
            "evaluations.fewshot.layers.alexnet of the config does not make (it makes, in %: upsampled/conv3, ",
        ),
        (
            "evaluations.segmentation.pad",
            84,
            "tables.4: row 'ImageNet Labels', column 'Segmentation ALL': evaluations.segmentation.pad of the config: "
            "84 leaves pixels of run supervised without a score (alexnet at 224 pixels); raise it to 85 or more",
        ),
        ("runs.uic_5k", None, "tables.1: row 'UIC 5k', column 'conv3': takes cells from runs that the config lacks"),
        ("runs.uic_resnet50_strong", MOCO, "run uic_resnet50_strong was trained elsewhere and has no pseudo-labels"),
    ],
)
def test_a_cell_that_the_config_does_not_fill_is_named(path: str, value: Any, message: str) -> None:
    content = read_yaml(ROOT / "config" / "paper.yaml")
    *parents, last = path.split(".")
    node = content
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    with pytest.raises(InputError) as caught:
        check_cells(TABLES, config.validate(content, "mine.yaml"))
    assert str(caught.value).startswith(f"{TABLES}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("evaluation", ["detection", "segmentation"])
def test_what_an_architecture_cannot_do_is_named(small: tuple[Path, Path], evaluation: str) -> None:
    paper = config.validate(read_yaml(ROOT / "config" / "paper.yaml"), "mine.yaml")
    text = SMALL.replace("linear_probe", evaluation).replace("run: uic_3k", "run: uic_resnet50_strong")
    small[0].write_text(text)
    with pytest.raises(InputError) as caught:
        check_cells(small[0], paper)
    assert str(caught.value) == (
        f"{small[0]}: tables.1: row 'Ours', column 'conv3': {evaluation} takes alexnet, vgg16, "
        "alexnet_torchvision or alexnet_rotnet, and run uic_resnet50_strong is resnet50; name another run, "
        "or name the column under `absent` of its row"
    )


def test_tables_are_read_once_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLES.read_text())
    first = cells.read_tables(path)
    assert cells.read_tables(path) is first
    path.write_text(TABLES.read_text().replace("title: ", "title: Now, ", 1))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert cells.read_tables(path) != first


def test_needed() -> None:
    assert cells.needed(TABLES, 5) == [("uic_3k", "fewshot"), ("deepcluster", "fewshot")]
    assert cells.needed(TABLES, 2) == [("uic_3k_center_crop_fft", "linear_probe"), ("uic_3k_fft", "linear_probe")]
    assert ("uic_3k_fft", "clusters") not in cells.needed(TABLES, 1)  # the paper prints '-'
    assert cells.needed(TABLES, 6) == [
        ("deepcluster", "linear_probe"), ("uic_3k_fft", "linear_probe"), ("uic_3k", "clusters"),
        ("uic_3k_strong", "linear_probe"), ("uic_3k_strong", "clusters"),
    ]  # fmt: skip


def test_sources_take_fill_and_overrides() -> None:
    assert str(cells.table(TABLES, 5).sources()["DeepCluster, 84×84", "conv5+MP"]) == (
        "deepcluster/fewshot:native/conv5+MP"
    )
    assert str(cells.table(TABLES, 7).sources()["UIC + strong aug (Ours), VGG16", "Top-1"]) == (
        "uic_vgg16_strong/linear_probe:conv13"
    )
    assert str(cells.table(TABLES, 6).sources()["UIC (Ours)", "NMI t/labels"]) == "uic_3k/clusters:nmi"


def test_imports_nothing_heavy() -> None:
    heavy = {"torch", "faiss", "pandas", "matplotlib"}
    code = f"import sys, uic_core.report.check_cells; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_small_is_fine(small: tuple[Path, Path]) -> None:
    table = cells.table(small[0], 1)
    assert len(read_published(small[1], 1, table)) == 3
    assert cells.needed(small[0], 1) == [("uic_3k", "linear_probe"), ("uic_5k", "clusters")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: A table", "titel: A table", "tables.1.titel: unknown key; did you mean 'title'?"),
        ("  1:\n", "  0:\n", "tables.0: Input should be greater than or equal to 1"),
        ("name: conv3", "name: NMI", "columns: 'NMI' stands twice"),
        ('name: "Cited [1]"', "name: Ours", "rows: 'Ours' stands twice"),
        ("cells: {NMI:", "cells: {NMY:", "unknown column 'NMY'; did you mean 'NMI'?"),
        ("cells: {NMI:", "cells: {Arch:", "unknown column 'Arch'"),
        ("{row: Ours, ", "{row: Your, ", "footnotes: unknown row 'Your'; did you mean 'Ours'?"),
        ("column: NMI, text", "column: NMJ, text", "footnotes: unknown column 'NMJ'"),
        ("evaluation: clusters", "evaluation: cluster", "unknown evaluation 'cluster'; did you mean 'clusters'?"),
        ('fill: {view: ""}', "fill: {}", "fill.view is missing"),
        ("texts: {Arch: AlexNet}}", "texts: {}}", "texts.Arch is missing"),
        ("texts: {Arch: AlexNet}}", "texts: {Arch: AlexNet}, extra: true}", "belong to computed rows"),
        ("{name: Ours,", '{name: Ours, shown: "Ou\\nrs",', "tables.1.rows.0.shown: holds a line break, which no cell"),
        ("texts: {Arch: AlexNet}, run", 'texts: {Arch: "Alex\\nNet"}, run', "rows.0.texts.Arch: holds a line break"),
        ("stub: Methods", 'stub: "Methods\\n"', "tables.1.stub: holds a line break"),
        (", value: nmi", "", "either text: true, or evaluation and value"),
    ],
)
def test_mistakes_in_the_tables_are_named(small: tuple[Path, Path], old: str, new: str, message: str) -> None:
    assert old in SMALL
    small[0].write_text(SMALL.replace(old, new))
    with pytest.raises(InputError) as caught:
        cells.needed(small[0], 1)
    assert str(small[0]) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("table,row", "tabel,row", ":1: the first line must be 'table,row,column,value,source'"),
        ("1,Ours,conv3", "1,Our,conv3", ":2: unknown row 'Our'; did you mean 'Ours'?"),
        ("1,Ours,conv3", "1,Ours,Arch", ":2: unknown column 'Arch'"),
        ("41.2", "-", ":2: value '-' is no number"),
        ("41.2", "nan", ":2: value 'nan' is no number"),
        ("41.2", "4.²", ":2: value '4.²' is no number"),
        ("41.2,paper", "41.2,", ":2: source is empty"),
        ("41.2,paper", "41.2,paper,more", ":2: has 6 fields, not 5"),
        ("1,Ours,NMI", "1,Ours,conv3", ":3: table 1, 'Ours', 'conv3' stands twice"),
        ("1,Ours,NMI,38.5,paper\n", "", "row 'Ours': column 'NMI' is computed but has no number"),
        ("1,Cited [1],conv3,43.0,[1] Someone 2020\n", "", "row 'Cited [1]': has no number"),
    ],
)
def test_mistakes_in_the_numbers_are_named(small: tuple[Path, Path], old: str, new: str, message: str) -> None:
    assert old in SMALL_PUBLISHED
    small[1].write_text(SMALL_PUBLISHED.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_published(small[1], 1, cells.table(small[0], 1))
    assert str(small[1]) in str(caught.value)
    assert message in str(caught.value)


def test_a_number_that_nothing_computes_is_named(small: tuple[Path, Path]) -> None:
    small[0].write_text(SMALL.replace("cells: {NMI: {run: uic_5k}}", "absent: [NMI]"))
    with pytest.raises(InputError, match="column 'NMI' has a number that nothing computes"):
        read_published(small[1], 1, cells.table(small[0], 1))


def test_an_unknown_table_is_answered_with_the_known_ones(small: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="no table 9; known: 1"):
        cells.needed(small[0], 9)


def test_missing_files_are_named(tmp_path: Path, small: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml: cannot be read"):
        cells.needed(tmp_path / "absent.yaml", 1)
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        read_published(tmp_path / "absent.csv", 1, cells.table(small[0], 1))


def _checked(paper: config.Config, tables: Path, published: Path) -> str:
    """What the check of the paper's config with these two files says; '' if nothing is wrong."""
    found = paper.model_copy(update={"tables": str(tables), "published": str(published)})
    try:
        check_cells(found.tables_file, found)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            0,
            "    stub: Methods\n",
            "    stub: {Methods\n",
            ":7: is not valid YAML: expected ',' or '}', but got ':', while",
        ),
        (
            0,
            "title: A table",
            "title: A {table",
            ":4: tables.1.title: holds '{', which Snakemake's report would read as",
        ),
        (
            0,
            '"{view}conv3"',
            '"{view"',
            ": tables.1.rows: 'Ours': 'conv3' takes '{view': expected '}' before end of string",
        ),
        (
            0,
            '"{view}conv3"',
            '"{view!x}"',
            ": tables.1.rows: 'Ours': 'conv3' takes '{view!x}': Unknown conversion specifier",
        ),
        (0, "title: A table", "\ttitle: A table", ":4: is not valid YAML: found character '\\t' that cannot start any"),
        (0, "A note.", "A \xe9 note.", ":15: is not UTF-8 (byte 0xe9); save the file as UTF-8"),
        (1, "1,Ours,NMI", '1,"Ours,NMI', ":3: is not CSV (unexpected end of data); mend this line, or one after it"),
        (1, "1,Ours,NMI,38.5,paper\n", "1,Ours,NMI,38.5\n", ":3: has 4 fields, not 5; quote commas"),
        (1, "table,row,column,value,source\n", "", ":1: the first line must be 'table,row,column,value,source'"),
        (1, "table,row", "table;row", ":1: the first line must be 'table,row,column,value,source'"),
        (1, "1,Ours,NMI", "l,Ours,NMI", ":3: table 'l' is no number; write the table's"),
        (1, "41.2", "41,2", ":2: has 6 fields, not 5; quote commas"),
        (1, "41.2", "412", ":2: value 412 is no percentage; look at its decimal point"),
        (1, "41.2", "41.\xb2", ":2: is not UTF-8"),
        (1, "41.2", "1e1", ":2: value '1e1' is no number"),
        (1, "Someone", "Som\xe9one", ":4: is not UTF-8 (byte 0xe9); save the file as UTF-8"),
        (1, SMALL_PUBLISHED, "", ":1: the first line must be 'table,row,column,value,source'"),
        (
            1,
            "1,Ours,NMI,38.5,paper\n",
            "",
            ": table 1, row 'Ours': column 'NMI' is computed but has no number; mend `abs",
        ),
    ],
)
def test_fault_51_damaged_tables_and_numbers_are_found_with_the_config(
    paper: config.Config, small: tuple[Path, Path], seen: Any, file: int, old: str, new: str, message: str
) -> None:
    """In one line that names the real path once; the undamaged files pass."""
    assert _checked(paper, *small) == ""
    content = small[file].read_text()
    assert old in content
    small[file].write_bytes(content.replace(old, new).encode("latin-1"))
    told = _checked(paper, *small)
    seen(told)
    assert told.startswith(f"{small[file]}{message}")
    assert told.count(str(small[file])) == 1
    assert "\n" not in told


@pytest.mark.parametrize(
    ("run", "evaluation", "value", "made"),
    [
        ("uic_3k", "detection", "mAP", "map, ap/aeroplane, "),
        ("uic_3k", "detection", "ap/aeroplain", "map, ap/aeroplane, "),
        ("uic_3k", "segmentation", "map", "miou, iou/background, iou/aeroplane, "),
        ("uic_3k", "voc_classification_all", "ap/background", "map, ap/aeroplane, "),
        ("uic_3k", "voc_classification_fc6_8", "mean", "map, ap/aeroplane, "),
        ("uic_3k", "clusters", "NMI", "nmi, entropy_of_sizes)"),
        ("uic_3k", "clusters", "largest", "nmi, entropy_of_sizes)"),  # a number of images
        ("uic_3k", "linear_probe", "conv3/best_epoch", "conv1, "),  # the number of an epoch
        ("uic_3k", "fewshot", "native/conv1", "upsampled/conv3, "),
        ("uic_3k", "knn", "conv5", ""),
    ],
)
def test_fault_51_a_value_that_no_evaluation_makes_is_found_with_the_config(
    paper: config.Config, small: tuple[Path, Path], seen: Any, run: str, evaluation: str, value: str, made: str
) -> None:
    """Or makes in another unit than %. What the message names, leads on."""
    right = SMALL.replace('linear_probe, value: "{view}conv3"', f"{evaluation}, value: {value}")
    right = right.replace("run: uic_3k, fill", f"run: {run}, fill").replace(', fill: {view: ""}', "")
    small[0].write_text(right)
    told = _checked(paper, *small)
    seen(told)
    assert told.startswith(f"{small[0]}: tables.1: row 'Ours', column 'conv3': takes '{value}', which evaluations.")
    assert f"evaluations.{evaluation}" in told
    assert f"does not make (it makes, in %: {made}" in told
    assert told.endswith("correct the cell")
    for named in re.findall(r"in %: (.*)\); ", told)[0].split(", "):
        small[0].write_text(right.replace(f"value: {value}}}", f"value: {named}}}"))
        assert _checked(paper, *small) == ""


@pytest.mark.parametrize(
    ("key", "says", "message"),
    [
        ("batch_norm", '"true": With it., "false": Without.', None),
        ("batchnorm", '"false": Without.', "tables.1.switches: unknown key 'batchnorm'; did you mean 'batch_norm'?"),
        (
            "batch_norm",
            '"true": With it.',
            "tables.1.switches: batch_norm of evaluations.linear_probe is false in the config, which `says` does not "
            "explain (known: true); add a line there, '' if there is nothing to say",
        ),
        ("precision", "fp32: Whole.", None),  # left out in the config
        ("precision", "bf16: Half.", "tables.1.switches: precision of evaluations.linear_probe is fp32 in the config"),
        ("crop", "random_crop: Cropped.", None),  # of the run's architecture
        ("crop", "resized_crop: Cropped.", "crop of evaluations.linear_probe is random_crop in the config"),
        ("images", '"1": One.', None),  # 0 in the config, all; metrics say how many
    ],
)
def test_fault_51_a_switch_that_does_not_explain_the_setting_is_found_with_the_config(
    paper: config.Config, small: tuple[Path, Path], seen: Any, key: str, says: str, message: str | None
) -> None:
    switch = f"{{evaluation: linear_probe, key: {key}, says: {{{says}}}}}"
    small[0].write_text(f"{SMALL}    switches:\n      - {switch}\n")
    told = _checked(paper, *small)
    seen(told or "is explained")
    assert message in told if message else told == ""


def test_fault_51_a_file_that_is_not_there_is_named_as_the_config_finds_it(paper: config.Config, seen: Any) -> None:
    """A relative path starts at the clone."""
    told = _checked(paper, Path("config/tables.yaml"), Path("config/none.csv"))
    seen(told)
    assert told == f"{ROOT}/config/none.csv: cannot be read (No such file or directory); check the path"
    assert _checked(paper, TABLES, PUBLISHED) == ""


def test_fault_56_tables_and_numbers_saved_by_a_spreadsheet_are_read(
    paper: config.Config, small: tuple[Path, Path], seen: Any
) -> None:
    """Byte-order mark, CR LF, quotes around every field, lines of commas alone at the end."""
    before = read_published(small[1], 1, cells.table(small[0], 1))
    quoted = "\r\n".join(",".join(f'"{field}"' for field in line.split(",")) for line in SMALL_PUBLISHED.splitlines())
    small[1].write_bytes(b"\xef\xbb\xbf" + f"{quoted}\r\n,,,,\r\n,,,,\r\n".encode())
    small[0].write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert read_published(small[1], 1, cells.table(small[0], 1)) == before
    assert _checked(paper, *small) == ""
    seen(f"{len(before)} numbers are read")


def test_fault_60_the_remedies_of_a_cell_that_cannot_be_lead_on(
    paper: config.Config, small: tuple[Path, Path], seen: Any
) -> None:
    """Another run, or the column under `absent`."""
    wrong = SMALL.replace("linear_probe", "detection").replace("run: uic_3k", "run: uic_resnet50_strong")
    wrong = wrong.replace('value: "{view}conv3"', "value: map").replace(', fill: {view: ""}', "")
    small[0].write_text(wrong)
    told = _checked(paper, *small)
    seen(told)
    assert told.endswith("is resnet50; name another run, or name the column under `absent` of its row")
    small[0].write_text(wrong.replace("uic_resnet50_strong", "uic_3k"))
    assert _checked(paper, *small) == ""
    small[0].write_text(wrong.replace("run: uic_resnet50_strong", "run: uic_resnet50_strong, absent: [conv3]"))
    small[1].write_text(SMALL_PUBLISHED.replace("1,Ours,conv3,41.2,paper\n", ""))
    assert _checked(paper, *small) == ""


def test_what_is_made_of_every_run_is_made_of_those_in_no_table_too() -> None:
    """Also of one trained elsewhere, and once of a run with several seeds; of none if the config lacks its section."""
    content = read_yaml(ROOT / "config" / "paper.yaml")
    content["runs"]["theirs"] = MOCO
    content["seeds"] = {"uic_5k": [1]}
    made = cells.of_every_run(config.validate(content, "mine.yaml"))
    assert made == [(run, "knn") for run in content["runs"]]
    del content["evaluations"]["knn"]
    assert cells.of_every_run(config.validate(content, "mine.yaml")) == []


def test_a_cell_of_a_section_that_the_config_lacks_is_refused(tmp_path: Path) -> None:
    content = read_yaml(ROOT / "config" / "paper.yaml")
    del content["evaluations"]["knn"]
    tables = read_yaml(TABLES)
    row = next(row for row in tables["tables"][3]["rows"] if row.get("run"))
    row["cells"] = {"conv5": {"evaluation": "knn", "value": "conv5/k20/t0.07"}}
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(tables))
    with pytest.raises(
        InputError, match=r"tables\.3: row '.*', column 'conv5': the config has no evaluations\.knn; add"
    ):
        check_cells(path, config.validate(content, "mine.yaml"))
