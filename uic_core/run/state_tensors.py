"""The tensors of a saved state: SGD's momenta by number, out of the optimiser and back into it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from uic_core.errors import InputError


def momenta(optimizer: torch.optim.SGD, parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """SGD's momentum of each parameter that has one, named by parameter number: `momentum.0`, …"""
    found = {}
    for number, parameter in enumerate(parameters):
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            found[f"momentum.{number}"] = momentum
    return found


def restore_momenta(optimizer: torch.optim.SGD, parameters: Iterable[nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Put the result of `momenta` back into SGD."""
    for number, parameter in enumerate(parameters):
        if f"momentum.{number}" in tensors:
            momentum = tensors[f"momentum.{number}"].to(parameter.device)
            # Without the parameter's memory format the next steps would differ in the last bit.
            optimizer.state[parameter] = {"momentum_buffer": torch.empty_like(parameter).copy_(momentum).detach()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def demand_finite(tensors: dict[str, Tensor], where: str, remedy: str) -> None:
    """Check weights and momenta before they are saved. Raises InputError: one is not finite; names it."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{where}: {name} is not finite, the training diverged; {remedy} (the last good state is kept)"
            )
