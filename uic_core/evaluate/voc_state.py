"""State of VOC07 classification between steps: training continues bit for bit as if it had not been interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uic_core.models.network import Network
from uic_core.run.state_tensors import momenta, part, restore_momenta


def pack(
    network: Network, optimizer: torch.optim.SGD, trained: list[nn.Parameter], last: Tensor, done: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and content of the state after `done` iterations, with the generators that dropout draws from.

    Args:
        last: the loss of the last tenth of the iterations so far.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= momenta(optimizer, trained) | {"random.cpu": torch.get_rng_state(), "last": last}
    if trained[0].is_cuda:
        tensors["random.cuda"] = torch.cuda.get_rng_state(trained[0].device)
    return tensors, {"iteration": done}


def restore(
    found: tuple[Path, dict[str, Any], dict[str, Tensor]],
    network: Network,
    optimizer: torch.optim.SGD,
    trained: list[nn.Parameter],
    last: Tensor,
) -> int:
    """Put a state back; return the iterations done."""
    _, content, tensors = found
    network.load_state_dict(part(tensors, "network."))
    restore_momenta(optimizer, trained, tensors)
    last.copy_(tensors["last"])
    torch.set_rng_state(tensors["random.cpu"])
    if trained[0].is_cuda and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], trained[0].device)
    return int(content["iteration"])
