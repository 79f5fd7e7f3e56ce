"""Mean and deviation of the box regression targets of a training set (protocol.md, Detection). Imports only numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uic_core.data import boxes as geometry

FOREGROUND = 0.5
"""Least overlap (IoU) with an object that makes a box an example for box regression."""


@dataclass(frozen=True)
class Statistics:
    """Means and standard deviations of `uic_core.data.boxes.offsets` by class: float64 [classes, 4] each."""

    means: NDArray[np.float64]
    deviations: NDArray[np.float64]


def statistics(
    images: Iterable[tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.integer]]], classes: int
) -> Statistics:
    """Compute statistics over proposals and the objects themselves, each matched to the object it overlaps most.

    Every image counts twice, original and mirrored, so the mean shift to the right is 0 (Fast R-CNN's code). A class
    without examples, or with identical ones, has deviations of 1.

    Args:
        images: per image, proposals [n, 4], boxes [m, 4] of the objects to train on, and their classes [m].
    """
    counts, sums, squares = np.zeros((classes, 1)), np.zeros((classes, 4)), np.zeros((classes, 4))
    for proposals, truths, labels in images:
        if not len(truths):
            continue
        candidates = np.concatenate([truths, proposals])
        shared = geometry.overlaps(candidates, truths)
        nearest = shared.argmax(axis=1)
        examples = shared.max(axis=1) >= FOREGROUND
        nearest = nearest[examples]
        targets = geometry.offsets(candidates[examples], truths[nearest])
        np.add.at(counts, labels[nearest], 1)
        np.add.at(sums, labels[nearest], targets)
        np.add.at(squares, labels[nearest], targets**2)
    sums[:, 0] = 0  # a shift to the right becomes one to the left when mirrored
    means = sums / np.maximum(counts, 1)
    deviations = np.sqrt(np.maximum(squares / np.maximum(counts, 1) - means**2, 0))
    return Statistics(means, np.where(deviations > 1e-6, deviations, 1.0))
