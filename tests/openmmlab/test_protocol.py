"""The numbers of protocol.md (Detection, Segmentation) as they reach mmdet and mmseg from config/paper.yaml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmdet.models
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from uic_core import config, models
from uic_core.data import voc
from uic_core.errors import InputError
from uic_core.models.network import Network
from uic_core.openmmlab import detection, fast_rcnn, fcn, regression, segmentation
from uic_core.run import cpus
from uic_core.strict_yaml import read_yaml

assert mmdet.models
assert fast_rcnn.VocProposals
assert fcn.Fcn32sHead

ROOT = Path(__file__).parents[2]
TARGETS = regression.Statistics(np.full((20, 4), 0.25), np.full((20, 4), 0.5))
BOXES = {"trainval": Path("trainval.npz"), "test": Path("test.npz")}


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> config.Config:
    """The paper's config, and of its data sets the lists of the test images, some of which a config names."""
    file, root = ROOT / "config" / "paper.yaml", tmp_path_factory.mktemp("VOCdevkit")
    for path in (voc.list_path(root, "test"), voc.segmentation_lists(root, "", "train", "seg11valid")[1].path):
        path.parent.mkdir(parents=True)
        path.write_text("000001\n000002\n")
    content = read_yaml(file)
    for name in ("voc07", "voc_segmentation"):
        content["datasets"][name]["root"] = str(root)
    return config.validate(content, str(file))


def network(arch: str = "alexnet", sobel: bool = True) -> Network:
    with torch.device("meta"):  # its shapes are all that a config takes of it
        return models.build(arch, classes=1000, image_size=224, sobel=sobel)


def detector(paper: config.Config, net: Network) -> dict[str, Any]:
    protocol = paper.evaluations.detection
    root = Path(paper.datasets.voc07.root)
    weights, work_dir = Path("checkpoint.safetensors"), Path("out")
    return detection.build_config(net, weights, protocol, root, BOXES, TARGETS, work_dir, 2)


def segmenter(paper: config.Config, net: Network) -> dict[str, Any]:
    protocol, data = paper.evaluations.segmentation, paper.datasets.voc_segmentation
    return segmentation.build_config(net, Path("checkpoint.safetensors"), protocol, data, Path("out"), 2)


def built(content: dict[str, Any]) -> nn.Module:
    with DefaultScope.overwrite_default_scope(content["default_scope"]), torch.device("meta"):
        return MODELS.build(Config(content).model)


def groups(content: dict[str, Any], model: nn.Module) -> dict[str, tuple[float, float]]:
    """Name of every trained parameter -> (lr, weight decay) in the optimiser that mmengine makes."""
    optimizer = build_optim_wrapper(model, content["optim_wrapper"]).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    settings = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }
    assert settings.keys() == set(names.values())
    return settings


def test_fast_rcnn_is_the_protocol_s(paper: config.Config) -> None:
    content = detector(paper, network())
    assert content["train_cfg"]["max_iters"] == 150_000
    (steps,) = content["param_scheduler"]
    assert (steps["milestones"], steps["gamma"], steps["by_epoch"]) == ([50_000, 100_000], 0.1, False)
    train, test = content["train_dataloader"], content["test_dataloader"]
    assert (train["batch_size"], test["batch_size"]) == (2, 1)
    assert train["worker_init_fn"] == {"type": "ignore_foreign_sigterm"}
    (scales,) = (step for step in train["dataset"]["pipeline"] if step["type"] == "RandomChoiceResize")
    assert scales["scales"] == [(2000, side) for side in (480, 576, 688, 864, 1200)]
    assert {"type": "RandomFlip", "prob": 0.5} in train["dataset"]["pipeline"]
    assert "RandomFlip" not in {step["type"] for step in test["dataset"]["pipeline"]}
    # Training leaves out what cannot be learned from; every image is tested.
    assert (train["dataset"]["test_mode"], test["dataset"]["test_mode"]) == (False, True)
    assert {"type": "Resize", "scale": (1000, 600), "keep_ratio": True} in test["dataset"]["pipeline"]
    assert train["dataset"]["ann_file"].endswith("VOC2007/ImageSets/Main/trainval.txt")
    assert test["dataset"]["ann_file"].endswith("VOC2007/ImageSets/Main/test.txt")
    assert content["test_evaluator"][0] == {"type": "VocAp"}
    assert content["default_hooks"]["logger"]["interval"] == 50
    model = built(content)
    head = model.roi_head
    (pool,) = head.bbox_roi_extractor.roi_layers
    assert (tuple(pool.output_size), pool.spatial_scale) == ((6, 6), 1 / 16)
    assert (head.bbox_sampler.num, head.bbox_sampler.pos_fraction) == (64, 0.25)  # of each of the two images
    assigner = head.bbox_assigner
    assert (assigner.pos_iou_thr, assigner.neg_iou_thr, assigner.match_low_quality) == (0.5, (0.1, 0.5), False)
    assert head.test_cfg.nms.iou_threshold == pytest.approx(0.3, abs=1e-7)
    assert head.test_cfg.nms.iou_threshold < np.float32(0.3), "an overlap of .3 is suppressed, too"
    assert (head.test_cfg.score_thr, head.test_cfg.max_per_img) == (0.001, 100)
    assert head.bbox_head.dropout.p == 0.5
    box_head = content["model"]["roi_head"]["bbox_head"]
    assert (box_head["target_means"][19], box_head["target_stds"][0]) == ([0.25] * 4, [0.5] * 4)
    assert (head.bbox_head.bbox_coder.means, head.bbox_head.bbox_coder.stds) == ((0,) * 4, (1,) * 4)
    assert (head.bbox_head.loss_bbox.beta, head.bbox_head.loss_bbox.loss_weight) == (1.0, 1.0)
    preprocessor = content["model"]["data_preprocessor"]
    assert preprocessor["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert preprocessor["bgr_to_rgb"] is False, "images come as RGB"
    inits = {each["override"]["name"]: each["std"] for each in box_head["init_cfg"] if "override" in each}
    assert inits == {"fc_cls": 0.01, "fc_reg": 0.001}
    assert model.backbone.features.conv1.padding == (5, 5)
    assert model.backbone.features.pool1.padding == model.backbone.features.pool2.padding == (1, 1)
    assert [tuple(layer.weight.shape) for layer in head.bbox_head.shared_fcs] == [(4096, 9216), (4096, 4096)]
    assert (head.bbox_head.fc_cls.out_features, head.bbox_head.fc_reg.out_features) == (21, 80)
    trained = groups(content, model)
    convolutions = {f"backbone.features.conv{number}" for number in (2, 3, 4, 5)}
    layers = {"shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg"}
    names = convolutions | {f"roi_head.bbox_head.{layer}" for layer in layers}
    assert trained == {f"{name}.weight": (0.001, 5e-4) for name in names} | {
        f"{name}.bias": (0.002, 0.0) for name in names
    }


def test_fcn_32s_is_the_protocol_s(paper: config.Config) -> None:
    content = segmenter(paper, network())
    # 20 passes make a step: 50,000 steps at each of 1e-4, 1e-5 and 1e-6
    assert (content["train_cfg"]["max_iters"], content["optim_wrapper"]["accumulative_counts"]) == (3_000_000, 20)
    (steps,) = content["param_scheduler"]
    assert (steps["milestones"], steps["gamma"], steps["by_epoch"]) == ([1_000_000, 2_000_000], 0.1, False)
    train, test = content["train_dataloader"], content["test_dataloader"]
    assert (train["batch_size"], test["batch_size"]) == (1, 1)
    assert train["dataset"]["ann_file"].endswith("benchmark_RELEASE/dataset/train.txt")
    assert test["dataset"]["ann_file"].endswith("VOC2012/ImageSets/Segmentation/seg11valid.txt")
    assert (train["dataset"]["test_mode"], test["dataset"]["test_mode"]) == (False, True)
    for data in (train, test):  # images keep their size, and none is flipped
        assert data["dataset"]["pipeline"] == [{"type": "LoadRgb"}, {"type": "LoadMask"}, {"type": "PackSegInputs"}]
    assert content["model"]["data_preprocessor"] == {
        "type": "SegDataPreProcessor",
        "mean": pytest.approx([123.675, 116.28, 103.53]),  # of red, green, blue
        "std": pytest.approx([58.395, 57.12, 57.375]),
        "bgr_to_rgb": False,
        "size_divisor": 1,
        "seg_pad_val": 255,
    }
    assert content["model"]["test_cfg"] == {"mode": "whole"}
    model = built(content)
    assert model.backbone.features.conv1.padding == (100, 100)
    head = model.decode_head
    assert (tuple(head.fc6.weight.shape), tuple(head.fc7.weight.shape)) == ((4096, 256, 6, 6), (4096, 4096, 1, 1))
    assert (tuple(head.conv_seg.weight.shape), head.bilinear, head.crop) == ((21, 4096, 1, 1), 63, 18)
    assert (head.drop.p, head.ignore_index) == (0.5, 255)
    trained = groups(content, model)
    names = {f"backbone.features.conv{number}" for number in (1, 2, 3, 4, 5)}
    names |= {f"decode_head.{layer}" for layer in ("fc6", "fc7", "conv_seg")}
    expected = {f"{name}.{kind}": (1e-4, 5e-4) for name in names for kind in ("weight", "bias")}
    assert trained == expected | {"decode_head.conv_seg.bias": (2e-4, 0.0)}


def test_the_loss_of_segmentation_is_the_mean_over_counted_pixels(paper: config.Config) -> None:
    head = segmenter(paper, network())["model"]["decode_head"]
    assert head["ignore_index"] == 255
    with DefaultScope.overwrite_default_scope("mmseg"):
        loss = MODELS.build(head["loss_decode"])
    scores = torch.randn(1, 21, 2, 3, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[[0, 20, 255], [7, 255, 255]]])
    counted = [scores.log_softmax(1)[0, label, y, x] for y, x, label in ((0, 0, 0), (0, 1, 20), (1, 0, 7))]
    torch.testing.assert_close(loss(scores, truth, ignore_index=255), -sum(counted) / 3)


@pytest.mark.parametrize(("arch", "side", "placement"), [("alexnet_torchvision", 6, (63, 18)), ("vgg16", 7, (64, 19))])
def test_networks_trained_elsewhere_fit(paper: config.Config, arch: str, side: int, placement: tuple[int, int]) -> None:
    net = network(arch, sobel=False)
    model = built(detector(paper, net))
    assert tuple(model.roi_head.bbox_roi_extractor.roi_layers[0].output_size) == (side, side)
    assert model.roi_head.bbox_head.shared_fcs[0].in_features == net.classifier.fc6.in_features
    frozen = {
        name.removeprefix("backbone.features.").split(".")[0]
        for name, weight in model.named_parameters()
        if not weight.requires_grad and ".bn" not in name
    }
    assert frozen == ({"conv1"} if arch != "vgg16" else {"conv1", "conv2", "conv3", "conv4"})
    widths = [getattr(model.backbone.features, name).out_channels for name in sorted(frozen)]
    assert arch != "vgg16" or widths == [64, 64, 128, 128], "conv1_1 to conv2_2"
    head = built(segmenter(paper, net)).decode_head
    assert (head.fc6.kernel_size, (head.bilinear, head.crop)) == ((side, side), placement)


def test_passes_that_do_not_divide_over_the_processes_are_refused(
    paper: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    content = segmenter(paper, network())
    assert content["optim_wrapper"]["accumulative_counts"] == 5
    assert content["param_scheduler"][0]["milestones"] == [250_000, 500_000]
    odd = paper.evaluations.segmentation.model_copy(update={"lr_steps": [1_000_000, 2_000_002]})
    changed = paper.model_copy(update={"evaluations": paper.evaluations.model_copy(update={"segmentation": odd})})
    with pytest.raises(InputError, match=r"segmentation\.lr_steps: 1000000, 2000002 passes do not divide over 4 proc"):
        segmenter(changed, network())


@pytest.mark.parametrize("task", [detector, segmenter])
def test_fault_46_no_more_processes_decode_than_shared_memory_has_room_for(
    paper: config.Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    seen: Callable[[object], None], task: Callable[[config.Config, Network], dict[str, Any]],
) -> None:  # fmt: skip
    monkeypatch.setattr(cpus.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 << 20))
    content = task(paper, network())
    seen(capsys.readouterr().out)
    assert [content[f"{split}_dataloader"]["num_workers"] for split in ("train", "test")] == [0, 0]
    monkeypatch.setattr(cpus.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 << 30))
    assert task(paper, network())["train_dataloader"]["num_workers"] == 2
    assert not capsys.readouterr().out
