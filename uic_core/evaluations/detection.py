"""Fast R-CNN on VOC07, and its proposals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

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
from uic_core.recipe import External, PathName, Recipe, Seed, Strict, stated
from uic_core.voc_classes import CLASSES

if TYPE_CHECKING:
    from uic_core.config import Config


SOURCE = ".source.json"
"""End of the name of the file beside proposals that says where the published ones lay, of what size and time."""


class Proposals(Strict):
    """Selective search (docs/protocol.md, Detection), or its published results."""

    source: PathName = Field(description="folder of Fast R-CNN's voc_2007_<split>.mat; '' searches with the keys below")
    mode: Literal["fast", "quality"]
    shorter_side: int = Field(ge=32, description="images are resized to this before the search; boxes are mapped back")
    max_boxes: int = Field(ge=1)
    min_side: int = Field(ge=1, description="boxes with a side below this many pixels are dropped")
    seed: Seed

    def published(self, split: str) -> Path:
        """Return the published file of a split, if `source` is set."""
        return Path(self.source, f"voc_2007_{split}.mat")

    def made_by(self, digest: str = "") -> dict[str, Any]:
        """Return what proposals depend on: these keys, or the SHA-256 of the published file alone."""
        return {"source": f"sha256:{digest}"} if self.source else self.model_dump()


class Detection(OfVoc):
    """Fast R-CNN through mmdet (docs/protocol.md, Detection)."""

    resources: ClassVar[Resources] = Resources(memory=32)
    environment: ClassVar[Environment] = "openmmlab"
    by_class: ClassVar[ByClass | None] = ByClass(
        name="Detection",
        title="Average precision of every class, detection on VOC07 (%)",
        prefix="ap/",
        mean="map",
        measure="AP",
        mean_shown="mAP",
        without="the class has no annotated object in the test set",
        samples=SampleFigure(
            kind="boxes",
            title="Detections",
            caption="Boxes that each run of Table 4 finds in sample images of VOC07.",
            label="Detections on sample images",
            shows="Boxes found in sample images of VOC07",
        ),
    )

    train_scales: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    train_max: int = Field(ge=32)
    test_scale: int = Field(ge=32)
    test_max: int = Field(ge=32)
    iterations: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_steps: list[int]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    images_per_batch: int = Field(ge=1)
    rois_per_batch: int = Field(ge=4, description="RoIs over all images of a batch")
    foreground: float = Field(gt=0, lt=1)
    nms: float = Field(gt=0, lt=1)
    rescale: bool = Field(description="data-dependent rescaling of the pretrained layers (magic_init)")
    seed: Seed

    @model_validator(mode="after")
    def _consistent(self) -> Detection:
        check_steps(self.lr_steps, "iterations", self.iterations)
        sides = {
            "train_max": (self.train_max, max(self.train_scales)),
            "test_max": (self.test_max, self.test_scale),
        }
        for key, (longest, shorter) in sides.items():
            if longest < shorter:
                raise ValueError(f"{key}: {longest} is below the shorter side {shorter}; raise it")
        if self.rois_per_batch % self.images_per_batch:
            raise ValueError("rois_per_batch: must be a multiple of images_per_batch")
        return self

    def needs(self, config: Config) -> tuple[tuple[str, str], ...]:
        """Proposals of both splits."""
        return (("proposals", "trainval"), ("proposals", "test"))

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count training at each scale equally often, and a test of all proposals."""
        size, area = counting.arithmetic(recipe), recipe.image_size**2
        tested = stated(config.datasets.voc07).test_images
        scales = [_pixels(side, self.train_max) for side in self.train_scales]
        drawn = self.iterations * self.images_per_batch
        image = size.features * sum(scales) / len(scales) / area
        image += size.classifier * self.rois_per_batch / self.images_per_batch
        test = size.features * _pixels(self.test_scale, self.test_max) / area
        test += size.classifier * stated(config.evaluations.proposals).max_boxes
        return Work(drawn * (1 + BACKWARD) * image + tested * test, drawn + tested)

    def few(self) -> dict[str, Any]:
        """Three steps."""
        return {"iterations": 3, "lr_steps": [2]}

    def values_of(self, arch: str) -> list[str]:
        """Return the mean average precision, that of every class, and the proposals' recall."""
        return ["map", *(f"ap/{name}" for name in CLASSES), "proposal_recall"]

    def refuses(self, run: str, recipe: Recipe | External) -> str:
        """Refuse an architecture without fc6."""
        return without_fc6("detection", run, recipe.arch)


def _pixels(side: int, most: int) -> float:
    """Return the pixels of a VOC image resized to shorter side `side`, longer side at most `most`."""
    longer, shorter = VOC_IMAGE
    factor = min(side / shorter, most / longer)
    return longer * shorter * factor**2
