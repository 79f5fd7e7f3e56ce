"""Average precision of ranked scores: the area under the uninterpolated precision-recall steps, not VOC's 11 points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uic_core.data.voc import IGNORED


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Compute Σ (Rₙ − Rₙ₋₁)·Pₙ over the distinct scores, highest first, without interpolation.

    Images with equal scores enter together, so the order of the files does not change the result.

    Args:
        scores: [n], finite; higher means more likely positive.
        positive: [n], at least one True.

    Returns:
        0..1. If all scores are equal, this is the share of positives.
    """
    assert scores.shape == positive.shape, f"{scores.shape} scores for {positive.shape} images"
    assert positive.any(), "average precision needs a positive"
    assert np.isfinite(scores).all(), "average precision needs finite scores"
    descending = np.argsort(-scores, kind="stable")
    scores, positive = scores[descending], positive[descending]
    hits = np.cumsum(positive)
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    precision = hits[last_of_tie] / (last_of_tie + 1)
    recall = hits[last_of_tie] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def class_average_precisions(scores: NDArray[np.floating], targets: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute the average precision of every class (docs/protocol.md, Table 4).

    Args:
        scores: [n, C], finite.
        targets: [n, C]; 1 positive, 0 negative, 255 (only difficult objects) ignored.

    Returns:
        [C], 0..1; NaN for a class without a positive, whose precision is undefined.
    """
    assert scores.shape == targets.shape, f"{scores.shape} scores for {targets.shape} targets"
    values = np.full(targets.shape[1], np.nan)
    for column, target in enumerate(targets.T):
        counted = target != IGNORED
        positive = target[counted] == 1
        if positive.any():
            values[column] = average_precision(scores[counted, column], positive)
    return values
