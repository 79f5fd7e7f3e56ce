"""Registered mmseg parts of FCN-32s as PROTOCOL section 7 has it, and its geometry; the rest is mmseg's own.

Imported through `custom_imports` of the config that uic_core.openmmlab.segmentation writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine.evaluator import BaseMetric
from mmseg.datasets import PascalVOCDataset
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from numpy.typing import NDArray
from torch import Tensor, nn

from uic_core.data import voc
from uic_core.errors import InputError
from uic_core.models import Network
from uic_core.openmmlab.resume import SeededDraws

STRIDE = 32


def centre(layers: Iterable[nn.Module]) -> tuple[int, float]:
    """Where a stack of convolutions and poolings looks: (stride, centre of output 0), in input pixels.

    A layer with kernel k, stride s and padding p on top of stride j moves the centre by j·((k-1)/2 - p).
    """
    stride, position = 1, 0.0
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, step, pad = (int(np.ravel(x)[0]) for x in (layer.kernel_size, layer.stride, layer.padding))
            position += stride * ((kernel - 1) / 2 - pad)
            stride *= step
    return stride, position


def placement(layers: Iterable[nn.Module], kernel: int) -> tuple[int, int]:
    """How scores come to lie on the input's pixels: (side of the bilinear kernel, rows and columns to cut off).

    fc6's k×k window looks at `centre` + 32·(k-1)/2. A bilinear kernel of side 63 puts score 0 at pixel 31, one of 64
    at 31.5; the one is taken that leaves a whole number to cut off. That gives FCN's own figures: (63, 18) for
    AlexNet and (64, 19) for VGG16, both padded by 100.

    Raises:
        InputError: the padding is so small that the first or the last pixels of some image have no score. The two
            borders are alike, but conv1 may leave up to 3 pixels unseen on the far one: 3 to spare are enough.
    """
    stride, position = centre(layers)
    assert stride == STRIDE, f"FCN-32s takes a stride of {STRIDE}, not {stride}"
    position += STRIDE * (kernel - 1) / 2
    bilinear = 2 * STRIDE - 1 if position.is_integer() else 2 * STRIDE
    crop = int((bilinear - 1) / 2 - position)
    if crop < 3:
        raise InputError(
            f"segmentation.pad: too small by {3 - crop} for an fc6 of {kernel}×{kernel}: pixels go without a score; "
            f"raise it"
        )
    return bilinear, crop


def upsample(scores: Tensor, bilinear: int) -> Tensor:
    """Bilinear upsampling by 32, as FCN's fixed transposed convolution (kernel 63 or 64, stride 32) does it.

    [B, C, h, w] to [B, C, 32·(h-1) + bilinear, 32·(w-1) + bilinear]. One ring of zeros and an interpolation give
    the same numbers without a convolution of that size.
    """
    ringed = F.pad(scores, (1, 1, 1, 1))
    if bilinear % 2:  # scores stand on pixels
        size = [STRIDE * (side - 1) + 1 for side in ringed.shape[-2:]]
        return F.interpolate(ringed, size=size, mode="bilinear", align_corners=True)[..., 1:-1, 1:-1]
    whole = F.interpolate(ringed, scale_factor=STRIDE, mode="bilinear", align_corners=False)  # scores stand between
    half = STRIDE // 2
    return whole[..., half:-half, half:-half]


@MODELS.register_module()
class Fcn32sHead(BaseDecodeHead):  # type: ignore[misc]
    """The classifier as convolutions: fc6 k×k, fc7 1×1, dropout .5 after both, scores, ×32, crop.

    Takes (map, images) of a dense UicBackbone.

    Args:
        kernel: k of fc6.
        bilinear, crop: from `placement`.
        others: as mmseg's BaseDecodeHead; `channels` is the hidden width.
    """

    def __init__(self, kernel: int, bilinear: int, crop: int, **others: Any) -> None:
        super().__init__(in_index=0, dropout_ratio=0, align_corners=False, **others)
        self.bilinear, self.crop = bilinear, crop
        self.fc6 = nn.Conv2d(self.in_channels, self.channels, kernel)
        self.fc7 = nn.Conv2d(self.channels, self.channels, 1)
        self.drop = nn.Dropout(0.5)

    def load_network(self, network: Network) -> None:
        """Take fc6 and fc7 from a pretrained network, every weight or an error; they become convolutions."""
        for name in ("fc6", "fc7"):
            layer: Any = getattr(self, name)
            linear: Any = getattr(network.classifier, name)
            layer.load_state_dict({"weight": linear.weight.view_as(layer.weight), "bias": linear.bias}, strict=True)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """(map [B, C, h, w], images [B, 3, H, W]) to scores [B, 21, H, W]."""
        features, images = inputs
        x = self.drop(F.relu(self.fc6(features)))
        x = self.drop(F.relu(self.fc7(x)))
        height, width = images.shape[-2:]
        scores = upsample(self.cls_seg(x), self.bilinear)
        scores = scores[..., self.crop : self.crop + height, self.crop : self.crop + width]
        assert scores.shape[-2:] == images.shape[-2:], "placement must see to it that every pixel has a score"
        return scores


@DATASETS.register_module()
class VocSegmentation(SeededDraws, PascalVOCDataset):  # type: ignore[misc]
    """mmseg's VOC data set with a strictly read list; takes the keys of any mmseg VOC config."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """As mmseg's. Raises InputError: a bad list, or an image of it without its files."""
        images = voc.Segmentation(Path(self.ann_file), Path(), Path()).ids()
        entries: list[dict[str, Any]] = super().load_data_list()
        if len(entries) != len(images):
            raise InputError(f"{self.ann_file}: has blank lines; remove them")
        for entry in entries:
            for key in ("img_path", "seg_map_path"):
                if not Path(entry[key]).is_file():
                    raise InputError(f"{entry[key]}: missing, but {self.ann_file} lists it; copy it again")
        return entries


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):  # type: ignore[misc]
    """Read `seg_map_path` strictly (FAULTS row 18); raises InputError naming a mask with values that are no class."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds `gt_seg_map`, uint8 [H, W], 255 ignored."""
        path = Path(results["seg_map_path"])
        mask = voc.read_mask(path)
        if mask.shape != tuple(results["img_shape"]):
            raise InputError(
                f"{path}: is {mask.shape[::-1]}, but its image is {results['img_shape'][::-1]}; correct it"
            )
        results["gt_seg_map"] = mask.copy()
        results["seg_fields"].append("gt_seg_map")
        return results


def confusion(prediction: NDArray[np.integer], truth: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Pixel counts int64 [truth, prediction]; pixels whose truth is 255 are not counted."""
    counted = truth != voc.IGNORED
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IU of every class, 0…1, from a confusion matrix; NaN for a class neither annotated nor predicted."""
    both = counts.diagonal().astype(np.float64)
    either = counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    return np.asarray(np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0))


@METRICS.register_module()
class VocIu(BaseMetric):  # type: ignore[misc]
    """Mean IU in per cent from one histogram over all images (Long et al. 2015), and every class's.

    A class that is neither annotated nor predicted has no IU: it has no value and is not in the mean, as in mmseg.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count one batch; whole numbers, where mmseg sums in float32."""
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            prediction = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()
            truth = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
            self.results.append(confusion(prediction, truth, classes))

    def compute_metrics(self, results: list[NDArray[np.int64]]) -> dict[str, float]:
        """`miou` and `iou/<class>`, 0…100."""
        shares = 100 * intersection_over_union(np.sum(results, axis=0))
        named = zip(self.dataset_meta["classes"], shares, strict=True)
        return {"miou": float(np.nanmean(shares))} | {
            f"iou/{name}": float(share) for name, share in named if not np.isnan(share)
        }
