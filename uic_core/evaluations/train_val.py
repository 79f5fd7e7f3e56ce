"""What evaluations share that learn from a data set's training images and are tested on its validation images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from uic_core.evaluations.evaluation import Listed, OfFrozen, archs_of, check_archs
from uic_core.recipe import Arch, External, Recipe, Seed

if TYPE_CHECKING:
    from uic_core.config import Config


class TrainVal(OfFrozen):
    """The images of such an evaluation, and the layers that it looks at, by architecture."""

    data: str = Field(description="a name under datasets.folders")
    layers: dict[Arch, list[str]]
    images: dict[Arch, Annotated[int, Field(ge=0)]] = Field(description="training images, 0 = all")
    val_images: dict[Arch, Annotated[int, Field(ge=0)]] = Field(description="tested images, 0 = all")
    seed: Seed

    def needs(self, config: Config) -> tuple[tuple[str, str], ...]:
        """The lists of training and validation images."""
        return tuple(dict.fromkeys((config.datasets.train_list(self.data), ("index", self.data))))

    def lists(self, recipe: Recipe | External) -> tuple[Listed, ...]:
        """The training and validation images."""
        return (
            Listed(self.data, "train", self.images[recipe.arch], self.seed),
            Listed(self.data, "val", self.val_images[recipe.arch], self.seed),
        )

    def sizes(self, config: Config, arch: str) -> tuple[int, int]:
        """Return how many training and validation images there are for an architecture."""
        data = config.datasets.folders[self.data]
        return self.images[arch] or data.train_images, self.val_images[arch] or data.val_images

    def archs(self, config: Config) -> list[str]:
        """Return the architectures of the runs that it evaluates."""
        return archs_of(config)

    def check(self, name: str, config: Config) -> None:
        """Check that its data set exists and is large enough, and that every architecture has its entries."""
        data = config.datasets.folder(self.data, "data")
        if not data.val_images:
            raise ValueError(f"data: {self.data} has no validation images; name another data set")
        for key in ("layers", "images", "val_images"):
            check_archs(key, getattr(self, key), self.archs(config))
        for key, there in (("images", data.train_images), ("val_images", data.val_images)):
            for arch in self.archs(config):
                wanted = getattr(self, key)[arch]
                if wanted > there:
                    raise ValueError(f"{key}.{arch}: {wanted}, but {self.data} has {there}; 0 takes all")
