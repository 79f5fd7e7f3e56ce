"""Images by class: a partition is one int32 array, for up to 2^31 images, and its groups are another.

An image takes only these eight bytes: all temporary arrays cover one segment of the images at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int32]
"""One label per image, [N], or one per image and head, [N, heads]."""

SEGMENT = 1 << 18
"""Images processed at a time."""


@dataclass
class Groups:
    """The images grouped by class.

    Attributes:
        members: int32 [N], positions of images, class by class.
        starts: int64 [K], where each class begins in `members`.
        sizes: int64 [K], number of members of each class.
    """

    members: NDArray[np.int32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def of(self, number: int) -> NDArray[np.int32]:
        """Return a class's members (a view)."""
        return self.members[self.starts[number] : self.starts[number] + self.sizes[number]]

    def empty(self) -> int:
        """Return the number of empty classes."""
        return int((self.sizes == 0).sum())


def of_first_head(labels: Labels) -> Labels:
    """Return one label per image, int32 [N]: of several heads, those of the first (a view)."""
    return labels[:, 0] if labels.ndim == 2 else labels


def class_sizes(labels: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Count the images per class, [classes]."""
    sizes = np.zeros(classes, np.int64)
    for part in _segments(labels):
        sizes += np.bincount(part, minlength=classes)
    return sizes


def group(labels: Labels, classes: int, rng: np.random.Generator | None = None) -> Groups:
    """Group the images by class; within a class in random order, or ascending without `rng`.

    Shuffles and stably sorts as many classes at a time as fit into a segment, but at least one.

    Args:
        labels: int32 [N], 0 … classes - 1.
    """
    sizes = class_sizes(labels, classes)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    members = np.empty(len(labels), np.int32)
    first = 0
    while first < classes:
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + SEGMENT, "right")))
        last = min(last, first + (1 << 16))  # 16-bit keys are sorted in linear time
        inside = np.concatenate([_positions(part, at, first, last) for at, part in _numbered(labels)])
        if rng is not None:
            inside = rng.permutation(inside)
        by_class = np.argsort((labels[inside] - first).astype(np.uint16), kind="stable")
        members[starts[first] : starts[first] + len(inside)] = inside[by_class]
        first = last
    return Groups(members, starts, sizes)


def nmi(groups: Groups, other: NDArray[np.integer]) -> float:
    """Normalised mutual information with the geometric normaliser, 0 … 1 (docs/protocol.md, Table 1).

    Same value as scikit-learn's, without its import, which costs every job seconds, and its many copies of the labels.

    Args:
        groups: one partition of N >= 1 images.
        other: the other partition, class numbers >= 0, shape [N].

    Returns:
        I(one; other) / sqrt(H(one) H(other)); 1 if both have a single class, 0 if only one has.
    """
    width = int(other.max()) + 1
    parts = [_entropy(groups.sizes), _entropy(class_sizes(other, width))]
    if 0 in parts:
        return float(parts == [0, 0])
    shared = sum(parts) - sum(_joint_entropies(groups, other, width))
    return float(np.clip(shared / np.sqrt(np.prod(parts)), 0, 1))


def _joint_entropies(groups: Groups, other: NDArray[np.integer], width: int) -> Iterator[float]:
    """Yield terms of the joint entropy, for some classes at a time."""
    images = len(other)
    numbers = np.flatnonzero(groups.sizes)
    numbers = numbers[np.argsort(groups.starts[numbers])]  # in the order of `members`
    ends = np.cumsum(groups.sizes[numbers])
    first = done = 0
    while first < len(numbers):
        last = max(first + 1, int(np.searchsorted(ends, done + SEGMENT, "right")))
        end = int(ends[last - 1])
        rows = np.repeat(np.arange(last - first), groups.sizes[numbers[first:last]])
        counts = np.unique(rows * width + other[groups.members[done:end]], return_counts=True)[1]
        yield float(-(counts * np.log(counts / images)).sum() / images)
        first, done = last, end


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy of a histogram in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _positions(part: NDArray[np.integer], at: int, first: int, last: int) -> NDArray[np.int32]:
    """Positions of the images of classes first … last - 1 in a segment that begins at `at`."""
    return (np.flatnonzero((part - np.int32(first)).view(np.uint32) < last - first) + at).astype(np.int32)


def _numbered(labels: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.integer]]]:
    for at in range(0, max(1, len(labels)), SEGMENT):
        yield at, labels[at : at + SEGMENT]


def _segments(labels: NDArray[np.integer]) -> Iterator[NDArray[np.integer]]:
    return (part for _, part in _numbered(labels))
