"""Multi-label VOC07 classification: fc6 to fc8 on frozen features, or all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from uic_core.evaluations.evaluation import BACKWARD, Counting, OfVoc, Resources, Work
from uic_core.recipe import External, Recipe, Seed, stated
from uic_core.voc_classes import CLASSES

if TYPE_CHECKING:
    from uic_core.config import Config


class VocClassification(OfVoc):
    """Multi-label VOC07 classification (docs/protocol.md, Table 4)."""

    resources: ClassVar[Resources] = Resources(memory=32)

    image_size: int = Field(ge=64)
    train: Literal["fc6_8", "all"]
    batch_norm: Literal["affine_trained", "frozen"]
    iterations: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_halved_every: int = Field(ge=1)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    clip_gradient: float = Field(gt=0)
    crops: int = Field(ge=1)
    seed: Seed

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count training, and a forward pass of every crop of the test images."""
        size = counting.arithmetic(recipe, self.image_size)
        step = size.training if self.train == "all" else size.forward + BACKWARD * size.classifier
        drawn, tested = self.iterations * self.batch_size, stated(config.datasets.voc07).test_images
        return Work(drawn * step + tested * self.crops * size.forward, drawn + tested)

    def few(self) -> dict[str, Any]:
        """Three steps."""
        return {"iterations": 3, "crops": 2}

    def values_of(self, arch: str) -> list[str]:
        """Return the mean average precision, and that of every class."""
        return ["map", *(f"ap/{name}" for name in CLASSES)]

    def check(self, name: str, config: Config) -> None:
        """Check that `train` agrees with the section's name."""
        what = name.removeprefix("voc_classification_")
        if self.train != what:
            raise ValueError(f"train: must be {what}, not {self.train}")
        if self.train == "all" and self.batch_norm == "frozen":
            raise ValueError("batch_norm: must be affine_trained, ALL trains all layers")
        if self.batch_size < 2:
            raise ValueError("batch_size: the batch norm in a network's head takes two images or more; raise it")
