"""Five-way classification of miniImageNet by class means of frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from uic_core.evaluations.evaluation import (
    Counting,
    Evaluation,
    Listed,
    Resources,
    Work,
    archs_of,
    check_archs,
    check_layers,
)
from uic_core.models import ARCHS
from uic_core.recipe import Arch, External, Recipe, Strict, stated

if TYPE_CHECKING:
    from uic_core.config import Config


class Resolution(Strict):
    """How a miniImageNet image becomes the network's input: shorter side to `resize`, centre crop `crop`."""

    resize: int = Field(ge=64)
    crop: int = Field(ge=64)

    @model_validator(mode="after")
    def _fits(self) -> Resolution:
        if self.crop > self.resize:
            raise ValueError("crop: must not be larger than resize, it is taken from it")
        return self


class Fewshot(Evaluation):
    """Prototypical evaluation (docs/protocol.md, Table 5). Resolution 'upsampled' is Table 5's 224, 'native' its 84."""

    resources: ClassVar[Resources] = Resources(memory=16)
    dataset: ClassVar[str] = "miniimagenet"

    resolutions: dict[Literal["upsampled", "native"], Resolution]
    layers: dict[Arch, list[str]]
    ways: int = Field(ge=2)
    shots: int = Field(ge=1)
    queries: int = Field(ge=1)
    episodes: int = Field(ge=2)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Fewshot:
        check_layers(self.layers, {name: arch.fewshot_layers for name, arch in ARCHS.items()})
        return self

    def needs(self, config: Config) -> tuple[tuple[str, str], ...]:
        """The list of test images."""
        return (("index", "miniimagenet"),)

    def lists(self, recipe: Recipe | External) -> tuple[Listed, ...]:
        """The test images."""
        return (Listed("miniimagenet", "test"),)

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count a forward pass of every test image at each resolution."""
        data = stated(config.datasets.miniimagenet)
        images = data.test_classes * data.images_per_class
        pixel = counting.arithmetic(recipe).features / recipe.image_size**2
        flops = sum(images * pixel * each.crop**2 for each in self.resolutions.values())
        return Work(flops, images * len(self.resolutions))

    def values_of(self, arch: str) -> list[str]:
        """Return one accuracy for each layer at each resolution."""
        values = [f"{view}/{layer}" for view in self.resolutions for layer in self.layers.get(arch, [])]
        return values or ["nothing"]

    def few(self) -> dict[str, Any]:
        """Twenty episodes."""
        return {"episodes": 20}

    def check(self, name: str, config: Config) -> None:
        """Check that miniImageNet can fill an episode and that both resolutions are given."""
        check_archs("layers", self.layers, archs_of(config))
        data = stated(config.datasets.miniimagenet)
        if self.ways > data.test_classes:
            raise ValueError(f"ways: {self.ways}, but there are {data.test_classes} test classes")
        if self.shots + self.queries > data.images_per_class:
            raise ValueError(
                f"queries: {self.shots} shots and {self.queries} queries, but a class has {data.images_per_class} "
                "images"
            )
        if missing := {"upsampled", "native"} - set(self.resolutions):
            raise ValueError(f"resolutions: {', '.join(sorted(missing))} is missing; Table 5 shows both")
