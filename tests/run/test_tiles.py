"""The weight gradient of convolutions on small maps, against float32 and against torch's own in bf16."""

import copy

import pytest
import torch
from torch import nn

from uic_core.models import build
from uic_core.run import precision, tiles

CPU = torch.device("cpu")


def gradients(layer: nn.Module, x: torch.Tensor, *, bf16: bool) -> list[torch.Tensor]:
    """Output, and gradients of the input, the weights and the bias for a fixed gradient of the output."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = layer(x)
    found.backward(torch.linspace(-1, 1, found.numel()).reshape(found.shape).to(found.dtype))
    assert x.grad is not None
    return [found, x.grad, *(parameter.grad for parameter in layer.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding", "bias"),
    [(3, 3, 1, 1, True), (8, 3, 2, 1, False), (7, 3, 1, 0, True), (4, 1, 1, 0, False), (5, 1, 2, 0, True)],
)
def test_gradients_are_those_of_a_convolution(side, kernel, stride, padding, bias, layout):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 10, kernel, stride, padding, bias=bias)
    tiled = copy.deepcopy(plain)
    tiles.tile(tiled)
    assert type(tiled) is not nn.Conv2d
    x = torch.randn(8, 6, side, side).contiguous(memory_format=layout)
    exact = gradients(plain, x, bf16=False)
    rounded = gradients(plain, x, bf16=True)
    found = gradients(tiled, x, bf16=True)
    assert len(found) == len(exact) == 3 + bias
    for ours, theirs, true in zip(found, rounded, exact, strict=True):
        assert ours.dtype == theirs.dtype
        error, known = ((each.float() - true).norm() / true.norm() for each in (ours, theirs))
        assert error < 0.01
        assert error < 1.5 * known + 1e-3
    again = gradients(tiled, x, bf16=True)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    assert all(map(torch.equal, gradients(tiled, x, bf16=False), exact)), "float32 is left alone"


@pytest.mark.parametrize(
    ("flags", "dtype", "changed"),
    [({"amx_bf16"}, torch.bfloat16, True), ({"amx_bf16"}, torch.float32, False), (set(), torch.bfloat16, False)],
)
def test_only_bf16_on_tiles_changes_a_network_and_never_its_parameters(monkeypatch, flags, dtype, changed):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    network = build("alexnet", classes=3, image_size=64, sobel=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    precision.prepare(network, dtype, CPU)
    kinds = [type(module) is nn.Conv2d for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert kinds == ([True, True, False, False, False] if changed else [True] * 5)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
