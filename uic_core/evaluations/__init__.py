"""The evaluations by name. A new one takes a file here, a line below, a stage and a rule. Imports no torch."""

from __future__ import annotations

from uic_core.evaluations.clusters import Clusters
from uic_core.evaluations.detection import Detection, Proposals
from uic_core.evaluations.evaluation import Evaluation
from uic_core.evaluations.fewshot import Fewshot, Resolution
from uic_core.evaluations.linear_probe import LinearProbe
from uic_core.evaluations.segmentation import Segmentation
from uic_core.evaluations.voc_classification import VocClassification
from uic_core.recipe import Strict

__all__ = [
    "EVALUATIONS", "Clusters", "Detection", "Evaluation", "Evaluations", "Fewshot", "LinearProbe", "Proposals",
    "Resolution", "Segmentation", "VocClassification",
]  # fmt: skip


class Evaluations(Strict):
    """The config's `evaluations`: one section each, and one for the proposals, which all detection jobs share."""

    linear_probe: LinearProbe
    clusters: Clusters
    voc_classification_fc6_8: VocClassification
    voc_classification_all: VocClassification
    proposals: Proposals
    detection: Detection
    segmentation: Segmentation
    fewshot: Fewshot

    def one(self, name: str) -> Evaluation:
        """Return an evaluation's section by its name in EVALUATIONS."""
        section = getattr(self, name)
        assert isinstance(section, Evaluation), name
        return section


EVALUATIONS: dict[str, type[Evaluation]] = {
    name: field.annotation
    for name, field in Evaluations.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Evaluation)
}
