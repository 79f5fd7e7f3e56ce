"""DeepCluster's PCA, whitening and k-means on the training device: every process brings the images that it has.

Where there is no GPU, faiss does this (uic_core/methods/deepcluster.py). Here are its rules and its random numbers:
the same images are the first centroids, and a cluster without members takes half of the same other one. All images
take part, as in k-means with DeepCluster's settings of faiss; faiss's PCA takes at most 1,000 for each of a feature's
numbers.

Products are in float32, which TF32 never replaces (uic_core/run/randomness.py). So is PCA's covariance of a chunk of
the images, as faiss's is of all of them; chunks are added up in float64. k-means' sums over images are in float64, so
that of the same rows neither the number of processes nor a GPU's order of additions is seen in a centroid, but for a
rare last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, pad

from uic_core.errors import InputError
from uic_core.methods.labels import DIVERGED
from uic_core.run.parallel import ALONE, Ranks

_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 25}  # numbers at a time, of features or of distances
_FLAT = 1e-6  # a direction with less of the largest variance is left out: see deepcluster.whiten
_SHIFT = 2.0**-10  # by this share a split cluster's two centroids move apart, as in faiss
_SPLIT_SEED = 1234  # faiss's, at each iteration


@torch.no_grad()
def whitened(features: Tensor, images: int, dimension: int, device: torch.device, ranks: Ranks = ALONE) -> Tensor:
    """PCA to `dimension` (or the features' rank if that is lower), whitening, L2 normalisation of rows.

    All processes must call this together.

    Args:
        features: float32 [n, D] of this process, on any device.
        images: N, over all processes.
        device: where to compute.

    Returns:
        float32 [n, min(dimension, rank)], on the device.

    Raises:
        InputError: a feature is not finite, or all rows of all processes are equal.
    """
    width = features.shape[1]
    mean = torch.zeros(width, dtype=torch.float64, device=device)
    for _, chunk in _chunks(features, width, device):
        mean += chunk.double().sum(0)
    ranks.add(mean).div_(images)
    if not torch.isfinite(mean).all():
        raise InputError(DIVERGED.format("features are not finite"))
    centre = mean.float()
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)
    for _, chunk in _chunks(features, width, device):
        centred = chunk - centre
        covariance += centred.T @ centred
    ranks.add(covariance).div_(images)
    reduce = torch.zeros(width, min(dimension, width), device=device)
    if not ranks.rank:  # the others take its directions: a sign of their own would spoil all
        variances, directions = (each.flip(-1)[..., :dimension] for each in torch.linalg.eigh(covariance))
        kept = variances > _FLAT * variances[0]
        reduce[:, kept] = (directions[:, kept] / variances[kept].sqrt()).float()
    reduce = ranks.add(reduce)[:, : int(reduce.any(0).sum())]
    if not reduce.shape[1]:
        raise InputError(DIVERGED.format("features are the same for all images"))
    found = torch.empty(len(features), reduce.shape[1], device=device)
    for rows, chunk in _chunks(features, width, device):
        found[rows] = normalize((chunk - centre) @ reduce)
    return found


@torch.no_grad()
def clustered(
    rows: Tensor,
    positions: NDArray[np.int64],
    images: int,
    classes: int,
    iterations: int,
    seed: int,
    ranks: Ranks = ALONE,
    after: Callable[[], None] = lambda: None,
) -> Tensor:
    """k-means. All processes must call this together.

    Args:
        rows: float32 [n, d] of this process.
        positions: numbers of its images among those of all processes, 0 … images - 1, each once, [n].
        images: N, over all processes, >= classes.
        iterations: at least 1.
        seed: below 2^31.
        after: called after each iteration.

    Returns:
        The number of each row's nearest centroid, int64 [n], on the device of the rows.
    """
    centroids = _drawn(rows, positions, images, classes, seed, ranks)
    for _ in range(iterations):
        sums = torch.zeros(classes, rows.shape[1] + 1, dtype=torch.float64, device=rows.device)
        for _, chunk, labels in _nearest(rows, centroids):
            sums.index_add_(0, labels, pad(chunk.double(), (0, 1), value=1.0))  # the last column counts
        counts = ranks.add(sums)[:, -1]
        centroids = (sums[:, :-1] / counts[:, None]).float()
        for empty, large in splits(counts.cpu().numpy(), images):
            _split(centroids, empty, large)
        after()
    found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for part, _, labels in _nearest(rows, centroids):
        found[part] = labels
    return found


def splits(counts: NDArray[np.float64], images: int) -> Iterator[tuple[int, int]]:
    """Yield each empty cluster with the one that it takes half of, by faiss's rule.

    It goes round all clusters and takes one with a probability of (members - 1) / (images - clusters).

    Args:
        counts: members, [K].
        images: the sum of counts, at least K.
    """
    counts = counts.astype(np.float32)
    stream, numbers = np.random.RandomState(_SPLIT_SEED), np.empty(0, np.float32)
    for empty in np.flatnonzero(counts == 0):
        chances = ((counts.astype(np.float64) - 1) / np.float32(max(1, images - len(counts)))).astype(np.float32)
        taken = np.empty(0, np.intp)
        while not len(taken):
            if len(numbers) < len(counts):
                drawn = stream.randint(1 << 32, size=4 * len(counts), dtype=np.uint32)
                numbers = np.concatenate([numbers, drawn.astype(np.float32) / np.float32(1 << 32)])
            taken = np.flatnonzero(numbers[: len(counts)] < chances)
            numbers = numbers[taken[0] + 1 if len(taken) else len(counts) :]
        counts[empty] = counts[taken[0]] / 2
        counts[taken[0]] -= counts[empty]
        yield int(empty), int(taken[0])


def _drawn(rows: Tensor, positions: NDArray[np.int64], images: int, classes: int, seed: int, ranks: Ranks) -> Tensor:
    """Draw the first centroids among all images, float32 [K, d]; faiss draws the same."""
    order = np.empty(images, np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), images, seed + 1)  # type: ignore[attr-defined]
    _, own, drawn = np.intersect1d(positions, order[:classes], assume_unique=True, return_indices=True)
    found = rows.new_zeros(classes, rows.shape[1])
    found[torch.from_numpy(drawn).to(rows.device)] = rows[torch.from_numpy(own).to(rows.device)]
    return ranks.add(found)


def _nearest(rows: Tensor, centroids: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield chunks: which rows, the rows, the numbers of their nearest centroids."""
    halves = centroids.square().sum(1) / 2
    for part, chunk in _chunks(rows, max(centroids.shape), rows.device):
        yield part, chunk, torch.addmm(halves, chunk, centroids.T, alpha=-1).min(1).indices


def _split(centroids: Tensor, empty: int, large: int) -> None:
    """Give the empty cluster the large one's centroid; then move both apart, the numbers in turns up and down."""
    shift = torch.full_like(centroids[large], _SHIFT)
    shift[1::2] *= -1
    centroids[empty] = centroids[large] * (1 + shift)
    centroids[large] *= 1 - shift


def _chunks(rows: Tensor, numbers: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Yield so many rows at a time that `numbers` for each of them are a chunk; on the device."""
    size = max(1, _CHUNK[device.type] // numbers)
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        yield part, rows[part].to(device)
