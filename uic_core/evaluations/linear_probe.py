"""Linear classifiers on frozen layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from uic_core.evaluations.evaluation import (
    BACKWARD,
    Counting,
    Evaluation,
    Listed,
    Resources,
    Work,
    check_archs,
    check_layers,
    check_steps,
)
from uic_core.models import ARCHS
from uic_core.recipe import Arch, External, Recipe

if TYPE_CHECKING:
    from uic_core.config import Config

SNAPSHOT_BYTES = 2 << 30
"""Limit for the heads of past epochs that wait for their test; before it is exceeded, all are tested."""

_CROPS = 10  # per tested image


class LinearProbe(Evaluation):
    """Linear classifiers on frozen layers (docs/protocol.md, Linear probes)."""

    resources: ClassVar[Resources] = Resources(memory=64, cpus=16)

    data: str = Field(description="a name under datasets.folders")
    layers: dict[Arch, list[str]]
    crop: dict[Arch, Literal["random_crop", "resized_crop"]]
    images: dict[Arch, Annotated[int, Field(ge=0)]] = Field(description="training images, 0 = all")
    val_images: dict[Arch, Annotated[int, Field(ge=0)]] = Field(description="tested images, 0 = all")
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_steps: list[int]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    batch_norm: bool = Field(description="non-affine BN before the linear layer, as SelfLabel and RotNet have it")
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> LinearProbe:
        check_layers(self.layers, {name: tuple(arch.probe_layers) for name, arch in ARCHS.items()})
        check_steps(self.lr_steps, "epochs", self.epochs)
        return self

    def needs(self, config: Config) -> tuple[tuple[str, str], ...]:
        """The lists of training and validation images."""
        return tuple(dict.fromkeys((config.datasets.train_list(self.data), ("index", self.data))))

    def lists(self, recipe: Recipe | External) -> tuple[Listed, ...]:
        """The training and validation images."""
        return (
            Listed(self.data, "train", self.images[recipe.arch], self.seed),
            Listed(self.data, "val", self.val_images[recipe.arch], self.seed),
        )

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count training and ten-crop tests of the probes of all layers."""
        data, arch = config.datasets.folders[self.data], recipe.arch
        trunk, heads, snapshot = counting.probed(
            arch, recipe.image_size, recipe.sobel, tuple(self.layers[arch]), data.classes
        )
        drawn = (self.images[arch] or data.train_images) * self.epochs
        tested = self.val_images[arch] or data.val_images
        passes = math.ceil(self.epochs / max(1, SNAPSHOT_BYTES // snapshot))
        crops = _CROPS * tested
        flops = drawn * (trunk + (1 + BACKWARD) * heads) + crops * (passes * trunk + self.epochs * heads)
        return Work(flops, drawn + passes * tested)

    def values_of(self, arch: str) -> list[str]:
        """Return top-1 and top-5 of the best and of the last epoch, for each layer."""
        return [f"{layer}{kind}" for kind in ("", "/top5", "/last", "/last/top5") for layer in self.layers[arch]]

    def few(self) -> dict[str, Any]:
        """Two epochs of 16 images, tested on all."""
        few = {"images": dict.fromkeys(self.images, 16), "val_images": dict.fromkeys(self.val_images, 0)}
        return few | {"epochs": 2, "lr_steps": [1]}

    def check(self, name: str, config: Config) -> None:
        """Check that its data set exists and is large enough, and that every architecture has its entries."""
        data = config.datasets.folder(self.data, "data")
        if not data.val_images:
            raise ValueError(f"data: {self.data} has no validation images; name another data set")
        for key in ("layers", "crop", "images", "val_images"):
            check_archs(key, getattr(self, key), config)
        for key, there in (("images", data.train_images), ("val_images", data.val_images)):
            for arch in sorted({recipe.arch for recipe in config.runs.values()}):
                wanted = getattr(self, key)[arch]
                if wanted > there:
                    raise ValueError(f"{key}.{arch}: {wanted}, but {self.data} has {there}; 0 takes all")
