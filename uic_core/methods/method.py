"""The definition of a pretraining method, and the parts that several methods share.

A method is a file of this package: the keys of its recipe, and a `Method` whose functions the training loop
(uic_core/pretrain/loop.py) calls. Importing this package imports no torch, so that the workflow reads a config fast:
functions that compute with tensors import it, or kmeans.py and sinkhorn.py, themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from uic_core.data.partition import Groups, Labels
from uic_core.methods import labels
from uic_core.methods.order import Balanced, Order, Shuffled
from uic_core.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from uic_core.run.parallel import Ranks

R = TypeVar("R", bound=Recipe)


class Inference(Protocol):
    """Access of a method to the network and the other processes between two steps.

    Every process of a run must call the same functions in the same order. None of them changes a weight.

    Attributes:
        threads: CPUs for work of one process while the others wait.
        top: the top layer.
        ranks: the processes.
    """

    threads: int
    top: nn.Linear
    ranks: Ranks

    def predict(self) -> Labels:
        """Argmax of a centre-crop pass over all images in eval mode and float32, int32 [N]; equal on all processes."""

    def embed(self) -> NDArray[np.float32] | None:
        """Features before the top layer from such a pass, float32 [N, D]; None on all processes but the first."""

    def embed_share(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Those features of the images that this process embeds, which other processes do not get.

        Returns:
            float32 [n, D], on the device if it has room and in memory if not; and their positions, int64 [n].
        """

    def training_features(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Features that the top layer sees, from a pass over the training views in train mode and float32.

        As in a step of training, batch norm takes its batch's statistics and moves its running ones, and dropout
        drops. The images come in a random order of their own, each process passes a share of each batch.

        Returns:
            [n, D], float32 if they are few and float16 if not, in memory or in a file; and their positions, int64 [n].
        """

    def matrix(self, rows: int, width: int, short: torch.dtype) -> Tensor:
        """Memory [rows, width] for a while, on the device, in memory or in a file (uic_core.run.scratch.matrix)."""

    def pause(self) -> None:
        """Save the state and end if a signal came. Long computations must call it from time to time.

        What a preparation has changed until then is undone: the next process makes all of it again.
        """

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""

    def share(self, found: Labels) -> None:
        """Copy the first process's array to all processes, in place."""


class Passes(NamedTuple):
    """Cost of a run, in passes over its images.

    Attributes:
        training: forward and backward passes.
        forward: forward passes in float32, for labels.
    """

    training: int
    forward: int


class Labelling(NamedTuple):
    """Cost of a run's labels beside passes over its images.

    Attributes:
        operations: of the whole run, as many float32 operations as take that long.
        memory, disk: bytes meanwhile, over all processes.
        said: what it is, for `make plan`; '' if nothing is worth a line.
    """

    operations: float = 0.0
    memory: int = 0
    disk: int = 0
    said: str = ""


def draw_uniform(recipe: Recipe, annotated: Labels, inference: Inference) -> Labels:
    """Draw a uniform label for every image (docs/protocol.md, Pretraining)."""
    return labels.draw_initial(len(annotated), recipe.classes, recipe.seed)


def keep(recipe: Recipe, epoch: int, present: Labels, inference: Inference) -> Labels | None:
    """Keep the labels."""
    return None


def at_its_start(recipe: Recipe, epoch: int, steps: int) -> Sequence[int]:
    """Make labels before the first step of an epoch."""
    return (0,)


def balanced(recipe: Recipe, epoch: int, present: Labels, groups: Groups) -> Order:
    """Draw every class equally often."""
    return Balanced(groups, recipe.seed, epoch)


def shuffled(recipe: Recipe, epoch: int, present: Labels, groups: Groups) -> Order:
    """Draw every image once."""
    return Shuffled(present, recipe.seed, epoch)


def balanced_or_shuffled(recipe: Any, epoch: int, present: Labels, groups: Groups) -> Order:
    """Follow the recipe's key `balanced`. Targets of an epoch do not change when labels do.

    A balanced order takes them from the groups, and a shuffled one draws each image once.
    """
    return (balanced if recipe.balanced else shuffled)(recipe, epoch, present, groups)


def augmented(recipe: Any, crops: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Crops uint8 [B, 3, S, S] → one augmented view of each by the recipe, normalised, float [B, 3, S, S]."""
    from uic_core.data.augment import augment

    return augment(crops, numbers, recipe.augmentation)


def cross_entropy(recipe: Recipe, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (eq. 2) of float32 logits [B, K] with targets int [B]."""
    import torch

    return torch.nn.functional.cross_entropy(logits, targets.to(torch.int64))


def nothing(recipe: Recipe, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Measure nothing."""
    return {}


def train_only(recipe: Any) -> Passes:
    """One training pass per epoch and no further pass."""
    return Passes(recipe.epochs, 0)


def no_labelling(recipe: Recipe, images: int, width: int) -> Labelling:
    """Labels cost passes alone."""
    return Labelling()


def any_number(recipe: Recipe, annotated: int) -> None:
    """Accept any number of classes."""


@dataclass(frozen=True)
class Method(Generic[R]):
    """A method. The defaults are UIC's, except that labels are not learned and empty classes are not filled.

    Attributes:
        recipe: the model of its recipes. If it is no `Training`, a run does not train and its initial weights are the
            checkpoint.
        first_labels: (recipe, annotated labels int32 [N], inference) → labels before the first epoch, int32 [N], or
            [N, heads] if the top layer has several heads.
        moments: (recipe, epoch, its steps) → the steps before which `labels` is called, 0 … steps - 1 each.
        labels: (recipe, epoch, current labels, inference) → labels from a moment on, called then; None keeps them.
        learns: (recipe, epoch) → True if the argmax of its training forward is the image's label for the next epoch.
        fill_empty: (groups, labels) changes both in place after `labels` so that no class is empty; None: no filling.
        order: (recipe, epoch, labels, groups) → which image is drawn when, and its target.
        pseudo_classes: True if the labels put images into classes; False if they say nothing of an image.
        views: (recipe, crops uint8 [B, 3, S, S], uniform numbers [B, UNIFORMS]) → the network's input.
        views_per_image: how many views of each crop `views` makes.
        loss: (recipe, logits, targets int32 [B] or [B, heads]) → mean over the batch.
        measures: (recipe, logits without gradient, targets int32 [B]) → means over the batch by name, scalars on the
            logits' device. Every step must have the same names. The history has their means over the epoch.
        start_epoch: (recipe, epoch, top layer) changes the top layer before an epoch.
        top_momentum: True if the top layer is trained with the momentum of the other layers, False if with none.
        nesterov: True if SGD's momentum is Nesterov's.
        passes: (recipe) → cost of a run, in passes over its images.
        labelling: (recipe, number of images, length of their features) → cost of its labels beside those.
        check: (recipe, number of annotated classes) raises ValueError, "<key>: <what is wrong>".
    """

    recipe: type[R]
    first_labels: Callable[[R, Labels, Inference], Labels] = draw_uniform
    moments: Callable[[R, int, int], Sequence[int]] = at_its_start
    labels: Callable[[R, int, Labels, Inference], Labels | None] = keep
    learns: Callable[[R, int], bool] = lambda recipe, epoch: False
    fill_empty: Callable[[Groups, Labels], None] | None = None
    order: Callable[[R, int, Labels, Groups], Order] = balanced
    pseudo_classes: bool = True
    views: Callable[[R, Tensor, NDArray[np.float64]], Tensor] = augmented
    views_per_image: int = 1
    loss: Callable[[R, Tensor, Tensor], Tensor] = cross_entropy
    measures: Callable[[R, Tensor, Tensor], dict[str, Tensor]] = nothing
    start_epoch: Callable[[R, int, nn.Linear], None] | None = None
    top_momentum: bool = True
    nesterov: bool = False
    passes: Callable[[R], Passes] = train_only
    labelling: Callable[[R, int, int], Labelling] = no_labelling
    check: Callable[[R, int], None] = any_number
