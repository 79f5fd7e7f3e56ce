"""FCN-32s: geometry, upsampling, the classifier as convolutions, and mean IU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from PIL import Image
from scipy.io import savemat
from torch import Tensor, nn

from tests import waiting
from uic_core import models
from uic_core.data import voc
from uic_core.errors import InputError
from uic_core.openmmlab import backbones, fcn, segmentation


@pytest.fixture(autouse=True)
def mmseg_first() -> Iterator[None]:
    """Names of parts are looked up in mmseg, whatever other tests of this process did."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def skeleton(arch: str, pad: int, kernel: int, *, average: bool = False) -> nn.Sequential:
    """The dense backbone and fc6 with one channel and all weights 1: where it looks, without what it sees."""
    layers: list[nn.Module] = []
    for layer in backbones.UicBackbone(arch, False, pad=pad).features:
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, bias=False))
        elif isinstance(layer, nn.MaxPool2d):
            pool = nn.AvgPool2d if average else nn.MaxPool2d
            layers.append(pool(layer.kernel_size, layer.stride, ceil_mode=layer.ceil_mode))
    layers.append(nn.Conv2d(1, 1, kernel, bias=False))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    return nn.Sequential(*layers)


def test_kernel_and_crop_are_the_published_ones() -> None:
    """FCN's code upsamples AlexNet with a kernel of 63 and crops 18, VGG16 with 64 and 19; both padded by 100."""
    for arch, kernel, expected in (("alexnet", 6, (63, 18)), ("vgg16", 7, (64, 19)), ("alexnet", 1, (63, 98))):
        assert models.ARCHS[arch].fcn(100, kernel) == expected


@pytest.mark.parametrize("arch", [name for name, arch in models.ARCHS.items() if arch.windows])
@pytest.mark.parametrize("image_size", [64, 96, 128, 224])
def test_the_windows_that_an_architecture_states_are_the_layers(arch: str, image_size: int) -> None:
    with torch.device("meta"):
        network = models.build(arch, classes=2, image_size=image_size, sobel=False)
    described = models.ARCHS[arch]
    layers = [layer for layer in network.features.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    sides = [(layer.kernel_size, layer.stride, layer.padding) for layer in layers]
    assert described.windows == tuple(tuple(int(np.ravel(side)[0]) for side in three) for three in sides)
    kernel = backbones.classifier_kernel(network)[1]
    assert described.fc6_side(image_size) == kernel
    least = described.least_pad(image_size)
    assert described.fcn(least, kernel)[1] >= 3
    assert not least or described.fcn(least - 1, kernel)[1] == 2


@pytest.mark.parametrize(
    ("arch", "pad", "kernel"), [("alexnet", 100, 6), ("alexnet", 100, 1), ("alexnet", 16, 1), ("vgg16", 100, 7)]
)
def test_a_score_lies_where_its_receptive_field_is(arch: str, pad: int, kernel: int) -> None:
    network = skeleton(arch, pad, kernel, average=True)
    image = torch.zeros(1, 1, 440, 440, requires_grad=True)
    scores = network(image)[0, 0]
    row = scores.shape[0] // 2  # its field is wholly inside
    scores[row, row].backward()
    assert image.grad is not None
    seen = image.grad[0, 0].abs().sum(dim=1).nonzero()
    # Upsampled, its peak stands at 32·row + the kernel's centre, of 64 between two pixels; cut, where it saw.
    bilinear, crop = models.ARCHS[arch].fcn(pad, kernel)
    peak = torch.zeros(1, 1, *scores.shape)
    peak[0, 0, row, row] = 1
    heights = fcn.upsample(peak, bilinear)[0, 0].amax(dim=1)
    places = (heights == heights.max()).nonzero()
    assert places.double().mean().item() - crop == (seen.min() + seen.max()).item() / 2


@pytest.mark.parametrize(("pad", "kernel"), [(100, 6), (85, 6), (100, 1), (16, 1), (5, 1)])
def test_every_pixel_of_every_image_size_has_a_score(pad: int, kernel: int) -> None:
    network = skeleton("alexnet", pad, kernel)
    bilinear, crop = models.ARCHS["alexnet"].fcn(pad, kernel)
    for side in range(64, 600, 3):
        with torch.no_grad():
            scores = network(torch.zeros(1, 1, side, 64))
        assert crop + side <= 32 * (scores.shape[2] - 1) + bilinear, f"{side} pixels"


@pytest.mark.parametrize(
    ("arch", "image_size", "kernel"), [("alexnet", 64, 1), ("alexnet", 96, 2), ("alexnet_rotnet", 96, 2)]
)
def test_the_head_is_the_pretrained_classifier_and_keeps_the_image_size(
    arch: str, image_size: int, kernel: int
) -> None:
    torch.manual_seed(0)
    network = models.build(arch, classes=5, image_size=image_size, sobel=True)
    network(torch.randn(8, 3, image_size, image_size))  # batch norm has statistics
    network.eval()
    backbone = backbones.UicBackbone(arch, True, pad=100)
    backbone.load_network(network)
    bilinear, crop = models.ARCHS[arch].fcn(100, kernel)
    head = fcn.Fcn32sHead(
        kernel=kernel, bilinear=bilinear, crop=crop, in_channels=256, channels=4096, num_classes=21
    ).eval()
    head.load_network(network)
    maps = torch.randn(2, 256, kernel, kernel)
    with torch.no_grad():
        hidden = F.relu(head.fc7(F.relu(head.fc6(maps)))).flatten(1)
        torch.testing.assert_close(hidden, network.classifier(maps.flatten(1)))
        for height, width in ((64, 64), (75, 101), (120, 97)):
            assert head(backbone(torch.randn(1, 3, height, width))).shape == (1, 21, height, width)


def test_scores_are_cut_where_the_image_lies() -> None:
    """A 1×1 classifier that passes its map on: ×32 by FCN's own kernel of 63, then 18 rows and columns cut off."""
    head = fcn.Fcn32sHead(kernel=1, bilinear=63, crop=18, in_channels=1, channels=1, num_classes=2).eval()
    for layer in (head.fc6, head.fc7, head.conv_seg):
        nn.init.zeros_(layer.bias)
        nn.init.ones_(layer.weight)
    with torch.no_grad():
        head.conv_seg.weight[1] = -1
    maps = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    ramp = 1 - (torch.arange(63.0) - 31).abs() / 32
    whole = F.conv_transpose2d(maps, (ramp[:, None] * ramp[None])[None, None], stride=32)
    with torch.no_grad():
        scores = head((maps, torch.zeros(1, 3, 100, 150)))
    expected = whole[..., 18:118, 18:168]
    torch.testing.assert_close(scores, torch.cat([expected, -expected], 1))


def test_dropout_stands_behind_fc6_and_behind_fc7() -> None:
    torch.manual_seed(0)
    head = fcn.Fcn32sHead(kernel=1, bilinear=63, crop=18, in_channels=64, channels=64, num_classes=2).train()
    for layer in (head.fc6, head.fc7):
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    seen = {}
    for name in ("fc7", "conv_seg"):
        head.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    head((torch.ones(1, 64, 9, 9), torch.zeros(1, 3, 100, 150)))
    for name, kept, value in (("fc7", 0.5, 2.0), ("conv_seg", 0.25, 4.0)):
        assert set(seen[name].unique().tolist()) == {0.0, value}
        assert (seen[name] > 0).float().mean().item() == pytest.approx(kept, abs=0.03)


def test_mean_iu_by_hand() -> None:
    # truth 0 0 1 1 2 (and one border pixel), prediction 0 1 1 1 1: class 0 has 1 of 2, class 1 has 2 of 4,
    # class 2 none of 1, class 3 is nowhere.
    truth, prediction = np.array([[0, 0, 1], [1, 2, 255]]), np.array([[0, 1, 1], [1, 1, 3]])
    shares = fcn.intersection_over_union(fcn.confusion(prediction, truth, 4))
    np.testing.assert_allclose(shares, [1 / 2, 2 / 4, 0, math.nan])


def test_iu_is_of_one_histogram_and_equals_mmseg() -> None:
    rng = np.random.default_rng(0)
    names = voc.CLASSES_SEGMENTATION
    samples = []
    for side in (7, 30):  # sizes differ: a mean over images would differ from one histogram
        truth = rng.choice([*range(19), 255], (1, side, side))
        prediction = np.where(rng.random(truth.shape) < 0.6, truth % 255, rng.integers(0, 20, truth.shape))
        samples.append(
            {"gt_sem_seg": {"data": torch.tensor(truth)}, "pred_sem_seg": {"data": torch.tensor(prediction)}}
        )
    ours, theirs = fcn.VocIu(), IoUMetric(iou_metrics=["mIoU"])
    for metric in (ours, theirs):
        metric.dataset_meta = {"classes": names}
        metric.process({}, samples)
    values = ours.compute_metrics(ours.results)
    assert values["miou"] == pytest.approx(theirs.compute_metrics(theirs.results)["mIoU"], abs=0.0051)  # 2 digits
    assert values["miou"] == pytest.approx(np.mean([v for name, v in values.items() if name != "miou"]))
    assert "iou/tvmonitor" not in values  # neither annotated nor predicted
    assert values["iou/train"] == 0.0  # predicted, not annotated
    assert len(values) == 21


def test_a_mask_with_an_unknown_index_or_another_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 20, 255, 21]], np.uint8)).save(path)
    results = {"seg_map_path": str(path), "img_shape": (1, 4), "seg_fields": []}
    with pytest.raises(InputError, match=r"mask\.png: .*21"):
        fcn.LoadMask().transform(results)
    Image.fromarray(np.array([[0, 20, 255, 1]], np.uint8)).save(path)
    assert fcn.LoadMask().transform(results)["gt_seg_map"].tolist() == [[0, 20, 255, 1]]
    with pytest.raises(InputError, match=r"mask\.png: is \(4, 1\), but its image is \(5, 1\)"):
        fcn.LoadMask().transform(results | {"img_shape": (1, 5)})


def test_the_data_set_names_a_missing_file(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    def dataset(root: Path) -> fcn.VocMasks:
        return fcn.VocMasks(
            data_root=str(root),
            ann_file="VOC2012/ImageSets/Segmentation/val.txt",
            data_prefix={"img_path": "VOC2012/JPEGImages", "seg_map_path": "VOC2012/SegmentationClass"},
            pipeline=[],
        )

    _, val = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    read = dataset(demo_data.voc_segmentation)
    assert [Path(read.get_data_info(n)["img_path"]).stem for n in range(len(read))] == list(val.ids())
    assert tuple(read.metainfo["classes"]) == voc.CLASSES_SEGMENTATION
    broken = tmp_path / "VOC2012"
    (broken / "ImageSets" / "Segmentation").mkdir(parents=True)
    (broken / "JPEGImages").mkdir()
    (broken / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000001\n")
    with pytest.raises(InputError, match=r"2007_000001\.jpg: missing, but .*val\.txt lists it"):
        dataset(tmp_path)


def test_sbd_s_masks_reach_the_model(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    own, _ = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    (tmp_path / "cls").mkdir()
    (tmp_path / "img").symlink_to(own.images)
    masks = {image: np.minimum(voc.read_mask(own.mask(image)), 20) for image in own.ids()}
    for image, mask in masks.items():
        savemat(tmp_path / "cls" / f"{image}.mat", {"GTcls": {"Segmentation": mask}})
    (tmp_path / "train.txt").write_text("\n".join(masks) + "\n")
    sbd, _ = voc.segmentation_lists(demo_data.voc_segmentation, str(tmp_path), "train", "val")
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset = DATASETS.build(segmentation._dataset(sbd, test=False))
    for item, mask in zip((dataset[n] for n in range(len(dataset))), masks.values(), strict=True):
        assert item["inputs"].shape[1:] == mask.shape
        np.testing.assert_array_equal(item["data_samples"].gt_sem_seg.data[0].numpy(), mask)


def transposed(scores: Tensor, bilinear: int) -> Tensor:
    """FCN's own upsampling: a transposed convolution whose fixed kernel is a pyramid, each class by itself."""
    ramp = 1 - (torch.arange(bilinear, dtype=torch.float64) - (bilinear - 1) / 2).abs() / 32
    kernel = (ramp[:, None] * ramp[None]).repeat(scores.shape[1], 1, 1, 1)
    return F.conv_transpose2d(scores, kernel, stride=32, groups=scores.shape[1])


@pytest.mark.parametrize("bilinear", [63, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(slice(None), slice(None)), (slice(18, 119), slice(19, 150))])
def test_upsampling_equals_the_transposed_convolution_forward_and_backward(
    bilinear: int, dtype: torch.dtype, rows: slice, columns: slice
) -> None:
    torch.manual_seed(0)
    scores = torch.rand(2, 3, 4, 5, dtype=torch.float64).to(dtype)
    ours, theirs = scores.clone().requires_grad_(), scores.double().requires_grad_()
    found = fcn.upsample(ours, bilinear, rows, columns)
    expected = transposed(theirs, bilinear)
    assert expected.shape[2:] == (32 * 3 + bilinear, 32 * 4 + bilinear)
    expected = expected[..., rows, columns]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert found.dtype is dtype
    weights = torch.rand(expected.shape, dtype=torch.float64)
    (found * weights.to(dtype)).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-6, atol=1e-6)  # sums of thousands of pixels


def test_a_pass_of_the_head_interpolates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its upsampling nor mmseg's resizing to the labels' size: on a GPU its gradient adds in any order."""
    torch.manual_seed(0)
    head = fcn.Fcn32sHead(
        kernel=1, bilinear=63, crop=5, in_channels=8, channels=16, num_classes=21, ignore_index=255,
        loss_decode={"type": "CrossEntropyLoss", "avg_non_ignore": True},
    )  # fmt: skip
    features, images = torch.randn(1, 8, 3, 4), torch.zeros(1, 3, 80, 101)
    labels = torch.randint(0, 21, (1, 80, 101))
    labels[:, :30] = 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    seeds = torch.get_rng_state()
    scores = head((features, images))
    expected = BaseDecodeHead.loss_by_feat(head, scores, [sample])
    by_hand = F.cross_entropy(
        scores[..., 30:, :], labels[:, 30:]
    )  # FCN's `normalize: true`: the mean over counted pixels
    torch.set_rng_state(seeds)  # of dropout

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("interpolated")

    monkeypatch.setattr(F, "interpolate", refuse)
    with waiting.never():
        found = head.loss((features, images), [sample], {})
    assert found.keys() == expected.keys() == {"loss_ce", "acc_seg"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.testing.assert_close(found["loss_ce"], by_hand)
    found["loss_ce"].backward()
