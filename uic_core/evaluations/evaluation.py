"""What the suite must know about an evaluation without running it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field

from uic_core.models import ARCHS, with_fc6
from uic_core.recipe import External, Recipe, Strict

if TYPE_CHECKING:
    from uic_core.config import Config

Environment = Literal["core", "openmmlab", "report"]
"""The packages that a job imports when it starts: a file in envs/."""

Precision = Literal["fp32", "tf32", "bf16"]
"""Of the convolutions and matrix products of a frozen network (uic_core/evaluate/frozen.py)."""

VOC_IMAGE = (500, 375)
"""Width and height of a typical VOC image, pixels."""


@dataclass(frozen=True)
class Resources:
    """What the job of an evaluation requests.

    Attributes:
        memory: gigabytes, at the first attempt.
        cpus, gpus: on one node.
    """

    memory: int
    cpus: int = 8
    gpus: int = 1


@dataclass(frozen=True)
class SampleFigure:
    """The figure of an evaluation's results on sample images.

    Attributes:
        kind: what the samples hold, which decides how they are drawn: boxes (samples.Detected) or masks (Segmented).
        title, caption: on the one page.
        label: in Snakemake's report.
        shows: what it shows, in the list of results.
    """

    kind: Literal["boxes", "masks"]
    title: str
    caption: str
    label: str
    shows: str


@dataclass(frozen=True)
class ByClass:
    """What the report must know of an evaluation whose numbers of every class have a table of their own.

    Attributes:
        name: of the evaluation, as a heading.
        title: of the table.
        prefix, mean: in the metrics, what the names of the classes' values begin with, and the name of their mean.
        measure, mean_shown: what the table and the list of results call these two.
        without: what it means that a class has no value.
        samples: the figure of its results on sample images.
    """

    name: str
    title: str
    prefix: str
    mean: str
    measure: str
    mean_shown: str
    without: str
    samples: SampleFigure


class Work(NamedTuple):
    """What an evaluation computes.

    Attributes:
        flops: 2 × multiply-adds.
        images: number of images that it decodes from their files.
        learned: number of training images that it reads, from the cache if the config has one.
    """

    flops: float = 0.0
    images: float = 0.0
    learned: float = 0.0


BACKWARD = 2
"""Cost of the backward pass of trained layers, in forward passes."""


@dataclass(frozen=True)
class Arithmetic:
    """FLOPs of one image's forward pass, in the convolutions and in the classifier with the top layer."""

    features: float
    classifier: float
    parameters: int

    @property
    def forward(self) -> float:
        """FLOPs of a forward pass."""
        return self.features + self.classifier

    @property
    def training(self) -> float:
        """FLOPs of forward and backward."""
        return (1 + BACKWARD) * self.forward


class Counting(Protocol):
    """Counts operations: the module `counting` exactly, with torch, or `estimates` roughly, without it."""

    def arithmetic(self, recipe: Recipe | External, image_size: int = 0) -> Arithmetic:
        """Count a run's network, at its own image size or another one (pixels)."""

    def probed(
        self, arch: str, image_size: int, sobel: bool, layers: tuple[str, ...], classes: int
    ) -> tuple[float, float, int]:
        """Return FLOPs per image up to the deepest probed layer, FLOPs of all heads, and bytes of the heads."""


class Listed(NamedTuple):
    """A list of images, whose fingerprint an evaluation records.

    Attributes:
        data, split: of an index; for VOC, of what the stage `check` notes (split `all`: every image).
        images, seed: how many of them; 0: all. None: all, and never those of the cache.
    """

    data: str
    split: str
    images: int | None = None
    seed: int = 0


class Evaluation(Strict):
    """A section of the config's `evaluations`, and what the suite must know about the evaluation.

    The rule and the stage have the name of its file in this package.
    """

    resources: ClassVar[Resources]
    environment: ClassVar[Environment] = "core"
    by_class: ClassVar[ByClass | None] = None
    """Set, its numbers of every class have a table of their own, and its results on sample images a figure."""
    of_every_run: ClassVar[bool] = False
    """It is made of all runs of a config, not of those in a table alone, if the config has its section."""

    @property
    def dataset(self) -> str:
        """The data set, beside the named folders, that the config must describe for it; '' if none."""
        return ""

    def needs(self, config: Config) -> tuple[tuple[str, str], ...]:
        """Return the jobs (rule, data set or split) that it needs besides the run's checkpoint."""
        return ()

    def lists(self, recipe: Recipe | External) -> tuple[Listed, ...]:
        """Return the lists of images whose fingerprints its metrics hold; () if it does not say so."""
        return ()

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Return what it computes for a run."""
        return Work()

    def values_of(self, arch: str) -> list[str]:
        """Return the names of the values in percent that it makes of an architecture: those that a table may show.

        Without any, a table's cells of it are not checked before its jobs.
        """
        return []

    def refuses(self, run: str, recipe: Recipe | External) -> str:
        """Return why it cannot evaluate a run, and the remedy; '' if it can."""
        return ""

    def few(self) -> dict[str, Any]:
        """Return the keys that `make smoke` changes, for a few steps."""
        return {}

    def check(self, name: str, config: Config) -> None:
        """Compare the section `name` with the rest of the config. Raises ValueError, "<key>: <what is wrong>"."""


class OfFrozen(Evaluation):
    """An evaluation of features that a frozen network computes."""

    precision: Precision = Field(
        "fp32",
        exclude_if=lambda value: value == "fp32",  # files and metrics of float32 say nothing of it
        description="of the frozen network; left out: fp32. What learns from its features, or compares them, is fp32",
    )


class OfVoc(Evaluation):
    """An evaluation of all images of a data set in VOC's own layout."""

    dataset: ClassVar[str] = "voc07"

    def needs(self, config: Config) -> tuple[tuple[str, str], ...]:
        """The complete data set."""
        return (("check", self.dataset),)

    def lists(self, recipe: Recipe | External) -> tuple[Listed, ...]:
        """All images."""
        return (Listed(self.dataset, "all"),)


def check_steps(steps: list[int], key: str, end: int) -> None:
    """Refuse learning-rate steps that are out of range or do not increase."""
    if steps != sorted(set(steps)) or any(not 0 < step < end for step in steps):
        raise ValueError(f"lr_steps: {steps} must rise and lie between 0 and {key} ({end})")


def check_layers(layers: dict[str, list[str]], known: dict[str, tuple[str, ...]]) -> None:
    """Refuse an unknown layer, an empty list, and a layer named twice."""
    for arch, names in layers.items():
        unknown = [name for name in names if name not in known[arch]]
        if unknown or not names or len(set(names)) < len(names):
            what = f"has no layer '{unknown[0]}' for this" if unknown else "names no layer, or one twice"
            raise ValueError(f"layers.{arch}: {what} (known: {', '.join(known[arch])})")


def archs_of(config: Config) -> list[str]:
    """Return the architectures of a config's runs, sorted."""
    return sorted({recipe.arch for recipe in config.runs.values()})


def check_archs(key: str, stated: Mapping[str, object], archs: Iterable[str]) -> None:
    """Refuse a key that lacks an entry for one of the architectures that runs use."""
    for arch in archs:
        if arch not in stated:
            raise ValueError(f"{key}: nothing for {arch}, which runs use; add a line")


def without_fc6(evaluation: str, run: str, arch: str) -> str:
    """Return why Fast R-CNN and FCN-32s cannot evaluate a run; '' if its architecture has an fc6."""
    if ARCHS[arch].windows:
        return ""
    return f"{evaluation} takes {with_fc6()}, and run {run} is {arch}; name another run"
