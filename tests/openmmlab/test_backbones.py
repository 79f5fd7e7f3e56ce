"""The OpenMMLab backbone computes what uic_core computes, trains what it should, loads nothing but our checkpoints."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.models import DetDataPreprocessor
from mmengine.logging import MessageHub
from mmseg.datasets.transforms import PackSegInputs
from mmseg.models import SegDataPreProcessor
from PIL import Image
from torch import nn

from tests import waiting
from tests.recipes import recipe
from uic_core import checkpoint, models
from uic_core.data import reader
from uic_core.data.augment import normalize
from uic_core.errors import InputError
from uic_core.models.network import Network
from uic_core.openmmlab import backbones
from uic_core.openmmlab.observe import DataTime
from uic_core.openmmlab.resume import Resume
from uic_core.pretrain import export
from uic_core.run.parallel import ALONE
from uic_core.run.saved_state import State
from uic_core.run.signals import Signals


def build(arch: str, sobel: bool, image_size: int = 64) -> Network:
    torch.manual_seed(1)
    network = models.build(arch, classes=5, image_size=image_size, sobel=sobel)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales that a mistake would not leave unnoticed
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def as_in_fast_rcnn(network: Network) -> Network:
    """The network with the padding of Fast R-CNN's AlexNet, written out; VGG16's is the network's own."""
    if network.arch == "alexnet":
        network.features.conv1.padding = (5, 5)
        network.features.pool1.padding = network.features.pool2.padding = 1
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return network


@pytest.mark.parametrize(("arch", "sobel", "layer"), [
    ("alexnet", True, "conv5"),
    ("alexnet", False, "conv5"),
    ("vgg16", False, "conv13"),
])  # fmt: skip
def test_features_equal_those_of_uic_core(arch: str, sobel: bool, layer: str) -> None:
    network = build(arch, sobel)
    backbone = backbones.UicBackbone(arch, sobel)
    backbone.load_network(network)
    images = torch.randn(2, 3, 81, 112)
    with torch.no_grad():
        (features,) = backbone.train()(images)
        expected = as_in_fast_rcnn(network).taps(images, [layer])[layer]
    assert torch.equal(features, expected)
    # As Caffe's: a cell begins at every 16th pixel, and one more looks at what is left.
    assert features.shape[2:] == ((6, 7) if arch == "vgg16" else (6, 8))


@pytest.mark.parametrize(("arch", "first"), [("alexnet", 0), ("alexnet_torchvision", 0), ("vgg16", 7.5)])
def test_cells_look_where_fast_rcnn_s_look(arch: str, first: float) -> None:
    """Which pixels reach a cell, found by a pixel that is no number. VGG16's pools look between two pixels."""
    backbone = backbones.UicBackbone(arch, False).eval()
    columns = 320
    images = torch.zeros(columns, 3, 1, columns)
    images[torch.arange(columns), :, :, torch.arange(columns)] = float("nan")
    with torch.no_grad():
        (features,) = backbone(images)
    for cell in (8, 9, 10):
        seen = torch.isnan(features[:, :, 0, cell]).any(dim=1).nonzero().flatten()
        assert seen[0] > 0
        assert (seen[0] + seen[-1]) / 2 == first + 16 * cell


def test_dense_backbone_equals_the_network_where_nothing_is_rounded() -> None:
    network = build("alexnet", True)
    dense = backbones.UicBackbone("alexnet", True, pad=2)
    dense.load_network(network)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features, same = dense(images)
        assert torch.equal(features, network.maps(images))
    assert same is images


def test_only_unfrozen_convolutions_train_and_batch_norm_stands_still() -> None:
    backbone = backbones.UicBackbone("alexnet", True, frozen=("conv1",)).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone(torch.randn(2, 3, 64, 64))[0].square().mean().backward()
    optimizer.step()
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"features.conv{n}.{kind}" for n in (2, 3, 4, 5) for kind in ("weight", "bias")}


def test_the_classifier_says_its_kernel() -> None:
    assert backbones.classifier_kernel(build("alexnet", True, 64)) == (256, 1, 4096)
    with torch.device("meta"):
        whole = models.build("alexnet", classes=5, image_size=224, sobel=False)
    assert backbones.classifier_kernel(whole) == (256, 6, 4096)


@pytest.mark.parametrize(("arch", "sobel"), [("resnet50", False), ("resnet50_mlp", True)])
def test_resnet_gives_the_maps_of_its_stages(arch: str, sobel: bool) -> None:
    network = build(arch, sobel)
    backbone = backbones.UicBackbone(arch, sobel, frozen=("conv1", "layer1"))
    backbone.load_network(network)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone.train()(images)
        assert torch.equal(maps[-1], network.maps(images))
    assert [tuple(each.shape[1:]) for each in maps] == [(256, 16, 24), (512, 8, 12), (1024, 4, 6), (2048, 2, 3)]
    trained = {name.split(".")[1] for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert not any(weight.requires_grad for name, weight in backbone.named_parameters() if ".bn" in name)
    with pytest.raises(InputError, match="FCN-32s takes alexnet, vgg16, alexnet_torch"):
        backbones.UicBackbone(arch, sobel, pad=100)


@pytest.mark.parametrize(("arch", "sobel", "layer"), [("alexnet", True, "conv5"), ("vgg16", False, "conv13")])
def test_a_jpeg_gives_the_features_that_it_gives_in_uic_core(
    tmp_path: Path, arch: str, sobel: bool, layer: str
) -> None:
    path = tmp_path / "image.jpg"
    noise = [Image.effect_noise((112, 80), spread) for spread in (30, 60, 90)]  # no channel is another's double
    Image.merge("RGB", noise).save(path)
    network = build(arch, sobel)
    model = backbones.preprocessor("DetDataPreprocessor", pad_size_divisor=1)
    preprocess = DetDataPreprocessor(**{key: model[key] for key in model if key != "type"})
    packed = PackDetInputs(meta_keys=("img_shape",)).transform(backbones.LoadRgb().transform({"img_path": str(path)}))
    batch = preprocess({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})
    backbone = backbones.UicBackbone(arch, sobel)
    backbone.load_network(network)
    pixels = torch.from_numpy(np.array(reader.read_rgb(path))).permute(2, 0, 1)[None]
    with torch.no_grad():
        (features,) = backbone(batch["inputs"])
        expected = as_in_fast_rcnn(network).taps(normalize(pixels), [layer])[layer]
    assert features.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_colour_reaches_the_network_as_rgb_without_imagenets_mean_and_deviation(tmp_path: Path, task: str) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 6), (200, 100, 30)).save(path)
    loaded = backbones.LoadRgb().transform({"img_path": str(path)})
    if task == "detection":
        packed = PackDetInputs(meta_keys=("img_shape",)).transform(loaded)
        settings = backbones.preprocessor("DetDataPreprocessor", pad_size_divisor=1)
        kind: Any = DetDataPreprocessor
    else:
        packed = PackSegInputs(meta_keys=("img_shape",)).transform(loaded)
        settings = backbones.preprocessor("SegDataPreProcessor", size_divisor=1, seg_pad_val=255)
        kind = SegDataPreProcessor
    preprocess = kind(**{key: value for key, value in settings.items() if key != "type"})
    found = preprocess({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})["inputs"]
    expected = [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(found, torch.tensor(expected)[None, :, None, None].expand(1, 3, 6, 8))


@pytest.mark.parametrize(("arch", "sobel"), [("alexnet", True), ("vgg16", False), ("resnet50", False)])
def test_an_exported_backbone_is_the_checkpoint_s(tmp_path: Path, arch: str, sobel: bool) -> None:
    network, path = build(arch, sobel), tmp_path / "openmmlab.safetensors"
    weights = export.openmmlab_weights(network)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    backbone = backbones.UicBackbone(arch, sobel, init_cfg={"type": "UicCheckpoint", "checkpoint": str(path)})
    backbone.init_weights()
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())
    other = backbones.UicBackbone(arch, not sobel, init_cfg={"type": "UicCheckpoint", "checkpoint": str(path)})
    with pytest.raises(InputError, match=rf"{path}: is no exported backbone .*conv1\.weight is \["):
        other.init_weights()
    with pytest.raises(InputError, match="is an exported backbone, without fc6 and fc7"):
        backbones.UicCheckpoint(str(path))(nn.Linear(2, 2))
    weights.popitem()
    with pytest.raises(InputError, match="is None, expected"):
        backbone.load_exported({name.removeprefix("backbone."): each for name, each in weights.items()}, path)


def test_architectures_without_fc6_are_refused() -> None:
    with pytest.raises(InputError, match="resnet50 has no fc6"):
        backbones.classifier_kernel(models.build("resnet50", classes=5, image_size=64, sobel=False))


def test_the_initialiser_hands_over_our_checkpoint(tmp_path: Path) -> None:
    network, path = build("alexnet", True), tmp_path / "checkpoint.safetensors"
    made = recipe(method="random", resize=64)
    checkpoint.save(path, network, made, {})
    backbone = backbones.UicBackbone("alexnet", True, init_cfg={"type": "UicCheckpoint", "checkpoint": str(path)})
    backbone.init_weights()
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickled_checkpoint_is_not_run(tmp_path: Path) -> None:
    path, ran = tmp_path / "checkpoint.safetensors", tmp_path / "ran"
    path.write_bytes(pickle.dumps(_Trap(ran)))
    backbone = backbones.UicBackbone("alexnet", True, init_cfg={"type": "UicCheckpoint", "checkpoint": str(path)})
    with pytest.raises(InputError, match=str(path)):
        backbone.init_weights()
    assert not ran.exists()


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(RuntimeError, match="conv1"):
        backbones.UicBackbone("alexnet", True).load_network(build("alexnet", False))


def test_images_are_rgb_and_as_large_as_annotated(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (5, 4), (255, 10, 20)).save(path)
    loaded = backbones.LoadRgb().transform({"img_path": str(path), "width": 5, "height": 4})
    assert loaded["img"].shape == (4, 5, 3)
    assert loaded["img"][0, 0].tolist() == [255, 10, 20]
    with pytest.raises(InputError, match=r"image\.png: is 5×4, but its annotation says 4×5"):
        backbones.LoadRgb().transform({"img_path": str(path), "width": 4, "height": 5})


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    hook = backbones.StopIfNotFinite(interval=10)

    def end_of(iteration: int, loss: float) -> None:
        messages = MessageHub("test")
        messages.update_scalar("train/loss", torch.tensor(loss))
        hook.after_train_iter(SimpleNamespace(iter=iteration, max_iters=100, message_hub=messages), iteration)

    end_of(3, math.nan)
    for iteration in (9, 99):
        with pytest.raises(InputError, match=f"loss is nan at iteration {iteration + 1}; lower"):
            end_of(iteration, math.nan)
    end_of(9, 1.0)


def test_backbone_and_hooks_wait_for_no_device_in_a_step(tmp_path: Path) -> None:
    backbone = backbones.UicBackbone("alexnet", True)
    messages = MessageHub("steps")
    messages.update_scalar("train/loss", 1.0)
    runner = SimpleNamespace(iter=9, max_iters=20, message_hub=messages)
    with Signals() as signals:
        state = State(tmp_path, {})
        resume = Resume(state, ALONE, signals, 0, 1, 1000, torch.device("cpu"))
        hooks = [backbones.StopIfNotFinite(10), DataTime(), resume]
        hooks[1].before_train(runner)
        with waiting.never():
            for hook in hooks:
                hook.before_train_iter(runner, 9)
            sum(each.sum() for each in backbone(torch.randn(1, 3, 64, 64))).backward()
            for hook in hooks:
                hook.after_train_iter(runner, 9)
