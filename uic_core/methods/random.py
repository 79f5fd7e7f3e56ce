"""No training: the checkpoint holds the initial weights. The lower bound of Tables 3 and 4."""

from __future__ import annotations

from typing import Literal

from uic_core.methods.method import Method, Passes
from uic_core.recipe import Recipe


class Random(Recipe):
    """A network with random weights."""

    method: Literal["random"]


METHOD = Method(recipe=Random, passes=lambda recipe: Passes(0, 0))
