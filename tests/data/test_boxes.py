"""Overlaps of boxes, against counted pixels."""

import numpy as np

from uic_core.data.boxes import overlaps


def pixels(box):
    left, top, right, bottom = box
    return {(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)}


def test_overlap_is_the_share_of_the_pixels_that_both_have():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (2, 20, 2, 2))
    a, b = np.concatenate([corners.min(2), corners.max(2)], axis=2)
    expected = [[len(pixels(one) & pixels(other)) / len(pixels(one) | pixels(other)) for other in b] for one in a]
    found = overlaps(a.astype(np.float32), b[:15].astype(np.float32))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.array(expected)[:, :15], rtol=1e-12)
    assert 0 in found  # apart in both directions, too
