"""Boxes: left, top, right, bottom in pixels, the last pixel included. Imports numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def overlaps(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of every box of `a` [n, 4] with every one of `b` [m, 4]: [n, m], last pixel included."""
    a, b = a[:, None, :].astype(np.float64), b[None, :, :].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = np.clip(sides, 0, None).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2] + 1).prod(axis=-1) + (b[..., 2:] - b[..., :2] + 1).prod(axis=-1) - common
    return np.asarray(common / union)
