"""UIC's label bookkeeping: pure functions over one int32 array, four bytes an image (PROTOCOL section 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int32]


def draw_initial(images: int, classes: int, rng: np.random.Generator) -> Labels:
    """Independent uniform labels 0 … classes - 1, shape [images] (step 1)."""
    return rng.integers(0, classes, images, dtype=np.int32)


def split_empty_classes(labels: Labels, classes: int, rng: np.random.Generator) -> Labels:
    """Give every empty class half of a large one (step 2; paper section 4.2).

    For each empty class in ascending order: the members of the currently largest class (the first of equals) are
    shuffled, and their second half moves over.

    Args:
        labels: int32 [N], N >= classes.

    Returns:
        New labels [N] without an empty class.
    """
    assert len(labels) >= classes, "fewer images than classes: some class stays empty"
    labels = labels.copy()
    sizes = class_sizes(labels, classes)
    for empty in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        members = rng.permutation(np.flatnonzero(labels == largest))
        moved = members[len(members) // 2 :]
        labels[moved] = empty
        sizes[largest] -= len(moved)
        sizes[empty] = len(moved)
    return labels


def balanced_order(labels: Labels, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """An epoch's order in which every class is drawn equally often (step 3).

    int(N / K) + 1 images a class, with replacement only where the class has no more members than that; all of them
    shuffled and cut to N. K counts the classes that have members. One sort for all classes.

    Args:
        labels: int32 [N].

    Returns:
        Positions int64 [N].
    """
    images = len(labels)
    sizes = class_sizes(labels, classes)
    sizes = sizes[sizes > 0]
    draws = images // len(sizes) + 1
    # Sorted by class, and in random order within each: the first `draws` of a class are a draw without replacement.
    members = rng.permutation(images)
    members = members[np.argsort(labels[members], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    ranks = np.tile(np.arange(draws), (len(sizes), 1))
    small = sizes <= draws
    ranks[small] = (rng.random((int(small.sum()), draws)) * sizes[small, None]).astype(np.int64)
    order = members[(starts[:, None] + ranks).ravel()]
    return rng.permutation(order)[:images].astype(np.int64)


def update(labels: Labels, positions: NDArray[np.int64], predictions: NDArray[np.integer]) -> None:
    """Write the predictions of a step in place; of several draws of one image the last counts (step 4)."""
    labels[positions] = predictions


def class_sizes(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Images a class, [classes]."""
    return np.bincount(labels, minlength=classes)


def coverage(order: NDArray[np.int64], images: int) -> float:
    """Share of the images, 0 … 1, that an order draws at least once."""
    seen = np.zeros(images, bool)
    seen[order] = True
    return float(seen.mean())


def nmi(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """Normalised mutual information with the geometric normaliser, 0 … 1 (PROTOCOL section 3).

    scikit-learn's value, without the seconds that its import costs every job and its many copies of the labels.

    Args:
        one, other: class numbers >= 0, shape [N], N >= 1.

    Returns:
        I(one; other) / sqrt(H(one) H(other)); 1 where both have a single class, 0 where only one has.
    """
    joint = one.astype(np.int64) * (int(other.max()) + 1) + other
    parts = [_entropy(np.bincount(one)), _entropy(np.bincount(other))]
    if 0 in parts:
        return float(parts == [0, 0])
    shared = sum(parts) - _entropy(np.unique(joint, return_counts=True)[1])
    return float(np.clip(shared / np.sqrt(np.prod(parts)), 0, 1))


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy of a histogram in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
