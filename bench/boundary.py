"""Between two epochs: group 1.28 M images by 10,000 classes and draw the order, compared with a loop over classes.

The loop works like the sampler of DeepCluster's code: a Python list of members per class, `numpy.random.choice` class
by class, one shuffle at the end. Ours draws the order block by block while the epoch runs; both its whole cost and
the part that the epoch waits for are shown.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np

from bench.measure import Bars, interleaved, ratios, seconds
from uic_core.data import partition
from uic_core.methods import labels, order

IMAGES, CLASSES = 1_281_167, 10_000
RATE = 3000
"""Images per second of a fast single-GPU AlexNet training: an epoch of IMAGES then takes seven minutes."""


def naive(values: np.ndarray) -> np.ndarray:
    """Draw as DeepCluster: lists of members, a choice per class, a shuffle, cut to N."""
    members: list[list[int]] = [[] for _ in range(CLASSES)]
    for position, label in enumerate(values.tolist()):
        members[label].append(position)
    draws = len(values) // CLASSES + 1
    rng = np.random.default_rng(0)
    drawn = [rng.choice(own, draws, replace=len(own) <= draws) for own in members if own]
    found = np.concatenate(drawn)
    rng.shuffle(found)
    return found[: len(values)]


def rebuild(values: np.ndarray) -> order.Balanced:
    """Do what an epoch waits for: group the images, split classes to fill empty ones."""
    groups = partition.group(values, CLASSES, np.random.default_rng(0))
    labels.split_empty(groups, values)
    return order.Balanced(groups, 0, 0)


def whole(values: np.ndarray) -> None:
    """Do the same, and every draw of the epoch."""
    found = rebuild(values)
    for first in range(0, len(values), 1 << 14):
        found.draw(first, min(first + (1 << 14), len(values)))


def gap(values: np.ndarray) -> None:
    """Do everything between the last step of an epoch and the first request of the next."""
    found = rebuild(values)
    found.coverage()
    groups = partition.group(values, CLASSES, np.random.default_rng(0))
    partition.nmi(groups, values)
    partition.nmi(groups, values)
    found.draw(0, 1 << 14)


def peak(images: int) -> float:
    """Return the peak memory, bytes, of a process that keeps the labels of `images` images for an epoch."""
    command = [sys.executable, "-m", "bench.boundary", str(images)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def keep(images: int) -> None:
    """Do the bookkeeping of an epoch as the training loop does."""
    rng = np.random.default_rng(0)
    values = labels.draw_initial(images, 1000, 0)
    groups = partition.group(values, 1000, rng)
    labels.split_empty(groups, values)
    found = order.Balanced(groups, 0, 0)
    for first in range(0, images, 1 << 14):
        positions = found.draw(first, min(first + (1 << 14), images))[0] % images
        labels.update(values, positions, positions * 7919 % 1000)
    found.coverage()
    partition.nmi(groups, values)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    """Print the bars."""
    bars = Bars("epoch boundary")
    values = labels.draw_initial(IMAGES, CLASSES, 0)
    arms = {
        "loop over the classes": seconds(lambda: naive(values)),
        "rebuild": seconds(lambda: rebuild(values)),
        "rebuild and all draws": seconds(lambda: whole(values)),
        "gap": seconds(lambda: gap(values)),
    }
    found = interleaved(arms)
    bars.at_least("sampler-rebuild", ratios(found["loop over the classes"], found["rebuild"]), 6)
    total = ratios(found["loop over the classes"], found["rebuild and all draws"])
    print(
        "  sampler-rebuild is what an epoch waits for, grouping and splitting; the loop's time is with all its draws,"
    )
    print("  which ours makes while it trains")
    print(f"  with all draws of the epoch: {min(total):.3g} … {max(total):.3g} times the loop's speed (no bar)")
    epoch = IMAGES / RATE
    bars.at_most("gap-share-of-an-epoch", [value / epoch for value in found["gap"]], 0.01)
    small, middle, large = 1_000_000, 10_000_000, 100_000_000
    peaks = {images: peak(images) for images in (small, middle, large)}
    bars.at_most("bytes-an-image", [(peaks[large] - peaks[small]) / (large - small)], 8)
    # With fewer images, imported modules take more memory than the labels and hide a part of it.
    print(f"  bytes an image from {middle:,} images on: {(peaks[large] - peaks[middle]) / (large - middle):.3f}")
    bars.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        keep(int(sys.argv[1]))
    else:
        main()
