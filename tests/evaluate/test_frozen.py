"""A network under evaluation: every way of changing it is noticed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from uic_core.evaluate import frozen


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_fingerprint_is_of_bytes_and_not_of_the_layout(network: nn.Module) -> None:
    before = frozen.fingerprint(network)
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert frozen.fingerprint(network.to(memory_format=torch.channels_last)) == before  # type: ignore[call-overload]
    with torch.no_grad():
        network[0].bias[0] = 0.0
        zero = frozen.fingerprint(network)
        network[0].bias[0] = -0.0
    assert len({before, zero, frozen.fingerprint(network)}) == 3


def test_a_forward_pass_changes_nothing(network: nn.Module) -> None:
    with frozen.frozen(network.train()):
        logits = network(torch.randn(5, 3, 4, 4))
        assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())


def step_of_batch_norm(network: nn.Module) -> None:
    network.train()(torch.randn(5, 3, 4, 4))
    network.eval()


def smallest_change(network: nn.Module) -> None:
    with torch.no_grad():
        weight = network[3].weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1.0))


def gradient(network: nn.Module) -> None:
    network.requires_grad_(True)
    network(torch.randn(5, 3, 4, 4)).sum().backward()


@pytest.mark.parametrize(
    ("touch", "message"),
    [
        (step_of_batch_norm, "the backbone changed"),
        (smallest_change, "the backbone changed"),
        (gradient, "gradients reached the frozen backbone: .*'0.weight'"),
        (nn.Module.train, "left eval mode"),
    ],
)
def test_every_change_is_noticed(network: nn.Module, touch: Callable[[nn.Module], None], message: str) -> None:
    with pytest.raises(AssertionError, match=message), frozen.frozen(network):
        touch(network)
