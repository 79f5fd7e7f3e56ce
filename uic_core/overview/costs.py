"""Costs of a config's jobs: operations, decoded images, bytes on disk, for any size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from uic_core.config import Config
from uic_core.data.dataset import VOC
from uic_core.evaluations.evaluation import Counting, Environment
from uic_core.methods import METHODS
from uic_core.methods.method import Labelling
from uic_core.models import ARCHS
from uic_core.recipe import External

# Gigabytes that the rules request at the first attempt. Those of evaluations are in uic_core/evaluations.
_MEMORY = {
    "synthetic": 2, "check": 4, "index": 8, "cache": 16, "pretrain": 64, "finetune": 64, "external": 8, "proposals": 16,
    "table": 1, "fig": 2,
}  # fmt: skip
CACHE_SPEED = {"none": 1.0, "jpeg": 2.6, "uint8": 6.8, "device": math.inf}
"""Images a CPU-second from a cache of 256 pixels ÷ those from ImageNet's files (bench/RESULTS.md), by its format.

What is on the training device is not decoded."""

_CACHE = {"jpeg": 0.4, "uint8": 3.0, "device": 3.0}  # bytes per pixel (uic_core/data/cache.py)
_ASPECT = 1.31  # longer side over shorter side of ImageNet's images


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        rule, run: its key; `run` may also be a data set, a split, or ''.
        needs: keys (rule, run) of the jobs that it waits for.
        environment: the packages that it imports when it starts.
        arch: the network that computes `flops`.
        flops: 2 × multiply-adds, of the whole job.
        images: number of decoded images; those of a cache count as many files as take that long.
        searched: number of images for selective search.
        bytes: written to disk, including resume states.
        gpus: number of GPUs, if it uses any.
        exact: the float32 part of a pretraining's `flops`: its passes for labels and its optimisations of labels. An
            evaluation counts as entirely in float32.
        labelling: what a pretraining's labels take beside passes over its images.
        memory: gigabytes that an evaluation requests; 0: as its rule says.
        cpus: number of CPUs on a cluster.
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
    labelling: Labelling = field(default_factory=Labelling)
    memory: float = 0.0
    cpus: int = 8

    @property
    def key(self) -> tuple[str, str]:
        """(rule, run)."""
        return self.rule, self.run

    @property
    def gpu(self) -> bool:
        """Whether it requests a GPU."""
        return bool(self.arch)

    def gigabytes(self) -> float:
        """Return the memory that it requests."""
        return self.memory or next(size for rule, size in _MEMORY.items() if self.rule.startswith(rule))


def exact() -> Counting:
    """Return the exact counting; imports torch."""
    from uic_core.evaluations import counting

    return counting


def training(config: Config, run: str, counting: Counting | None = None) -> Job:
    """Return the job that makes a run's checkpoint."""
    recipe = config.runs[run]
    size = (counting or exact()).arithmetic(recipe)
    if isinstance(recipe, External):
        return Job("external", run, (), "core", bytes=4 * size.parameters)
    images = recipe.images_of(config.datasets.folders[recipe.data].train_images)
    method = METHODS[recipe.method]
    passes, views = method.passes(recipe), method.views_per_image
    labelling = method.labelling(recipe, images, ARCHS[recipe.arch].embedding_size)
    of_labels = images * passes.forward * size.forward + labelling.operations
    needs: tuple[tuple[str, str], ...] = (config.datasets.train_list(recipe.data),)
    if recipe.start:
        needs += ((config.runs[recipe.start].stage, recipe.start),)
    return Job(
        recipe.stage, run, needs, "core", recipe.arch,
        flops=images * passes.training * views * size.training + of_labels, exact=of_labels, labelling=labelling,
        images=images * sum(passes) / _cache_speed(config), gpus=recipe.gpus, cpus=16,
        # weights and labels; two resume states of weights, momentum, labels and their groups
        bytes=4 * size.parameters + 4 * images + 2 * (8 * size.parameters + 12 * images) + labelling.disk,
    )  # fmt: skip


def evaluation(config: Config, run: str, name: str, counting: Counting | None = None) -> Job:
    """Return the job that evaluates a run."""
    recipe, section = config.runs[run], config.evaluations.one(name)
    asked, work = section.resources, section.work(config, recipe, counting or exact())
    images = work.images + work.learned / _cache_speed(config)
    needs = ((recipe.stage, run), *section.needs(config))
    return Job(
        name, run, needs, section.environment, recipe.arch if asked.gpus else "",
        flops=work.flops, images=images, memory=asked.memory, cpus=asked.cpus,
    )  # fmt: skip


def cache_bytes(format: str, side: int, images: int) -> float:
    """Return the size of a cache of so many images with the shorter side `side`, pixels.

    It is less if the files are smaller, which the config does not say: they are never enlarged.
    """
    return _CACHE[format] * side**2 * _ASPECT * images


def _cache_speed(config: Config) -> float:
    return CACHE_SPEED[config.datasets.cache.format]


def preparation(config: Config) -> list[Job]:
    """Return the jobs before the first run, which all runs share: checks, indexes, the cache, proposals."""
    data, proposals = config.datasets, config.evaluations.proposals
    counts = {name: folder.train_images + folder.val_images for name, folder in data.folders.items()}
    if data.voc07:
        counts["voc07"] = data.voc07.trainval_images + data.voc07.test_images
    if data.voc_segmentation:
        counts["voc_segmentation"] = data.voc_segmentation.train_images + data.voc_segmentation.val_images
    if mini := data.miniimagenet:
        classes = mini.train_classes + mini.val_classes + mini.test_classes
        counts["miniimagenet"] = classes * mini.images_per_class
    jobs = []
    for name, images in counts.items():
        made: tuple[tuple[str, str], ...] = ()
        if data.generated:  # drawing an image takes about ten times as long as reading it
            jobs.append(Job("synthetic", name, (), "core", images=10 * images))
            made = (("synthetic", name),)
        jobs.append(Job("check", name, made, "core", images=images if name in VOC else 0))
        if name not in VOC:
            jobs.append(Job("index", name, (("check", name),), "core", images=images, bytes=100 * images))
    for name, folder in data.folders.items() if data.cache.format != "none" else ():
        size = cache_bytes(data.cache.format, data.cache.side, folder.train_images)
        jobs.append(Job("cache", name, (("index", name),), "core", images=folder.train_images, bytes=size, cpus=16))
    if data.voc07 and proposals:
        for split, images in (("trainval", data.voc07.trainval_images), ("test", data.voc07.test_images)):
            size = 8 * proposals.max_boxes * images
            needs = (("check", "voc07"),)
            jobs.append(Job("proposals", split, needs, "openmmlab", searched=images, bytes=size, cpus=16))
    return jobs
