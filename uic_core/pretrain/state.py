"""The resume state: all of a run after some step, in a safetensors file beside the run's results.

Snakemake does not know it, so it survives a failed job. The one before it is kept: a state that cannot be read is
said, and the previous one is used.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from uic_core.errors import InputError
from uic_core.files import atomic
from uic_core.pretrain.labels import Groups

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


class State:
    """The state files of a run.

    Args:
        folder: of the run.
        identity: what a state must share to be gone on from: recipe, data, start.
        name: part of the files' names: another recipe's state is left alone.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], name: str) -> None:
        self.folder, self.identity = folder, identity
        self.path = folder / f"state.{name}.safetensors"
        self.previous = folder / f"state.{name}.previous.safetensors"
        self._new = folder / f"state.{name}.new.safetensors"
        self.marker = folder / "interrupted"

    def save(self, trainer: Trainer, position: Position) -> None:
        """Keep everything that the steps from `position` on follow from.

        Raises:
            InputError: the disk is full, or a weight is not finite; the states already there stay.
        """
        tensors = {f"network.{name}": tensor for name, tensor in trainer.network.state_dict().items()}
        for number, parameter in enumerate(trainer.network.parameters()):
            momentum = trainer.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{number}"] = momentum
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"before {position}: {name} is not finite, the training diverged; lower lr in the recipe "
                    "(the last good state is kept, no checkpoint is written)"
                )
        tensors["labels"] = torch.from_numpy(trainer.labels)
        for name, array in vars(trainer.groups).items():
            tensors[f"groups.{name}"] = torch.from_numpy(array)
        content = self.identity | {
            "position": asdict(position), "history": trainer.history, "agreement": trainer.agreement,
            "ranks": trainer.ranks.world,
        }  # fmt: skip
        with atomic(self._new) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata={"state": json.dumps(content)})
        if self.path.exists():
            os.replace(self.path, self.previous)
        os.replace(self._new, self.path)

    def restore(self, trainer: Trainer) -> Position | None:
        """Fill the trainer from the newest usable file. None: there is no file.

        Raises:
            InputError: a state of another recipe, data set or start, with what differs; or no usable file is left.
        """
        self._clean()
        unusable = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    content = json.loads(file.metadata()["state"])
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
                unusable.append(f"{path}: is no whole state ({error})")
                continue
            for line in unusable:
                trainer.say(f"{line}; the previous state is used")
            self._check(path, content)
            return self._fill(trainer, path, content, tensors)
        if unusable:
            raise InputError("\n".join([*unusable, f"remove {self.folder}/state.* to start this run afresh"]))
        return None

    def remove(self) -> None:
        """The run is complete."""
        for path in (*self.folder.glob("state.*.safetensors"), self.marker):
            path.unlink(missing_ok=True)
        self._clean()

    def _clean(self) -> None:
        """Remove what a process left that was killed while it wrote."""
        for path in (*self.folder.glob(".state.*.partial.*"), self._new):
            path.unlink(missing_ok=True)

    def _check(self, path: Path, content: dict[str, Any]) -> None:
        there, here = ({k: v for k, v in source.items() if k != "recipe"} for source in (content, self.identity))
        there |= {f"recipe.{key}": value for key, value in content.get("recipe", {}).items()}
        here |= {f"recipe.{key}": value for key, value in self.identity["recipe"].items()}
        differing = [f"{key}: {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
        if differing:
            raise InputError(
                f"{path}: belongs to another run ({'; '.join(differing)}); go on with what it belongs to, or remove "
                "the file to start afresh"
            )

    def _fill(self, trainer: Trainer, path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> Position:
        prefix = "network."
        trainer.network.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
        for number, parameter in enumerate(trainer.network.parameters()):
            if f"momentum.{number}" in tensors:
                momentum = tensors[f"momentum.{number}"].to(parameter.device)
                # In the parameter's memory format, or the next steps would differ in the last bit.
                trainer.optimizer.state[parameter] = {
                    "momentum_buffer": torch.empty_like(parameter).copy_(momentum).detach()
                }
        trainer.labels = tensors["labels"].numpy().copy()
        trainer.groups = Groups(
            **{field.name: tensors[f"groups.{field.name}"].numpy().copy() for field in fields(Groups)}
        )
        trainer.history, trainer.agreement = content["history"], content["agreement"]
        position = Position(**content["position"])
        ranks = trainer.ranks.world
        other = "" if content["ranks"] == ranks else f", with {ranks} processes where there were {content['ranks']}"
        trainer.say(f"{path}: going on from {position}{other}")
        return position
