"""UIC whose first labels are SelfLabel's: random, but equally many of each class."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from uic_core.data.partition import Labels
from uic_core.methods import uic
from uic_core.methods.labels import draw_balanced
from uic_core.methods.method import Inference


class UicBalancedStart(uic.Uic):
    """A run of UIC from balanced labels."""

    method: Literal["uic_balanced_start"]  # type: ignore[assignment]


def first_labels(recipe: uic.Uic, annotated: Labels, inference: Inference) -> Labels:
    """Draw labels of equally large classes."""
    return draw_balanced(len(annotated), recipe.classes, recipe.seed)


METHOD = replace(uic.METHOD, recipe=UicBalancedStart, first_labels=first_labels)
