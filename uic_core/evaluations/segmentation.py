"""FCN-32s on VOC12."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from uic_core.evaluations.evaluation import (
    BACKWARD,
    VOC_IMAGE,
    ByClass,
    Counting,
    Environment,
    OfVoc,
    Resources,
    SampleFigure,
    Work,
    check_steps,
    without_fc6,
)
from uic_core.models import ARCHS
from uic_core.models.architecture import FCN_STRIDE
from uic_core.recipe import External, Recipe, Seed, stated
from uic_core.voc_classes import CLASSES_SEGMENTATION

if TYPE_CHECKING:
    from uic_core.config import Config


class Segmentation(OfVoc):
    """FCN-32s through mmseg (docs/protocol.md, Segmentation)."""

    dataset: ClassVar[str] = "voc_segmentation"
    resources: ClassVar[Resources] = Resources(memory=32)
    environment: ClassVar[Environment] = "openmmlab"
    by_class: ClassVar[ByClass | None] = ByClass(
        name="Segmentation",
        title="Intersection over union of every class, segmentation (%)",
        prefix="iou/",
        mean="miou",
        measure="IU",
        mean_shown="mIU",
        without="the class has no annotated object in the test set, nor was it found anywhere",
        samples=SampleFigure(
            kind="masks",
            title="Segmentations",
            caption="Masks that each run of Table 4 gives sample images.",
            label="Segmentations of sample images",
            shows="Masks of sample images",
        ),
    )

    pad: int = Field(ge=0, description="zero padding of conv1, pixels; 100 in FCN-32s")
    iterations: int = Field(ge=1, description="forward-backward passes, not optimiser steps")
    batch_size: int = Field(ge=1)
    accumulate: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_steps: list[int]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    seed: Seed

    @model_validator(mode="after")
    def _consistent(self) -> Segmentation:
        check_steps(self.lr_steps, "iterations", self.iterations)
        if self.iterations % self.accumulate:
            raise ValueError(f"iterations: {self.iterations} is no multiple of accumulate, {self.accumulate}")
        return self

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count training and test on whole, padded images."""
        size, tested = counting.arithmetic(recipe), stated(config.datasets.voc_segmentation).val_images
        width, height = (side + 2 * self.pad for side in VOC_IMAGE)
        image = size.features * width * height / recipe.image_size**2 + size.classifier * width * height / FCN_STRIDE**2
        drawn = self.iterations * self.batch_size
        return Work((drawn * (1 + BACKWARD) + tested) * image, drawn + tested)

    def few(self) -> dict[str, Any]:
        """Two steps of two passes."""
        return {"iterations": 4, "accumulate": 2, "lr_steps": [2]}

    def values_of(self, arch: str) -> list[str]:
        """Return the mean intersection over union, and that of every class."""
        return ["miou", *(f"iou/{name}" for name in CLASSES_SEGMENTATION)]

    def refuses(self, run: str, recipe: Recipe | External) -> str:
        """Refuse an architecture without fc6, or with too little padding."""
        if reason := without_fc6("segmentation", run, recipe.arch):
            return reason
        least = ARCHS[recipe.arch].least_pad(recipe.image_size)
        if self.pad >= least:
            return ""
        return (
            f"evaluations.segmentation.pad of the config: {self.pad} leaves pixels of run {run} without a score "
            f"({recipe.arch} at {recipe.image_size} pixels); raise it to {least} or more"
        )
