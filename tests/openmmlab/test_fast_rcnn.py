"""Fast R-CNN's parts: average precision by hand, boxes that follow the image, the pretrained head, the data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from tests import waiting
from uic_core import models
from uic_core.data import boxes as geometry
from uic_core.data import voc
from uic_core.errors import InputError
from uic_core.evaluations import Detection
from uic_core.evaluations import Proposals as Settings
from uic_core.models.network import Network
from uic_core.openmmlab import detection, fast_rcnn, proposals, regression


@pytest.fixture(autouse=True)
def mmdet_first() -> Iterator[None]:
    """Names of parts are looked up in mmdet, whatever other tests of this process did."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


BOX = [0.0, 0.0, 9.0, 9.0]
FAR = [50.0, 50.0, 59.0, 59.0]
SETTINGS = Settings(source="", mode="fast", shorter_side=48, max_boxes=30, min_side=8, seed=0)


def sample(truths: list[tuple[list[float], int, bool]], found: list[tuple[list[float], int, float]]) -> dict[str, Any]:
    """One image as mmdet hands it to a metric, from (box, label, difficult) and (box, label, score)."""

    def group(boxes: list[list[float]], labels: list[int]) -> dict[str, torch.Tensor]:
        edges = geometry.to_edges(np.array(boxes, np.float32).reshape(-1, 4))
        return {"bboxes": torch.from_numpy(edges), "labels": torch.tensor(labels, dtype=torch.long)}

    plain = [(box, label) for box, label, difficult in truths if not difficult]
    hard = [(box, label) for box, label, difficult in truths if difficult]
    return {
        "gt_instances": group([box for box, _ in plain], [label for _, label in plain]),
        "ignored_instances": group([box for box, _ in hard], [label for _, label in hard]),
        "pred_instances": group([box for box, _, _ in found], [label for _, label, _ in found])
        | {"scores": torch.tensor([score for _, _, score in found])},
    }


def test_average_precision_by_hand() -> None:
    # Class 0 has three objects, one of them twice found. By falling score: right (precision 1, recall 1/3), a second
    # box on the same object (wrong, 1/2), right (2/3, recall 2/3), far from everything (wrong).
    # Best precision at recalls 0…0.3: 1; 0.4…0.6: 2/3; 0.7…1: 0. Sum 4·1 + 3·2/3 = 6, by 11 points.
    # Class 1's only object is difficult: finding it counts neither for nor against, so the class has no value.
    # Class 2 is found with a box that covers 6 of the 10 rows, counted with the last pixel: right.
    samples = [
        sample([(BOX, 0, False), (BOX, 1, True)], [(BOX, 0, 0.9), (BOX, 0, 0.8), (BOX, 1, 0.9), (FAR, 0, 0.1)]),
        sample([(BOX, 0, False), (FAR, 0, False)], [(FAR, 0, 0.7)]),
        sample([(BOX, 2, False)], [([0.0, 0.0, 9.0, 5.0], 2, 0.5)]),
    ]
    metric = fast_rcnn.VocAp()
    metric.dataset_meta = {"classes": voc.CLASSES}
    metric.process({}, samples)
    values = dict(metric.compute_metrics(metric.results))
    assert values == pytest.approx({"map": 100 * (6 / 11 + 1) / 2, "ap/aeroplane": 600 / 11, "ap/bird": 100.0})


def test_a_test_without_an_object_that_counts_is_named() -> None:
    metric = fast_rcnn.VocAp()
    metric.dataset_meta = {"classes": voc.CLASSES}
    metric.process({}, [sample([(BOX, 0, True)], [(BOX, 0, 0.9)])])
    with pytest.raises(InputError, match="no test image shows an object that is not difficult"):
        metric.compute_metrics(metric.results)


def piped(pixels: np.ndarray, box: list[int], flip: float, side: int) -> dict[str, Any]:
    """An image with one object, and a proposal on it, after the steps of a training."""
    register_all_modules(init_default_scope=True)
    dataset = detection._dataset(Path("root"), "trainval", Path("p"), {
        "type": "RandomChoiceResize", "scales": [(10 * side, side)], "keep_ratio": True
    }, flip=True)  # fmt: skip
    steps = [step for step in dataset["pipeline"] if step["type"] not in ("LoadRgb", "PackDetInputs")]
    for step in steps:
        if step["type"] == "RandomFlip":
            assert step["prob"] == 0.5
            step["prob"] = flip
    edges = geometry.to_edges(np.array([box], np.float32))
    height, width = pixels.shape[:2]
    return dict(
        Compose(steps)({
            "img": pixels.copy(), "img_shape": (height, width), "ori_shape": (height, width),
            "instances": [{"bbox": edges[0].tolist(), "bbox_label": 0, "ignore_flag": 0}],
            "proposals": {"bboxes": edges, "scores": np.zeros(1, np.float32)},
        })
    )  # fmt: skip


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_follow_the_image_to_the_pixel(flip: float) -> None:
    pixels = np.zeros((120, 500, 3), np.uint8)
    pixels[20:100, 10:110] = 255
    results = piped(pixels, [10, 20, 109, 99], flip, 120)  # no resizing: the shorter side has 120 pixels
    for boxes in (results["gt_bboxes"].tensor.numpy(), results["proposals"]):
        (box,) = geometry.from_edges(boxes)
        assert box.tolist() == ([390, 20, 489, 99] if flip else [10, 20, 109, 99])
        left, top, right, bottom = box.astype(int)
        inside = results["img"][top : bottom + 1, left : right + 1]
        assert inside.min() == 255
        assert (results["img"] == 255).sum() == inside.size


def test_boxes_stay_in_the_original_pixels_and_rois_are_resized() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    results = piped(pixels, [10, 20, 109, 99], 1.0, 250)
    assert results["img"].shape == (250, 500, 3)
    assert geometry.from_edges(results["proposals"]).tolist() == [[90, 20, 189, 99]]
    rois = torch.cat([torch.zeros(1, 1), torch.from_numpy(results["proposals"])], dim=1)
    scales = torch.tensor([results["scale_factor"], (9.0, 9.0)])
    # as Fast R-CNN: first and last pixel times the scale
    assert fast_rcnn.resized(rois, scales).tolist() == [[0, 225, 50, 472.5, 247.5]]
    rois[:, 0] = 1
    assert fast_rcnn.resized(rois, scales).tolist() == [[1, 810, 180, 1701, 891]]


def test_pooling_takes_the_largest_value_of_every_bin() -> None:
    extractor = fast_rcnn.MaxRoIExtractor(roi_layer={"output_size": 2}, out_channels=1, featmap_strides=[16])
    features = torch.randn(1, 1, 8, 8)
    # columns 1…4 and rows 2…5 of the map: a box counts with its last cell
    pooled = extractor((features,), torch.tensor([[0.0, 16, 32, 64, 80]]))
    inside = features[0, 0, 2:6, 1:5]
    expected = torch.stack([half.max() for rows in inside.split(2, 0) for half in rows.split(2, 1)]).view(1, 1, 2, 2)
    assert torch.equal(pooled, expected)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return models.build("alexnet", classes=5, image_size=96, sobel=True).eval()  # fc6 takes 2×2


def head(**others: Any) -> fast_rcnn.PretrainedBBoxHead:
    register_all_modules(init_default_scope=True)
    statistics = {"target_means": np.zeros((20, 4)).tolist(), "target_stds": np.ones((20, 4)).tolist()}
    return fast_rcnn.PretrainedBBoxHead(
        **{"dropout": 0.5, "in_channels": 256, "fc_out_channels": 4096, "roi_feat_size": 2, "num_classes": 20}
        | statistics
        | others
    )


def test_both_hidden_layers_drop_half_while_training() -> None:
    built = head(dropout=detector()["roi_head"]["bbox_head"]["dropout"])
    hidden: list[torch.Tensor] = []
    built.fc_cls = built.fc_reg = nn.Identity()
    for layer in built.shared_fcs:
        nn.init.eye_(layer.weight)
        nn.init.constant_(layer.bias, 1.0)
        layer.register_forward_pre_hook(lambda _m, inputs: hidden.append(inputs[0]))
    torch.manual_seed(0)
    output, _ = built.train()(torch.ones(8, 256, 2, 2))
    for dropped in (hidden[1], output):
        assert (dropped == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert set(output.unique().tolist()) == {0.0, 2.0, 6.0, 10.0}  # what is kept is doubled, twice
    built.eval()(torch.ones(1, 256, 2, 2))
    assert hidden[-1].min() > 0


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_rotnet"])
def test_the_head_is_the_pretrained_classifier(arch: str) -> None:
    network = models.build(arch, classes=5, image_size=96, sobel=True)
    network(torch.randn(8, 3, 96, 96))  # batch norm has statistics
    network.eval()
    built = head().eval()
    built.load_network(network)
    built.fc_cls = nn.Identity()
    maps = torch.randn(3, 256, 2, 2)
    with torch.no_grad():
        hidden, offsets = built(maps)
        expected = network.classifier(torch.flatten(maps, 1))
    torch.testing.assert_close(hidden, expected)
    assert offsets.shape == (3, 80)  # boxes of every class


def test_rescaling_gives_unit_variance(network: Network) -> None:
    built = head()
    built.load_network(network)
    for layer in built.shared_fcs:
        nn.init.uniform_(layer.bias, -2, 2)
    maps = 5 * torch.randn(64, 256, 2, 2)

    def hidden() -> torch.Tensor:
        with torch.no_grad():
            return built.shared_fcs[1](built.shared_fcs[0](maps.flatten(1)).relu())

    before = hidden()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.roi_head = nn.Module()
            self.roi_head.bbox_head = built

        def data_preprocessor(self, batch: torch.Tensor, training: bool) -> dict[str, torch.Tensor]:
            assert not training
            return {"maps": batch}

        def forward(self, maps: torch.Tensor, mode: str) -> None:
            assert mode == "tensor"
            assert not self.training
            built(maps)

    said: list[str] = []
    loader = SimpleNamespace(dataset=[maps] * 3, collate_fn=lambda items: items[0])
    runner = SimpleNamespace(model=Model(), train_dataloader=loader, logger=SimpleNamespace(info=said.append))
    direction = built.shared_fcs[0].weight / built.shared_fcs[0].weight.norm()
    fast_rcnn.RescaleClassifier(images=2).before_train(runner)
    torch.testing.assert_close(built.shared_fcs[0].weight / built.shared_fcs[0].weight.norm(), direction)
    with torch.no_grad():
        assert built.shared_fcs[0](maps.flatten(1)).std(dim=0).mean() == pytest.approx(1, abs=0.02)
        assert hidden().std(dim=0).mean() == pytest.approx(1, abs=0.02)
        factor = before.norm() / hidden().norm()
        torch.testing.assert_close(factor * hidden(), before, rtol=1e-3, atol=1e-3)
    assert [line[:3] for line in said] == ["fc6", "fc7"]
    assert runner.model.training


def dataset(root: Path, file: Path, **others: Any) -> fast_rcnn.VocProposals:
    return fast_rcnn.VocProposals(
        data_root=str(root),
        ann_file="VOC2007/ImageSets/Main/trainval.txt",
        data_prefix={"sub_data_root": "VOC2007/"},
        proposal_file=str(file),
        pipeline=[],
        **others,
    )


def test_the_data_set_carries_annotations_and_proposals(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    made = proposals.make(demo_data.voc07, "trainval", SETTINGS, processes=1)
    made.save(tmp_path / "p.npz")
    read = dataset(demo_data.voc07, tmp_path / "p.npz", test_mode=True)
    assert read.metainfo["dataset_type"] == "VOC2007"
    assert tuple(read.metainfo["classes"]) == voc.CLASSES
    assert len(read) == len(made.ids)
    for position, image in enumerate(made.ids):
        entry = read.get_data_info(position)
        annotation = voc.read_annotation(voc.annotation_path(demo_data.voc07, image))
        assert entry["img_id"] == image
        assert Path(entry["img_path"]).is_file()
        edges = np.array([each["bbox"] for each in entry["instances"]])
        np.testing.assert_array_equal(geometry.from_edges(edges), annotation.boxes)
        np.testing.assert_array_equal([each["bbox_label"] for each in entry["instances"]], annotation.labels)
        np.testing.assert_array_equal(geometry.from_edges(entry["proposals"]["bboxes"]), made.of(position))
    trained = dataset(demo_data.voc07, tmp_path / "p.npz", test_mode=False)
    assert all(
        any(not each["ignore_flag"] for each in trained.get_data_info(position)["instances"])
        for position in range(len(trained))
    )


def test_proposals_of_another_split_are_refused(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    proposals.make(demo_data.voc07, "test", SETTINGS, processes=1).save(tmp_path / "p.npz")
    with pytest.raises(InputError, match=r"p\.npz: proposals were made for another image list"):
        dataset(demo_data.voc07, tmp_path / "p.npz")


RNG = np.random.default_rng


def draw(rng: np.random.Generator, count: int, side: int = 40) -> np.ndarray:
    """Boxes of whole pixels, last pixel included."""
    corner = rng.integers(0, side, (count, 2))
    return np.concatenate([corner, corner + rng.integers(1, side, (count, 2))], axis=1).astype(np.float32)


def detector(seed: int = 0) -> dict[str, Any]:
    """The model's config for AlexNet at the paper's protocol, with statistics that differ by class."""
    rng = RNG(seed)
    targets = regression.Statistics(rng.normal(0, 0.1, (20, 4)), rng.uniform(0.05, 0.5, (20, 4)))
    protocol = Detection(
        train_scales=[480], train_max=2000, test_scale=600, test_max=1000, iterations=2, lr=0.1, lr_steps=[1],
        momentum=0.9, weight_decay=0.0, images_per_batch=2, rois_per_batch=128, foreground=0.25, nms=0.3,
        rescale=False, seed=0,
    )  # fmt: skip
    with torch.device("meta"):
        net = models.build("alexnet", classes=5, image_size=96, sobel=True)
    return detection._model(net, Path("checkpoint"), protocol, targets)


def roi_head() -> Any:
    register_all_modules(init_default_scope=True)
    content = Config(detector())
    with torch.device("meta"):
        return MODELS.build(
            content["roi_head"] | {"train_cfg": content["train_cfg"]["rcnn"], "test_cfg": content["test_cfg"]["rcnn"]}
        )


@pytest.mark.parametrize("seed", range(5))
def test_rois_are_sampled_by_fast_rcnn_s_rule(seed: int) -> None:
    rng = RNG(seed)
    truths = draw(rng, 3)
    near = np.repeat(truths, 40, axis=0) + rng.integers(-6, 7, (120, 4)).astype(np.float32)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
    boxes = np.concatenate([near, draw(rng, 200)])
    labels = torch.tensor([4, 7, 2])
    roi = roi_head()
    priors = InstanceData(priors=torch.from_numpy(geometry.to_edges(boxes)))
    objects = InstanceData(bboxes=torch.from_numpy(geometry.to_edges(truths)), labels=labels)
    assigned = roi.bbox_assigner.assign(priors, objects, InstanceData(bboxes=torch.zeros(0, 4)))
    best = [max(iou(box, truth) for truth in truths) for box in boxes]
    for number, overlap in zip(assigned.gt_inds.tolist(), best, strict=True):
        assert (number > 0) == (overlap >= 0.5)
        assert (number == 0) == (0.1 <= overlap < 0.5)
    found = roi.bbox_sampler.sample(assigned, priors, objects)
    foreground = sum(overlap >= 0.5 for overlap in best) + len(truths)  # the objects themselves are RoIs, too
    background = sum(0.1 <= overlap < 0.5 for overlap in best)
    assert len(found.pos_priors) == min(16, foreground)
    assert len(found.neg_priors) == min(64 - len(found.pos_priors), background)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union by counting pixels."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(width * height / (sum(areas) - width * height))


def test_targets_are_normalised_by_class_and_come_back() -> None:
    rng = RNG(0)
    content = detector()["roi_head"]["bbox_head"]
    built = MODELS.build(Config(content | {"in_channels": 256, "fc_out_channels": 8, "init_cfg": None}))
    means, stds = np.array(content["target_means"]), np.array(content["target_stds"])
    truths = draw(rng, 6)
    boxes = truths + rng.integers(-2, 3, (6, 4)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    labels = rng.integers(0, 20, 6)
    edges = [torch.from_numpy(geometry.to_edges(each)) for each in (boxes, draw(rng, 3), truths)]
    found = built._get_targets_single(*edges, torch.from_numpy(labels), Config({"pos_weight": -1}))
    expected = (geometry.offsets(boxes, truths) - means[labels]) / stds[labels]
    np.testing.assert_allclose(found[2][:6], expected, rtol=1e-4, atol=1e-5)
    assert not found[2][6:].any()
    assert found[0].tolist() == [*labels, 20, 20, 20]
    # Predicted exactly, they give the objects back, in the original image's pixels.
    offsets = torch.zeros(6, 20, 4)
    offsets[torch.arange(6), torch.from_numpy(labels)] = found[2][:6]
    scores = torch.full((6, 21), -20.0)
    scores[torch.arange(6), torch.from_numpy(labels)] = torch.arange(20.0, 14, -1)
    rois = torch.cat([torch.zeros(6, 1), edges[0]], dim=1)
    (back,) = built.predict_by_feat(
        [rois], [scores], [offsets.flatten(1)], [{"img_shape": (100, 100)}], Config(detector()["test_cfg"]["rcnn"])
    )
    order = np.lexsort((geometry.from_edges(back.bboxes.numpy())[:, 0], back.labels))
    kept = {(label, *np.round(geometry.from_edges(box), 2).tolist()) for label, box in zip(
        back.labels[order].tolist(), back.bboxes.numpy()[order], strict=True
    )}  # fmt: skip
    assert kept == {(label, *box.tolist()) for label, box in zip(labels.tolist(), truths, strict=True)}


def predicted(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, side: int = 500) -> Any:
    """What the head makes of RoIs that it leaves where they are, at the paper's settings, in a square image."""
    content = detector()["roi_head"]["bbox_head"]
    still = {"target_means": np.zeros((20, 4)).tolist(), "target_stds": np.ones((20, 4)).tolist()}
    built = MODELS.build(Config(content | still | {"in_channels": 4, "fc_out_channels": 8, "init_cfg": None}))
    table = np.zeros((len(boxes), 21), np.float32)
    table[np.arange(len(boxes)), classes] = scores
    table[:, 20] = 1 - scores
    rois = torch.from_numpy(np.concatenate([np.zeros((len(boxes), 1)), geometry.to_edges(boxes)], axis=1)).float()
    settings = Config(detector()["test_cfg"]["rcnn"])
    assert settings.max_per_img == 100
    (found,) = built.predict_by_feat(
        [rois], [torch.from_numpy(table).log()], [torch.zeros(len(boxes), 80)], [{"img_shape": (side, side)}], settings
    )
    return found


def suppressed(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> set[tuple[float, ...]]:
    """(class, box) of what is left; boxes include their last pixel, to a hundredth."""
    found = predicted(boxes, scores, classes)
    kept = np.round(geometry.from_edges(found.bboxes.numpy()), 2).tolist()
    assert (found.scores.diff() <= 0).all(), "best first"
    return {(label, *box) for label, box in zip(found.labels.tolist(), kept, strict=True)}


@pytest.mark.parametrize("step", [1.0, 0.01])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_is_fast_rcnn_s(seed: int, step: float) -> None:
    """Boxes of whole pixels, whose overlaps may be the threshold itself, and boxes between them."""
    rng = RNG(seed)
    boxes, scores = draw(rng, 150, side=12), rng.permutation(150).astype(np.float32) / 150
    if step < 1:
        boxes += rng.integers(0, 40, boxes.shape).astype(np.float32) * np.float32(step)
    classes = rng.integers(0, 3, 150)
    expected = set()
    for number in range(3):
        kept: list[int] = []
        for place in sorted(np.flatnonzero((classes == number) & (scores > 0.001)), key=lambda each: -scores[each]):
            if all(iou(boxes[place], boxes[other]) < 0.3 - 1e-9 for other in kept):
                kept.append(place)
        expected |= {(number, *np.round(boxes[place], 2).tolist()) for place in kept}
    assert suppressed(boxes, scores, classes) == expected


def test_a_box_that_overlaps_by_exactly_the_threshold_is_suppressed() -> None:
    boxes = np.array(
        [[0, 0, 9, 9], [0, 0, 9, 2], [0, 20, 9, 29], [0, 20, 8, 22]], np.float32
    )  # 30 and 27 of 100 pixels
    kept = suppressed(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.zeros(4, int))
    assert kept == {(0, *boxes[number].tolist()) for number in (0, 2, 3)}


def test_predicted_boxes_keep_first_and_last_pixel_inside_the_image() -> None:
    boxes = np.array([[-9, 5, -3, 9], [60, 5, 70, 9], [5, -9, 9, 80], [3, 4, 5, 6]], np.float32)
    found = predicted(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.arange(4), side=50)
    expected = [[0, 5, 0, 9], [49, 5, 49, 9], [5, 0, 9, 49], [3, 4, 5, 6]]
    assert geometry.from_edges(found.bboxes.numpy()).tolist() == expected
    assert found.labels.tolist() == [0, 1, 2, 3]


def small_roi_head() -> Any:
    """On maps of four channels."""
    content = Config(detector())
    head = content["roi_head"]["bbox_head"] | {"in_channels": 4, "fc_out_channels": 8, "init_cfg": None}
    return MODELS.build(
        content["roi_head"]
        | {
            "bbox_head": head,
            "bbox_roi_extractor": content["roi_head"]["bbox_roi_extractor"] | {"out_channels": 4},
            "train_cfg": content["train_cfg"]["rcnn"],
            "test_cfg": content["test_cfg"]["rcnn"],
        }
    )


def test_each_image_of_a_batch_has_its_own_scale() -> None:
    """And in training none of our code waits for the device."""
    roi, seen = small_roi_head(), list[torch.Tensor]()
    roi.bbox_roi_extractor.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1].clone()))
    rng, scales, samples, known = RNG(0), [(1.5, 1.25), (2.0, 3.0)], [], []
    for scale in scales:
        boxes = draw(rng, 30)
        edges = torch.from_numpy(geometry.to_edges(boxes))
        sample = DetDataSample(metainfo={"scale_factor": scale, "img_shape": (200, 200), "ori_shape": (100, 100)})
        sample.gt_instances = InstanceData(bboxes=edges[:1], labels=torch.tensor([3]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        sample.proposals = InstanceData(bboxes=edges)
        samples.append(sample)
        known.append({tuple(row) for row in (boxes * np.float32([*scale, *scale])).tolist()})
    with waiting.never():
        losses = roi.loss((torch.randn(2, 4, 16, 16),), [sample.proposals for sample in samples], samples)
        (losses["loss_cls"] + losses["loss_bbox"]).backward()
    (rois,) = seen
    assert set(rois[:, 0].tolist()) == {0, 1}
    for number, *box in rois.tolist():
        assert tuple(box) in known[int(number)]
