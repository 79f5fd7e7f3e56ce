"""Boxes: left, top, right, bottom in pixels, the last pixel included. Imports numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MATCH = 0.5
"""A box finds an object that it overlaps by more than this (intersection over union), as VOC counts."""


def overlaps(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` [n, 4] with every one of `b` [m, 4]: [n, m], last pixel included."""
    a, b = a[:, None, :].astype(np.float64), b[None, :, :].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = np.clip(sides, 0, None).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2] + 1).prod(axis=-1) + (b[..., 2:] - b[..., :2] + 1).prod(axis=-1) - common
    return np.asarray(common / union)


def offsets(boxes: NDArray[np.floating], truths: NDArray[np.floating]) -> NDArray[np.float64]:
    """What box regression learns: how each of `boxes` [n, 4] must change to become its box of `truths` [n, 4].

    Returns:
        [n, 4]: shift of the centre to the right and down, in widths and heights of the box; logarithms of the ratios of
        width and of height (Girshick et al. 2014, eqs. 6 to 9).
    """
    boxes, truths = boxes.astype(np.float64), truths.astype(np.float64)
    sides, other_sides = boxes[:, 2:] - boxes[:, :2] + 1, truths[:, 2:] - truths[:, :2] + 1
    shift = (truths[:, :2] + other_sides / 2 - boxes[:, :2] - sides / 2) / sides
    return np.concatenate([shift, np.log(other_sides / sides)], axis=1)


def to_edges(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Boxes [n, 4] by their edges: right and bottom are where the last pixel ends, as OpenMMLab's geometry has them."""
    return boxes + np.array([0, 0, 1, 1], boxes.dtype)


def from_edges(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """The inverse of `to_edges`."""
    return boxes - np.array([0, 0, 1, 1], boxes.dtype)
