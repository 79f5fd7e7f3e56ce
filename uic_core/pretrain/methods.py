"""What tells the methods apart: where an epoch's targets and order come from, and what a forward pass leaves behind.

The loop is the same for all of them (loop.py). A new method is a class here and its name in recipe.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from uic_core.data.partition import Labels
from uic_core.pretrain import deepcluster, labels
from uic_core.pretrain.order import Balanced, Order, Shuffled, SortedList

if TYPE_CHECKING:
    from uic_core.pretrain.loop import Trainer


class Supervised:
    """Annotated labels, every image once an epoch: the upper bound of Table 3."""

    learns_labels = False
    """The training forward writes the labels of the next epoch."""

    top_momentum = True
    """The top layer is trained as the others are."""

    def initial(self, trainer: Trainer) -> Labels:
        """Labels before the first epoch, int32 [N]."""
        return trainer.index.labels.copy()

    def prepare(self, trainer: Trainer, epoch: int) -> int:
        """Before an epoch: may change `trainer`'s labels, groups and top layer. Called once an epoch.

        What takes long calls `trainer.pause` now and then, as long as nothing is changed yet.

        Returns:
            Classes without a member in the epoch's labels, before they are split.
        """
        return trainer.groups.empty()

    def order(self, trainer: Trainer, epoch: int) -> Order:
        """Order and targets of an epoch, from what `prepare` left."""
        return Shuffled(trainer.labels, trainer.recipe.seed, epoch)


class Random(Supervised):
    """No training at all: the initial weights are the checkpoint."""

    def initial(self, trainer: Trainer) -> Labels:
        """See Supervised."""
        rng = np.random.default_rng([trainer.recipe.seed, 5])
        return labels.draw_initial(len(trainer.index), trainer.recipe.classes, rng)


class Uic(Random):
    """The paper's method: the argmax of the training forward is the image's label for the next epoch (eqs. 5, 6)."""

    learns_labels = True

    def prepare(self, trainer: Trainer, epoch: int) -> int:
        """See Supervised."""
        empty = trainer.groups.empty()
        labels.split_empty(trainer.groups, trainer.labels)
        return empty

    def order(self, trainer: Trainer, epoch: int) -> Order:
        """See Supervised. Targets stay while labels change: the groups do, and an image shuffled comes once."""
        return _order(trainer, epoch)


class UicCenterCrop(Uic):
    """Table 2, without augmentation in label generation: labels from a centre-crop pass in eval mode (eq. 4)."""

    learns_labels = False

    def prepare(self, trainer: Trainer, epoch: int) -> int:
        """See Supervised. The first epoch keeps the uniform draw, as in UIC."""
        if epoch:
            trainer.relabel(trainer.predict(), epoch)
        return super().prepare(trainer, epoch)


class Finetune(Supervised):
    """Further fine-tuning: labels fixed by a centre-crop pass of the pretrained network, balanced order.

    Classes that this pass leaves empty stay so: nothing says that they are split.
    """

    def initial(self, trainer: Trainer) -> Labels:
        """See Supervised."""
        return trainer.predict()

    def prepare(self, trainer: Trainer, epoch: int) -> int:
        """See Supervised. Same labels, but of a large class's members each epoch draws others."""
        if epoch:
            trainer.relabel(trainer.labels, epoch)
        return super().prepare(trainer, epoch)

    def order(self, trainer: Trainer, epoch: int) -> Order:
        """See Supervised."""
        return _order(trainer, epoch)


class DeepCluster(Random):
    """k-means on the network's features each epoch, and a fresh top layer with an optimiser of its own."""

    top_momentum = False

    def prepare(self, trainer: Trainer, epoch: int) -> int:
        """See Supervised. Rank 0 clusters, with all of the job's threads, as the others wait."""
        recipe, found = trainer.recipe, np.zeros(len(trainer.index), np.int32)
        features = trainer.embeddings()
        with deepcluster.threads(trainer.threads):
            if features is not None:
                features = deepcluster.whiten(features, recipe.pca)
            trainer.pause()
            if features is not None:
                seed = int(np.random.default_rng([recipe.seed, 4, epoch]).integers(2**31))
                found[:] = deepcluster.kmeans(
                    features, recipe.classes, recipe.kmeans_iterations, seed, after=trainer.pause
                )
            else:
                for _ in range(recipe.kmeans_iterations):
                    trainer.pause()
        trainer.ranks.broadcast(found, trainer.device)
        trainer.relabel(found, epoch)
        empty = trainer.groups.empty()
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
        with torch.no_grad():
            weight = torch.empty(trainer.network.top.weight.shape).normal_(0.0, 0.01, generator=generator)
            trainer.network.top.weight.copy_(weight)
            nn.init.zeros_(trainer.network.top.bias)
        return empty

    def order(self, trainer: Trainer, epoch: int) -> Order:
        """See Supervised."""
        recipe = trainer.recipe
        balanced = Balanced(trainer.groups, recipe.seed, epoch)
        return balanced if recipe.balanced else SortedList(balanced, trainer.labels, recipe.classes)


def _order(trainer: Trainer, epoch: int) -> Order:
    """Every class equally often; with `balanced: false` every image once."""
    if trainer.recipe.balanced:
        return Balanced(trainer.groups, trainer.recipe.seed, epoch)
    return Shuffled(trainer.labels, trainer.recipe.seed, epoch)


def method(recipe_method: str, label_view: str) -> Supervised:
    """The method a recipe asks for."""
    if recipe_method == "uic" and label_view == "center_crop":
        return UicCenterCrop()
    classes = {
        "uic": Uic, "finetune": Finetune, "deepcluster": DeepCluster, "supervised": Supervised, "random": Random
    }  # fmt: skip
    return classes[recipe_method]()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (eq. 2) of float32 logits [B, K] with targets int [B]."""
    return nn.functional.cross_entropy(logits, targets.to(torch.int64))
