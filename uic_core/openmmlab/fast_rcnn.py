"""Registered mmdet components for Fast R-CNN as in docs/protocol.md, Detection; everything else is mmdet's own.

VOC's boxes include their last pixel, in the original image. mmdet's right and bottom are the edges where a box ends,
one pixel further; `to_edges` adds that pixel. Boxes stay in the original image's pixels, so that mmdet's overlaps,
targets, suppression and flips equal Fast R-CNN's. Only RoI pooling uses boxes in the resized image.

Imported through `custom_imports` of the config that uic_core.openmmlab.detection writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from mmcv.ops import nms
from mmcv.transforms import BaseTransform
from mmdet.datasets import VOCDataset
from mmdet.models import Shared2FCBBoxHead, SingleRoIExtractor, StandardRoIHead
from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.dist import broadcast
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from torch import Tensor, nn

from uic_core.data import voc
from uic_core.data.boxes import from_edges, to_edges
from uic_core.errors import InputError
from uic_core.models.network import Network
from uic_core.openmmlab import proposals
from uic_core.openmmlab.resume import SeededDraws, unwrapped
from uic_core.openmmlab.voc_ap import Scene, average_precision
from uic_core.run import devices


@DATASETS.register_module()
class VocProposals(SeededDraws, VOCDataset):  # type: ignore[misc]
    """mmdet's VOC data set, read strictly, with `proposal_file` in our own format (mmdet's is a pickle).

    Takes the keys of any mmdet VOC config: data_root, ann_file "VOC2007/ImageSets/Main/<split>.txt",
    data_prefix {"sub_data_root": "VOC2007/"}. Training omits images whose objects are all difficult.

    Raises InputError from uic_core.data.voc and uic_core.openmmlab.proposals.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dictionary per image, in the list's order; boxes as edges, in pixels counted from 0."""
        root = Path(self.data_root)
        return [self._entry(root, image) for image in voc.read_list(root, self._split)]

    @property
    def _split(self) -> str:
        return Path(self.ann_file).stem

    def _entry(self, root: Path, image: str) -> dict[str, Any]:
        path = voc.annotation_path(root, image)
        annotation = voc.read_annotation(path)
        instances = [
            {"bbox": box.tolist(), "bbox_label": int(label), "ignore_flag": int(difficult)}
            for box, label, difficult in zip(
                to_edges(annotation.boxes), annotation.labels, annotation.difficult, strict=True
            )
        ]
        return {
            "img_id": image,
            "img_path": str(voc.image_path(root, image)),
            "xml_path": str(path),
            "width": annotation.width,
            "height": annotation.height,
            "instances": instances,
        }

    def load_proposals(self) -> None:
        """Attach proposals, as edges, to every image; check them against the list and the sizes of its images."""
        sizes = {entry["img_id"]: (entry["width"], entry["height"]) for entry in self.data_list}
        found = proposals.load(Path(self.proposal_file), None, sizes)  # the stage has compared the fingerprint
        for position, entry in enumerate(self.data_list):
            boxes = to_edges(found.of(position))
            entry["proposals"] = {"bboxes": boxes, "scores": np.zeros(len(boxes), np.float32)}

    def filter_data(self) -> list[dict[str, Any]]:
        """For testing, return all images; for training, those with at least one object that is not difficult."""
        if self.test_mode:
            return list(self.data_list)
        return [entry for entry in self.data_list if any(not each["ignore_flag"] for each in entry["instances"])]


@TRANSFORMS.register_module()
class FlipBoxes(BaseTransform):  # type: ignore[misc]
    """Mirror objects and proposals, in the original image's pixels, if the image was mirrored.

    Must follow the steps that flip and resize the image and load the annotations.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change `gt_bboxes` and `proposals` [n, 4]: left l and right r become W - r and W - l."""
        if results.get("flip"):
            assert results["flip_direction"] == "horizontal"
            width = results["ori_shape"][1]
            results["gt_bboxes"].flip_(results["ori_shape"], "horizontal")
            boxes = results["proposals"].copy()
            boxes[:, 0::2] = width - boxes[:, 2::-2]
            results["proposals"] = boxes
        return results


@MODELS.register_module()
class OriginalPixelsRoIHead(StandardRoIHead):  # type: ignore[misc]
    """mmdet's RoI head for boxes as edges in the original image's pixels."""

    def forward(self, x: Any, rpn_results_list: Any, batch_data_samples: Any = None) -> Any:
        """mmdet's forward, for boxes in the original image's pixels."""
        self._set_scales([sample.metainfo for sample in batch_data_samples], x)
        return super().forward(x, rpn_results_list, batch_data_samples)

    def loss(self, x: Any, rpn_results_list: Any, batch_data_samples: Any) -> Any:
        """mmdet's loss, for boxes in the original image's pixels."""
        self._set_scales([sample.metainfo for sample in batch_data_samples], x)
        return super().loss(x, rpn_results_list, batch_data_samples)

    def predict_bbox(
        self, x: Any, batch_img_metas: Sequence[dict[str, Any]], rpn_results_list: Any, rcnn_test_cfg: Any,
        rescale: bool = False,
    ) -> Any:  # fmt: skip
        """mmdet's prediction, with boxes clipped to the original image and in its pixels whether or not `rescale`."""
        self._set_scales(batch_img_metas, x)
        originals = [meta | {"img_shape": meta["ori_shape"]} for meta in batch_img_metas]
        return super().predict_bbox(x, originals, rpn_results_list, rcnn_test_cfg, rescale=False)

    def _set_scales(self, metas: Sequence[dict[str, Any]], x: Sequence[Tensor]) -> None:
        scales = np.array([meta["scale_factor"] for meta in metas], np.float32)
        self._scales = devices.onto(x[0].device, scales)

    def _bbox_forward(self, x: Any, rois: Tensor) -> Any:
        return super()._bbox_forward(x, resized(rois, self._scales))


def resized(rois: Tensor, scales: Tensor) -> Tensor:
    """Convert RoIs to the input of RoI pooling: first and last pixel, in the resized image.

    Args:
        rois: [n, 5], the image's position in the batch, left, top, right, bottom; edges in the original image's pixels.
        scales: [B, 2], resized size ÷ original size of each image, in x and y.
    """
    last = rois[:, 3:] - 1
    scale = scales[rois[:, 0].long()]
    return torch.cat([rois[:, :1], rois[:, 1:3] * scale, last * scale], dim=1)


@MODELS.register_module()
class MaxRoIExtractor(SingleRoIExtractor):  # type: ignore[misc]
    """RoI max pooling with torchvision's operator: mmcv's has no CPU kernel. `roi_layer` is {"output_size": k}."""

    def build_roi_layers(self, layer_cfg: dict[str, Any], featmap_strides: list[int]) -> nn.ModuleList:
        """Create one RoIPool per stride."""
        side = layer_cfg["output_size"]
        return nn.ModuleList([torchvision.ops.RoIPool((side, side), 1 / stride) for stride in featmap_strides])


@MODELS.register_module()
class PretrainedBBoxHead(Shared2FCBBoxHead):  # type: ignore[misc]
    """fc6 and fc7 of a pretrained classifier with dropout, then new layers for class scores and class-wise boxes.

    Args:
        dropout: probability after fc6 and after fc7.
        target_means, target_stds: means and deviations of the regression targets by class, [classes, 4]; the layer
            learns targets normalised by them.
        others: arguments of mmdet's Shared2FCBBoxHead; its `bbox_coder` must not normalise again.
    """

    def __init__(
        self, dropout: float, target_means: Sequence[Sequence[float]], target_stds: Sequence[Sequence[float]],
        **others: Any,
    ) -> None:  # fmt: skip
        super().__init__(**others)
        self.dropout = nn.Dropout(dropout)
        for name, values in (("_means", target_means), ("_stds", target_stds)):
            self.register_buffer(name, torch.tensor(values), persistent=False)  # they are in the config
            assert getattr(self, name).shape == (self.num_classes, 4)

    def load_network(self, network: Network) -> None:
        """Copy fc6 and fc7 of a pretrained network; raise an error if a weight is missing or does not fit."""
        for layer, (weight, bias) in zip(self.shared_fcs, network.linear_layers().values(), strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias}, strict=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map RoI maps [n, C, k, k] to class scores [n, 21] (background last) and box offsets [n, 20·4]."""
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = self.dropout(self.relu(layer(x)))
        return self.fc_cls(x), self.fc_reg(x)

    def _predict_by_feat_single(
        self, roi: Tensor, cls_score: Tensor, bbox_pred: Tensor, img_meta: dict[str, Any], rescale: bool = False,
        rcnn_test_cfg: Any = None,
    ) -> InstanceData:  # fmt: skip
        """Predict the boxes of one image, best first, after non-maximum suppression of each class.

        mmdet's own NMS offsets the classes' boxes, which rounds them, and its clipping may cut off a box's last pixel.
        NMS runs on the CPU: a CPU build of mmcv has no CUDA NMS, and the order of ties stays the same.

        Args:
            roi, cls_score, bbox_pred: [n, 5], [n, classes + 1] (background last), [n, classes · 4].
            img_meta: its `img_shape` (H, W) bounds the boxes.
            rcnn_test_cfg: score_thr, nms.iou_threshold, max_per_img.
        """
        offsets = bbox_pred.view(-1, *self._means.shape) * self._stds + self._means
        priors = roi[:, 1:].repeat_interleave(self.num_classes, dim=0)
        decoded = self.bbox_coder.decode(priors, offsets.view(-1, 4))
        boxes = clipped(decoded, img_meta["img_shape"]).view(-1, self.num_classes, 4).cpu()
        scores = cls_score.softmax(dim=-1).cpu()
        kept = []
        for label in range(self.num_classes):
            likely = scores[:, label] > rcnn_test_cfg.score_thr
            if likely.any():
                found, _ = nms(boxes[likely, label], scores[likely, label], rcnn_test_cfg.nms.iou_threshold)
                kept.append(torch.cat([found, torch.full_like(found[:, :1], label)], dim=1))
        every = torch.cat(kept) if kept else boxes.new_zeros(0, 6)
        every = every[every[:, 4].argsort(descending=True, stable=True)[: rcnn_test_cfg.max_per_img]]
        return InstanceData(bboxes=every[:, :4], scores=every[:, 4], labels=every[:, 5].long())

    def _get_targets_single(
        self, pos_priors: Tensor, neg_priors: Tensor, pos_gt_bboxes: Tensor, pos_gt_labels: Tensor, cfg: Any
    ) -> tuple[Tensor, ...]:
        """Compute mmdet's targets, then normalise those of foreground RoIs by their class's statistics."""
        found = super()._get_targets_single(pos_priors, neg_priors, pos_gt_bboxes, pos_gt_labels, cfg)
        labels, label_weights, targets, weights = found
        objects = len(pos_priors)
        targets[:objects] = (targets[:objects] - self._means[pos_gt_labels]) / self._stds[pos_gt_labels]
        return labels, label_weights, targets, weights


@HOOKS.register_module()
class RescaleClassifier(Hook):  # type: ignore[misc]
    """Data-dependent rescaling (Krähenbühl et al. 2016, "magic_init") of the pretrained fc6 and fc7.

    Each layer in turn is divided by the standard deviation of its outputs on the proposals of `images` training
    images, so that both layers start with unit variance at this task's scales. Biases are also divided by the factor of
    the layer's inputs, so that only the scale of the output changes. Convolutions have BN, which already does this.
    """

    def __init__(self, images: int) -> None:
        self.images = images

    @torch.no_grad()
    def before_train(self, runner: Any) -> None:
        """Change weights and biases of `roi_head.bbox_head.shared_fcs` in place."""
        model = unwrapped(runner)
        model.eval()
        loader = runner.train_dataloader  # not iterated: leaving the loop early would end its endless sampler
        spread = np.linspace(0, len(loader.dataset) - 1, min(self.images, len(loader.dataset))).round()
        batches = [loader.collate_fn([loader.dataset[int(position)]]) for position in spread]
        inputs = 1.0
        for number, layer in enumerate(model.roi_head.bbox_head.shared_fcs, start=6):
            layer.bias /= inputs
            outputs: list[Tensor] = []
            # copy, because the following ReLU works in place
            handle = layer.register_forward_hook(lambda _m, _i, output, kept=outputs: kept.append(output.clone()))
            for batch in batches:
                model(**model.data_preprocessor(batch, False), mode="tensor")
            handle.remove()
            deviation = torch.cat(outputs).std(dim=0).mean()
            broadcast(deviation)  # GPUs may sum in different orders, but all ranks need equal weights
            inputs *= deviation.item()
            layer.weight /= deviation
            layer.bias /= deviation
            runner.logger.info(f"fc{number}: standard deviation {deviation.item():.4g} set to 1")
        model.train()


def clipped(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Clip boxes [n, 4], given as edges, so that first and last pixel lie inside an image of `shape` (H, W)."""
    sides = boxes.new_tensor([shape[1], shape[0]])
    first = torch.minimum(boxes[:, :2].clamp(min=0), sides - 1)
    return torch.cat([first, torch.minimum(boxes[:, 2:].clamp(min=1), sides)], dim=1)


@METRICS.register_module()
class VocAp(BaseMetric):  # type: ignore[misc]
    """VOC 2007's average precision of every class and their mean, in percent (uic_core.openmmlab.voc_ap).

    A class with no objects in the test set, or only difficult ones, has no value and does not enter the mean.
    """

    default_prefix = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Store the boxes, labels and scores of a batch, whose boxes are given as edges."""
        for sample in data_samples:
            kept = {}
            for group in ("gt_instances", "ignored_instances", "pred_instances"):
                values = {name: sample[group][name].cpu().numpy() for name in ("bboxes", "labels")}
                kept[group] = from_edges(values["bboxes"].astype(np.float64)), values["labels"]
            self.results.append(kept | {"scores": sample["pred_instances"]["scores"].cpu().numpy()})

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute `map` and `ap/<class>`, 0…100."""
        values = {
            f"ap/{name}": 100.0 * found
            for label, name in enumerate(self.dataset_meta["classes"])
            if (found := average_precision([_scene(image, label) for image in results])) is not None
        }
        if not values:
            raise InputError("detection: no test image shows an object that is not difficult; check the test list")
        return {"map": float(np.mean(list(values.values())))} | values


def _scene(image: dict[str, Any], label: int) -> Scene:
    """Select one class from an image's result of `VocAp.process`."""
    plain, difficult, found = (
        boxes[labels == label]
        for boxes, labels in (image[group] for group in ("gt_instances", "ignored_instances", "pred_instances"))
    )
    return Scene(
        truths=np.concatenate([plain, difficult]),
        difficult=np.arange(len(plain) + len(difficult)) >= len(plain),
        boxes=found,
        scores=image["scores"][image["pred_instances"][1] == label],
    )
