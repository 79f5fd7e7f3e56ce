"""The resume state: all of a run at an epoch's end, in one safetensors file beside the run's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from uic_core.files import atomic

if TYPE_CHECKING:
    from uic_core.pretrain.loop import Trainer


class State:
    """A file that Snakemake does not know, so that it survives a failed job.

    Args:
        key: of the recipe, the data and the weights it starts from; a state with another key is not gone on from.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def save(self, trainer: Trainer, epoch: int) -> None:
        """Keep everything from which epochs >= `epoch` follow. Raises InputError on a full disk; the old one stays."""
        tensors = {f"network.{name}": tensor for name, tensor in trainer.network.state_dict().items()}
        for number, parameter in enumerate(trainer.network.parameters()):
            momentum = trainer.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{number}"] = momentum
        tensors["labels"] = torch.from_numpy(trainer.labels)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {"key": self.key, "epoch": str(epoch), "history": json.dumps(trainer.history)}
        with atomic(self.path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=header)

    def restore(self, trainer: Trainer) -> int:
        """Fill the trainer from the file if there is a usable one. Returns the next epoch; 0 starts afresh.

        A corrupt state or one of another recipe is said and removed.
        """
        if not self.path.exists():
            return 0
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            return self._discard(f"is corrupt ({error})")
        if header.get("key") != self.key:
            return self._discard(f"belongs to recipe, data and start {header.get('key')}, not {self.key}")
        network = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("network.")}
        trainer.network.load_state_dict(network)
        for number, parameter in enumerate(trainer.network.parameters()):
            if f"momentum.{number}" in tensors:
                momentum = tensors[f"momentum.{number}"].to(parameter.device)
                # In the parameter's memory format, or the next steps would differ in the last bit.
                trainer.optimizer.state[parameter] = {
                    "momentum_buffer": torch.empty_like(parameter).copy_(momentum).detach()
                }
        trainer.labels = tensors["labels"].numpy().copy()
        trainer.history = json.loads(header["history"])
        print(f"{self.path}: going on after {header['epoch']} epochs", flush=True)
        return int(header["epoch"])

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)

    def _discard(self, reason: str) -> int:
        print(f"{self.path}: {reason}; it is removed and training starts afresh", flush=True)
        self.path.unlink()
        return 0
