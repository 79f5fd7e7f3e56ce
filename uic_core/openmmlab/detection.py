"""Stage `detection`: Fast R-CNN on VOC07 from a pretrained checkpoint, through mmdet (protocol.md, Detection, Table 4).

Our choices, where no source decides: BN is frozen. The test's score threshold is .001, while Fast R-CNN's code uses
.05; both keep 100 boxes per image. Boxes with lower scores rank last, so this AP is never below that at .05, and short
trainings still produce detections.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uic_core import checkpoint, evaluations, recipe, samples
from uic_core.arguments import add_checked, add_save_every, add_threads, stage_parser
from uic_core.data import stamps, voc
from uic_core.data.boxes import from_edges
from uic_core.errors import InputError, stage
from uic_core.files import demand_unchanged, sha256, stamp
from uic_core.models import ARCHS
from uic_core.models.network import Network
from uic_core.openmmlab import backbones, proposals, regression, runner
from uic_core.run import cpus, devices, finished, metrics, parallel

_STRIDE = 16
_SCORE_THRESHOLD = 0.001
_BOXES_PER_IMAGE = 100


def build_config(
    network: Network,
    weights: Path,
    protocol: evaluations.Detection,
    root: Path,
    files: dict[str, Path],
    targets: regression.Statistics,
    work_dir: Path,
    workers: int = 0,
    digest: str = "",
) -> dict[str, Any]:
    """Build the complete mmengine config, of plain values only, so that mmdet's tools can read its copy in `work_dir`.

    Args:
        network: gives the architecture; its weights are read from `weights` when the model is initialised.
        root: the folder that contains VOC2007/.
        files: proposal files by split, trainval and test.
        targets: mean and deviation of the training set's box regression targets.
        workers: decoding processes; 0 decodes in this one.
        digest: SHA-256 that `weights` must have when they are read; '' takes any.

    Raises:
        InputError: the architecture has no fc6; or the images of a batch do not divide over the processes.
    """
    if protocol.images_per_batch % runner.world():
        raise InputError(
            f"detection.images_per_batch: {protocol.images_per_batch} images do not divide over {runner.world()} "
            "processes; take fewer GPUs"
        )
    train_scales = [(protocol.train_max, side) for side in protocol.train_scales]
    train_resize = {"type": "RandomChoiceResize", "scales": train_scales, "keep_ratio": True}
    test_resize = {"type": "Resize", "scale": (protocol.test_max, protocol.test_scale), "keep_ratio": True}
    biases = {"bias_lr_mult": 2.0, "bias_decay_mult": 0.0}
    training = max(protocol.train_scales) * protocol.train_max * protocol.images_per_batch // runner.world()
    # the processes of training and test live at the same time, and pass bytes of three colours
    workers = cpus.sharing(workers, 3 * (training + protocol.test_scale * protocol.test_max))
    content = runner.training(protocol, work_dir, 1, biases) | {
        "default_scope": "mmdet",
        "custom_imports": {"imports": [f"uic_core.openmmlab.{name}" for name in ("backbones", "fast_rcnn", "observe")]},
        "model": _model(network, backbones.pretrained(weights, digest), protocol, targets),
        "train_dataloader": runner.dataloader(
            _dataset(root, "trainval", files["trainval"], train_resize, flip=True) | {"seed": protocol.seed},
            protocol.images_per_batch // runner.world(),
            workers,
            train=True,
            seed=protocol.seed,
        ),
        "test_dataloader": runner.dataloader(
            _dataset(root, "test", files["test"], test_resize, flip=False), 1, workers, train=False
        ),
        "test_evaluator": [
            {"type": "VocAp"},
            {"type": "KeepSamples", "ids": list(samples.choose(voc.read_list(root, "test")))},
        ],
    }
    if protocol.rescale:
        content["custom_hooks"].append({"type": "RescaleClassifier", "images": 20})
    return content


def _model(
    network: Network, pretrained: dict[str, Any], protocol: evaluations.Detection, targets: regression.Statistics
) -> dict[str, Any]:
    channels, side, hidden = backbones.classifier_kernel(network)
    rcnn_train = {
        # as in Fast R-CNN, RoIs with IoU below .1 are neither foreground nor background
        "assigner": {
            "type": "MaxIoUAssigner",
            "pos_iou_thr": regression.FOREGROUND,
            "neg_iou_thr": (0.1, regression.FOREGROUND),
            "min_pos_iou": regression.FOREGROUND,
            "match_low_quality": False,
            "ignore_iof_thr": -1,
        },
        "sampler": {
            "type": "RandomSampler",
            "num": protocol.rois_per_batch // protocol.images_per_batch,
            "pos_fraction": protocol.foreground,
            "neg_pos_ub": -1,
            "add_gt_as_proposals": True,
        },
        "pos_weight": -1,
        "debug": False,
    }
    return {
        "type": "FastRCNN",
        "data_preprocessor": backbones.preprocessor("DetDataPreprocessor", pad_size_divisor=1),
        "backbone": {
            "type": "UicBackbone",
            "arch": network.arch,
            "sobel": network.uses_sobel,
            "frozen": ARCHS[network.arch].frozen,
            "init_cfg": pretrained,
        },
        "roi_head": {
            "type": "OriginalPixelsRoIHead",
            "bbox_roi_extractor": {
                "type": "MaxRoIExtractor",
                "roi_layer": {"output_size": side},
                "out_channels": channels,
                "featmap_strides": [_STRIDE],
            },
            "bbox_head": {
                "type": "PretrainedBBoxHead",
                "dropout": 0.5,
                "in_channels": channels,
                "fc_out_channels": hidden,
                "roi_feat_size": side,
                "num_classes": len(voc.CLASSES),
                "reg_class_agnostic": False,
                "target_means": targets.means.tolist(),
                "target_stds": targets.deviations.tolist(),
                "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_means": (0.0,) * 4, "target_stds": (1.0,) * 4},
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
                "init_cfg": [
                    {"type": "Normal", "std": 0.01, "override": {"name": "fc_cls"}},
                    {"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}},
                    pretrained,
                ],
            },
        },
        "train_cfg": {"rcnn": rcnn_train},
        "test_cfg": {
            "rcnn": {
                "score_thr": _SCORE_THRESHOLD,
                "nms": {"type": "nms", "iou_threshold": _below(protocol.nms)},
                "max_per_img": _BOXES_PER_IMAGE,
            }
        },
    }


def _below(threshold: float) -> float:
    """The float32 just below `threshold`: mmcv suppresses overlaps > threshold, Fast R-CNN overlaps ≥ threshold."""
    return float(np.nextafter(np.float32(threshold), np.float32(0)))


def _dataset(root: Path, split: str, file: Path, resize: dict[str, Any], *, flip: bool) -> dict[str, Any]:
    mirror = [{"type": "RandomFlip", "prob": 0.5}] if flip else []
    meta = ("img_id", "img_path", "xml_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
    return {
        "type": "VocProposals",
        "data_root": str(root),
        "ann_file": f"VOC2007/ImageSets/Main/{split}.txt",
        "data_prefix": {"sub_data_root": "VOC2007/"},
        # absolute, because mmdet resolves relative paths against data_root
        "proposal_file": str(file.resolve()),
        "test_mode": not flip,
        "pipeline": [
            {"type": "LoadRgb"},
            *mirror,
            resize,
            # after flip and resize, so that boxes stay in the original image's pixels
            {"type": "LoadAnnotations", "with_bbox": True},
            {"type": "LoadProposals"},
            {"type": "FlipBoxes"},
            {"type": "PackDetInputs", "meta_keys": meta},
        ],
    }


def _examples(root: Path, found: proposals.ProposedBoxes) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each image's input for `regression.statistics`, without difficult objects, which are not trained on."""
    for position, image in enumerate(found.ids):
        annotation = voc.read_annotation(voc.annotation_path(root, image))
        trained = ~annotation.difficult
        yield found.of(position), annotation.boxes[trained], annotation.labels[trained]


def _detected(sample: dict[str, Any]) -> samples.Detected:
    """Get a test image's annotation and detected boxes, best first, from mmdet's data sample."""
    annotation = voc.read_annotation(Path(sample["xml_path"]))
    found = {name: sample["pred_instances"][name].cpu().numpy() for name in ("bboxes", "labels", "scores")}
    order = np.argsort(-found["scores"], kind="stable")
    return samples.Detected(
        sample["img_path"],
        annotation.boxes,
        annotation.labels,
        annotation.difficult,
        from_edges(found["bboxes"][order]),
        found["labels"][order],
        found["scores"][order],
    )


def main(arguments: list[str] | None = None) -> None:
    """Train on trainval, test on test, write the metrics `map`, `ap/<class>` and `proposal_recall` in percent."""
    parser = stage_parser("uic_core.openmmlab.detection", __doc__)
    for name in ("checkpoint", "protocol", "voc", "train-proposals", "test-proposals", "out", "samples", "work-dir"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--run", required=True)
    add_save_every(parser)
    add_checked(parser)
    add_threads(parser)
    options = parser.parse_args(arguments)
    with stage(), parallel.group(devices.current()) as ranks:
        protocol = recipe.load(evaluations.Detection, options.protocol)
        if not ranks.rank:
            stamps.verify(options.checked, voc.files(options.voc))
        network, _, origin = checkpoint.of_run(options.run, options.checkpoint)
        files = {"trainval": options.train_proposals, "test": options.test_proposals}
        stamped = {f"proposals_{split}": stamp(path) for split, path in files.items()}
        hashes = {split: sha256(path) for split, path in files.items() if path.is_file()}
        sizes = {split: len(voc.read_list(options.voc, split)) for split in files}
        found = {split: proposals.open_for(options.voc, split, path, options.checked) for split, path in files.items()}
        searched = [each.settings for each in found.values() if each.settings["source"] == ""]
        if len(searched) == 1 or searched[1:] != searched[:1]:
            raise InputError(f"{files['test']}: made by other settings than {files['trainval']}; delete both")
        covered, objects = proposals.recall_on(options.voc, found["test"])
        targets = regression.statistics(_examples(options.voc, found["trainval"]), len(voc.CLASSES))
        content = build_config(
            network, options.checkpoint, protocol, options.voc, files, targets, options.work_dir,
            cpus.workers(options.threads), origin.checkpoint,
        )  # fmt: skip
        fingerprint = stamps.by_content(options.checked, "all", voc.fingerprint(options.voc, list(files)))
        identity = {"checkpoint": origin.checkpoint, "protocol": protocol.model_dump(), "data": fingerprint}
        identity["proposals"] = hashes
        results = [options.out, options.samples]
        if finished.put_back(results, identity, ranks, print):
            return
        trained = runner.train_and_test(content, identity, ranks, options.save_every, sizes["test"])
        with trained as (values, kept, earlier):
            if ranks.rank:
                return
            demand_unchanged(files, hashes)
            samples.Samples(
                options.run, fingerprint, voc.CLASSES, tuple(kept), tuple(_detected(kept[image]) for image in kept)
            ).save(options.samples)
            settings = {
                "proposals": found["test"].settings,
                "roi_size": backbones.classifier_kernel(network)[1],
                "batch_norm": "frozen",
                "box_targets": "normalised by the training set's mean and deviation of each class",
                "score_threshold": _SCORE_THRESHOLD,
                "boxes_per_image": _BOXES_PER_IMAGE,
                "average_precision": "11 points, IoU > .5, difficult ignored",
                "processes": ranks.world,
            }
            metrics.record(
                options.out, "detection", origin,
                dataset=metrics.Dataset(name="voc07", fingerprint=fingerprint, sizes=sizes),
                values=values | {"proposal_recall": metrics.Value(value=100 * covered, unit="%", n=objects)},
                protocol=protocol.model_dump() | settings, seed=protocol.seed, hardware=devices.hardware(),
                files={f"proposals_{split}": digest for split, digest in hashes.items()}
                | {"samples": sha256(options.samples)},
                stamps=stamped, earlier_seconds=earlier,
            )  # fmt: skip
            finished.keep(results, identity)


if __name__ == "__main__":
    main()
