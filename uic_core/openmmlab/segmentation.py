"""Stage `segmentation`: FCN-32s from a pretrained checkpoint, through mmseg (docs/protocol.md, Segmentation, Table 4).

As in FCN's code, images keep their size and are not flipped, and the score layer starts at zero. Its bias alone has
twice the learning rate and no weight decay. The loss is the mean over counted pixels, as in FCN's AlexNet
(`normalize: true`; only its VGG nets sum). Our choices: BN is frozen; pools use ceil mode, as in Caffe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from uic_core import checkpoint, evaluations, recipe, samples
from uic_core.arguments import add_checked, add_save_every, add_threads, stage_parser
from uic_core.data import stamps, voc
from uic_core.data.dataset import Dataset, VocSegmentation
from uic_core.errors import InputError, stage
from uic_core.evaluations.evaluation import VOC_IMAGE
from uic_core.files import sha256
from uic_core.models import ARCHS
from uic_core.models.network import Network
from uic_core.openmmlab import backbones, runner
from uic_core.run import cpus, devices, finished, metrics, parallel


def build_config(
    network: Network,
    weights: Path,
    protocol: evaluations.Segmentation,
    data: VocSegmentation,
    work_dir: Path,
    workers: int = 0,
    digest: str = "",
) -> dict[str, Any]:
    """Build the complete mmengine config, of plain values only, so that mmseg's tools can read its copy in `work_dir`.

    Args:
        network: gives the architecture; its weights are read from `weights` when the model is initialised.
        data: the folder that contains VOC2012/, SBD's folder if SBD is used, and the names of the two lists.
        workers: decoding processes; 0 decodes in this one.
        digest: SHA-256 that `weights` must have when they are read; '' takes any.

    Raises:
        InputError: the architecture has no fc6, or the numbers of passes do not divide over the processes.
    """
    passes = {"accumulate": [protocol.accumulate], "iterations": [protocol.iterations], "lr_steps": protocol.lr_steps}
    for key, counts in passes.items():
        if any(count % runner.world() for count in counts):
            raise InputError(
                f"segmentation.{key}: {', '.join(map(str, counts))} passes do not divide over {runner.world()} "
                "processes; take another number of GPUs"
            )
    train, val = lists_of(data)
    # the processes of training and test live at the same time; a pixel is three bytes and an integer
    workers = cpus.sharing(workers, (protocol.batch_size + 1) * max(VOC_IMAGE) ** 2 * (3 + 8))
    biases = {"custom_keys": {"decode_head.conv_seg.bias": {"lr_mult": 2.0, "decay_mult": 0.0}}}
    return runner.training(protocol, work_dir, protocol.accumulate // runner.world(), biases) | {
        "default_scope": "mmseg",
        "custom_imports": {"imports": [f"uic_core.openmmlab.{name}" for name in ("backbones", "fcn", "observe")]},
        "model": _model(network, backbones.pretrained(weights, digest), protocol.pad),
        "train_dataloader": runner.dataloader(
            _dataset(train, test=False) | {"seed": protocol.seed},
            protocol.batch_size,
            workers,
            train=True,
            seed=protocol.seed,
        ),
        "test_dataloader": runner.dataloader(_dataset(val, test=True), 1, workers, train=False),
        "test_evaluator": [{"type": "VocIu"}, {"type": "KeepSamples", "ids": list(samples.choose(val.ids()))}],
    }


def _model(network: Network, pretrained: dict[str, Any], pad: int) -> dict[str, Any]:
    channels, kernel, hidden = backbones.classifier_kernel(network)
    backbone = {"type": "UicBackbone", "arch": network.arch, "sobel": network.uses_sobel, "pad": pad}
    bilinear, crop = ARCHS[network.arch].fcn(pad, kernel)
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": backbones.preprocessor("SegDataPreProcessor", size_divisor=1, seg_pad_val=voc.IGNORED),
        "backbone": backbone | {"init_cfg": pretrained},
        "decode_head": {
            "type": "Fcn32sHead",
            "in_channels": channels,
            "channels": hidden,
            "kernel": kernel,
            "bilinear": bilinear,
            "crop": crop,
            "num_classes": len(voc.CLASSES_SEGMENTATION),
            "ignore_index": voc.IGNORED,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "avg_non_ignore": True},
            "init_cfg": [{"type": "Constant", "val": 0.0, "override": {"name": "conv_seg"}}, pretrained],
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def lists_of(data: VocSegmentation) -> tuple[voc.MaskList, voc.MaskList]:
    """The lists for training and for testing."""
    return voc.segmentation_lists(Path(data.root), data.sbd, data.train_list, data.val_list)


def _dataset(images: voc.MaskList, *, test: bool) -> dict[str, Any]:
    return {
        "type": "VocMasks",
        "ann_file": str(images.path),
        "data_prefix": {"img_path": str(images.images), "seg_map_path": str(images.masks)},
        "seg_map_suffix": images.suffix,
        "test_mode": test,
        "pipeline": [{"type": "LoadRgb"}, {"type": "LoadMask"}, {"type": "PackSegInputs"}],
    }


def _segmented(mask: Path, sample: dict[str, Any]) -> samples.Segmented:
    """Get a test image's annotated mask, and its predicted one from mmseg's data sample."""
    predicted = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy().astype(np.uint8)
    return samples.Segmented(sample["img_path"], voc.read_mask(mask), predicted)


def main(arguments: list[str] | None = None) -> None:
    """Train on the first list, test on the second, write the metrics `miou` and `iou/<class>` in percent."""
    parser = stage_parser("uic_core.openmmlab.segmentation", __doc__)
    for name in ("checkpoint", "protocol", "dataset", "out", "samples", "work-dir"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--run", required=True)
    add_save_every(parser)
    add_checked(parser)
    add_threads(parser)
    options = parser.parse_args(arguments)
    with stage(), parallel.group(devices.current()) as ranks:
        protocol = recipe.load(evaluations.Segmentation, options.protocol)
        data = recipe.load(Dataset, options.dataset).section
        if not isinstance(data, VocSegmentation):
            raise InputError(f"{options.dataset}: is not voc_segmentation; give that data set's file")
        network, trained_by, origin = checkpoint.of_run(options.run, options.checkpoint)
        if reason := protocol.refuses(options.run, trained_by):
            raise InputError(f"{options.checkpoint}: {reason}")
        lists = lists_of(data)
        if not ranks.rank:
            stamps.verify(options.checked, voc.segmentation_files(lists))
        sizes = {one.path.stem: len(one.ids()) for one in lists}
        # check all masks first, so that a bad one does not end a training after days
        for one in lists:
            for image in one.ids():
                voc.read_mask(one.mask(image))
        workers = cpus.workers(options.threads)
        content = build_config(
            network, options.checkpoint, protocol, data, options.work_dir, workers, origin.checkpoint
        )
        fingerprint = stamps.by_content(options.checked, "all", voc.segmentation_fingerprint(lists))
        identity = {"checkpoint": origin.checkpoint, "protocol": protocol.model_dump(), "data": fingerprint}
        head = content["model"]["decode_head"]
        tested = sizes[data.val_list]
        results = [options.out, options.samples]
        if finished.put_back(results, identity, ranks, print):
            return
        trained = runner.train_and_test(content, identity, ranks, options.save_every, tested)
        with trained as (values, kept, earlier):
            if ranks.rank:
                return
            samples.Samples(
                options.run,
                fingerprint,
                voc.CLASSES_SEGMENTATION,
                tuple(kept),
                tuple(_segmented(lists[-1].mask(image), kept[image]) for image in kept),
            ).save(options.samples)
            settings = {
                "train_list": data.train_list,
                "val_list": data.val_list,
                "train_masks": "SBD" if data.sbd else "VOC2012",
                "fc6_kernel": head["kernel"],
                "crop": head["crop"],
                "batch_norm": "frozen",
                "loss": "mean over counted pixels",
                "processes": ranks.world,
            }
            metrics.record(
                options.out, "segmentation", origin,
                dataset=metrics.Dataset(name="voc_segmentation", fingerprint=fingerprint, sizes=sizes),
                values=values,
                protocol=protocol.model_dump() | settings, seed=protocol.seed, hardware=devices.hardware(),
                files={"samples": sha256(options.samples)}, earlier_seconds=earlier,
            )  # fmt: skip
            finished.keep(results, identity)


if __name__ == "__main__":
    main()
