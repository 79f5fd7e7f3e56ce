"""Linear classifiers on frozen layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from uic_core.evaluations.evaluation import (
    BACKWARD,
    Counting,
    Resources,
    Work,
    check_archs,
    check_layers,
    check_steps,
)
from uic_core.evaluations.train_val import TrainVal
from uic_core.models import ARCHS
from uic_core.recipe import Arch, External, Recipe

if TYPE_CHECKING:
    from uic_core.config import Config

SNAPSHOT_BYTES = 2 << 30
"""Limit for the heads of past epochs that wait for their test; before it is exceeded, all are tested."""

_CROPS = 10  # per tested image


class LinearProbe(TrainVal):
    """Linear classifiers on frozen layers (docs/protocol.md, Linear probes)."""

    resources: ClassVar[Resources] = Resources(memory=64, cpus=16)

    crop: dict[Arch, Literal["random_crop", "resized_crop"]]
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    lr_steps: list[int]
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    batch_norm: bool = Field(description="non-affine BN before the linear layer, as SelfLabel and RotNet have it")

    @model_validator(mode="after")
    def _consistent(self) -> LinearProbe:
        check_layers(self.layers, {name: tuple(arch.probe_layers) for name, arch in ARCHS.items()})
        check_steps(self.lr_steps, "epochs", self.epochs)
        return self

    def work(self, config: Config, recipe: Recipe | External, counting: Counting) -> Work:
        """Count training and ten-crop tests of the probes of all layers."""
        arch = recipe.arch
        (learned, tested), classes = self.sizes(config, arch), config.datasets.folders[self.data].classes
        trunk, heads, snapshot = counting.probed(
            arch, recipe.image_size, recipe.sobel, tuple(self.layers[arch]), classes
        )
        drawn = learned * self.epochs
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
        """Check its data set, and that every architecture has its entries."""
        super().check(name, config)
        check_archs("crop", self.crop, config)
