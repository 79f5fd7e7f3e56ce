"""The order of an epoch: which image is drawn when, and its target. Computed when needed, never stored.

A draw is a number: with N images, position + N·r is the r-th further view of the image at that position.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uic_core.data.partition import SEGMENT, Groups, Labels
from uic_core.run.randomness import Stream, uniforms

_ROUNDS = 4

Draws = tuple[NDArray[np.int64], NDArray[np.int32]]


class Order(Protocol):
    """A sequence of `len(order)` draws."""

    def __len__(self) -> int: ...

    def draw(self, first: int, last: int) -> Draws:
        """Draws first … last - 1, int64, and their targets, int32 [last - first]."""

    def coverage(self) -> float:
        """Share of the images, 0 … 1, that are drawn at least once."""


class Shuffled:
    """Every image once, in random order. Targets are the labels at the time of the draw."""

    def __init__(self, labels: Labels, seed: int, epoch: int) -> None:
        self._labels = labels
        self._permutation = Permutation(len(labels), seed, epoch)

    def __len__(self) -> int:
        return len(self._labels)

    def draw(self, first: int, last: int) -> Draws:
        """Draws first … last - 1, int64, and their targets, int32 [last - first]."""
        positions = self._permutation(np.arange(first, last))
        return positions, self._labels[positions]

    def coverage(self) -> float:
        """Share of the images that are drawn at least once: all of them."""
        return 1.0


class Balanced:
    """Every class equally often (docs/protocol.md, Pretraining).

    Each class gets int(N / K) + 1 slots, drawn with replacement only if it has no more members than that. All slots
    are put in random order and cut to N. K counts the classes that have members. Repeated draws are different views.

    Args:
        groups: N images, those of each class in random order; must not change while the order is in use. The targets
            are its class numbers, so the labels themselves may change meanwhile.
    """

    def __init__(self, groups: Groups, seed: int, epoch: int) -> None:
        self._groups, self._seed, self._epoch = groups, seed, epoch
        self._numbers = np.flatnonzero(groups.sizes).astype(np.int32)
        self._slots = len(groups.members) // len(self._numbers) + 1  # per class
        self._permutation = Permutation(self._slots * len(self._numbers), seed, epoch)

    def __len__(self) -> int:
        return len(self._groups.members)

    def draw(self, first: int, last: int) -> Draws:
        """Draws first … last - 1, int64, and their targets, int32 [last - first]."""
        slots = self._permutation(np.arange(first, last))
        numbers = self._numbers[slots // self._slots]
        positions = self._groups.members[self._groups.starts[numbers] + self._ranks(slots)].astype(np.int64)
        again = self._groups.sizes[numbers] <= self._slots
        return positions + again * (slots % self._slots) * len(self), numbers

    def coverage(self) -> float:
        """Share of the images drawn at least once. Counted in blocks of classes, without a list of all images."""
        images = len(self)
        dropped = self._permutation(np.arange(images, self._slots * len(self._numbers)))
        drawn, step = 0, max(1, SEGMENT // self._slots)
        for first in range(0, len(self._numbers), step):
            last = min(first + step, len(self._numbers))
            slots = np.arange(first * self._slots, last * self._slots)
            ranks = self._ranks(slots)
            ranks[dropped[(dropped >= slots[0]) & (dropped <= slots[-1])] - slots[0]] = -1
            ranks = np.sort(ranks.reshape(last - first, -1), axis=1)
            drawn += int((ranks[:, 0] >= 0).sum() + (np.diff(ranks, axis=1) > 0).sum())
        return drawn / images

    def _ranks(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which member of its class a slot takes. Members are in random order, so the first ones are a random draw."""
        numbers, ranks = np.divmod(slots, self._slots)
        sizes = self._groups.sizes[self._numbers[numbers]]
        small = np.flatnonzero(sizes <= self._slots)
        if len(small):
            u = uniforms(self._seed + Stream.DRAWS, self._epoch, slots[small], 1)[:, 0]
            ranks[small] = (u * sizes[small]).astype(np.int64)
        return ranks


class Permutation:
    """A random permutation of 0 … size - 1, computed without a table: a Feistel network with cycle-walking.

    Args:
        size: at most 2^32.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        assert 0 < size <= 1 << 32, f"a permutation of {size} numbers"
        self._size = size
        bits = max(2, (size - 1).bit_length())
        self._low = np.uint32(bits // 2)
        self._masks = np.uint32((1 << (bits - bits // 2)) - 1), np.uint32((1 << (bits // 2)) - 1)
        self._keys = np.random.default_rng([seed, Stream.ORDER, epoch]).integers(0, 1 << 32, (_ROUNDS, 2), np.uint32)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Apply the permutation to `places`, each in 0 … size - 1: int64 [n]."""
        # Other numbers may be on cycles that never return to 0 … size - 1: the loop below would not end.
        assert not len(places) or 0 <= places.min() <= places.max() < self._size, f"places beyond {self._size}"
        found = self._mixed(places.astype(np.uint32))
        beyond = np.flatnonzero(found >= self._size)
        while len(beyond):
            found[beyond] = self._mixed(found[beyond])
            beyond = beyond[found[beyond] >= self._size]
        return found.astype(np.int64)

    def _mixed(self, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
        high, low = numbers >> self._low, numbers & self._masks[1]
        for one, other in self._keys:
            high ^= _hash(low, one) & self._masks[0]
            low ^= _hash(high, other) & self._masks[1]
        return (high << self._low) | low


def _hash(numbers: NDArray[np.uint32], key: np.uint32) -> NDArray[np.uint32]:
    """Scatter the bits of numbers (multiply and shift, as in MurmurHash3's finaliser)."""
    mixed = (numbers + key) * np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed
