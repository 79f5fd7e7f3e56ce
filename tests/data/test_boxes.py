"""Geometry of boxes that include their last pixel, against counted pixels."""

from __future__ import annotations

import numpy as np
import pytest

from uic_core.data import boxes


def pixels(box: np.ndarray) -> np.ndarray:
    """A picture in which the box's pixels are set."""
    picture = np.zeros((60, 60), bool)
    left, top, right, bottom = box.astype(int)
    picture[top : bottom + 1, left : right + 1] = True
    return picture


def draw(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.integers(0, 30, (count, 2))
    return np.concatenate([corner, corner + rng.integers(0, 30, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_are_ratios_of_counted_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = draw(rng, 6), draw(rng, 5)
    expected = [[(pixels(one) & pixels(other)).sum() / (pixels(one) | pixels(other)).sum() for other in b] for one in a]
    np.testing.assert_allclose(boxes.overlaps(a, b), expected, rtol=1e-12)


def test_offsets_by_hand() -> None:
    # 20×10 pixels around (20, 15), 40×5 pixels around (30, 12.5)
    box, truth = np.array([[10.0, 10, 29, 19]]), np.array([[10.0, 10, 49, 14]])
    expected = [[10 / 20, -2.5 / 10, np.log(2), np.log(0.5)]]
    np.testing.assert_allclose(boxes.offsets(box, truth), expected, rtol=1e-12)
    assert not boxes.offsets(truth, truth).any()


def test_edges_are_one_pixel_further_and_back() -> None:
    box = np.array([[3, 4, 5, 6]], np.float32)
    assert boxes.to_edges(box).tolist() == [[3, 4, 6, 7]]
    assert boxes.to_edges(box).dtype == np.float32
    np.testing.assert_array_equal(boxes.from_edges(boxes.to_edges(box)), box)
