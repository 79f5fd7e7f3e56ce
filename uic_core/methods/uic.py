"""UIC, the paper's method: an image's label is the argmax of its forward pass in the previous epoch (eqs. 5, 6)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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


def labels(recipe: Uic, epoch: int, present: Labels, inference: Inference) -> Labels | None:
    """For Table 2 without augmentation: labels from a centre-crop pass. The first epoch keeps the uniform draw."""
    return inference.predict() if epoch and recipe.label_view == "center_crop" else None


METHOD = Method(
    recipe=Uic,
    labels=labels,
    learns=lambda recipe: recipe.label_view == "training",
    fill_empty=split_empty,
    order=balanced_or_shuffled,
    passes=lambda recipe: Passes(recipe.epochs, recipe.epochs - 1 if recipe.label_view == "center_crop" else 0),
)
