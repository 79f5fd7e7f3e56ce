"""Comparison of a run's pseudo-labels with annotations."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from uic_core.evaluations.evaluation import Evaluation, Listed, Resources
from uic_core.methods import METHODS
from uic_core.recipe import External, Recipe


class Clusters(Evaluation):
    """Pseudo-labels compared with annotations (Table 1, Figs. 3 and 4)."""

    resources: ClassVar[Resources] = Resources(memory=8, cpus=1, gpus=0)

    grid_classes: int = Field(ge=1, description="pseudo-classes shown in Fig. 4")
    grid_images: int = Field(ge=1, description="images of each")
    min_images: int = Field(ge=1, description="smaller classes are not considered for Fig. 4")

    def lists(self, recipe: Recipe | External) -> tuple[Listed, ...]:
        """The images that the run was trained on, or could have been."""
        return () if isinstance(recipe, External) else (Listed(recipe.data, "train"),)

    def few(self) -> dict[str, Any]:
        """A small grid."""
        return {"grid_classes": 2, "grid_images": 3, "min_images": 2}

    def values_of(self, arch: str) -> list[str]:
        """Return the agreement with annotations, and how even the classes' sizes are, in percent of ln K."""
        return ["nmi", "entropy_of_sizes"]

    def refuses(self, run: str, recipe: Recipe | External) -> str:
        """Refuse a run without pseudo-labels: one trained elsewhere, or by a method whose labels say nothing."""
        if isinstance(recipe, External):
            return f"run {run} was trained elsewhere and has no pseudo-labels; name another run"
        if not METHODS[recipe.method].pseudo_classes:
            return f"run {run} is of method {recipe.method}, which gives images no pseudo-labels; name another run"
        return ""
