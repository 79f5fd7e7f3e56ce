"""Average precision of detections as VOC 2007 defines it (docs/protocol.md, Detection). Imports only numpy.

mmdet computes it in float32, where a recall of 3/5 reaches 0.6; this changes a class's AP by up to 9 points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uic_core.data.boxes import MATCH, overlaps

# The development kit's recalls, multiples of 0.1 in float64. The fourth is 0.30000000000000004, which a recall of 3/10
# does not reach.
_RECALLS = np.arange(11) * 0.1


@dataclass(frozen=True)
class Scene:
    """One class in one image; boxes as in uic_core.data.boxes.

    Attributes:
        truths: annotated boxes, float [n, 4].
        difficult: bool [n]; detections of such objects are ignored.
        boxes: detected boxes, float [m, 4].
        scores: float [m].
    """

    truths: NDArray[np.floating]
    difficult: NDArray[np.bool_]
    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]


def average_precision(scenes: Sequence[Scene]) -> float | None:
    """Average precision of a class over all images: mean of the best precisions at recall ≥ 0, 0.1 … 1, 11 points.

    Detections are ranked by score over all images. Among equal scores the earlier image comes first, within an image
    the earlier detection. A detection is matched to the object of its image that it overlaps most. It is correct if the
    overlap exceeds MATCH and no earlier correct detection is matched to the object.

    Returns:
        0 … 1; None if no image has an object that is not difficult.
    """
    objects = sum(int((~scene.difficult).sum()) for scene in scenes)
    if not objects:
        return None
    scores = np.concatenate([scene.scores for scene in scenes])
    outcomes = np.concatenate([_outcomes(scene) for scene in scenes])
    ranked = outcomes[np.argsort(-scores, kind="stable")]
    counted = ranked[ranked != 0]
    right = np.cumsum(counted > 0)
    recall = right / objects
    precision = right / np.arange(1, len(counted) + 1)
    return float(np.mean([precision[recall >= least].max(initial=0.0) for least in _RECALLS]))


def _outcomes(scene: Scene) -> NDArray[np.int64]:
    """[m]: 1 for a correct detection, -1 for a wrong one, 0 for one of a difficult object."""
    found = np.full(len(scene.boxes), -1)
    if not len(scene.truths) or not len(scene.boxes):
        return found
    shared = overlaps(scene.boxes, scene.truths)
    nearest = shared.argmax(axis=1)
    taken = np.zeros(len(scene.truths), bool)
    for detection in np.argsort(-scene.scores, kind="stable"):
        truth = nearest[detection]
        if shared[detection, truth] <= MATCH:
            continue
        if scene.difficult[truth]:
            found[detection] = 0
        elif not taken[truth]:
            found[detection], taken[truth] = 1, True
    return found
