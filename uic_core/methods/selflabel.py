"""SelfLabel (Asano et al. 2020): at some moments all labels are made anew, such that the classes are equally large.

Labels are the optimal transport of the network's predictions to K classes of equal size (uic_core/methods/sinkhorn.py).
The network may have several heads, each with labels of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uic_core.data.partition import Labels
from uic_core.methods.labels import draw_balanced
from uic_core.methods.method import Inference, Labelling, Method, Passes, cross_entropy, shuffled
from uic_core.recipe import Stepped

if TYPE_CHECKING:
    from torch import Tensor

# For `make plan` (bench/RESULTS.md): iterations of an optimisation, and what one takes a number, in float32 operations.
_ITERATIONS, _OPERATIONS = 500, 150


class SelfLabel(Stepped):
    """A run of SelfLabel."""

    method: Literal["selflabel"]
    heads: int = Field(ge=1, description="linear layers of K classes each, on the same features")
    optimisations: int = Field(ge=0, description="moments at which labels are made anew, over all epochs")
    moments: Literal["quadratic", "linear"] = Field(
        description="how they lie in time: dense in the beginning, or evenly; the first before the first step"
    )
    heads_at_once: Literal["all", "one"] = Field(
        description="whose labels a moment makes: all heads', or those of one, number epoch mod heads"
    )
    sharpness: float = Field(gt=0, description="SelfLabel's λ, the power to which probabilities are raised")
    tolerance: float = Field(gt=0, description="error at which Sinkhorn-Knopp ends, a sum over all images")

    @property
    def outputs(self) -> int:
        """Width of the top layer."""
        return self.heads * self.classes


def first_labels(recipe: SelfLabel, annotated: Labels, inference: Inference) -> Labels:
    """Balanced random labels of every head. With `heads_at_once: all` nothing learns from them."""
    drawn = [draw_balanced(len(annotated), recipe.classes, recipe.seed, head) for head in range(recipe.heads)]
    return _shaped(np.stack(drawn, axis=1))


def times(recipe: SelfLabel) -> NDArray[np.float64]:
    """The moments, in epochs, as in the published code; those past the end do nothing."""
    power = {"linear": 1, "quadratic": 2}[recipe.moments]
    return (recipe.epochs + 1.01) * np.linspace(0, 1, recipe.optimisations) ** power


def moments(recipe: SelfLabel, epoch: int, steps: int) -> Sequence[int]:
    """The first step that is not before each time. Times that come before the same step are one moment."""
    numbers = np.unique(np.ceil(times(recipe) * steps).astype(int)) - epoch * steps
    inside: list[int] = numbers[(numbers >= 0) & (numbers < steps)].tolist()
    return inside


def due(recipe: SelfLabel, epoch: int) -> Sequence[int]:
    """Heads whose labels are made at a moment of this epoch."""
    return range(recipe.heads) if recipe.heads_at_once == "all" else [epoch % recipe.heads]


def labels(recipe: SelfLabel, epoch: int, present: Labels, inference: Inference) -> Labels:
    """Balanced labels from the predictions of a pass over the training views."""
    import torch

    from uic_core.methods.sinkhorn import MOST, assign
    from uic_core.run import devices

    features, positions = inference.training_features()
    plan = inference.matrix(len(features), recipe.classes, torch.bfloat16)
    found = present.reshape(len(present), recipe.heads).copy()
    for head in due(recipe, epoch):
        weight, bias = (each.detach().unflatten(0, (recipe.heads, -1))[head] for each in inference.top.parameters())

        def logits(rows: slice, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return torch.nn.functional.linear(devices.like(features[rows], weight), weight, bias)

        made = assign(logits, plan, len(present), recipe.sharpness, recipe.tolerance, inference.ranks, inference.pause)
        column = np.zeros(len(present), np.int32)
        column[positions] = made.labels.cpu().numpy()
        inference.ranks.sum_array(column, bias.device)
        found[:, head] = column
        short = "" if made.iterations < MOST else f", not {recipe.tolerance:g}: ended after that many"
        inference.say(
            f"labels of head {head + 1}/{recipe.heads}: {made.iterations} iterations, error {made.error:.2g}{short}"
        )
    return _shaped(found)


def loss(recipe: SelfLabel, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over heads and images of the cross-entropy of logits [B, heads · K] with targets [B] or [B, heads]."""
    answers = targets.flatten()
    return cross_entropy(recipe, logits.reshape(len(answers), -1), answers)


def passes(recipe: SelfLabel) -> Passes:
    """Every epoch, and a pass for each moment before the end."""
    return Passes(recipe.epochs, int((times(recipe) < recipe.epochs).sum()))


def labelling(recipe: SelfLabel, images: int, width: int) -> Labelling:
    """Three times the logits from the features, and Sinkhorn-Knopp; the scaled P in memory, the features in a file."""
    count, numbers = passes(recipe).forward * len(due(recipe, 0)), images * recipe.classes
    memory, disk = 2 * numbers, 2 * images * width
    said = (
        f"{count} label optimisations of {images:,} × {recipe.classes:,}, taken to last {_ITERATIONS} iterations each, "
        f"in {memory / 1e9:.1f} GB of memory with {disk / 1e9:.1f} GB of disk"
    )
    return Labelling(count * numbers * (3 * 2.0 * width + _ITERATIONS * _OPERATIONS), memory, disk, said)


def _shaped(columns: Labels) -> Labels:
    """Labels of one head as [N], those of several as [N, heads]."""
    return columns.reshape(-1) if columns.shape[1] == 1 else columns


METHOD = Method(
    recipe=SelfLabel,
    first_labels=first_labels,
    moments=moments,
    labels=labels,
    order=shuffled,
    loss=loss,
    passes=passes,
    labelling=labelling,
)
