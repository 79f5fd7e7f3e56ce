"""DeepCluster's pseudo-labels: PCA, whitening and k-means on centre-crop features (Caron et al. 2018)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from uic_core.data.partition import Labels


def whiten(features: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """PCA to `dimension` (or fewer where the features span fewer), whitening, rows of length 1.

    Args:
        features: float32 [N, D], not all rows equal.

    Returns:
        float32 [N, min(dimension, rank)].
    """
    images, width = features.shape
    reduce = faiss.PCAMatrix(width, min(dimension, width, images))
    reduce.train(features)
    # Dead units and few images leave directions without variance, which whitening would divide by zero.
    variances = faiss.vector_to_array(reduce.eigenvalues)
    reduce.d_out = min(reduce.d_out, int((variances > 1e-6 * variances.max()).sum()))
    reduce.eigen_power = -0.5  # whitens
    reduce.prepare_Ab()
    reduced: NDArray[np.float32] = reduce.apply(features)
    faiss.normalize_L2(reduced)
    return reduced


def kmeans(
    features: NDArray[np.float32], classes: int, iterations: int, seed: int, after: Callable[[], None] | None = None
) -> Labels:
    """k-means by faiss; it splits large clusters where one runs empty.

    Args:
        features: float32 [N, D], N >= classes.
        iterations: at least 1.
        seed: below 2^31.
        after: called after each iteration.

    Returns:
        Nearest centroid of every row, int32 [N].
    """
    clustering = faiss.Kmeans(
        features.shape[1], classes, niter=1, seed=seed, min_points_per_centroid=1, max_points_per_centroid=10**7
    )
    for _ in range(iterations):
        clustering.train(features, init_centroids=clustering.centroids)
        if after is not None:
            after()
    return clustering.index.search(features, 1)[1].ravel().astype(np.int32)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Give faiss so many threads at least: torchrun leaves its processes one each. torch's number is the same one."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(before, count))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
