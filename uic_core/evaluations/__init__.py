"""The evaluations by name. A new one takes a file here, a line below, a stage and a rule. Imports no torch."""

from __future__ import annotations

from typing import get_args

from uic_core.evaluations.clusters import Clusters
from uic_core.evaluations.detection import Detection, Proposals
from uic_core.evaluations.evaluation import ByClass, Evaluation
from uic_core.evaluations.fewshot import Fewshot, Resolution
from uic_core.evaluations.knn import Knn
from uic_core.evaluations.linear_probe import FurtherProbe, LinearProbe, PeerProbe
from uic_core.evaluations.segmentation import Segmentation
from uic_core.evaluations.voc_classification import VocClassification
from uic_core.recipe import Strict

__all__ = [
    "BY_CLASS", "EVALUATIONS", "SECTIONS", "Clusters", "Detection", "Evaluation", "Evaluations", "Fewshot",
    "FurtherProbe", "Knn", "LinearProbe", "PeerProbe", "Proposals", "Resolution", "Segmentation", "VocClassification",
]  # fmt: skip


class Evaluations(Strict):
    """The config's `evaluations`: one section each, and one for the proposals, which all detection jobs share.

    A config may leave out sections; it then has no job of those evaluations.
    """

    linear_probe: LinearProbe | None = None
    clusters: Clusters | None = None
    voc_classification_fc6_8: VocClassification | None = None
    voc_classification_all: VocClassification | None = None
    proposals: Proposals | None = None
    detection: Detection | None = None
    segmentation: Segmentation | None = None
    fewshot: Fewshot | None = None
    knn: Knn | None = None
    linear_probe_batch_norm: FurtherProbe | None = None
    linear_probe_selflabel: PeerProbe | None = None
    linear_probe_rotnet: PeerProbe | None = None

    @property
    def present(self) -> dict[str, Strict]:
        """The sections that the config has, by name."""
        return {name: section for name, section in self if section is not None}

    def one(self, name: str) -> Evaluation:
        """Return the section of one of `present` that is an evaluation."""
        section = getattr(self, name)
        assert isinstance(section, Evaluation), name
        return section


SECTIONS: dict[str, type[Strict]] = {
    name: model
    for name, field in Evaluations.model_fields.items()
    for model in get_args(field.annotation) or (field.annotation,)  # of an optional section its model and None
    if isinstance(model, type) and issubclass(model, Strict)
}

EVALUATIONS: dict[str, type[Evaluation]] = {
    name: model for name, model in SECTIONS.items() if issubclass(model, Evaluation)
}

BY_CLASS: dict[str, ByClass] = {name: model.by_class for name, model in EVALUATIONS.items() if model.by_class}
"""Those whose numbers of every class have a table of their own."""
