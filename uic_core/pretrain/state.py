"""What a pretraining run's state holds: all of the run after some step (see resume)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import torch

from uic_core.data.partition import Groups
from uic_core.errors import InputError
from uic_core.run.saved_state import State, demand_same, momenta, part, restore_momenta

if TYPE_CHECKING:
    from uic_core.pretrain.loop import Trainer


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch, step: what comes next.
        loss, images: of this epoch's steps so far, the sum over images and their number.
        empty: classes without a member in this epoch's labels, before they are split.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    images: int = 0
    empty: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step + 1}"


def save(state: State, trainer: Trainer) -> None:
    """Keep everything that the steps from the trainer's position on follow from.

    Raises:
        InputError: the disk is full, or a weight is not finite; the states already there stay.
    """
    tensors = {f"network.{name}": tensor for name, tensor in trainer.network.state_dict().items()}
    tensors |= momenta(trainer.optimizer, trainer.network.parameters())
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"before {trainer.position}: {name} is not finite, the training diverged; lower lr in the recipe "
                "(the last good state is kept, no checkpoint is written)"
            )
    tensors["labels"] = torch.from_numpy(trainer.labels)
    for name, array in vars(trainer.groups).items():
        tensors[f"groups.{name}"] = torch.from_numpy(array)
    content = {
        "position": asdict(trainer.position), "history": trainer.history, "agreement": trainer.agreement,
        "ranks": trainer.ranks.world, "precision": trainer.precision_name,
    }  # fmt: skip
    state.save(tensors, content)


def restore(state: State, trainer: Trainer) -> Position:
    """Fill the trainer from the newest usable state; the run's beginning where there is none.

    Raises:
        InputError: a state of another recipe, data set or start, with what differs; or no usable file is left; or
            other processes have another one before them.
    """
    found = state.load(trainer.say)
    demand_same(state, found, trainer.ranks, trainer.device)
    if found is None:
        return Position()
    path, content, tensors = found
    trainer.network.load_state_dict(part(tensors, "network."))
    restore_momenta(trainer.optimizer, trainer.network.parameters(), tensors)
    trainer.labels = tensors["labels"].numpy().copy()
    trainer.groups = Groups(**{field.name: tensors[f"groups.{field.name}"].numpy().copy() for field in fields(Groups)})
    trainer.history, trainer.agreement = content["history"], content["agreement"]
    position = Position(**content["position"])
    trainer.say(f"{path}: going on from {position}{trainer.ranks.changed(content['ranks'])}")
    before = content.get("precision", trainer.precision_name)  # states of earlier versions do not say
    if before != trainer.precision_name:
        trainer.say(f"from here in {trainer.precision_name}, where it was {before}; recipes can name a precision")
    return position
