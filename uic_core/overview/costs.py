"""What the jobs of a config cost: arithmetic, images decoded, bytes left (PROTOCOL section 9, counted for any size)."""

from __future__ import annotations

from dataclasses import dataclass

from uic_core.config import Config
from uic_core.evaluations.counting import arithmetic
from uic_core.evaluations.evaluation import Environment
from uic_core.methods import METHODS
from uic_core.recipe import External

# Gigabytes that the rules ask for, at their first attempt; those of evaluations: uic_core/evaluations.
_MEMORY = {
    "synthetic": 2, "check": 4, "index": 8, "cache": 16, "pretrain": 64, "finetune": 64, "external": 8, "proposals": 16,
    "table": 1, "fig": 2,
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
        memory: gigabytes that an evaluation asks for; 0: by the rule.
        cpus: that it takes on a cluster.
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
    memory: float = 0.0
    cpus: int = 8

    @property
    def key(self) -> tuple[str, str]:
        """(rule, run)."""
        return self.rule, self.run

    @property
    def gpu(self) -> bool:
        """Whether it asks for a GPU."""
        return bool(self.arch)

    def gigabytes(self) -> float:
        """Memory that it asks for."""
        return self.memory or next(size for rule, size in _MEMORY.items() if self.rule.startswith(rule))


def training(config: Config, run: str) -> Job:
    """The job that makes a run's checkpoint."""
    recipe = config.runs[run]
    if isinstance(recipe, External):
        size = arithmetic(recipe)
        return Job("external", run, (), "core", bytes=4 * size.parameters)
    size = arithmetic(recipe)
    images = recipe.images_of(config.datasets.folders[recipe.data].train_images)
    passes = METHODS[recipe.method].passes(recipe)
    needs: tuple[tuple[str, str], ...] = (config.datasets.train_list(recipe.data),)
    if recipe.start:
        needs += ((config.runs[recipe.start].stage, recipe.start),)
    return Job(
        recipe.stage, run, needs, "core", recipe.arch,
        flops=images * (passes.training * size.training + passes.centre_crop * size.forward),
        exact=images * passes.centre_crop * size.forward, images=images * sum(passes),
        # weights and labels; two states of weights, momentum, labels and their groups
        bytes=4 * size.parameters + 4 * images + 2 * (8 * size.parameters + 12 * images), gpus=recipe.gpus, cpus=16,
    )  # fmt: skip


def evaluation(config: Config, run: str, name: str) -> Job:
    """The job that evaluates a run."""
    recipe, section = config.runs[run], config.evaluations.one(name)
    asked, work = section.resources, section.work(config, recipe)
    needs = ((recipe.stage, run), *section.needs(config))
    return Job(
        name, run, needs, section.environment, recipe.arch if asked.gpus else "",
        flops=work.flops, images=work.images, memory=asked.memory, cpus=asked.cpus,
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
        jobs.append(Job("cache", name, (("index", name),), "core", images=folder.train_images, bytes=size, cpus=16))
    splits = {"trainval": data.voc07.trainval_images, "test": data.voc07.test_images}
    for split, images in splits.items():
        size = 8 * proposals.max_boxes * images
        jobs.append(Job("proposals", split, (("check", "voc07"),), "openmmlab", searched=images, bytes=size, cpus=16))
    return jobs
