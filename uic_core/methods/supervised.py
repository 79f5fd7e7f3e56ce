"""Supervised training on the annotated labels, every image once per epoch: the upper bound of Table 3."""

from __future__ import annotations

from typing import Literal

from uic_core.data.partition import Labels
from uic_core.methods.method import Inference, Method, shuffled
from uic_core.recipe import Annealed


class Supervised(Annealed):
    """A supervised run."""

    method: Literal["supervised"]


def first_labels(recipe: Supervised, annotated: Labels, inference: Inference) -> Labels:
    """The annotated labels."""
    return annotated.copy()


def check(recipe: Supervised, annotated: int) -> None:
    """Raise ValueError unless the top layer has one class per annotated class."""
    if recipe.classes != annotated:
        raise ValueError(f"classes: {recipe.classes}, but the data set has {annotated} annotated classes")


METHOD = Method(recipe=Supervised, first_labels=first_labels, order=shuffled, check=check)
