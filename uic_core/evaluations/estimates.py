"""Operations of a network from its description, within about a tenth: enough for a job's time. Imports no torch."""

from __future__ import annotations

from uic_core.evaluations.evaluation import BACKWARD, Arithmetic
from uic_core.models import ARCHS
from uic_core.recipe import External, Recipe

_PROBED = 9600  # numbers that a probe sees of a layer (docs/protocol.md, Networks)


def arithmetic(recipe: Recipe | External, image_size: int = 0) -> Arithmetic:
    """Estimate a run's network, at its own image size or another one (pixels). Its parameters are not estimated."""
    arch = ARCHS[recipe.arch]
    classifier = 1e9 * arch.classifier_gflop
    features = 1e9 * arch.training_gflop / (1 + BACKWARD) - classifier
    return Arithmetic(features * ((image_size or recipe.image_size) / 224) ** 2, classifier, 0)


def probed(arch: str, image_size: int, sobel: bool, layers: tuple[str, ...], classes: int) -> tuple[float, float, int]:
    """Estimate FLOPs per image up to the deepest probed layer, FLOPs of all heads, and bytes of the heads."""
    trunk = 1e9 * ARCHS[arch].training_gflop / (1 + BACKWARD) * (image_size / 224) ** 2
    weights = _PROBED * len(layers) * classes
    return trunk, 2.0 * weights, 4 * weights
