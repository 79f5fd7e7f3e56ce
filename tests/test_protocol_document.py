"""docs/protocol.md against what it speaks of: the config's keys and values, the code's files, tables and figures.

A key that changes a number has a row with its value in config/paper.yaml, its mark and its file; a departure has a
reason and an effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from tests.evaluate.test_peer_probe import ROTNET, SELFLABEL
from uic_core.config import Config
from uic_core.methods import METHODS
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "protocol.md").read_text()
CONFIG = read_yaml(ROOT / "config" / "paper.yaml")
CONFIG["runs"] |= read_yaml(ROOT / "config" / "peers.yaml")["runs"]
PEERS = {"linear_probe_batch_norm", "linear_probe_selflabel", "linear_probe_rotnet"}
"""Sections of `evaluations` that the paper's config leaves out."""
MARK = re.compile(r"\[(paper|code|choice)\b")

# Where things lie, how much must be there, what a demo draws, what a table is called; `seeds` repeats whole runs.
NO_NUMBER = {
    "scale", "results", "tables", "published", "seeds", "templates", "datasets.generated", "datasets.seed",
    "datasets.check_files", "datasets.cache.root", "datasets.folders", "datasets.voc07.root",
    "datasets.voc07.trainval_images",
    "datasets.voc07.test_images", "datasets.voc_segmentation.root", "datasets.voc_segmentation.train_images",
    "datasets.voc_segmentation.val_images", "datasets.miniimagenet.root", "datasets.miniimagenet.train_classes",
    "datasets.miniimagenet.val_classes", "datasets.miniimagenet.test_classes",
    "datasets.miniimagenet.images_per_class",
}  # fmt: skip

SECTIONS = {
    "Networks": "##", "Images, decoding, precision": "##", "Pretraining": "##", "Linear probes": "##",
    "Table 1": "##", "Table 2": "##", "Table 3": "##", "Table 4": "##", "Classification FC6-8": "###",
    "Classification ALL": "###", "Detection": "###", "Segmentation": "###", "Table 5": "##", "Table 6": "##",
    "Table 7": "##", "Fig. 3": "##", "Fig. 4": "##", "Nearest neighbours": "##", "Further linear probes": "##",
    "Training curves": "##",
    "Speed": "##",
}  # fmt: skip


def leaves(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted paths of a model's keys. Runs are recipes of all methods; a dictionary of anything else is one key."""
    for name, field in model.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) or [field.annotation] if kind is not type(None)]
        if (above, name) == ("", "runs"):
            yield from (f"runs.*.{key}" for method in METHODS.values() for key in method.recipe.model_fields)
        elif len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):  # it may be optional
            yield from leaves(kinds[0], f"{above}{name}.")
        else:
            assert not any(isinstance(part, type) and issubclass(part, BaseModel) for part in get_args(field)), name
            yield f"{above}{name}"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """(header, cells) of every row of every table."""
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        header, rule, *below = table.splitlines()
        assert set(rule) <= set("|-"), rule
        for line in below:
            assert len(cells(line)) == len(cells(header)), line
            yield cells(header), cells(line)


def key_rows() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, value as written, where its rule comes from, file) of every value in a table of keys."""
    for header, row in rows(TEXT):
        named = re.fullmatch(r"key of `(.+)`", header[0])
        if named is None:
            continue
        key = row[0].strip("`")
        for column, value in zip(header[1:-2], row[1:-2], strict=True):
            middle = "" if column == "value" else f".{column.strip('`')}"
            yield f"{named[1]}{middle}.{key}", value, row[-2], row[-1]


def sections() -> dict[str, str]:
    """The text below every heading up to the next one, of any level."""
    parts = re.split(r"^(#+) (.+)\n", TEXT, flags=re.MULTILINE)[1:]
    found = {}
    for level, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        assert name not in found, f"two sections {name}"
        if SECTIONS.get(name, level) == level:
            found[name] = body
    return found


def departures() -> list[list[str]]:
    return [row for header, row in rows(TEXT) if header[0] == "departure"]


def test_every_table_and_figure_has_its_section_in_the_papers_order():
    names = [name for name in sections() if name in SECTIONS]
    assert names == list(SECTIONS)
    for name in names:
        own = sections()[name]
        told = "| departure | reason | effect |" in own or "No departures of its own" in own
        assert told or name == "Table 4", f"{name} says nothing of departures"


def test_every_key_that_changes_a_number_has_its_row():
    known = set(leaves(Config))
    named = [(re.sub(r"^runs\.\w+\.", "runs.*.", key), value) for key, value, *_ in key_rows()]
    told = {key for key, value in named if key in known or value != "–"}  # – also where a section lacks the key
    assert known >= NO_NUMBER
    assert not known - NO_NUMBER - told, "keys without a row"
    assert not told - known, "rows of keys that are not there"
    assert not told & NO_NUMBER


def test_a_row_has_the_configs_value_a_mark_and_a_file():
    wrong = []
    for key, value, source, file in key_rows():
        found: Any = CONFIG
        if not PEERS & set(key.split(".")):
            for part in key.split("."):
                found = found.get(part, "–")
        elif (peers := ROOT / "config" / "peers.yaml").exists():
            found = read_yaml(peers)["evaluations"][key.split(".")[1]].get(key.split(".")[2], "–")
        else:
            found = yaml.safe_load(value)
        if (value if value == "–" else yaml.safe_load(value)) != found:
            wrong.append(f"{key}: {value} in the document, {found} in the config")
        if not MARK.search(source):
            wrong.append(f"{key}: no mark in {source!r}")
        if not re.fullmatch(r"`uic_core/[\w/]+\.py`", file):
            wrong.append(f"{key}: {file} is no file")
    assert not wrong


@pytest.mark.parametrize(("name", "section"), [("selflabel", SELFLABEL), ("rotnet", ROTNET)])
def test_the_peers_probes_have_their_codes_numbers(name: str, section: dict[str, Any]) -> None:
    """Those of tests/evaluate/test_peer_probe.py, whose network is another one."""
    start = f"evaluations.linear_probe_{name}."
    told = {
        key.removeprefix(start): yaml.safe_load(value)
        for key, value, *_ in key_rows()
        if key.startswith(start) and value != "–"
    }
    assert told.keys() == section.keys()
    for key, value in section.items():
        assert (list(told[key].values()) if isinstance(value, dict) else told[key]) == (
            list(value.values()) if isinstance(value, dict) else value
        ), key


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r"`((?:uic_core|tests|config|bench)/[\w/.]+)`", TEXT))
    named |= set(re.findall(r"\]\(\.\./([\w/.]+)", TEXT))
    assert len(named) > 20
    assert not {name for name in named if not (ROOT / name).is_file()}


def test_every_run_is_named():
    assert not {name for name in CONFIG["runs"] if f"`{name}`" not in TEXT}


def test_every_departure_has_a_reason_and_an_effect_with_its_size():
    assert len(departures()) > 20
    for departure, reason, effect in departures():
        assert departure
        assert reason, departure
        assert effect, departure
        sized = re.search(r"\d|not measured|\bnone\b|see there", effect, re.IGNORECASE)
        assert sized, f"{departure}: neither a size nor that it is not measured: {effect}"


@pytest.mark.parametrize(
    "words",
    [
        "published sampler", "whitening leaves out", "shuffles once", "last batch of a pass has 3",
        "In Zhang's net every bias", "kernel 12", "coin", "1/2, 1/4 or 1/8", "EXIF", "Caffe network",
        r"\.001 at the test", "aspect",
    ],
)  # fmt: skip
def test_a_known_departure_is_told(words: str) -> None:
    assert [row for row in departures() if re.search(words, row[0])], words


def marks(text: str) -> set[str]:
    return set(MARK.findall(text))


def test_the_configs_readme_has_the_same_marks_for_runs():
    text = (ROOT / "config" / "README.md").read_text()
    told = {  # a key of the paper's runs, which come first, has their marks
        key.rpartition(".")[2]: marks(source)
        for key, _, source, _ in reversed([*key_rows()])
        if key.startswith("runs.")
    }
    compared, methods = set(), set()
    for header, row in rows(text.partition("## runs")[2].partition("### ")[0]):
        if header[0] == "`method`":
            methods |= marks(row[1])
            continue
        assert header == ["key", "meaning", "paper"]
        given = marks(" ".join(row[1:]))
        keys = re.findall(r"`(\w+)`", row[0])
        if given:
            assert given == set().union(*(told[key] for key in keys)), keys
            compared |= set(keys)
    assert len(compared) > 10
    assert methods == told["method"]


@pytest.mark.parametrize(
    "name", ["linear_probe", "clusters", "proposals", "detection", "segmentation", "fewshot", "knn"]
)
def test_the_configs_readme_has_the_same_marks_for_an_evaluation(name: str) -> None:
    text = (ROOT / "config" / "README.md").read_text()
    paragraph = next(part for part in text.split("\n\n") if part.startswith(f"**{name}**"))
    own = f"evaluations.{name}."
    told = [marks(source) for key, _, source, _ in key_rows() if key.startswith(own) and not key.endswith(".seed")]
    assert marks(paragraph) == set().union(*told)


@pytest.mark.parametrize("number", [3, 4])
def test_a_footnote_says_that_the_supervised_row_is_of_another_network(number: int) -> None:
    table = read_yaml(ROOT / "config" / "tables.yaml")["tables"][number]
    (row,) = (row["name"] for row in table["rows"] if row.get("run") == "supervised")
    notes = [note["text"] for note in table["footnotes"] if note.get("row") == row]
    assert any("Caffe" in note and "nothing about UIC" in note for note in notes)
