"""DeepCluster (Caron et al. 2018): each epoch starts with k-means on the network's features and a new top layer.

The features are those of centre crops. Before k-means they are reduced by PCA, whitened and L2-normalised. On a GPU all
of this is done there (uic_core/methods/kmeans.py), elsewhere by faiss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uic_core.data.partition import Groups, Labels, group
from uic_core.errors import InputError
from uic_core.methods.labels import DIVERGED
from uic_core.methods.method import Inference, Labelling, Method, Passes
from uic_core.methods.order import Balanced, Draws, Order
from uic_core.recipe import Annealed
from uic_core.run.randomness import Stream

if TYPE_CHECKING:
    from torch import nn


class DeepCluster(Annealed):
    """A run of DeepCluster."""

    method: Literal["deepcluster"]
    balanced: bool = Field(description="every class is drawn equally often; false: as its published sampler draws")
    pca: int = Field(ge=1, description="dimension after PCA and whitening")
    kmeans_iterations: int = Field(ge=1, description="k-means iterations an epoch")


def labels(recipe: DeepCluster, epoch: int, present: Labels, inference: Inference) -> Labels:
    """Clusters of the features."""
    seed = int(np.random.default_rng([recipe.seed, Stream.CLUSTERING, epoch]).integers(2**31))
    made = by_torch if inference.top.weight.is_cuda else by_faiss
    return made(recipe, seed, present, inference)


def by_torch(recipe: DeepCluster, seed: int, present: Labels, inference: Inference) -> Labels:
    """Cluster on the training device, the processes together."""
    from uic_core.methods.kmeans import clustered, whitened

    images, device, ranks = len(present), inference.top.weight.device, inference.ranks
    features, positions = inference.embed_share()
    rows = whitened(features, images, recipe.pca, device, ranks)
    del features
    inference.pause()
    nearest = clustered(
        rows, positions, images, recipe.classes, recipe.kmeans_iterations, seed, ranks, after=inference.pause
    )
    found = np.zeros_like(present)
    found[positions] = nearest.cpu().numpy()
    ranks.sum_array(found, device)
    return found


def by_faiss(recipe: DeepCluster, seed: int, present: Labels, inference: Inference) -> Labels:
    """Cluster on the first process, with all threads of the job; the others wait."""
    found = np.zeros_like(present)
    features = inference.embed()
    with threads(inference.threads):
        if features is not None:
            features = whiten(features, recipe.pca)
        inference.pause()
        if features is not None:
            found[:] = kmeans(features, recipe.classes, recipe.kmeans_iterations, seed, after=inference.pause)
        else:
            for _ in range(recipe.kmeans_iterations):
                inference.pause()
    inference.share(found)
    return found


def order(recipe: DeepCluster, epoch: int, present: Labels, groups: Groups) -> Order:
    """Balanced, as in the paper, or drawn as in the published code."""
    drawn = Balanced(groups, recipe.seed, epoch)
    return drawn if recipe.balanced else SortedList(drawn, present, recipe.classes)


def renew_top(recipe: DeepCluster, epoch: int, top: nn.Linear) -> None:
    """Reset weights to N(0, .01) and biases to 0, because the clusters of two epochs are unrelated."""
    import torch

    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    with torch.no_grad():
        top.weight.copy_(torch.empty(top.weight.shape).normal_(0.0, 0.01, generator=generator))
        top.bias.zero_()


def whiten(features: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """PCA to `dimension` (or the features' rank if that is lower), whitening, L2 normalisation of rows.

    Args:
        features: float32 [N, D].

    Returns:
        float32 [N, min(dimension, rank)].

    Raises:
        InputError: a feature is not finite, or all rows are equal. faiss would end the process.
    """
    import faiss  # imported here: the workflow reads this file too

    images, width = features.shape
    if not np.isfinite(features.sum(dtype=np.float64)):
        raise InputError(DIVERGED.format("features are not finite"))
    reduce = faiss.PCAMatrix(width, min(dimension, width, images))
    reduce.train(features)
    # Dead units and few images cause directions without variance; whitening would divide by zero.
    variances = faiss.vector_to_array(reduce.eigenvalues)
    reduce.d_out = min(reduce.d_out, int((variances > 1e-6 * variances.max()).sum()))
    if not reduce.d_out:
        raise InputError(DIVERGED.format("features are the same for all images"))
    reduce.eigen_power = -0.5  # whitens
    reduce.prepare_Ab()
    reduced: NDArray[np.float32] = reduce.apply(features)
    faiss.normalize_L2(reduced)
    return reduced


def kmeans(
    features: NDArray[np.float32], classes: int, iterations: int, seed: int, after: Callable[[], None] | None = None
) -> Labels:
    """k-means by faiss, which splits a large cluster if another becomes empty.

    Args:
        features: float32 [N, D], N >= classes.
        iterations: at least 1.
        seed: below 2^31.
        after: called after each iteration.

    Returns:
        Nearest centroid of every row, int32 [N].
    """
    import faiss

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
    """Give faiss at least `count` threads: torchrun sets one per process. torch uses the same setting."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(before, count))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class SortedList:
    """The order of DeepCluster's published code (facebookresearch/deepcluster, util.py and clustering.py).

    Its sampler makes a balanced order of positions in the data set. Its loader takes them as positions in another
    list: all images sorted by cluster, ascending within a cluster. So position 7 becomes the eighth image of that
    list, with that image's own cluster as target. Images and targets match, but the classes are no longer balanced: a
    class is drawn about as often as it has members.

    Args:
        balanced: the order of the sampler.
        values: the clusters, int32 [N], 0 ... classes - 1; must not change while the order is in use.
    """

    def __init__(self, balanced: Balanced, values: Labels, classes: int) -> None:
        self._balanced, self._labels = balanced, values
        self._sorted = group(values, classes).members

    def __len__(self) -> int:
        return len(self._balanced)

    def draw(self, first: int, last: int) -> Draws:
        """Draws first … last - 1, int64, and their targets, int32 [last - first]."""
        views, places = np.divmod(self._balanced.draw(first, last)[0], len(self))
        positions = self._sorted[places].astype(np.int64)
        return positions + views * len(self), self._labels[positions]

    def coverage(self) -> float:
        """Share of the images drawn at least once: that of `balanced`, as each place in the list is another image."""
        return self._balanced.coverage()


def labelling(recipe: DeepCluster, images: int, width: int) -> Labelling:
    """Covariance of the features, their reduction, and k-means with the search after its last iteration."""
    reduced = min(recipe.pca, width)
    covariance, reduction = 2.0 * images * width**2, 2.0 * images * width * reduced
    search = 2.0 * images * recipe.classes * reduced
    operations = covariance + reduction + (recipe.kmeans_iterations + 1) * search
    memory = 4 * images * (width + reduced)
    said = (
        f"{recipe.epochs} clusterings of {images:,} × {reduced:,} (PCA of {width:,}) in {recipe.classes:,} classes, "
        f"{recipe.kmeans_iterations} iterations each, in {memory / 1e9:.1f} GB of memory"
    )
    return Labelling(recipe.epochs * operations, memory, said=said)


METHOD = Method(
    recipe=DeepCluster,
    labels=labels,
    order=order,
    start_epoch=renew_top,
    top_momentum=False,
    passes=lambda recipe: Passes(recipe.epochs, recipe.epochs),
    labelling=labelling,
)
