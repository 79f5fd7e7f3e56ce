"""The progress of a pretraining run, and its state file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from uic_core.data import partition
from uic_core.data.partition import Groups, Labels
from uic_core.models.network import Network
from uic_core.run.parallel import Ranks
from uic_core.run.randomness import Stream
from uic_core.run.saved_state import State, demand_same
from uic_core.run.state_tensors import demand_finite, momenta, part, restore_momenta


@dataclass
class Position:
    """The position of a run.

    Attributes:
        epoch, step: the next epoch and step.
        loss, images: sum of the loss over the images of this epoch's steps so far, and number of these images.
        empty: number of classes without members in this epoch's labels, before they are filled.
        measured: sums of the method's measures over the same images.
        inputs: number of the network's inputs in this epoch so far, over all processes, those of label passes included.
        training_seconds, label_seconds: time of this epoch's steps, and of what makes, compares and groups labels.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    images: int = 0
    empty: int = 0
    inputs: int = 0
    training_seconds: float = 0.0
    label_seconds: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Means over the images so far: `loss`, and the method's measures."""
        return {name: total / self.images for name, total in {"loss": self.loss, **self.measured}.items()}

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step + 1}"


def _nothing() -> Groups:
    return partition.group(np.zeros(0, np.int32), 1)


@dataclass
class RunState:
    """Everything that the next steps of a run depend on, except network and optimiser.

    Attributes:
        position: the next epoch and step.
        labels: int32 [N], or [N, heads] for several heads; apart from its place in `groups` the only data kept per
            image.
        groups: the images grouped by their labels, or by the targets of the current epoch; of several heads the first.
        agreement: NMI of the labels with the previous ones, likewise.
        history: one line per finished epoch.
        times: what each finished epoch took; no part of what equal runs have in common.
    """

    position: Position = field(default_factory=Position)
    labels: Labels = field(default_factory=lambda: np.zeros(0, np.int32))
    groups: Groups = field(default_factory=_nothing)
    agreement: float = 1.0
    history: list[dict[str, Any]] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)

    def end_epoch(self) -> None:
        """Note what the epoch took, and go on to the next."""
        ended = self.position
        took = {key: getattr(ended, key) for key in ("images", "inputs", "training_seconds", "label_seconds")}
        self.times.append({key: round(value, 4) for key, value in took.items()})
        self.position = Position(ended.epoch + 1)

    def relabel(self, found: Labels, classes: int, seed: int, epoch: int) -> None:
        """Replace the labels; compute their agreement with the current groups and their own groups for `epoch`."""
        first = partition.of_first_head(found)
        if len(self.groups.members):
            self.agreement = partition.nmi(self.groups, first)
        self.labels = found
        del self.groups  # frees them before the new ones are made: eight bytes per image, not twelve
        self.groups = partition.group(first, classes, np.random.default_rng([seed, Stream.GROUPS, epoch]))


def save(
    file: State, run: RunState, network: Network, optimizer: torch.optim.SGD, ranks: Ranks, precision: str
) -> None:
    """Save everything that the steps from the run's position on depend on.

    Raises:
        InputError: the disk is full, or a weight is not finite; existing states stay.
    """
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= momenta(optimizer, network.parameters())
    demand_finite(tensors, f"before {run.position}", "lower lr in the recipe")
    tensors["labels"] = torch.from_numpy(run.labels)
    for name, array in vars(run.groups).items():
        tensors[f"groups.{name}"] = torch.from_numpy(array)
    content = {
        "position": asdict(run.position), "history": run.history, "times": run.times, "agreement": run.agreement,
        "ranks": ranks.world, "precision": precision,
    }  # fmt: skip
    file.save(tensors, content)


def restore(
    file: State, network: Network, optimizer: torch.optim.SGD, ranks: Ranks, device: torch.device, precision: str,
    say: Callable[[str], None],
) -> RunState:  # fmt: skip
    """Restore network and optimiser from the newest usable state and return the run's; a new one if there is no file.

    Raises:
        InputError: a state has another recipe, data set or start (the message lists the differences); no file is
            usable; or another process has found another state.
    """
    found = file.load(say)
    demand_same(file, found, ranks, device)
    if found is None:
        return RunState()
    path, content, tensors = found
    network.load_state_dict(part(tensors, "network."))
    restore_momenta(optimizer, network.parameters(), tensors)
    run = RunState(
        Position(**content["position"]),
        tensors["labels"].numpy().copy(),
        Groups(**{each.name: tensors[f"groups.{each.name}"].numpy().copy() for each in fields(Groups)}),
        content["agreement"],
        content["history"],
        content.get("times", []),  # states of earlier versions have no such entry
    )
    say(f"{path}: going on from {run.position}{ranks.changed(content['ranks'])}")
    before = content.get("precision", precision)  # states of earlier versions have no such entry
    if before != precision:
        say(f"from here in {precision}, where it was {before}; recipes can name a precision")
    return run
