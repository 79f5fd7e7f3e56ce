"""What a pretraining run's state holds: all of the run after some step (see resume)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import torch

from uic_core.errors import InputError
from uic_core.pretrain.labels import Groups
from uic_core.pretrain.resume import State, momenta, part, restore_momenta

if TYPE_CHECKING:
    from uic_core.pretrain.loop import Trainer


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch, step: what comes next.
        loss, images: of this epoch's steps so far, the sum over images and their number.
        empty: classes without a member before this epoch's splitting.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    images: int = 0
    empty: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}"


def save(state: State, trainer: Trainer, position: Position) -> None:
    """Keep everything that the steps from `position` on follow from.

    Raises:
        InputError: the disk is full, or a weight is not finite; the states already there stay.
    """
    tensors = {f"network.{name}": tensor for name, tensor in trainer.network.state_dict().items()}
    tensors |= momenta(trainer.optimizer, trainer.network.parameters())
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"before {position}: {name} is not finite, the training diverged; lower lr in the recipe "
                "(the last good state is kept, no checkpoint is written)"
            )
    tensors["labels"] = torch.from_numpy(trainer.labels)
    for name, array in vars(trainer.groups).items():
        tensors[f"groups.{name}"] = torch.from_numpy(array)
    content = {
        "position": asdict(position), "history": trainer.history, "agreement": trainer.agreement,
        "ranks": trainer.ranks.world,
    }  # fmt: skip
    state.save(tensors, content)


def restore(state: State, trainer: Trainer) -> Position | None:
    """Fill the trainer from the newest usable state. None: there is none.

    Raises:
        InputError: a state of another recipe, data set or start, with what differs; or no usable file is left.
    """
    found = state.load(trainer.say)
    if found is None:
        return None
    path, content, tensors = found
    trainer.network.load_state_dict(part(tensors, "network."))
    restore_momenta(trainer.optimizer, trainer.network.parameters(), tensors)
    trainer.labels = tensors["labels"].numpy().copy()
    trainer.groups = Groups(**{field.name: tensors[f"groups.{field.name}"].numpy().copy() for field in fields(Groups)})
    trainer.history, trainer.agreement = content["history"], content["agreement"]
    position = Position(**content["position"])
    trainer.say(f"{path}: going on from {position}{trainer.ranks.changed(content['ranks'])}")
    return position
