"""Registered mmdet parts of Fast R-CNN as PROTOCOL section 6 has it; everything else is mmdet's own.

Imported through `custom_imports` of the config that uic_core.openmmlab.detection writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from mmcv.transforms import BaseTransform
from mmdet.datasets import VOCDataset
from mmdet.evaluation import VOCMetric
from mmdet.evaluation.functional.mean_ap import average_precision, get_cls_results, tpfp_default
from mmdet.models import Shared2FCBBoxHead, SingleRoIExtractor
from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from torch import Tensor, nn

from uic_core.data import voc
from uic_core.models import Network
from uic_core.openmmlab import proposals
from uic_core.openmmlab.resume import SeededDraws, unwrapped


@DATASETS.register_module()
class VocProposals(SeededDraws, VOCDataset):  # type: ignore[misc]
    """mmdet's VOC data set, read strictly, with `proposal_file` in our own format (mmdet's is a pickle).

    Takes the keys of any mmdet VOC config: data_root, ann_file "VOC2007/ImageSets/Main/<split>.txt",
    data_prefix {"sub_data_root": "VOC2007/"}. Training leaves out images with nothing but difficult objects.

    Raises InputError as uic_core.data.voc and uic_core.openmmlab.proposals do.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dictionary an image, in the list's order; boxes 0-based, last pixel included, as mmdet's VOC has them."""
        root = Path(self.data_root)
        return [self._entry(root, image) for image in voc.read_list(root, "Main", self._split)]

    @property
    def _split(self) -> str:
        return Path(self.ann_file).stem

    def _entry(self, root: Path, image: str) -> dict[str, Any]:
        path = voc.annotation_path(root, image)
        annotation = voc.read_annotation(path)
        instances = [
            {"bbox": box.tolist(), "bbox_label": int(label), "ignore_flag": int(difficult)}
            for box, label, difficult in zip(annotation.boxes, annotation.labels, annotation.difficult, strict=True)
        ]
        return {
            "img_id": image,
            "img_path": str(voc.image_path(root, 2007, image)),
            "xml_path": str(path),
            "width": annotation.width,
            "height": annotation.height,
            "instances": instances,
        }

    def load_proposals(self) -> None:
        """Attach to every image its proposals, checked against list and annotations."""
        sizes = {entry["img_id"]: (entry["width"], entry["height"]) for entry in self.data_list}
        fingerprint = voc.fingerprint(Path(self.data_root), 2007, [self._split])
        found = proposals.load(Path(self.proposal_file), fingerprint, sizes)
        for position, entry in enumerate(self.data_list):
            boxes = found.of(position)
            entry["proposals"] = {"bboxes": boxes, "scores": np.zeros(len(boxes), np.float32)}

    def filter_data(self) -> list[dict[str, Any]]:
        """For training, the images that have an object which is not difficult; for testing, all."""
        if self.test_mode:
            return list(self.data_list)
        return [entry for entry in self.data_list if any(not each["ignore_flag"] for each in entry["instances"])]


@TRANSFORMS.register_module()
class PlaceProposals(BaseTransform):  # type: ignore[misc]
    """Bring proposals to the image as resized and flipped before this step, as mmdet does with the true boxes.

    mmdet's ProposalBroadcaster gives the same boxes by resizing and flipping every image a second time.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Maps `proposals` [n, 4] by `scale_factor` (x, y), clips them to `img_shape` (H, W), flips them."""
        height, width = results["img_shape"][:2]
        boxes = results["proposals"] * np.tile(np.float32(results["scale_factor"]), 2)
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
        if results.get("flip"):
            assert results["flip_direction"] == "horizontal"
            boxes[:, 0::2] = width - boxes[:, 2::-2]
        results["proposals"] = boxes
        return results


@MODELS.register_module()
class MaxRoIExtractor(SingleRoIExtractor):  # type: ignore[misc]
    """RoI max pooling by torchvision's operator: mmcv's has no CPU kernel. `roi_layer` is {"output_size": k}."""

    def build_roi_layers(self, layer_cfg: dict[str, Any], featmap_strides: list[int]) -> nn.ModuleList:
        """One RoIPool a stride."""
        side = layer_cfg["output_size"]
        return nn.ModuleList([torchvision.ops.RoIPool((side, side), 1 / stride) for stride in featmap_strides])


@MODELS.register_module()
class PretrainedBBoxHead(Shared2FCBBoxHead):  # type: ignore[misc]
    """fc6 and fc7 of a pretrained classifier with their dropout, then new class scores and class-wise boxes.

    Args:
        dropout: probability after fc6 and after fc7.
        others: as mmdet's Shared2FCBBoxHead.
    """

    def __init__(self, dropout: float, **others: Any) -> None:
        super().__init__(**others)
        self.dropout = nn.Dropout(dropout)

    def load_network(self, network: Network) -> None:
        """Take fc6 and fc7 from a pretrained network, every weight or an error."""
        for layer, name in zip(self.shared_fcs, ("fc6", "fc7"), strict=True):
            layer.load_state_dict(getattr(network.classifier, name).state_dict(), strict=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RoI maps [n, C, k, k] to class scores [n, 21] (background last) and box offsets [n, 20·4]."""
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = self.dropout(self.relu(layer(x)))
        return self.fc_cls(x), self.fc_reg(x)

    def predict_by_feat(
        self, rois: Sequence[Tensor], cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], *args: Any, **kw: Any
    ) -> Any:
        """Boxes after NMS, on the CPU: a CPU build of mmcv has no CUDA NMS, and the order of ties stays the same."""
        rois, cls_scores, bbox_preds = ([each.cpu() for each in group] for group in (rois, cls_scores, bbox_preds))
        return super().predict_by_feat(rois, cls_scores, bbox_preds, *args, **kw)


@HOOKS.register_module()
class RescaleClassifier(Hook):  # type: ignore[misc]
    """Data-dependent rescaling (Krähenbühl et al. 2016, "magic_init") of the pretrained fc6 and fc7.

    Each layer in turn is divided by the standard deviation of its outputs on the proposals of `images` training
    images, so that both start with unit variance at this task's scales; a bias also by what its inputs were divided
    by, so that the two compute the same as before up to one factor. Convolutions have BN, which does that already.
    """

    def __init__(self, images: int) -> None:
        self.images = images

    @torch.no_grad()
    def before_train(self, runner: Any) -> None:
        """Changes weights and biases of `roi_head.bbox_head.shared_fcs` in place."""
        model = unwrapped(runner)
        model.eval()
        loader = runner.train_dataloader  # not iterated: a loop left early would end its endless sampler
        spread = np.linspace(0, len(loader.dataset) - 1, min(self.images, len(loader.dataset))).round()
        batches = [loader.collate_fn([loader.dataset[int(position)]]) for position in spread]
        inputs = 1.0
        for number, layer in enumerate(model.roi_head.bbox_head.shared_fcs, start=6):
            layer.bias /= inputs
            outputs: list[Tensor] = []
            # a copy: the ReLU after it works in place
            handle = layer.register_forward_hook(lambda _m, _i, output, kept=outputs: kept.append(output.clone()))
            for batch in batches:
                model(**model.data_preprocessor(batch, False), mode="tensor")
            handle.remove()
            deviation = torch.cat(outputs).std(dim=0).mean()
            broadcast(deviation)  # the ranks' weights must not differ by what a GPU adds up in another order
            inputs *= deviation.item()
            layer.weight /= deviation
            layer.bias /= deviation
            runner.logger.info(f"fc{number}: standard deviation {deviation.item():.4g} set to 1")
        model.train()


@METRICS.register_module()
class VocAp(VOCMetric):  # type: ignore[misc]
    """mmdet's VOC metric with a value for every class, in per cent.

    Average precision at IoU .5 over 11 recall points, difficult objects ignored, the last pixel of a box included.
    A class without (not difficult) objects in the test set has no value, and is not in the mean.
    """

    default_prefix = None

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """`map` and `ap/<class>`, 0…100."""
        truths, predictions = zip(*results, strict=True)
        values = {
            f"ap/{name}": 100.0 * found
            for label, name in enumerate(self.dataset_meta["classes"])
            if (found := _average_precision(predictions, truths, label)) is not None
        }
        return {"map": float(np.mean(list(values.values())))} | values


def _average_precision(predictions: Sequence[Any], truths: Sequence[Any], label: int) -> float | None:
    """A class's average precision over all images; None where it has no (not difficult) object.

    From mmdet's own parts, one process: its `eval_map` forks a pool for each class.
    """
    found, objects, ignored = get_cls_results(predictions, truths, label)
    number = sum(map(len, objects))
    if not number:
        return None
    # last pixel included
    matches = [tpfp_default(*image, 0.5, None, True) for image in zip(found, objects, ignored, strict=True)]
    order = np.argsort(-np.vstack(found)[:, -1])
    true, false = (np.cumsum(np.hstack(parts)[0, order]) for parts in zip(*matches, strict=True))
    precision = true / np.maximum(true + false, np.finfo(np.float32).eps)
    return float(average_precision(true / number, precision, "11points"))
