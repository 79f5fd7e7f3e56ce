"""The table of speed is what the trainings recorded, and compares only what ran under the same conditions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from uic_core.report import speed
from uic_core.run import trained

# By hand: an epoch of 100 images takes UIC 10 s and 0.5 s, DeepCluster 10 s and 8 s.
UIC = {"images": 100, "inputs": 100, "training_seconds": 10.0, "label_seconds": 0.5}
DEEPCLUSTER = {"images": 100, "inputs": 200, "training_seconds": 10.0, "label_seconds": 8.0}
CPU: dict[str, Any] = {"hardware": "a CPU", "precision": "float32"}


def write(folder: Path, run: str, method: str, epochs: list[dict[str, Any]], size: int = 64, **facts: Any) -> Path:
    """The records of a run; times and what else is needed here."""
    place = folder / "runs" / run
    place.mkdir(parents=True)
    (place / "recipe.yaml").write_text(yaml.safe_dump({"method": method, "arch": "alexnet", "image_size": size}))
    (place / "history.jsonl").write_text(f"{run}\n")
    trained.write(place, ["history.jsonl"], recipe="r", epochs=epochs, **(CPU | facts))
    return place / "history.jsonl"


def make(folder: Path, *paths: Path, recipes: str = "") -> tuple[str, list[dict[str, str]]]:
    arguments: list[Any] = ["--history", *paths, "--scale", "paper", "--html", folder / "speed.html"]
    arguments += ["--out", folder / "speed.md", "--csv", folder / "speed.csv", "--recipes", *recipes.split()]
    speed.main([str(each) for each in arguments])
    with (folder / "speed.csv").open(newline="") as file:
        return (folder / "speed.md").read_text(), list(csv.DictReader(file))


def lines_of(text: str) -> dict[str, list[str]]:
    """Run → the cells of its line."""
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `"))
    return {first.strip("`"): rest for first, *rest in cells}


def test_a_line_is_what_the_run_recorded(tmp_path: Path) -> None:
    paths = [
        write(tmp_path, "uic", "uic", [UIC] * 4), write(tmp_path, "dc", "deepcluster", [DEEPCLUSTER] * 3, processes=2),
        write(tmp_path, "rotations", "rotnet", [UIC | {"inputs": 400}], hardware="a GPU", precision="bfloat16"),
        write(tmp_path, "untimed", "uic", []),
    ]  # fmt: skip
    text, records = make(tmp_path, *paths)
    assert lines_of(text) == {
        "uic": ["uic", "alexnet, 64", "4", "10.5", "1.00", "4.8", "10", "a CPU", "float32"],
        "dc": ["deepcluster", "alexnet, 64", "3", "18.0", "2.00", "44.4", "6", "2 × a CPU", "float32"],
        "rotations": ["rotnet", "alexnet, 64", "1", "10.5", "4.00", "4.8", "10", "a GPU", "bfloat16"],
    }
    assert "No times are recorded of `untimed`." in text
    assert [record["run"] for record in records] == ["uic", "dc", "rotations"]
    found = {key: float(records[1][key]) for key in ("images", "inputs", "training_seconds", "label_seconds")}
    assert found == {"images": 300, "inputs": 600, "training_seconds": 30, "label_seconds": 24}
    assert float(records[1]["label_share"]) == pytest.approx(24 / 54, abs=1e-4)
    assert "<code>dc</code>" in (tmp_path / "speed.html").read_text()


def test_the_claim_is_held_against_runs_under_the_same_conditions_alone(tmp_path: Path) -> None:
    others = [
        write(tmp_path, "elsewhere", "uic", [UIC], hardware="a GPU"), write(tmp_path, "larger", "uic", [UIC], size=224),
        write(tmp_path, "rounded", "uic", [UIC], precision="bfloat16"),
        write(tmp_path, "passes", "uic", [UIC | {"inputs": 200}]),  # Table 2's, with label passes
        write(tmp_path, "annotated", "supervised", [UIC]),
    ]  # fmt: skip
    dc = write(tmp_path, "dc", "deepcluster", [DEEPCLUSTER])
    text, _ = make(tmp_path, dc, *others)
    assert "“twice faster than DeepCluster”" in text
    assert "Here no run of DeepCluster and of UIC trained under the same conditions." in text
    slower = UIC | {"images": 300, "inputs": 300, "training_seconds": 39.0, "label_seconds": 1.5}
    alike = [write(tmp_path, "uic", "uic", [UIC]), write(tmp_path, "uic_5k", "uic", [slower])]
    text, _ = make(tmp_path, dc, *others, *alike)
    ratio = (18 / 100) / ((10.5 + 40.5) / 400)
    assert (
        f"`dc` {ratio:.2f} times as long as UIC (`uic`, `uic_5k`), in this regime: alexnet at 64 pixels, a CPU" in text
    )
    assert "work on labels is 44 % of its time" in text


def test_records_of_another_recipe_or_history_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "uic", "uic", [UIC])
    make(tmp_path, path, recipes="uic=r other=x")
    (tmp_path / "speed.md").unlink()
    with pytest.raises(SystemExit) as stop:
        make(tmp_path, path, recipes="uic=new")
    assert stop.value.code == 2
    assert "training.json: is of recipe r, but run 'uic' of the config has new" in capsys.readouterr().err
    path.write_text("other\n")
    with pytest.raises(SystemExit):
        make(tmp_path, path)
    assert f"{path}: is not the file that the run's training wrote" in capsys.readouterr().err
    path.unlink()
    with pytest.raises(SystemExit):
        make(tmp_path, path)
    assert f"{path}: is not there; run snakemake to make it" in capsys.readouterr().err
    assert not (tmp_path / "speed.md").exists()


def test_training_files_of_earlier_versions_have_no_times(tmp_path: Path) -> None:
    path = write(tmp_path, "old", "uic", [UIC])
    described = path.with_name("training.json")
    content = json.loads(described.read_text())
    for key in ("epochs", "recipe", "precision"):
        del content[key]
    described.write_text(json.dumps(content))
    text, records = make(tmp_path, path, recipes="old=new")
    assert "No times are recorded of `old`." in text
    assert records == []
