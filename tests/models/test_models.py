"""The networks are those of PROTOCOL section 1: shapes, counts, initial weights, Sobel, taps."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from uic_core import layers
from uic_core.errors import InputError
from uic_core.models import ARCHS, build
from uic_core.models.probe_pool import probe_pool
from uic_core.models.sobel import Sobel


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def alexnet_parameters(inputs: int, classes: int) -> int:
    """By hand: weights and biases of convs and fcs, scale and shift of the BNs."""
    convs = [(inputs, 96, 11), (96, 256, 5), (256, 384, 3), (384, 384, 3), (384, 256, 3)]
    features = sum(i * o * k * k + o + 2 * o for i, o, k in convs)
    return features + 9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * classes + classes


@pytest.mark.parametrize(
    ("arch", "sobel", "parameters"),
    [
        ("alexnet", True, alexnet_parameters(2, 3000)),
        ("alexnet", False, alexnet_parameters(3, 3000)),
        ("vgg16", False, 138_365_992 + 2000 * 4097),  # torchvision's vgg16_bn, which ends in 1000 classes
        ("resnet50", False, 25_557_032 + 2000 * 2049),  # torchvision's resnet50, likewise
        ("resnet50_mlp", False, 25_557_032 + 2000 * 2049 + 2 * (2048 * 2048 + 2 * 2048)),
    ],
)
def test_parameter_counts(arch, sobel, parameters):
    with torch.device("meta"):
        network = build(arch, classes=3000, image_size=224, sobel=sobel)
    assert count(network) == parameters


@torch.no_grad()
def test_alexnet_maps_and_probe_dimensions_at_224():
    network = build("alexnet", classes=7, image_size=224, sobel=True).eval()
    x = torch.randn(1, 3, 224, 224)
    taps = network.taps(x, network.layers)
    assert [tuple(taps[f"conv{n}"].shape[1:]) for n in range(1, 6)] == [
        (96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)
    ]  # fmt: skip
    pooled = [probe_pool(layer, tap, "alexnet").shape[1] for layer, tap in taps.items()]
    assert pooled == [9600, 9216, 9600, 9600, 9216]
    assert network.maps(x).flatten(1).shape[1] == 9216
    assert torch.equal(network.pool_last(taps["conv5"]), network.maps(x))
    assert network(x).shape == (1, 7)


@torch.no_grad()
def test_vgg_and_resnet_probe_dimensions_at_224():
    x = torch.randn(1, 3, 224, 224)
    vgg = build("vgg16", classes=7, image_size=224, sobel=False).eval()
    assert probe_pool("conv13", vgg.taps(x, ["conv13"])["conv13"], "vgg16").shape == (1, 512 * 16)
    resnet = build("resnet50_mlp", classes=7, image_size=224, sobel=False).eval()
    assert {name: tap.shape for name, tap in resnet.taps(x, resnet.layers).items()} == {
        "avgpool": (1, 2048),
        "mlp": (1, 2048),
    }


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("size", [64, 96])
@torch.no_grad()
def test_any_input_size_from_64(arch, size):
    network = build(arch, classes=5, image_size=size, sobel=arch == "alexnet").eval()
    x = torch.randn(2, 3, size, size)
    assert network(x).shape == (2, 5)
    assert network.embed(x).shape == (2, network.embedding_size)
    for layer, tap in network.taps(x, layers.PROBE[arch]).items():
        assert probe_pool(layer, tap, arch).ndim == 2


@torch.no_grad()
def test_taps_stop_at_the_deepest_layer_asked_for(monkeypatch):
    network = build("alexnet", classes=5, image_size=64, sobel=True).eval()
    monkeypatch.setattr(network.features.pool2, "forward", lambda x: pytest.fail("computed deeper than asked"))
    assert list(network.taps(torch.randn(1, 3, 64, 64), ["conv2", "conv1"])) == ["conv2", "conv1"]


@torch.no_grad()
def test_embedding_is_the_top_layers_input_before_its_relu():
    network = build("alexnet", classes=5, image_size=64, sobel=True).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.top(functional.relu(network.embed(x))), network(x))


@torch.no_grad()
def test_logits_stay_float32_under_autocast():
    """With bf16 logits many of 3000 young classes would tie for the largest, and the pseudo-label be the first."""
    torch.manual_seed(0)
    network = build("alexnet", classes=3000, image_size=64, sobel=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(512, 3, 64, 64))
    assert logits.dtype is torch.float32

    def ties(values):
        return int(((values == values.amax(1, keepdim=True)).sum(1) > 1).sum())

    assert ties(logits) == 0
    assert ties(logits.bfloat16()) > 0, "what the test guards against does happen"


def test_sobel_equals_greyscale_then_two_filters_and_is_frozen():
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    grey = x.mean(1, keepdim=True)
    horizontal = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    vertical = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
    expected = torch.cat([functional.conv2d(grey, k[None, None], padding=1) for k in (horizontal, vertical)], 1)
    sobel = Sobel()
    torch.testing.assert_close(sobel(x), expected)
    assert not list(sobel.parameters())
    assert not sobel.state_dict()


def test_sobel_sees_no_flat_colour():
    out = Sobel()(torch.ones(1, 3, 8, 8) * torch.tensor([0.3, 1.0, -2.0])[None, :, None, None])
    assert out[:, :, 1:-1, 1:-1].abs().max() < 1e-6


def test_alexnet_initial_weights():
    torch.manual_seed(0)
    network = build("alexnet", classes=100, image_size=64, sobel=True)
    conv = network.features.conv3
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 384)) ** 0.5, rel=0.01)
    assert network.classifier.fc7.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert (conv.bias == 0).all()
    assert (network.features.bn3.weight == 1).all()


def test_an_unknown_arch_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="no architecture 'resnet18' \\(known: alexnet, vgg16, resnet50, resnet50_mlp"):
        build("resnet18", classes=5, image_size=64, sobel=False)


def test_an_unknown_layer_is_answered_with_the_known_ones():
    network = build("alexnet", classes=5, image_size=64, sobel=True)
    with pytest.raises(InputError, match=r"alexnet has no layer 'conv6' \(known: conv1, conv2"):
        network.taps(torch.zeros(1, 3, 64, 64), ["conv6"])
