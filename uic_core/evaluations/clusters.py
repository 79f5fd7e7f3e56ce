"""Comparison of a run's pseudo-labels with annotations, and the arrays that it makes for the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uic_core.errors import InputError
from uic_core.evaluations.evaluation import Evaluation, Listed, Resources
from uic_core.files import DAMAGED
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


@dataclass(frozen=True)
class ClusterArrays:
    """The arrays for Figs. 3 and 4: K pseudo-classes, of which G are shown with M images each.

    Attributes:
        class_sizes: int64 [K], images per class.
        grid_classes: int64 [G], the shown classes, in 0…K-1, lowest entropy first.
        grid_images: int64 [G, M], positions in the whole training index; -1 fills the rows of small classes.
        grid_entropy: float64 [G], entropy of the annotated labels in each shown class, nats, ≥ 0.
        grid_annotated: int64 [G], the most frequent annotated label of each shown class; ties go to the lowest.
    """

    class_sizes: NDArray[np.int64]
    grid_classes: NDArray[np.int64]
    grid_images: NDArray[np.int64]
    grid_entropy: NDArray[np.float64]
    grid_annotated: NDArray[np.int64]

    @classmethod
    def load(cls, path: Path) -> ClusterArrays:
        """Read metrics/<run>/clusters.npz; refuse pickled content.

        Raises:
            InputError: the file is missing or damaged, lacks an array, or has arrays that do not fit together.
        """
        remedy = "delete the file and run snakemake again"
        forms = {
            "class_sizes": ("iu", 1),
            "grid_classes": ("iu", 1),
            "grid_images": ("iu", 2),
            "grid_entropy": ("f", 1),
            "grid_annotated": ("iu", 1),
        }
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in forms}
        except FileNotFoundError as error:
            raise InputError(f"{path}: there is no such file; run snakemake to make it") from error
        except DAMAGED as error:
            raise InputError(f"{path}: does not hold the arrays of clusters ({error}); {remedy}") from error
        for name, (kinds, dimensions) in forms.items():
            array = arrays[name]
            if array.dtype.kind not in kinds or array.ndim != dimensions or not array.size:
                raise InputError(f"{path}: {name} has the form {array.dtype}{list(array.shape)}; {remedy}")
        clusters = cls(**arrays)
        if len({len(arrays[name]) for name in forms if name.startswith("grid_")}) > 1:
            raise InputError(f"{path}: {', '.join(forms)}: those of the grid differ in length; {remedy}")
        if clusters.class_sizes.min() < 0 or not clusters.class_sizes.any():
            raise InputError(f"{path}: class_sizes must be counts, not all 0; {remedy}")
        if clusters.grid_classes.min() < 0 or clusters.grid_classes.max() >= len(clusters.class_sizes):
            raise InputError(f"{path}: grid_classes outside 0…{len(clusters.class_sizes) - 1}; {remedy}")
        if not (np.isfinite(clusters.grid_entropy).all() and (clusters.grid_entropy >= 0).all()):
            raise InputError(f"{path}: grid_entropy must be finite and not negative; {remedy}")
        return clusters
