"""Linear classifiers on frozen layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

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
"""Limit for the heads of past epochs that wait for their test: when one more epoch would exceed it, all are tested.
Five AlexNet layers on ImageNet take 189 MB an epoch, so there are three test passes, not 32. A test uses twice the
memory, and saved states contain these heads too."""

Start = Literal["normal", "xavier", "he"]
"""First weights of a head: N(0, .01); Xavier's uniform, as of a convolution; N(0, √(2 / classes)). Biases are 0."""

Test = Literal["ten_crop_softmax", "ten_crop_logits", "center_crop"]
"""A tested image's scores: the mean softmax or the mean logits of ten crops, or those of the centre crop."""


class Switches(NamedTuple):
    """What peers' probes do otherwise than the paper's; the defaults are the paper's.

    Attributes:
        lr_factor: the learning rate is divided by this at each of `lr_steps`.
    """

    lr_factor: float = 10.0
    nesterov: bool = False
    start: Start = "normal"
    test: Test = "ten_crop_softmax"


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

    @property
    def switches(self) -> Switches:
        """What it does otherwise than the paper's probes: nothing."""
        return Switches()

    @model_validator(mode="after")
    def _consistent(self) -> LinearProbe:
        check_layers(self.layers, {name: tuple(arch.probe_layers) for name, arch in ARCHS.items()})
        check_steps(self.lr_steps, "epochs", self.epochs)
        if self.batch_norm and self.batch_size < 2:
            raise ValueError("batch_size: batch norm takes two images or more; raise it")
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
        crops = tested * (1 if self.switches.test == "center_crop" else 10)
        flops = drawn * (trunk + (1 + BACKWARD) * heads) + crops * (passes * trunk + self.epochs * heads)
        return Work(flops, passes * tested, drawn)

    def refuses(self, run: str, recipe: Recipe | External) -> str:
        """Refuse images that leave ten crops no room."""
        if self.switches.test == "center_crop" or recipe.resize > recipe.image_size:
            return ""
        return (
            f"run {run} has a resize of {recipe.resize}, its image_size, at which the ten crops of a square image are "
            "one crop and its mirror image; raise resize (as 256 for 224)"
        )

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
        check_archs("crop", self.crop, self.archs(config))


class FurtherProbe(LinearProbe):
    """A linear probe beside the paper's, of the architectures that it names (protocol.md, Further linear probes)."""

    def archs(self, config: Config) -> list[str]:
        """Return those that it names."""
        return [arch for arch in super().archs(config) if arch in self.layers]

    def refuses(self, run: str, recipe: Recipe | External) -> str:
        """Refuse an architecture that it does not name, too."""
        if recipe.arch in self.layers:
            return super().refuses(run, recipe)
        return f"run {run} is {recipe.arch}, and this probe is of {', '.join(self.layers)}; name another run"


class PeerProbe(FurtherProbe):
    """A peer's own linear probe."""

    lr_factor: float = Field(gt=1, description="lr is divided by this at each of lr_steps")
    nesterov: bool = Field(description="Nesterov's momentum")
    start: Start = Field(description="first weights of a head")
    test: Test = Field(description="how an image is tested")

    @model_validator(mode="after")
    def _looks_ahead(self) -> PeerProbe:
        if self.nesterov and not self.momentum:
            raise ValueError("momentum: Nesterov's takes one above 0; raise it, or write nesterov: false")
        return self

    @property
    def switches(self) -> Switches:
        """What it does otherwise than the paper's probes."""
        return Switches(self.lr_factor, self.nesterov, self.start, self.test)
