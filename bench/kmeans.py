"""DeepCluster's clustering in torch beside faiss: PCA with whitening, and k-means, on one thread or on the GPU.

Both begin k-means with the same rows and the same centroids. The objective is the sum of squared distances of all rows
to the means of their clusters.
"""

from __future__ import annotations

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from bench.measure import Bars, interleaved, ratios, seconds
from uic_core.data.partition import Labels
from uic_core.methods import deepcluster
from uic_core.methods.kmeans import clustered, whitened
from uic_core.run import devices, randomness

IMAGES, WIDTH, PCA, CLASSES, ITERATIONS = 20_000, 1024, 256, 2000, 5
SPEED, DIFFERENCE = 0.5, 1e-4


def drawn() -> NDArray[np.float32]:
    """Draw features around twice as many centres as there are clusters, with a spectrum that falls as 1/i."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2 * CLASSES, WIDTH))
    rows = centres[rng.integers(2 * CLASSES, size=IMAGES)] + rng.normal(size=(IMAGES, WIDTH))
    return (rows / np.sqrt(np.arange(1, WIDTH + 1)) + 1).astype(np.float32)


def objective(rows: NDArray[np.float32], labels: Labels) -> float:
    """Return the sum of squared distances to the clusters' means."""
    sums = np.zeros((CLASSES, rows.shape[1]))
    np.add.at(sums, labels, rows)
    counts = np.bincount(labels, minlength=CLASSES)
    means = sums / np.maximum(counts, 1)[:, None]
    return float(((rows - means[labels]) ** 2).sum())


def main() -> None:
    """Print the bars."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    randomness.seed_everything(0)
    device, features = devices.current(), torch.from_numpy(drawn())
    bars = Bars(f"k-means: {IMAGES} × {PCA} in {CLASSES} clusters, {ITERATIONS} iterations; torch on {device.type}")
    white = whitened(features, IMAGES, PCA, device)
    rows, places = white.cpu().numpy(), np.arange(IMAGES)
    labels: dict[str, Labels] = {}

    def by_faiss() -> None:
        labels["faiss"] = deepcluster.kmeans(rows, CLASSES, ITERATIONS, seed=0)

    def by_torch() -> None:
        made = clustered(white, places, IMAGES, CLASSES, ITERATIONS, seed=0)
        labels["torch"] = made.cpu().numpy().astype(np.int32)

    found = interleaved(
        {
            "k-means, faiss": seconds(by_faiss),
            "k-means, torch": seconds(by_torch),
            "whitening, faiss": seconds(lambda: deepcluster.whiten(features.numpy(), PCA)),
            "whitening, torch": seconds(lambda: whitened(features, IMAGES, PCA, device).cpu()),
        }
    )
    known, ours = (objective(rows, labels[name]) for name in ("faiss", "torch"))
    same = float((labels["faiss"] == labels["torch"]).mean())
    print(f"  objectives: faiss {known:.6g}, torch {ours:.6g}; {same:.2%} of the labels are the same")
    times = [*found.values()]
    bars.at_least("kmeans-speed", ratios(times[0], times[1]), SPEED)
    bars.at_least("whitening-speed", ratios(times[2], times[3]), SPEED)
    bars.at_most("kmeans-objective-difference", [abs(ours / known - 1)], DIFFERENCE)
    bars.close()


if __name__ == "__main__":
    main()
