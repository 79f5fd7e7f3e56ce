"""Studies that change UIC change one thing of it."""

from __future__ import annotations

from typing import cast

import numpy as np

from tests import recipes
from uic_core.methods import METHODS, uic_balanced_start
from uic_core.methods.labels import draw_balanced
from uic_core.methods.method import Inference

NONE = cast(Inference, None)


def differing(method: str) -> set[str]:
    own, uic = METHODS[method], METHODS["uic"]
    return {name for name in vars(uic) if getattr(own, name) != getattr(uic, name)}


def test_uic_from_a_balanced_start_is_uic_but_for_its_first_labels():
    settings = recipes.recipe(method="uic_balanced_start", classes=7)
    found = uic_balanced_start.first_labels(settings, np.zeros(60, np.int32), NONE)
    assert sorted(np.bincount(found).tolist()) == [8, 8, 8, 9, 9, 9, 9]
    other = recipes.recipe(method="uic_balanced_start", classes=7, seed=4)
    assert (found != uic_balanced_start.first_labels(other, np.zeros(60, np.int32), NONE)).any()
    assert found.tolist() == draw_balanced(60, 7, settings.seed).tolist()
    assert differing("uic_balanced_start") == {"recipe", "first_labels"}


def test_uic_without_splitting_leaves_empty_classes_empty():
    assert METHODS["uic_no_split"].fill_empty is None
    assert differing("uic_no_split") == {"recipe", "fill_empty"}
