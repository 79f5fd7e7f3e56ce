"""Keep a network frozen during evaluation (no gradients, no batch-norm updates, bitwise unchanged); its features."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from uic_core.errors import InputError
from uic_core.evaluations.evaluation import Precision
from uic_core.models.network import Network

_TF32_CAPABILITY = (8, 0)  # Ampere


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


@torch.no_grad()
def taps(network: Network, images: Tensor, layers: Iterable[str], precision: Precision = "fp32") -> dict[str, Tensor]:
    """Compute the activations of some layers in a precision, without gradients.

    Args:
        images: normalised, float32 [B, 3, S, S].
        layers: as `Network.taps` takes them.

    Returns:
        [B, C, h, w] or [B, D] by layer: of bf16 some are bfloat16, else all are float32.

    Raises:
        InputError: from `Network.taps`.
    """
    bf16, tf32 = precision == "bf16", precision == "tf32"
    with (
        torch.autocast(images.device.type, torch.bfloat16, enabled=bf16),
        _tf32() if tf32 else contextlib.nullcontext(),
    ):
        return network.taps(images, layers)


def demand(precision: Precision, device: torch.device, key: str) -> None:
    """Refuse TF32 where it is none, because a result's record must be true.

    Args:
        key: the evaluation's section, for the message.

    Raises:
        InputError: `precision` is tf32, and the device is no GPU with TF32.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < _TF32_CAPABILITY):
        here = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise InputError(
            f"evaluations.{key}.precision: tf32 is of NVIDIA's GPUs from Ampere (A100) on, and this job has {here}; "
            "write fp32 or bf16, or let it run on such a GPU"
        )


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    """Let kernels that are launched in this block round the factors of float32 products to TF32's 10 bits."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = True
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
