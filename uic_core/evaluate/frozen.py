"""Keep a network frozen during evaluation: no gradients, no batch-norm updates, bitwise unchanged."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """Hex SHA-256 over names, types, shapes and bytes of all parameters and buffers.

    It does not depend on device or memory layout. It compares bytes, not values: -0 differs from 0, NaN equals NaN.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def assert_unchanged(module: nn.Module, before: str) -> None:
    """Assert that a module's `fingerprint` is still `before` and that no gradient has reached it."""
    assert fingerprint(module) == before, "the backbone changed while it was evaluated"
    touched = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    assert not touched, f"gradients reached the frozen backbone: {touched}"


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients, permanently; on exit, assert that it is bitwise unchanged."""
    network.eval().requires_grad_(False)
    before = fingerprint(network)
    yield
    assert not any(module.training for module in network.modules()), "the backbone left eval mode"
    assert_unchanged(network, before)
