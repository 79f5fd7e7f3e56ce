"""Statistics of the regression targets against a plain transcription that mirrors every image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from uic_core.openmmlab import regression

WIDTH = 100


def draw(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.integers(0, 40, (count, 2))
    return np.concatenate([corner, corner + rng.integers(5, 40, (count, 2))], axis=1).astype(np.float32)


def near(rng: np.random.Generator, truths: np.ndarray) -> np.ndarray:
    moved = np.repeat(truths, 4, axis=0) + rng.integers(-5, 6, (4 * len(truths), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
    return moved.astype(np.float32)


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def plainly(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The rule in plain loops, over the images and over their mirror images."""
    examples: dict[int, list[list[float]]] = {number: [] for number in range(classes)}
    for proposals, truths, labels in images:
        for mirrored in (False, True):

            def turn(box: np.ndarray, mirrored: bool = mirrored) -> list[float]:
                left, top, right, bottom = map(float, box)
                return [WIDTH - 1 - right, top, WIDTH - 1 - left, bottom] if mirrored else [left, top, right, bottom]

            for box in map(turn, [*truths, *proposals]):
                shared = [iou(box, turn(truth)) for truth in truths]
                if not shared or max(shared) < 0.5:
                    continue
                nearest = shared.index(max(shared))
                truth = turn(truths[nearest])
                width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
                other_width, other_height = truth[2] - truth[0] + 1, truth[3] - truth[1] + 1
                examples[int(labels[nearest])].append(
                    [
                        (truth[0] + other_width / 2 - box[0] - width / 2) / width,
                        (truth[1] + other_height / 2 - box[1] - height / 2) / height,
                        math.log(other_width / width),
                        math.log(other_height / height),
                    ]
                )
    means, deviations = np.zeros((classes, 4)), np.ones((classes, 4))
    for number, targets in examples.items():
        if targets:
            spread = np.std(targets, axis=0)
            means[number], deviations[number] = np.mean(targets, axis=0), np.where(spread > 1e-6, spread, 1)
    return means, deviations


@pytest.mark.parametrize("seed", range(4))
def test_they_equal_the_rule_in_plain_loops(seed: int) -> None:
    rng, images = np.random.default_rng(seed), []
    for _ in range(6):
        truths = draw(rng, int(rng.integers(0, 4)))
        proposals = np.concatenate([near(rng, truths), draw(rng, 5)])
        images.append((proposals, truths, rng.integers(0, 3, len(truths))))
    found = regression.statistics(images, 4)
    means, deviations = plainly(images, 4)
    np.testing.assert_allclose(found.means, means, atol=1e-12)
    np.testing.assert_allclose(found.deviations, deviations, rtol=1e-6)
    assert not found.means[3].any(), "class 3 has no example"
    assert (found.deviations[3] == 1).all()
    assert not found.means[:, 0].any(), "the mirror image shifts to the other side"


def test_objects_without_proposals_have_deviations_of_one() -> None:
    alone = (np.zeros((0, 4), np.float32), draw(np.random.default_rng(0), 3), np.zeros(3, np.int64))
    found = regression.statistics([alone], 1)
    assert not found.means.any()
    assert (found.deviations == 1).all()
