"""Further fine-tuning (section 4.3): fixed labels from a centre-crop pass of a pretrained network, balanced order.

Classes that are empty after this pass stay empty: no source says that they are split.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uic_core.data.partition import Labels
from uic_core.methods.method import Inference, Method, Passes, balanced_or_shuffled
from uic_core.recipe import Annealed


class Finetune(Annealed):
    """A run of further fine-tuning."""

    method: Literal["finetune"]
    pretrained: str = Field(min_length=1, description="the run whose checkpoint is the start")
    balanced: bool = Field(description="every class is drawn equally often; false: every image once an epoch")


def first_labels(recipe: Finetune, annotated: Labels, inference: Inference) -> Labels:
    """Predictions of the pretrained network."""
    return inference.predict()


def labels(recipe: Finetune, epoch: int, present: Labels, inference: Inference) -> Labels | None:
    """The same labels, grouped anew so that each epoch draws other members of a large class."""
    return present if epoch else None


METHOD = Method(
    recipe=Finetune,
    first_labels=first_labels,
    labels=labels,
    order=balanced_or_shuffled,
    passes=lambda recipe: Passes(recipe.epochs, 1),
)
