"""A network under evaluation: every way of changing it is noticed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uic_core.errors import InputError
from uic_core.evaluate import frozen
from uic_core.evaluate.heads import activations
from uic_core.models.network import Network


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


LAYERS = ["conv1", "conv5", "fc7"]


def test_bf16_is_of_the_network_alone(alexnet: Network) -> None:
    """Activations are what autocast makes of them, near those of float32, and heads get float32."""
    images = torch.randn(3, 3, 64, 64)
    plain, rounded = (frozen.taps(alexnet, images, LAYERS, precision) for precision in ("fp32", "bf16"))
    with torch.no_grad():
        for layer, tap in alexnet.taps(images, LAYERS).items():
            assert torch.equal(plain[layer], tap)
        with torch.autocast("cpu", torch.bfloat16):
            for layer, tap in alexnet.taps(images, LAYERS).items():
                assert torch.equal(rounded[layer], tap)
    for layer in LAYERS:
        apart = (rounded[layer].float() - plain[layer]).norm() / plain[layer].norm()
        assert 1e-4 < apart < 0.02, layer
        assert not rounded[layer].requires_grad
    assert rounded["conv5"].dtype is torch.bfloat16
    assert {each.dtype for each in activations(alexnet, images, LAYERS[:2], "bf16").values()} == {torch.float32}


def test_tf32_is_switched_on_for_the_network_alone() -> None:
    seen = []

    class Watched(Network):
        def __init__(self) -> None: ...

        def taps(self, x: Tensor, layers: object) -> dict[str, Tensor]:
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            if x.isnan().any():
                raise InputError("stopped")
            return {}

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    frozen.taps(Watched(), torch.zeros(1), [])
    frozen.taps(Watched(), torch.zeros(1), [], "tf32")
    with pytest.raises(InputError):
        frozen.taps(Watched(), torch.full((1,), torch.nan), [], "tf32")
    assert seen == [(False, False), (True, True), (True, True)]
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_tf32_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "bf16"):
        frozen.demand(precision, torch.device("cpu"), "knn")
    with pytest.raises(InputError, match=r"^evaluations\.knn\.precision: tf32 .* has a CPU; write fp32 or bf16"):
        frozen.demand("tf32", torch.device("cpu"), "knn")
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(InputError, match="this job has Tesla T4"):
        frozen.demand("tf32", gpu, "knn")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    frozen.demand("tf32", gpu, "knn")
