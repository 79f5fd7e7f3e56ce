"""RotNet (Gidaris et al. 2018): by how many right angles was the image turned? Its labels say nothing of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from uic_core.methods.method import Method, augmented, shuffled
from uic_core.recipe import Stepped

if TYPE_CHECKING:
    from torch import Tensor

TURNS = 4
"""By 0, 90, 180 and 270 degrees."""


class RotNet(Stepped):
    """A run of RotNet."""

    method: Literal["rotnet"]


def views(recipe: RotNet, crops: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Crops uint8 [B, 3, S, S] → the augmented crops at each turn, normalised, float [4 B, 3, S, S], turn by turn.

    Pixels only change places, so it does not matter that they are normalised before they are turned.
    """
    import torch

    upright = augmented(recipe, crops, numbers)
    return torch.cat([torch.rot90(upright, turns, (2, 3)) for turns in range(TURNS)])


def answers(images: int, logits: Tensor) -> Tensor:
    """The turns of `views` of so many images, int64 [4 images], on the logits' device."""
    import torch

    return torch.arange(TURNS, device=logits.device).repeat_interleave(images)


def loss(recipe: RotNet, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of float32 logits [4 B, 4] with the turns; of targets [B] only their number counts."""
    import torch

    return torch.nn.functional.cross_entropy(logits, answers(len(targets), logits))


def measures(recipe: RotNet, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`rotation_accuracy`: share of the views, 0 … 1, whose turn has the largest logit."""
    return {"rotation_accuracy": (logits.argmax(1) == answers(len(targets), logits)).float().mean()}


def check(recipe: RotNet, annotated: int) -> None:
    """Raise ValueError unless the top layer has an output for each turn."""
    if recipe.classes != TURNS:
        raise ValueError(
            f"classes: {recipe.classes}, but an image is turned by 0, 90, 180 or 270 degrees; write {TURNS}"
        )


METHOD = Method(
    recipe=RotNet, order=shuffled, pseudo_classes=False, views=views, views_per_image=TURNS, loss=loss,
    measures=measures, nesterov=True, check=check,
)  # fmt: skip
