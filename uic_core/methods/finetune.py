"""Further fine-tuning (section 4.3): labels fixed by a centre-crop pass of a pretrained network, balanced order.

Classes that this pass leaves empty stay so: nothing says that they are split.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from uic_core.data.partition import Groups, Labels
from uic_core.methods.method import Inference, Method, Passes, balanced, shuffled
from uic_core.methods.order import Order
from uic_core.recipe import Training


class Finetune(Training):
    """A run of further fine-tuning."""

    method: Literal["finetune"]
    pretrained: str = Field(min_length=1, description="the run whose checkpoint is the start")
    balanced: bool = Field(description="every class is drawn equally often; false: every image once an epoch")


def first_labels(recipe: Finetune, annotated: Labels, inference: Inference) -> Labels:
    """What the pretrained network says."""
    return inference.predict()


def labels(recipe: Finetune, epoch: int, present: Labels, inference: Inference) -> Labels | None:
    """The same labels, but of a large class's members each epoch draws others."""
    return present if epoch else None


def order(recipe: Finetune, epoch: int, present: Labels, groups: Groups) -> Order:
    """Balanced as pretraining's, unless the recipe says otherwise."""
    return (balanced if recipe.balanced else shuffled)(recipe, epoch, present, groups)


METHOD = Method(
    recipe=Finetune,
    first_labels=first_labels,
    labels=labels,
    order=order,
    passes=lambda recipe: Passes(recipe.epochs, 1),
)
