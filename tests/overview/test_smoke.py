"""`make smoke`: a small config whose data sets are links into real layouts, and what it finds before any job."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from uic_core.config import Config, validate
from uic_core.data.check import check
from uic_core.methods import METHODS
from uic_core.overview import smoke
from uic_core.report.check_cells import check_cells
from uic_core.strict_yaml import read_yaml

DEMO = Path(__file__).parents[2] / "config" / "demo.yaml"


@pytest.fixture
def real(demo_data: SimpleNamespace, tmp_path: Path) -> dict[str, Any]:
    """A config on data sets that were not generated for it; segmentation trains on SBD."""
    config: dict[str, Any] = read_yaml(DEMO) | {"results": str(tmp_path / "results")}
    config["datasets"] = demo_data.datasets.model_dump() | {"generated": False}
    sbd, own = tmp_path / "sbd", demo_data.voc_segmentation / "VOC2012"
    shutil.copytree(own / "JPEGImages", sbd / "img")
    shutil.copytree(own / "SegmentationClass", sbd / "cls")
    shutil.copy(own / "ImageSets/Segmentation/train.txt", sbd / "train.txt")
    config["datasets"]["voc_segmentation"]["sbd"] = str(sbd)
    for recipe in config["runs"].values():
        recipe |= {"classes": 4, "images": 0} if "images" in recipe else {"classes": 4}
    for name in ("linear_probe", "knn"):
        section = config["evaluations"][name]
        section |= {key: dict.fromkeys(section[key], 0) for key in ("images", "val_images")}
    config["evaluations"]["knn"]["neighbours"] = [10]
    return config


def made(config: dict[str, Any], tmp_path: Path) -> Config:
    """Run the program; return the config that it writes."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config))
    smoke.main(["--config", str(path)])
    written = tmp_path / "results" / "smoke" / "config.yaml"
    return validate(read_yaml(written), str(written))


def refused(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        made(config, tmp_path)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_data_set_is_whole_and_made_of_links(real, tmp_path):
    small = made(real, tmp_path)
    assert not small.datasets.generated
    for name in small.datasets.names:
        check(small.datasets.one(name))  # as the workflow's first jobs do
    image = next((Path(small.datasets.folders["imagenet"].root) / "train").glob("*/*"))
    assert image.is_symlink()
    assert Path(real["datasets"]["folders"]["imagenet"]["root"]) in image.resolve().parents
    assert small.datasets.voc07.trainval_images <= 10
    assert Path(small.datasets.voc_segmentation.sbd, "train.txt").read_text().count("\n") == 6
    lists = [path for path in (tmp_path / "results" / "smoke").rglob("*.txt") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in lists}
    assert len(before) == 4
    strange = Path(small.datasets.folders["imagenet"].root) / "train" / "of_an_earlier_call"
    strange.mkdir()
    assert made(real, tmp_path) == small
    assert {path: path.stat().st_mtime_ns for path in lists} == before  # else they would look changed to the jobs
    assert not strange.exists()


def test_all_runs_and_evaluations_stay_and_are_short(real, tmp_path):
    real["seeds"] = {"uic_3k": [1, 2]}
    small = made(real, tmp_path)
    assert set(small.runs) == set(real["runs"])
    assert small.seeds == {}
    assert {recipe.epochs for recipe in small.runs.values() if hasattr(recipe, "epochs")} == {2}
    assert small.evaluations.detection.iterations == 3
    assert small.evaluations.detection.train_scales == real["evaluations"]["detection"]["train_scales"]
    assert small.evaluations.proposals.source == ""
    assert small.results == str(tmp_path / "results" / "smoke")


def test_top_layers_that_tell_no_pseudo_classes_apart_keep_their_classes(real, monkeypatch):
    config = validate(real | {"runs": {"uic_3k": real["runs"]["uic_3k"] | {"classes": 7}}}, "mine.yaml")
    assert smoke.smaller(config, Path("results")).runs["uic_3k"].classes == 4
    monkeypatch.setitem(METHODS, "uic", replace(METHODS["uic"], pseudo_classes=False))
    assert smoke.smaller(config, Path("results")).runs["uic_3k"].classes == 7


def test_the_papers_config_gets_smaller_with_generated_data():
    config = read_yaml(DEMO.with_name("paper.yaml"))
    config["datasets"]["generated"], config["scale"] = True, "demo"
    small = smoke.smaller(validate(config, "paper.yaml"), Path("results/smoke"))
    again = validate(small.model_dump(), "smoke")
    assert again.runs["uic_vgg16_strong"].images == 16
    assert again.runs["uic_3k"].image_size == 224


@pytest.mark.parametrize("name", ["paper", "demo", "cifar10", "cifar10_224", "cifar10_search", "cifar10_small"])
def test_every_config_has_a_small_one_that_fills_its_tables(name: str) -> None:
    """Nearest neighbours are as many as the cells say; no label is learned from after the end."""
    value = read_yaml(DEMO.with_name(f"{name}.yaml"))
    if name == "paper":  # VOC's lists are not here
        value["datasets"]["generated"], value["scale"] = True, "demo"
    config = validate(value, f"{name}.yaml")
    small = smoke.smaller(config, Path("results/smoke"))
    again = validate(small.model_dump(), "smoke")
    check_cells(config.tables_file, again)
    assert again.evaluations.knn.neighbours == config.evaluations.knn.neighbours
    assert {run.images for run in again.runs.values() if hasattr(run, "images")} <= {0, 16, 48}
    with_later = config.model_copy(update={"runs": {k: later(run) for k, run in config.runs.items()}})
    validate(smoke.smaller(with_later, Path("results/smoke")).model_dump(), "smoke")


def later(run: Any) -> Any:
    return run.model_copy(update={"labels_from": 3}) if run.method == "uic" else run


def test_a_data_set_of_few_classes_and_images_has_a_small_one(real):
    """Of two classes, supervised trains on two; of fewer images than neighbours, all vote."""
    folder = real["datasets"]["folders"]["imagenet"] | {"classes": 2, "train_images": 30, "val_images": 10}
    real["datasets"]["folders"]["imagenet"] = folder
    for run in real["runs"].values():
        run["classes"] = 4 if run["method"] == "rotnet" else 2
    real["evaluations"]["knn"]["neighbours"] = [10, 28, 30]
    for name in ("linear_probe", "linear_probe_selflabel", "linear_probe_rotnet", "linear_probe_batch_norm"):
        if name in real["evaluations"]:
            real["evaluations"][name]["images"] = dict.fromkeys(real["evaluations"][name]["images"], 0)
            real["evaluations"][name]["val_images"] = dict.fromkeys(real["evaluations"][name]["val_images"], 0)
    small = smoke.smaller(validate(real, "mine.yaml"), Path("results/smoke"))
    again = validate(small.model_dump(), "smoke")
    assert again.evaluations.knn.neighbours == [10, 28, 30]
    assert again.datasets.folders["imagenet"].train_images == 30


def test_a_missing_folder_is_named_with_its_key(real, tmp_path, capsys):
    real["datasets"]["folders"]["imagenet"]["root"] = str(tmp_path / "nowhere")
    message = refused(real, tmp_path, capsys)
    assert "datasets.folders.imagenet: " in message
    assert f"'{tmp_path}/nowhere/train'; make check-data checks the whole data set" in message


def test_a_missing_annotation_is_named_with_its_key(real, tmp_path, capsys):
    real["datasets"]["voc07"]["root"] = str(tmp_path)
    assert "datasets.voc07.root: " in refused(real, tmp_path, capsys)


def test_a_disk_too_small_for_the_full_config_is_refused(real, tmp_path, capsys):
    real["datasets"]["cache"] |= {"format": "uint8", "side": 10_000_000, "root": str(tmp_path / "cache")}
    message = refused(real, tmp_path, capsys)
    assert f"datasets.cache.root: {tmp_path}/cache: all runs and evaluations write" in message
    assert "name a folder on a larger disk" in message
