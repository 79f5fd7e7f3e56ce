"""RotNet's AlexNet against its layers written out; the peers' rows take it through every evaluation of AlexNets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uic_core.models import ARCHS, build
from uic_core.models.network import Network
from uic_core.models.probe_pool import probe_pool

CONVS = [(64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False), (256, 3, 1, 1, False), (256, 3, 1, 1, True)]
"""Channels, kernel, stride, padding, max-pooling 3/2 after it: its published code (gidariss/FeatureLearningRotNet)."""


@pytest.fixture(scope="module")
def network() -> Network:
    """With statistics, scales and shifts that a mistake would not leave unnoticed."""
    torch.manual_seed(0)
    found = build("alexnet_rotnet", classes=4, image_size=96, sobel=False)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            for values in (module.running_var, module.weight):
                nn.init.uniform_(values, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return found


def plain(w: dict[str, Tensor], x: Tensor, *, training: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the convolutions' activations; batch norm by the batch's statistics, or by the running ones."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.relu(F.batch_norm(x, *(w[f"{name}.{part}"].clone() for part in NORM), training=training))

    seen = []
    for number, (_, _, stride, padding, pooled) in enumerate(CONVS, 1):
        conv = [w[f"features.conv{number}.{part}"] for part in ("weight", "bias")]
        x = norm(F.conv2d(x, *conv, stride, padding), f"features.bn{number}")
        seen.append(x)
        x = F.max_pool2d(x, 3, 2) if pooled else x
    x = x.flatten(1)
    for number in (6, 7):
        x = norm(F.linear(x, w[f"classifier.fc{number}.weight"]), f"classifier.bn{number}")
    return F.linear(x, w["top.weight"], w["top.bias"]), seen


NORM = ("running_mean", "running_var", "weight", "bias")


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_the_network_is_the_layers_written_out(network: Network, training: bool) -> None:
    x = torch.randn(6, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    expected, seen = plain(weights, x, training=training)
    torch.testing.assert_close(network.train(training)(x), expected)
    network.load_state_dict(weights)
    if not training:
        taps = network.taps(x, network.layers)
        assert list(taps) == [f"conv{number}" for number in range(1, 6)]
        for tap, activation in zip(taps.values(), seen, strict=True):
            torch.testing.assert_close(tap, activation)
        torch.testing.assert_close(F.linear(F.relu(network.embed(x)), network.top.weight, network.top.bias), expected)
        assert torch.equal(network.pool_last(taps["conv5"]), network.maps(x))


def test_parameters_at_224_by_hand() -> None:
    with torch.device("meta"):
        found = build("alexnet_rotnet", classes=4, image_size=224, sobel=False)
    inputs = [3, *(out for out, *_ in CONVS[:-1])]
    features = sum(i * o * k * k + o + 2 * o for i, (o, k, *_) in zip(inputs, CONVS, strict=True))
    classifier = 9216 * 4096 + 2 * 4096 + 4096 * 4096 + 2 * 4096 + 4096 * 4 + 4
    assert sum(parameter.numel() for parameter in found.parameters()) == features + classifier
    assert {name for name, value in found.named_parameters() if "fc" in name and "bias" in name} == set()


def test_initial_weights_are_pytorchs() -> None:
    """Uniform between ± 1/√inputs, biases too."""
    torch.manual_seed(0)
    found = build("alexnet_rotnet", classes=100, image_size=64, sobel=False)
    for name, module in found.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for values in (module.weight, module.bias):
                if values is not None:
                    assert values.abs().max() <= bound, name
                    assert values.abs().max() > 0.9 * bound, name
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02), name


PROBED = [("conv1", 64, 55, 12, 9216), ("conv2", 192, 27, 7, 9408), ("conv3", 384, 13, 5, 9600)]
PROBED += [("conv4", 256, 13, 6, 9216), ("conv5", 256, 13, 6, 9216)]


@pytest.mark.parametrize(("layer", "channels", "side", "target", "numbers"), PROBED)
def test_probes_see_rotnets_maxima(layer: str, channels: int, side: int, target: int, numbers: int) -> None:
    maps = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    found = probe_pool(layer, maps, "alexnet_rotnet")
    assert found.shape == (2, numbers)
    assert torch.equal(found, F.adaptive_max_pool2d(maps, target).flatten(1))
    small = torch.randn(2, channels, 3, 3)
    assert torch.equal(probe_pool(layer, small, "alexnet_rotnet"), small.flatten(1))


def test_maps_at_224_are_those_that_the_probes_expect() -> None:
    with torch.device("meta"):
        found = build("alexnet_rotnet", classes=4, image_size=224, sobel=False).eval()
        taps = found.taps(torch.empty(1, 3, 224, 224), found.layers)
    assert [(name, *tap.shape[1:3]) for name, tap in taps.items()] == [case[:3] for case in PROBED]
    assert (ARCHS["alexnet_rotnet"].fc6_side(224), ARCHS["alexnet_rotnet"].least_pad(224)) == (6, 85)


@torch.no_grad()
def test_fast_rcnn_and_fcn_take_fc6_and_fc7_with_their_batch_norm(network: Network) -> None:
    features = torch.randn(5, 256 * 2 * 2, generator=torch.Generator().manual_seed(2)).relu()
    hidden = features
    layers = network.linear_layers()
    assert list(layers) == ["fc6", "fc7"]
    for weight, bias in layers.values():
        hidden = F.relu(F.linear(hidden, weight, bias))
    torch.testing.assert_close(hidden, network.eval().classifier(features))
