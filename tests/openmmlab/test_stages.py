"""Detection and segmentation trained for a few steps on generated scenes, from the command line's entry points."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from PIL import Image

from tests import recipes
from tests.checked import OTHER, noted
from uic_core import checkpoint, evaluations, models, recipe, samples
from uic_core.data import check, voc
from uic_core.data.boxes import from_edges
from uic_core.files import stamp
from uic_core.openmmlab import detection, fcn, proposals, regression, segmentation
from uic_core.run import metrics

pytestmark = pytest.mark.slow

PROPOSALS = evaluations.Proposals(source="", mode="fast", shorter_side=48, max_boxes=40, min_side=8, seed=0)
DETECTION: dict[str, Any] = {
    "train_scales": [64, 80], "train_max": 120, "test_scale": 64, "test_max": 100, "iterations": 4, "lr": 0.005,
    "lr_steps": [3], "momentum": 0.9, "weight_decay": 5e-4, "images_per_batch": 2, "rois_per_batch": 16,
    "foreground": 0.25, "nms": 0.3, "rescale": False, "seed": 0,
}  # fmt: skip
SEGMENTATION: dict[str, Any] = {
    "pad": 16, "iterations": 4, "batch_size": 1, "accumulate": 2, "lr": 0.001, "lr_steps": [3], "momentum": 0.9,
    "weight_decay": 5e-4, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = recipes.recipe(method="random", resize=64)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "checkpoint.safetensors"
    checkpoint.save(path, models.build("alexnet", classes=5, image_size=64, sobel=True), made, {})
    return path


@pytest.fixture(scope="module")
def boxes(demo_data: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("proposals")
    paths = {split: folder / f"{split}.npz" for split in ("trainval", "test")}
    for split, path in paths.items():
        proposals.make(demo_data.voc07, split, PROPOSALS, processes=1).save(path)
    return paths


def detect(
    root: Path, folder: Path, weights: Path, boxes: dict[str, Path], name: str = "run", **changed: Any
) -> metrics.Metrics:
    recipe.save(evaluations.Detection(**(DETECTION | changed)), folder / f"{name}.yaml")
    detection.main([
        *("--checkpoint", str(weights), "--protocol", str(folder / f"{name}.yaml"), "--voc", str(root)),
        *("--train-proposals", str(boxes["trainval"]), "--test-proposals", str(boxes["test"])),
        *("--out", str(folder / f"{name}.json"), "--run", "run", "--work-dir", str(folder / name)),
        *("--samples", str(folder / f"{name}.npz")),
        *("--checked", str(noted(folder, voc.fingerprint(root, ["trainval", "test"])))),
    ])  # fmt: skip
    return metrics.read(folder / f"{name}.json")


def segment(
    data: SimpleNamespace, root: Path, folder: Path, weights: Path, name: str = "run", **changed: Any
) -> metrics.Metrics:
    recipe.save(evaluations.Segmentation(**(SEGMENTATION | changed)), folder / f"{name}.yaml")
    dataset = data.datasets.one("voc_segmentation")
    dataset = dataset.model_copy(update={"section": dataset.section.model_copy(update={"root": str(root)})})
    recipe.save(dataset, folder / "voc_segmentation.yaml")
    segmentation.main([
        *("--checkpoint", str(weights), "--protocol", str(folder / f"{name}.yaml"), "--run", "run"),
        *("--dataset", str(folder / "voc_segmentation.yaml"), "--out", str(folder / f"{name}.json")),
        *("--work-dir", str(folder / name), "--samples", str(folder / f"{name}.npz")),
        *("--checked", str(noted(folder, voc.segmentation_fingerprint(segmentation.lists_of(dataset.section))))),
    ])  # fmt: skip
    return metrics.read(folder / f"{name}.json")


def losses(work_dir: Path) -> list[float]:
    (file,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_detection_trains_tests_and_repeats_itself(
    demo_data: SimpleNamespace, tmp_path: Path, weights: Path, boxes: dict[str, Path]
) -> None:
    first = detect(demo_data.voc07, tmp_path, weights, boxes, "first")
    again = detect(demo_data.voc07, tmp_path, weights, boxes, "again")
    found = proposals.open_for(demo_data.voc07, "test", boxes["test"])
    found.boxes[: found.offsets[1]] = 0, 0, 3, 3  # no object of the first image
    found.save(tmp_path / "few.npz")
    few = boxes | {"test": tmp_path / "few.npz"}
    other = detect(demo_data.voc07, tmp_path, weights, few, "other", rescale=True, seed=1)
    assert first.values == again.values
    assert losses(tmp_path / "first") == losses(tmp_path / "again") != losses(tmp_path / "other")
    assert len(losses(tmp_path / "first")) == DETECTION["iterations"]
    assert not list((tmp_path / "first").glob("state*")), "a finished run leaves no state to go on from"
    present = {
        voc.CLASSES[label]
        for image in voc.read_list(demo_data.voc07, "test")
        for annotation in [voc.read_annotation(voc.annotation_path(demo_data.voc07, image))]
        for label in annotation.labels[~annotation.difficult]
    }
    assert set(first.values) == {"map", "proposal_recall"} | {f"ap/{name}" for name in present}
    assert first.values["map"].value == pytest.approx(
        np.mean([value.value for name, value in first.values.items() if name.startswith("ap/")]), abs=1e-4
    )
    covered, objects = proposals.recall_on(demo_data.voc07, found)
    recall = other.values["proposal_recall"]
    assert (recall.value, recall.unit, recall.n) == (pytest.approx(100 * covered), "%", objects)
    assert 50 < recall.value < first.values["proposal_recall"].value <= 100
    assert first.protocol["proposals"] == PROPOSALS.model_dump()
    assert first.dataset.sizes == {"trainval": 10, "test": 8}
    assert first.protocol["roi_size"] == 1
    assert other.protocol["rescale"] is True
    # A user of mmdet goes on from the folder: its config and its weights give the same numbers.
    cfg = Config.fromfile(tmp_path / "first" / "config.py")
    cfg.load_from = str(tmp_path / "first" / f"iter_{DETECTION['iterations']}.pth")
    cfg.work_dir = str(tmp_path / "tested")
    tested = Runner.from_cfg(cfg).test()
    assert tested == {name: first.values[name].value for name in tested}
    assert "map" in tested
    (log,) = (tmp_path / "first").glob("*/*.log")
    assert re.search(r"waiting for data: \d+\.\d % of the training's time", log.read_text())
    kept = samples.load(tmp_path / "first.npz", samples.Detected)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert kept.ids == samples.choose(voc.read_list(demo_data.voc07, "test"))
    assert (kept.run, kept.fingerprint, kept.classes) == ("run", OTHER, voc.CLASSES)
    assert first.dataset.fingerprint == OTHER
    assert first.provenance.stamps == {f"proposals_{split}": stamp(path) for split, path in boxes.items()}
    for image, found in zip(kept.ids, kept.images, strict=True):
        annotation = voc.read_annotation(voc.annotation_path(demo_data.voc07, image))
        assert found.path == str(voc.image_path(demo_data.voc07, image))
        np.testing.assert_array_equal(found.truth_boxes, annotation.boxes)
        np.testing.assert_array_equal(found.truth_labels, annotation.labels)
        assert len(found.boxes) > 0
        assert found.boxes.min() >= 0
        assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
        assert (found.boxes[:, 2:].max(axis=0) <= [annotation.width - 1, annotation.height - 1]).all()
        assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("test_scale", [60, 120, 240])
def test_boxes_of_the_test_stay_in_the_original_pixels(
    demo_data: SimpleNamespace, tmp_path: Path, weights: Path, boxes: dict[str, Path], test_scale: int
) -> None:
    protocol = evaluations.Detection(**(DETECTION | {"test_scale": test_scale, "test_max": 400}))
    network, _ = checkpoint.load(weights)
    targets = regression.Statistics(np.zeros((20, 4)), np.ones((20, 4)))
    content = detection.build_config(network, weights, protocol, demo_data.voc07, boxes, targets, tmp_path)
    register_all_modules(init_default_scope=True)
    import_modules_from_strings(**content["custom_imports"])
    data = DATASETS.build(content["test_dataloader"]["dataset"])
    annotation = voc.read_annotation(voc.annotation_path(demo_data.voc07, voc.read_list(demo_data.voc07, "test")[0]))
    sample = data[0]["data_samples"]
    assert sample.img_shape[0] == test_scale
    objects, ignored = (each.bboxes.numpy() for each in (sample.gt_instances, sample.ignored_instances))
    np.testing.assert_array_equal(from_edges(objects), annotation.boxes[~annotation.difficult])
    np.testing.assert_array_equal(from_edges(ignored), annotation.boxes[annotation.difficult])
    first = proposals.load(
        boxes["test"],
        voc.fingerprint(demo_data.voc07, ["test"]),
        dict.fromkeys(voc.read_list(demo_data.voc07, "test"), (annotation.width, annotation.height)),
    ).of(0)
    np.testing.assert_array_equal(from_edges(sample.proposals.bboxes.numpy()), first)


def test_segmentation_trains_tests_and_repeats_itself(
    demo_data: SimpleNamespace, tmp_path: Path, weights: Path
) -> None:
    first = segment(demo_data, demo_data.voc_segmentation, tmp_path, weights, "first")
    again = segment(demo_data, demo_data.voc_segmentation, tmp_path, weights, "again")
    assert first.values == again.values
    assert losses(tmp_path / "first") == losses(tmp_path / "again")
    assert losses(tmp_path / "first")[0] == pytest.approx(np.log(21), abs=1e-3), "scores start at zero"
    assert first.dataset.fingerprint == OTHER
    assert first.values["miou"].value == pytest.approx(
        np.mean([value.value for name, value in first.values.items() if name != "miou"])
    )
    assert first.dataset.sizes == {"train": 6, "val": 4}
    assert (first.protocol["crop"], first.protocol["fc6_kernel"]) == (14, 1)
    kept = samples.load(tmp_path / "first.npz", samples.Segmented)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    _, val = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    assert kept.ids == val.ids()
    assert kept.classes == voc.CLASSES_SEGMENTATION
    counts = sum(fcn.confusion(image.mask, image.truth, 21) for image in kept.images)
    assert 100 * np.nanmean(fcn.intersection_over_union(counts)) == pytest.approx(first.values["miou"].value)
    np.testing.assert_array_equal(kept.images[0].truth, voc.read_mask(val.mask(kept.ids[0])))


def test_fault_32_a_changed_file_of_voc_ends_every_stage_before_it_works(
    demo_data: SimpleNamespace,
    tmp_path: Path,
    weights: Path,
    boxes: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    seen: Callable[[object], None],
) -> None:
    roots = {name: tmp_path / name for name in ("voc07", "voc_segmentation")}
    for name, root in roots.items():
        shutil.copytree(getattr(demo_data, name), root)
        one = demo_data.datasets.one(name)
        one = one.model_copy(update={"section": one.section.model_copy(update={"root": str(root)})})
        recipe.save(one, tmp_path / f"{name}.yaml")
        check.main(["--dataset", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / f"{name}.checked")])
    os.utime(voc.image_path(roots["voc07"], "000001"), (0, 0))
    os.utime(roots["voc_segmentation"] / "VOC2012/SegmentationClass/2012_000002.png", (0, 0))
    recipe.save(PROPOSALS, tmp_path / "proposals.yaml")
    recipe.save(evaluations.Detection(**DETECTION), tmp_path / "detection.yaml")
    recipe.save(evaluations.Segmentation(**SEGMENTATION), tmp_path / "segmentation.yaml")
    common = ["--checkpoint", str(weights), "--run", "run", "--work-dir", str(tmp_path / "w"), "--samples", "s.npz"]
    voc07 = ["--voc", str(roots["voc07"])]
    both = ["--train-proposals", str(boxes["trainval"]), "--test-proposals", str(boxes["test"])]
    segmented = ["--dataset", str(tmp_path / "voc_segmentation.yaml")]
    for stage, name, arguments in (
        (proposals, "voc07", [*voc07, "--split", "test"]),
        (detection, "voc07", [*voc07, *common, *both]),
        (segmentation, "voc_segmentation", [*segmented, *common]),
    ):
        protocol = tmp_path / f"{stage.__name__.rpartition('.')[2]}.yaml"
        given = ["--protocol", str(protocol), "--checked", str(tmp_path / f"{name}.checked")]
        with pytest.raises(SystemExit) as stopped:
            stage.main([*given, *arguments, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        seen(message)
        assert re.match(rf"error: 1 of \d+ files changed since {tmp_path}/{name}\.checked was made of them: ", message)
        assert not (tmp_path / "out").exists()


def test_swapped_proposals_end_detection_before_it_trains(
    demo_data: SimpleNamespace,
    tmp_path: Path,
    weights: Path,
    boxes: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = boxes | {"test": boxes["trainval"]}
    with pytest.raises(SystemExit) as exit_info:
        detect(demo_data.voc07, tmp_path, weights, wrong)
    assert exit_info.value.code == 2
    assert f"error: {boxes['trainval']}: proposals were made for another image list" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()
    assert not list((tmp_path / "run").glob("*/vis_data/scalars.json"))


def test_too_little_padding_is_refused(
    demo_data: SimpleNamespace, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        segment(demo_data, demo_data.voc_segmentation, tmp_path, weights, pad=4)
    assert "pad of the config: 4 leaves pixels of run run without a score" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_mask_value_ends_segmentation_and_names_the_file(
    demo_data: SimpleNamespace, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "voc"
    shutil.copytree(demo_data.voc_segmentation, root)
    _, val = voc.segmentation_lists(root, "", "train", "val")
    mask = val.mask(val.ids()[-1])
    with Image.open(mask) as image:
        values = np.asarray(image).copy()
    values[0, 0] = 77
    Image.fromarray(values).save(mask)
    with pytest.raises(SystemExit) as exit_info:
        segment(demo_data, root, tmp_path, weights)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert str(mask) in message
    assert "77" in message
    assert not list((tmp_path / "run").glob("*/vis_data/scalars.json")), "found only after a training"
