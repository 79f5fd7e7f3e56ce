"""Weighted k-nearest-neighbour classification by frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from uic_core.evaluations.evaluation import Counting, Resources, Work, check_layers
from uic_core.evaluations.train_val import TrainVal
from uic_core.models import ARCHS
from uic_core.recipe import External, Recipe

if TYPE_CHECKING:
    from uic_core.config import Config


class Knn(TrainVal):
    """The nearest training images vote on each validation image (docs/protocol.md, Nearest neighbours)."""

    resources: ClassVar[Resources] = Resources(memory=16, cpus=16)
    of_every_run: ClassVar[bool] = True

    neighbours: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="k, each is evaluated")
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, description="T, each is evaluated")

    @model_validator(mode="after")
    def _consistent(self) -> Knn:
        check_layers(self.layers, {name: arch.knn_layers for name, arch in ARCHS.items()})
        for key in ("neighbours", "temperatures"):
            values = getattr(self, key)
            if values != sorted(set(values)):
                raise ValueError(f"{key}: {values} must rise")
        return self

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count a forward pass of every image, and the products of all pairs, as if all layers were as long as fc7."""
        arch = recipe.arch
        known, asked = self.sizes(config, arch)
        products = 2.0 * known * asked * ARCHS[arch].embedding_size * len(self.layers[arch])
        return Work((known + asked) * counting.arithmetic(recipe).forward + products, asked, known)

    def values_of(self, arch: str) -> list[str]:
        """Return the top-1 accuracy for each layer, k and T."""
        settings = [(k, temperature) for k in self.neighbours for temperature in self.temperatures]
        return [name(layer, *setting) for layer in self.layers[arch] for setting in settings]

    def few(self) -> dict[str, Any]:
        """All of the few images vote."""
        return {"images": dict.fromkeys(self.images, 0), "val_images": dict.fromkeys(self.val_images, 0)}

    def check(self, name: str, config: Config) -> None:
        """Check its data set, and that there are as many images as neighbours."""
        super().check(name, config)
        for arch in self.archs(config):
            voting, _ = self.sizes(config, arch)
            if self.neighbours[-1] > voting:
                raise ValueError(f"neighbours: {self.neighbours[-1]} of the {voting} images of {arch}; lower it")


def name(layer: str, neighbours: int, temperature: float) -> str:
    """Return the name of a value in the metrics."""
    return f"{layer}/k{neighbours}/t{temperature:g}"
