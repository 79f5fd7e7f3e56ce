"""UIC, the paper's method: an image's label is the argmax of its forward pass in the previous epoch (eqs. 5, 6)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from uic_core.data.partition import Labels
from uic_core.methods.labels import split_empty
from uic_core.methods.method import Inference, Method, Passes, balanced_or_shuffled
from uic_core.recipe import Annealed


class Uic(Annealed):
    """A run of UIC."""

    method: Literal["uic"]
    label_view: Literal["training", "center_crop"] = Field(
        description="where pseudo-labels come from: the training forward itself, or a separate centre-crop pass "
        "in eval mode (eq. 4; Table 2, without augmentation)"
    )
    balanced: bool = Field(description="every class is drawn equally often; false: every image once an epoch")
    labels_from: int | None = Field(
        None, ge=2, description="the first epoch, from 0, that trains on the network's own labels; left out: 1"
    )

    @property
    def first_own(self) -> int:
        """The first epoch, from 0, whose labels are the network's; before it are those that were drawn."""
        return self.labels_from or 1

    @model_validator(mode="after")
    def _labels_itself(self) -> Uic:
        if self.first_own > max(1, self.epochs - 1):
            raise ValueError(f"labels_from: {self.labels_from} must be less than epochs, {self.epochs}")
        return self


def labels(recipe: Uic, epoch: int, present: Labels, inference: Inference) -> Labels | None:
    """For Table 2 without augmentation: labels from a centre-crop pass. The first epoch keeps the uniform draw."""
    return inference.predict() if epoch >= recipe.first_own and recipe.label_view == "center_crop" else None


METHOD = Method(
    recipe=Uic,
    labels=labels,
    learns=lambda recipe, epoch: recipe.label_view == "training" and epoch + 1 >= recipe.first_own,
    fill_empty=split_empty,
    order=balanced_or_shuffled,
    passes=lambda recipe: Passes(
        recipe.epochs, recipe.epochs - recipe.first_own if recipe.label_view == "center_crop" else 0
    ),
)
