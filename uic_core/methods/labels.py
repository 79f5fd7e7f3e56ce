"""UIC's labels (docs/protocol.md, Pretraining): the initial draw, filling empty classes, the update in a step.

Labels are a partition of the images (uic_core.data.partition).
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from uic_core.data.partition import Groups, Labels
from uic_core.run.randomness import Stream

DIVERGED = (
    "labels: the network's {}, the training diverged; lower lr in the recipe (the last good state is kept, no "
    "checkpoint is written)"
)
"""What a method says that cannot make labels of what the network gives it."""


def draw_initial(images: int, classes: int, seed: int) -> Labels:
    """Draw independent uniform labels 0 … classes - 1, shape [images] (docs/protocol.md, Pretraining)."""
    return np.random.default_rng([seed, Stream.LABELS]).integers(0, classes, images, dtype=np.int32)


def draw_balanced(images: int, classes: int, seed: int, head: int = 0) -> Labels:
    """Permute the labels i mod K, so that class sizes differ by at most one, shape [images] [code: SelfLabel].

    Args:
        head: each of several heads has a permutation of its own.
    """
    return np.random.default_rng([seed, Stream.BALANCED_LABELS, head]).permutation(
        np.arange(images, dtype=np.int32) % classes
    )


def split_empty(groups: Groups, labels: Labels) -> None:
    """Give every empty class half of a large class, in place (paper section 4.2).

    For each empty class, in ascending order, the second half of the currently largest class (the first of equals)
    moves to it. Members are in random order, so it is a random half.

    Args:
        groups: groups of `labels`, made with an `rng`; at least as many images as classes.
    """
    members, starts, sizes = groups.members, groups.starts, groups.sizes
    assert len(members) >= len(sizes), "fewer images than classes: some class stays empty"
    largest_first = [(-size, number) for number, size in enumerate(sizes.tolist()) if size]
    heapq.heapify(largest_first)
    for empty in np.flatnonzero(sizes == 0).tolist():
        size, largest = heapq.heappop(largest_first)  # sizes are negative there, so that the largest comes first
        kept = -size // 2
        starts[empty], sizes[empty] = starts[largest] + kept, -size - kept
        sizes[largest] = kept
        labels[groups.of(empty)] = empty
        for number in (largest, empty):
            heapq.heappush(largest_first, (-int(sizes[number]), number))


def update(labels: Labels, positions: NDArray[np.int64], predictions: NDArray[np.integer]) -> None:
    """Write the predictions of a step, in place. If an image was drawn several times, its last draw counts."""
    labels[positions] = predictions
