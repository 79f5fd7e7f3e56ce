"""Fast R-CNN's parts: average precision by hand, boxes that follow the image, the pretrained head, the data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import ProposalBroadcaster
from mmdet.evaluation import VOCMetric
from mmdet.utils import register_all_modules
from torch import nn

from uic_core import models
from uic_core.config import Proposals as Settings
from uic_core.data import voc
from uic_core.errors import InputError
from uic_core.openmmlab import fast_rcnn, proposals

BOX = [0.0, 0.0, 9.0, 9.0]
FAR = [50.0, 50.0, 59.0, 59.0]
SETTINGS = Settings(source="", mode="fast", shorter_side=48, max_boxes=30, min_side=8, seed=0)


def sample(truths: list[tuple[list[float], int, bool]], found: list[tuple[list[float], int, float]]) -> dict[str, Any]:
    """One image as mmdet hands it to a metric: (box, label, difficult) and (box, label, score)."""

    def group(boxes: list[list[float]], labels: list[int]) -> dict[str, torch.Tensor]:
        return {"bboxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}

    plain = [(box, label) for box, label, difficult in truths if not difficult]
    hard = [(box, label) for box, label, difficult in truths if difficult]
    return {
        "gt_instances": group([box for box, _ in plain], [label for _, label in plain]),
        "ignored_instances": group([box for box, _ in hard], [label for _, label in hard]),
        "pred_instances": group([box for box, _, _ in found], [label for _, label, _ in found])
        | {"scores": torch.tensor([score for _, _, score in found])},
    }


def score(metric: VOCMetric, samples: list[dict[str, Any]]) -> dict[str, float]:
    metric.dataset_meta = {"classes": voc.CLASSES, "dataset_type": "VOC2007"}
    metric.process({}, samples)
    return dict(metric.compute_metrics(metric.results))


def test_average_precision_by_hand() -> None:
    # Class 0 has three objects, one of them twice found. By falling score: right (precision 1, recall 1/3), a second
    # box on the same object (wrong, 1/2), right (2/3, recall 2/3), far from everything (wrong).
    # Best precision at recalls 0…0.3: 1; 0.4…0.6: 2/3; 0.7…1: 0. Sum 4·1 + 3·2/3 = 6, by 11 points.
    # Class 1's only object is difficult: finding it counts neither for nor against, so the class has no value.
    # Class 2 is found with boxes that overlap by half of the union counted with the last pixel: right.
    samples = [
        sample([(BOX, 0, False), (BOX, 1, True)], [(BOX, 0, 0.9), (BOX, 0, 0.8), (BOX, 1, 0.9), (FAR, 0, 0.1)]),
        sample([(BOX, 0, False), (FAR, 0, False)], [(FAR, 0, 0.7)]),
        sample([(BOX, 2, False)], [([0.0, 0.0, 9.0, 4.0], 2, 0.5)]),
    ]
    values = score(fast_rcnn.VocAp(), samples)
    assert values == pytest.approx({"map": 100 * (6 / 11 + 1) / 2, "ap/aeroplane": 600 / 11, "ap/bird": 100.0})


def test_average_precision_equals_mmdet_on_random_boxes() -> None:
    rng = np.random.default_rng(0)

    def boxes(count: int) -> list[list[float]]:
        corner, side = rng.uniform(0, 60, (count, 2)), rng.uniform(10, 40, (count, 2))
        return np.concatenate([corner, corner + side], axis=1).round().tolist()

    samples = []
    for _ in range(12):
        truths = [(box, int(rng.integers(3)), bool(rng.random() < 0.2)) for box in boxes(4)]
        near = [((np.array(box) + rng.normal(0, 3, 4)).tolist(), label, rng.random()) for box, label, _ in truths]
        samples.append(sample(truths, near + [(box, int(rng.integers(3)), rng.random()) for box in boxes(5)]))
    ours = score(fast_rcnn.VocAp(), samples)
    theirs = score(VOCMetric(metric="mAP", eval_mode="11points"), samples)
    assert ours["map"] == pytest.approx(100 * theirs["mAP"])
    assert ours["map"] == pytest.approx(np.mean([value for name, value in ours.items() if name != "map"]))
    assert 5 < ours["map"] < 95


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_proposals_follow_the_image_as_mmdet_moves_them(flip: float) -> None:
    register_all_modules(init_default_scope=True)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (20, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 39, (20, 2))], axis=1).astype(np.float32)
    steps = [
        {"type": "Resize", "scale": (300, 130), "keep_ratio": True},
        {"type": "RandomFlip", "prob": flip},
    ]
    image = rng.integers(0, 255, (80, 99, 3), np.uint8)

    def results() -> dict[str, Any]:
        return {"img": image.copy(), "img_shape": (80, 99), "proposals": boxes.copy()}

    from mmcv.transforms import Compose
    from mmdet.structures.bbox import HorizontalBoxes

    expected = results() | {"gt_bboxes": HorizontalBoxes(boxes[:1].copy())}
    expected["proposals"] = HorizontalBoxes(boxes.copy())
    expected = ProposalBroadcaster(steps).transform(expected)
    ours = fast_rcnn.PlaceProposals().transform(Compose(steps)(results()))
    np.testing.assert_allclose(ours["proposals"], expected["proposals"].tensor.numpy(), rtol=1e-6)
    assert ours["img_shape"] == expected["img_shape"] == (130, 161)


def test_pooling_takes_the_largest_value_of_every_bin() -> None:
    extractor = fast_rcnn.MaxRoIExtractor(roi_layer={"output_size": 2}, out_channels=1, featmap_strides=[16])
    features = torch.randn(1, 1, 8, 8)
    # columns 1…4 and rows 2…5 of the map: a box counts with its last cell
    pooled = extractor((features,), torch.tensor([[0.0, 16, 32, 64, 80]]))
    inside = features[0, 0, 2:6, 1:5]
    expected = torch.stack([half.max() for rows in inside.split(2, 0) for half in rows.split(2, 1)]).view(1, 1, 2, 2)
    assert torch.equal(pooled, expected)


@pytest.fixture(scope="module")
def network() -> models.Network:
    torch.manual_seed(0)
    return models.build("alexnet", classes=5, image_size=96, sobel=True).eval()  # fc6 takes 2×2


def head() -> fast_rcnn.PretrainedBBoxHead:
    register_all_modules(init_default_scope=True)
    return fast_rcnn.PretrainedBBoxHead(
        dropout=0.5, in_channels=256, fc_out_channels=4096, roi_feat_size=2, num_classes=20
    )


def test_the_head_is_the_pretrained_classifier(network: models.Network) -> None:
    built = head().eval()
    built.load_network(network)
    built.fc_cls = nn.Identity()
    maps = torch.randn(3, 256, 2, 2)
    with torch.no_grad():
        hidden, offsets = built(maps)
        expected = network.classifier(torch.flatten(maps, 1))
    torch.testing.assert_close(hidden, expected)
    assert offsets.shape == (3, 80)  # boxes of every class


def test_rescaling_gives_unit_variance(network: models.Network) -> None:
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
        np.testing.assert_array_equal([each["bbox"] for each in entry["instances"]], annotation.boxes)
        np.testing.assert_array_equal([each["bbox_label"] for each in entry["instances"]], annotation.labels)
        np.testing.assert_array_equal(entry["proposals"]["bboxes"], made.of(position))
    trained = dataset(demo_data.voc07, tmp_path / "p.npz", test_mode=False)
    assert all(
        any(not each["ignore_flag"] for each in trained.get_data_info(position)["instances"])
        for position in range(len(trained))
    )


def test_proposals_of_another_split_are_refused(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    proposals.make(demo_data.voc07, "test", SETTINGS, processes=1).save(tmp_path / "p.npz")
    with pytest.raises(InputError, match=r"p\.npz: proposals were made for another image list"):
        dataset(demo_data.voc07, tmp_path / "p.npz")
