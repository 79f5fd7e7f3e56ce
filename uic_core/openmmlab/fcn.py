"""Registered mmseg components for FCN-32s as in protocol.md, Segmentation; the rest is mmseg's own.

Imported through `custom_imports` of the config that uic_core.openmmlab.segmentation writes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from uic_core.models.architecture import FCN_STRIDE
from uic_core.models.network import Network
from uic_core.openmmlab.resume import SeededDraws


def upsample(scores: Tensor, bilinear: int, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
    """Upsample bilinearly by 32, like FCN's fixed transposed convolution (kernel 63 or 64, stride 32).

    Bilinear weights are the product of a row weight and a column weight, so two matrix products suffice: the first
    upsamples the rows, the second the columns. Their gradient is deterministic on a GPU too; that of F.interpolate is
    not.

    Args:
        scores: [B, C, h, w].
        bilinear: side of the convolution's kernel.
        rows, columns: the slice of the 32·(h-1) + bilinear rows and 32·(w-1) + bilinear columns to compute.

    Returns:
        The selected part, [B, C, H, W], in the scores' dtype.
    """
    down, across = (
        _weights(side, bilinear, scores.dtype, scores.device)[wanted]
        for side, wanted in zip(scores.shape[-2:], (rows, columns), strict=True)
    )
    return down @ scores @ across.T


@functools.lru_cache(maxsize=256)
def _weights(scores: int, bilinear: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weight of each score for each pixel along one side, [32·(scores-1) + bilinear, scores]."""
    pixels = torch.arange(FCN_STRIDE * (scores - 1) + bilinear, dtype=torch.float64)
    centres = FCN_STRIDE * torch.arange(scores, dtype=torch.float64) + (bilinear - 1) / 2
    return (1 - (pixels[:, None] - centres).abs() / FCN_STRIDE).clamp(min=0).to(device, dtype)


@MODELS.register_module()
class Fcn32sHead(BaseDecodeHead):  # type: ignore[misc]
    """The classifier as convolutions: fc6 k×k, fc7 1×1, dropout .5 after both, scores, ×32, crop.

    Takes the (map, images) of a UicBackbone with `pad`.

    Args:
        kernel: kernel side k of fc6.
        bilinear, crop: from `Architecture.fcn`.
        others: arguments of mmseg's BaseDecodeHead; `channels` is the hidden width.
    """

    def __init__(self, kernel: int, bilinear: int, crop: int, **others: Any) -> None:
        super().__init__(in_index=0, dropout_ratio=0, align_corners=False, **others)
        self.bilinear, self.crop = bilinear, crop
        self.fc6 = nn.Conv2d(self.in_channels, self.channels, kernel)
        self.fc7 = nn.Conv2d(self.channels, self.channels, 1)
        self.drop = nn.Dropout(0.5)

    def load_network(self, network: Network) -> None:
        """Copy fc6 and fc7 of a pretrained network as convolutions; raise an error if a weight does not fit."""
        for name, (weight, bias) in network.linear_layers().items():
            layer: Any = getattr(self, name)
            layer.load_state_dict({"weight": weight.view_as(layer.weight), "bias": bias}, strict=True)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map (map [B, C, h, w], images [B, 3, H, W]) to scores [B, 21, H, W]."""
        features, images = inputs
        x = self.drop(F.relu(self.fc6(features)))
        x = self.drop(F.relu(self.fc7(x)))
        wanted = (slice(self.crop, self.crop + side) for side in images.shape[-2:])
        scores = upsample(self.cls_seg(x), self.bilinear, *wanted)
        assert scores.shape[-2:] == images.shape[-2:], "the padding must see to it that every pixel has a score"
        return scores

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[Any]) -> dict[str, Tensor]:
        """mmseg's loss without its interpolation to the labels' size, which the scores already have."""
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        return {
            self.loss_decode.loss_name: self.loss_decode(seg_logits, labels, ignore_index=self.ignore_index),
            "acc_seg": accuracy(seg_logits, labels, self.ignore_index),
        }


def accuracy(scores: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Compute the share of counted pixels whose class has the largest score, percent; for the log.

    mmseg's own selects the counted pixels first, and so waits for the device.

    Args:
        scores: [B, C, H, W].
        labels: int [B, H, W]; those that are `ignored` are not counted.

    Returns:
        float32 [1], the number that mmseg's has.
    """
    counted = labels != ignored
    right = (scores.topk(1, dim=1).indices[:, 0] == labels) & counted
    smallest = torch.finfo(torch.float32).eps  # no division by 0
    return (right.sum(dtype=torch.float32).view(1) + smallest) * (100 / (counted.sum().double() + smallest)).float()


@DATASETS.register_module()
class VocMasks(SeededDraws, PascalVOCDataset):  # type: ignore[misc]
    """mmseg's VOC data set with a strictly read list; takes the keys of any mmseg VOC config."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """mmseg's entries. Raises InputError: the list is invalid, or an image of it lacks a file."""
        images = voc.MaskList(Path(self.ann_file), Path(), Path()).ids()
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
    """Read `seg_map_path` strictly. Raises InputError if a mask has values that are not classes."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `gt_seg_map`, uint8 [H, W]; 255 is ignored."""
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
    """Count pixels, int64 [truth, prediction]; pixels with truth 255 are ignored."""
    counted = truth != voc.IGNORED
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute every class's IU, 0…1, from a confusion matrix; NaN if a class is neither annotated nor predicted."""
    both = counts.diagonal().astype(np.float64)
    either = counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    return np.asarray(np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0))


@METRICS.register_module()
class VocIu(BaseMetric):  # type: ignore[misc]
    """IU of every class and their mean in percent, from one histogram over all images (Long et al. 2015).

    A class that is neither annotated nor predicted has no value and does not enter the mean, as in mmseg.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of one batch, in integers; mmseg sums in float32."""
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            prediction = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()
            truth = sample["gt_sem_seg"]["data"].squeeze(0).cpu().numpy()
            self.results.append(confusion(prediction, truth, classes))

    def compute_metrics(self, results: list[NDArray[np.int64]]) -> dict[str, float]:
        """Compute `miou` and `iou/<class>`, 0…100."""
        shares = 100 * intersection_over_union(np.sum(results, axis=0))
        named = zip(self.dataset_meta["classes"], shares, strict=True)
        return {"miou": float(np.nanmean(shares))} | {
            f"iou/{name}": float(share) for name, share in named if not np.isnan(share)
        }
