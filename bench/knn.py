"""Nearest neighbours at CIFAR-10's size: a bank of 50,000 images, 10,000 queries, fc7's 4,096 numbers, k = 200.

The bank's features are drawn block by block, as they come from a network, and all pairs of k and T vote.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import torch
import torch.nn.functional as F

from bench.measure import Bars, now
from uic_core.evaluate import knn
from uic_core.run import devices

BANK, QUERIES, DIMENSION, CLASSES = 50_000, 10_000, 4096, 10
NEIGHBOURS, TEMPERATURES = (10, 20, 200), (0.07, 0.1)
MINUTES, GIGABYTES = 5, 2


def drawn(count: int, seed: int) -> torch.Tensor:
    """Draw features like fc7's after its ReLU: half of the numbers are 0, rows have length 1."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIMENSION, generator=generator).relu_()).to(devices.current())


def search() -> tuple[float, float]:
    """Return the seconds of products and votes, wall and CPU, without those of drawing the features."""
    nearest = knn.Neighbours(drawn(QUERIES, 0), NEIGHBOURS[-1])
    labels = np.arange(BANK) % CLASSES
    wall = cpu = 0.0
    for first in range(0, BANK, knn._BLOCK):
        block = drawn(min(knn._BLOCK, BANK - first), first + 1)
        began = now(), time.process_time()
        nearest.add(block, first)
        wall, cpu = wall + now() - began[0], cpu + time.process_time() - began[1]
    began = now(), time.process_time()
    similarities, positions = nearest.found()
    for count in NEIGHBOURS:
        for temperature in TEMPERATURES:
            knn.vote(similarities[:, :count], labels[positions][:, :count], CLASSES, temperature)
    return wall + now() - began[0], cpu + time.process_time() - began[1]


def main() -> None:
    """Print the bars."""
    bars = Bars(f"nearest neighbours: {BANK} × {QUERIES} × {DIMENSION}, {torch.get_num_threads()} threads")
    wall, cpu = search()
    print(f"  {cpu:.0f} CPU seconds")
    bars.at_most("knn-minutes", [wall / 60], MINUTES)
    bars.at_most("knn-memory-gb", [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9], GIGABYTES)
    bars.close()


if __name__ == "__main__":
    main()
