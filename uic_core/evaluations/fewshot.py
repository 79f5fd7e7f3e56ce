"""Five-way classification by class means of frozen features, of miniImageNet's test classes or of a named data set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from uic_core.evaluations.evaluation import (
    Counting,
    Listed,
    OfFrozen,
    Resources,
    Work,
    archs_of,
    check_archs,
    check_layers,
)
from uic_core.models import ARCHS
from uic_core.recipe import Arch, External, Recipe, Seed, Strict, stated

if TYPE_CHECKING:
    from uic_core.config import Config

_PAPERS = "miniimagenet"


class Resolution(Strict):
    """How a miniImageNet image becomes the network's input: shorter side to `resize`, centre crop `crop`."""

    resize: int = Field(ge=64)
    crop: int = Field(ge=64)

    @model_validator(mode="after")
    def _fits(self) -> Resolution:
        if self.crop > self.resize:
            raise ValueError("crop: must not be larger than resize, it is taken from it")
        return self


class Fewshot(OfFrozen):
    """Prototypical evaluation (docs/protocol.md, Table 5). Resolution 'upsampled' is Table 5's 224, 'native' its 84."""

    resources: ClassVar[Resources] = Resources(memory=16)

    data: str | None = Field(
        None,
        description="a name under datasets.folders, whose validation images it takes; left out: miniImageNet's test",
    )
    resolutions: dict[Literal["upsampled", "native"], Resolution]
    layers: dict[Arch, list[str]]
    ways: int = Field(ge=2)
    shots: int = Field(ge=1)
    queries: int = Field(ge=1)
    episodes: int = Field(ge=2)
    seed: Seed

    @model_validator(mode="after")
    def _consistent(self) -> Fewshot:
        check_layers(self.layers, {name: arch.fewshot_layers for name, arch in ARCHS.items()})
        return self

    @property
    def dataset(self) -> str:
        """miniImageNet, if it names no other data."""
        return "" if self.data else _PAPERS

    @property
    def images(self) -> Listed:
        """The list of images that episodes are drawn from."""
        return Listed(self.data, "val") if self.data else Listed(_PAPERS, "test")

    def needs(self, config: Config) -> tuple[tuple[str, str], ...]:
        """The list of test images."""
        return (("index", self.images.data),)

    def lists(self, recipe: Recipe | External) -> tuple[Listed, ...]:
        """The test images."""
        return (self.images,)

    def classes(self, config: Config) -> tuple[int, int]:
        """Return the numbers of classes and of images a class: of a named data set, the mean."""
        if self.data:
            folder = config.datasets.folder(self.data, "data")
            return folder.classes, folder.val_images // folder.classes
        data = stated(config.datasets.miniimagenet)
        return data.test_classes, data.images_per_class

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count a forward pass of every test image at each resolution."""
        images = math.prod(self.classes(config))
        pixel = counting.arithmetic(recipe).features / recipe.image_size**2
        flops = sum(images * pixel * each.crop**2 for each in self.resolutions.values())
        return Work(flops, images * len(self.resolutions))

    def values_of(self, arch: str) -> list[str]:
        """Return one accuracy for each layer at each resolution."""
        return [f"{view}/{layer}" for view in self.resolutions for layer in self.layers[arch]]

    def few(self) -> dict[str, Any]:
        """Twenty episodes; small ones from a named data set, of which few images are left."""
        return {"episodes": 20} | ({"ways": 2, "shots": 1, "queries": 1} if self.data else {})

    def check(self, name: str, config: Config) -> None:
        """Check that its data can fill an episode, and that both resolutions of Table 5 are given."""
        check_archs("layers", self.layers, archs_of(config))
        classes, images = self.classes(config)
        if self.ways > classes:
            raise ValueError(f"ways: {self.ways}, but there are {classes} test classes")
        if self.shots + self.queries > images:
            raise ValueError(f"queries: {self.shots} shots and {self.queries} queries, but a class has {images} images")
        if not self.resolutions:
            raise ValueError("resolutions: is empty; write upsampled or native")
        if self.data is None and (missing := {"upsampled", "native"} - set(self.resolutions)):
            raise ValueError(f"resolutions: {', '.join(sorted(missing))} is missing; Table 5 shows both")
