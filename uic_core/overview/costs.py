"""What the jobs of a config cost: arithmetic, images decoded, bytes left (PROTOCOL section 9, counted for any size)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from uic_core import models
from uic_core.config import Config
from uic_core.evaluate.heads import activations
from uic_core.evaluate.probes import SNAPSHOT_BYTES
from uic_core.methods import METHODS
from uic_core.recipe import External, Recipe

Environment = Literal["core", "openmmlab", "report"]
_CROPS = 10  # of a tested image
_BACKWARD = 2  # times the forward pass, for what is trained
_VOC_IMAGE = (500, 375)  # pixels
_STRIDE = 32  # of FCN-32s' scores
# Gigabytes that the rules ask for, at their first attempt; half a gigabyte where they only write a table.
_MEMORY = {
    "synthetic": 2, "check": 4, "index": 8, "cache": 16, "pretrain": 64, "finetune": 64, "external": 8,
    "linear_probe": 64, "clusters": 8, "voc_classification": 32, "fewshot": 16, "proposals": 16, "detection": 32,
    "segmentation": 32, "table": 1, "fig": 2,
}  # fmt: skip
_CACHE = {"jpeg": 0.4, "uint8": 3.0}  # bytes a pixel (uic_core/data/cache.py)
_ASPECT = 1.31  # of ImageNet's images, longer side over shorter


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        rule, run: its name; '' where it is not about a run.
        needs: keys (rule, run) of the jobs before it.
        environment: which packages it imports before it starts.
        arch: the network that `flops` are spent in.
        flops: 2 × multiply-adds, all of the job.
        images: decoded.
        searched: images that selective search goes through.
        bytes: left on disk, and as resume states on the way.
        gpus: that it takes, if it takes any.
        exact: part of a pretraining's `flops` that is done in float32, its centre-crop passes. An evaluation is in
            float32 as a whole.
    """

    rule: str
    run: str
    needs: tuple[tuple[str, str], ...]
    environment: Environment
    arch: str = ""
    flops: float = 0.0
    images: float = 0.0
    searched: int = 0
    bytes: float = 0.0
    gpus: int = 1
    exact: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """(rule, run)."""
        return self.rule, self.run

    @property
    def gpu(self) -> bool:
        """Whether it asks for a GPU."""
        return bool(self.arch)

    @property
    def memory(self) -> float:
        """Gigabytes that it asks for."""
        return next(size for rule, size in _MEMORY.items() if self.rule.startswith(rule))


@dataclass(frozen=True)
class Network:
    """A network's arithmetic, an image: FLOPs forward, of its convolutions and of its classifier with the top layer."""

    features: float
    classifier: float
    parameters: int

    @property
    def forward(self) -> float:
        """All of it."""
        return self.features + self.classifier

    @property
    def training(self) -> float:
        """Forward and backward."""
        return (1 + _BACKWARD) * self.forward


@functools.cache
def network(arch: str, classes: int, image_size: int, sobel: bool) -> Network:
    """Count a network without computing one number: twice the multiply-adds of convolutions and linear layers."""
    with torch.device("meta"):
        built = models.build(arch, classes=classes, image_size=image_size, sobel=sobel).eval()
        images = torch.empty(1, 3, image_size, image_size)
        features = _flops(built.maps, images)
        # autocast knows no meta tensors: the top layer by itself
        whole = _flops(built.embed, images) + 2.0 * built.embedding_size * classes
    return Network(features, whole - features, sum(parameter.numel() for parameter in built.parameters()))


def training(config: Config, run: str) -> Job:
    """The job that makes a run's checkpoint."""
    recipe = config.runs[run]
    if isinstance(recipe, External):
        size = network(recipe.arch, 1000, recipe.image_size, recipe.sobel)
        return Job("external", run, (), "core", bytes=4 * size.parameters)
    size = network(recipe.arch, recipe.classes, recipe.image_size, recipe.sobel)
    images = recipe.images_of(config.datasets.folders[recipe.data].train_images)
    passes = METHODS[recipe.method].passes(recipe)
    needs: tuple[tuple[str, str], ...] = (_train_images(config, recipe.data),)
    if recipe.start:
        needs += ((config.runs[recipe.start].stage, recipe.start),)
    return Job(
        recipe.stage, run, needs, "core", recipe.arch,
        flops=images * (passes.training * size.training + passes.centre_crop * size.forward),
        exact=images * passes.centre_crop * size.forward, images=images * sum(passes),
        # weights and labels; two states of weights, momentum, labels and their groups
        bytes=4 * size.parameters + 4 * images + 2 * (8 * size.parameters + 12 * images), gpus=recipe.gpus,
    )  # fmt: skip


def evaluation(config: Config, run: str, name: str) -> Job:
    """The job that evaluates a run."""
    recipe, settings = config.runs[run], config.evaluations
    classes = 1000 if isinstance(recipe, External) else recipe.classes
    size = network(recipe.arch, classes, recipe.image_size, recipe.sobel)
    trained, area = (recipe.stage, run), recipe.image_size**2
    voc = config.datasets.voc07
    if name == "linear_probe":
        flops, images = _linear_probe(config, recipe)
        probed = settings.linear_probe.data
        needs = tuple(dict.fromkeys((trained, _train_images(config, probed), ("index", probed))))
        return Job(name, run, needs, "core", recipe.arch, flops=flops, images=images)
    if name == "clusters":
        return Job(name, run, (trained,), "core")
    if name.startswith("voc_classification"):
        protocol = getattr(settings, name)
        resized = network(recipe.arch, classes, protocol.image_size, recipe.sobel)
        step = resized.training if protocol.train == "all" else resized.forward + _BACKWARD * resized.classifier
        drawn, tested = protocol.iterations * protocol.batch_size, voc.test_images
        flops = drawn * step + tested * protocol.crops * resized.forward
        return Job(
            name, run, (trained, ("check", "voc07")), "core", recipe.arch, flops=flops, images=drawn + tested
        )  # fmt: skip
    if name == "detection":
        detection = settings.detection
        scales = [_pixels(side, detection.train_max) for side in detection.train_scales]
        drawn = detection.iterations * detection.images_per_batch
        image = size.features * sum(scales) / len(scales) / area + (
            size.classifier * detection.rois_per_batch / detection.images_per_batch
        )
        test = size.features * _pixels(detection.test_scale, detection.test_max) / area
        test += size.classifier * settings.proposals.max_boxes
        flops = drawn * (1 + _BACKWARD) * image + voc.test_images * test
        found = (trained, ("proposals", "trainval"), ("proposals", "test"))
        return Job(name, run, found, "openmmlab", recipe.arch, flops=flops, images=drawn + voc.test_images)
    if name == "segmentation":
        segmentation, data = settings.segmentation, config.datasets.voc_segmentation
        width, height = (side + 2 * segmentation.pad for side in _VOC_IMAGE)
        image = size.features * width * height / area + size.classifier * width * height / _STRIDE**2
        drawn = segmentation.iterations * segmentation.batch_size
        flops = (drawn * (1 + _BACKWARD) + data.val_images) * image
        return Job(
            name, run, (trained, ("check", "voc_segmentation")), "openmmlab", recipe.arch,
            flops=flops, images=drawn + data.val_images,
        )  # fmt: skip
    assert name == "fewshot", name
    mini = config.datasets.miniimagenet
    images = mini.test_classes * mini.images_per_class
    flops = sum(images * size.features * each.crop**2 / area for each in settings.fewshot.resolutions.values())
    return Job(
        name, run, (trained, ("index", "miniimagenet")), "core", recipe.arch,
        flops=flops, images=images * len(settings.fewshot.resolutions),
    )  # fmt: skip


def preparation(config: Config) -> list[Job]:
    """What comes before the first run, and is shared by all: checks, indexes, the cache, proposals."""
    data, proposals = config.datasets, config.evaluations.proposals
    mini = sum((data.miniimagenet.train_classes, data.miniimagenet.val_classes, data.miniimagenet.test_classes))
    counts = {
        **{name: folder.train_images + folder.val_images for name, folder in data.folders.items()},
        "voc07": data.voc07.trainval_images + data.voc07.test_images,
        "voc_segmentation": data.voc_segmentation.train_images + data.voc_segmentation.val_images,
        "miniimagenet": mini * data.miniimagenet.images_per_class,
    }
    jobs = []
    for name, images in counts.items():
        made: tuple[tuple[str, str], ...] = ()
        if data.generated:  # drawing an image takes about ten times as long as reading it
            jobs.append(Job("synthetic", name, (), "core", images=10 * images))
            made = (("synthetic", name),)
        jobs.append(Job("check", name, made, "core", images=images if name.startswith("voc") else 0))
        if not name.startswith("voc"):
            jobs.append(Job("index", name, (("check", name),), "core", images=images, bytes=100 * images))
    for name, folder in data.folders.items() if data.cache.format != "none" else ():
        size = _CACHE[data.cache.format] * data.cache.side**2 * _ASPECT * folder.train_images
        jobs.append(Job("cache", name, (("index", name),), "core", images=folder.train_images, bytes=size))
    splits = {"trainval": data.voc07.trainval_images, "test": data.voc07.test_images}
    for split, images in splits.items():
        size = 8 * proposals.max_boxes * images
        jobs.append(Job("proposals", split, (("check", "voc07"),), "openmmlab", searched=images, bytes=size))
    return jobs


def _train_images(config: Config, data: str) -> tuple[str, str]:
    """The job that makes the list of a data set's images to train on."""
    return "index" if config.datasets.cache.format == "none" else "cache", data


def _linear_probe(config: Config, recipe: Recipe | External) -> tuple[float, float]:
    """(FLOPs, decoded images) of the probes of all layers, training and ten-crop tests."""
    protocol = config.evaluations.linear_probe
    data = config.datasets.folders[protocol.data]
    arch, layers = recipe.arch, protocol.layers[recipe.arch]
    trunk, heads, snapshot = _probed(arch, recipe.image_size, recipe.sobel, tuple(layers), data.classes)
    drawn = (protocol.images[arch] or data.train_images) * protocol.epochs
    tested = protocol.val_images[arch] or data.val_images
    passes = math.ceil(protocol.epochs / max(1, SNAPSHOT_BYTES // snapshot))
    crops = _CROPS * tested
    flops = drawn * (trunk + (1 + _BACKWARD) * heads) + crops * (passes * trunk + protocol.epochs * heads)
    return flops, drawn + passes * tested


@functools.cache
def _probed(arch: str, image_size: int, sobel: bool, layers: tuple[str, ...], classes: int) -> tuple[float, float, int]:
    """FLOPs an image of the trunk up to the deepest layer and of all heads, and bytes of the heads."""
    with torch.device("meta"):
        built = models.build(arch, classes=2, image_size=image_size, sobel=sobel).eval()
        images = torch.empty(1, 3, image_size, image_size)
        trunk = _flops(lambda x: activations(built, x, layers), images)
        weights = sum(each.shape[1] * classes for each in activations(built, images, layers).values())
    return trunk, 2.0 * weights, 4 * weights


def _flops(function: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(images)
    return float(counter.get_total_flops())


def _pixels(side: int, most: int) -> float:
    """Pixels of a VOC image whose shorter side becomes `side`, its longer one at most `most`."""
    longer, shorter = _VOC_IMAGE
    factor = min(side / shorter, most / longer)
    return longer * shorter * factor**2
