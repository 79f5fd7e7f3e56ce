"""What tells the methods apart: where an epoch's targets and order come from, and what a forward pass leaves behind.

The loop is the same for all of them (loop.py). A new method is a class here and its name in recipe.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uic_core.pretrain import deepcluster, labels
from uic_core.pretrain.labels import Labels

if TYPE_CHECKING:
    from uic_core.pretrain.loop import Trainer


@dataclass
class Plan:
    """An epoch's work: `targets` int32 [N] (a snapshot), `order` int64 [<= N] positions to train on."""

    targets: Labels
    order: NDArray[np.int64]


class Supervised:
    """Annotated labels, every image once an epoch: the upper bound of Table 3."""

    def initial(self, trainer: Trainer) -> Labels:
        """Labels before the first epoch, int32 [N]."""
        return trainer.index.labels.copy()

    def plan(self, trainer: Trainer, epoch: int, rng: np.random.Generator) -> Plan:
        """Targets and order of an epoch; may change `trainer.labels` and the top layer."""
        return Plan(trainer.labels.copy(), rng.permutation(len(trainer.labels)))

    def observe(self, trainer: Trainer, positions: Tensor, logits: Tensor) -> None:
        """Called after each training forward with its logits [B, K]."""


class Random(Supervised):
    """No training at all: the initial weights are the checkpoint."""

    def initial(self, trainer: Trainer) -> Labels:
        """See Supervised."""
        rng = np.random.default_rng([trainer.recipe.seed, 0])
        return labels.draw_initial(len(trainer.index), trainer.recipe.classes, rng)


class Uic(Random):
    """The paper's method: the argmax of the training forward is the image's label for the next epoch (eqs. 5, 6)."""

    def plan(self, trainer: Trainer, epoch: int, rng: np.random.Generator) -> Plan:
        """See Supervised."""
        classes = trainer.recipe.classes
        trainer.labels = labels.split_empty_classes(trainer.labels, classes, rng)
        return Plan(trainer.labels.copy(), labels.balanced_order(trainer.labels, classes, rng))

    def observe(self, trainer: Trainer, positions: Tensor, logits: Tensor) -> None:
        """See Supervised."""
        # The same forward that is being learned from: labels cost no pass of their own.
        labels.update(trainer.labels, positions.numpy(), logits.argmax(1).cpu().numpy())


class UicCenterCrop(Uic):
    """Table 2, without augmentation in label generation: labels from a centre-crop pass in eval mode (eq. 4)."""

    def plan(self, trainer: Trainer, epoch: int, rng: np.random.Generator) -> Plan:
        """See Supervised. The first epoch keeps the uniform draw, as in UIC."""
        if epoch:
            trainer.labels = trainer.predict()
        return super().plan(trainer, epoch, rng)

    def observe(self, trainer: Trainer, positions: Tensor, logits: Tensor) -> None:
        """The training forward leaves no label."""


class Finetune(Supervised):
    """Further fine-tuning: labels fixed by a centre-crop pass of the pretrained network, balanced order."""

    def initial(self, trainer: Trainer) -> Labels:
        """See Supervised."""
        return trainer.predict()

    def plan(self, trainer: Trainer, epoch: int, rng: np.random.Generator) -> Plan:
        """See Supervised."""
        return Plan(trainer.labels.copy(), labels.balanced_order(trainer.labels, trainer.recipe.classes, rng))


class DeepCluster(Random):
    """k-means on the network's features each epoch, and a fresh top layer with an optimiser of its own."""

    def plan(self, trainer: Trainer, epoch: int, rng: np.random.Generator) -> Plan:
        """See Supervised."""
        recipe = trainer.recipe
        features = deepcluster.whiten(trainer.embeddings(), recipe.pca)
        seed = int(rng.integers(2**31))
        trainer.labels = deepcluster.kmeans(features, recipe.classes, recipe.kmeans_iterations, seed)
        nn.init.normal_(trainer.network.top.weight, 0.0, 0.01)
        nn.init.zeros_(trainer.network.top.bias)
        for parameter in trainer.network.top.parameters():
            # A fresh optimiser for the top layer: a momentum of zeros is what SGD starts from.
            momentum = trainer.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                momentum.zero_()
        return Plan(trainer.labels.copy(), labels.balanced_order(trainer.labels, recipe.classes, rng))


def method(trainer: Trainer) -> Supervised:
    """The method a recipe asks for."""
    recipe = trainer.recipe
    if recipe.method == "uic" and recipe.label_view == "center_crop":
        return UicCenterCrop()
    classes = {
        "uic": Uic, "finetune": Finetune, "deepcluster": DeepCluster, "supervised": Supervised, "random": Random
    }  # fmt: skip
    return classes[recipe.method]()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (eq. 2) of float32 logits [B, K] with targets int [B]."""
    return nn.functional.cross_entropy(logits, targets.to(torch.int64))
