"""Boxes: left, top, right, bottom in pixels; the last pixel is included. Imports only numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MATCH = 0.5
"""A box matches an object if their intersection over union exceeds this, as in VOC."""


def overlaps(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the intersection over union of all boxes `a` [n, 4] with all boxes `b` [m, 4], as [n, m]."""
    a, b = a[:, None, :].astype(np.float64), b[None, :, :].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = np.clip(sides, 0, None).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2] + 1).prod(axis=-1) + (b[..., 2:] - b[..., :2] + 1).prod(axis=-1) - common
    return np.asarray(common / union)


def offsets(boxes: NDArray[np.floating], truths: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the targets of box regression: the change from each of `boxes` [n, 4] to its box in `truths` [n, 4].

    Returns:
        [n, 4]: shift of the centre right and down, in widths and heights of the box; logarithms of the ratios of
        width and of height (Girshick et al. 2014, eqs. 6 to 9).
    """
    boxes, truths = boxes.astype(np.float64), truths.astype(np.float64)
    sides, other_sides = boxes[:, 2:] - boxes[:, :2] + 1, truths[:, 2:] - truths[:, :2] + 1
    shift = (truths[:, :2] + other_sides / 2 - boxes[:, :2] - sides / 2) / sides
    return np.concatenate([shift, np.log(other_sides / sides)], axis=1)


def to_edges(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Convert boxes [n, 4] to edges: right and bottom become the end of the last pixel, as in OpenMMLab."""
    return boxes + np.array([0, 0, 1, 1], boxes.dtype)


def from_edges(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Invert `to_edges`."""
    return boxes - np.array([0, 0, 1, 1], boxes.dtype)
