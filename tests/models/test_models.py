"""The networks are those of docs/protocol.md, Networks: shapes, counts, initial weights, Sobel, taps."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from uic_core.errors import InputError
from uic_core.models import ARCHS, build
from uic_core.models.architecture import MAX_POOLED
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
    for layer, tap in network.taps(x, ARCHS[arch].probe_layers).items():
        assert probe_pool(layer, tap, arch).ndim == 2


@torch.no_grad()
def test_taps_stop_at_the_deepest_layer_asked_for(monkeypatch):
    network = build("alexnet", classes=5, image_size=64, sobel=True).eval()
    monkeypatch.setattr(network.features.pool2, "forward", lambda x: pytest.fail("computed deeper than asked"))
    assert list(network.taps(torch.randn(1, 3, 64, 64), ["conv2", "conv1"])) == ["conv2", "conv1"]


@pytest.mark.parametrize("arch", ["alexnet", "vgg16"])
@torch.no_grad()
def test_embedding_is_fc7_before_its_relu(arch):
    """DeepCluster drops the last ReLU while it computes features."""
    torch.manual_seed(0)
    network = build(arch, classes=5, image_size=64, sobel=True).eval()
    seen = outputs(network.classifier, ["fc7"])
    x = torch.randn(2, 3, 64, 64)
    logits = network(x)
    embedding = network.embed(x)
    assert torch.equal(embedding, seen["fc7"])
    assert 0.2 < (embedding < 0).float().mean() < 0.8
    torch.testing.assert_close(network.top(functional.relu(embedding)), logits)


@torch.no_grad()
def test_linear_layers_have_the_batch_norm_after_them_folded_in():
    torch.manual_seed(0)
    network = build("alexnet", classes=5, image_size=64, sobel=True).eval()
    plain = network.linear_layers()
    assert list(plain) == ["fc6", "fc7"]
    for name, layer in plain.items():
        assert layer == (network.classifier.get_submodule(name).weight, network.classifier.get_submodule(name).bias)
    parts = {
        "fc6": nn.Linear(256, 12, bias=False), "bn6": nn.BatchNorm1d(12), "relu6": nn.ReLU(),
        "fc7": nn.Linear(12, 9), "bn7": nn.BatchNorm1d(9), "relu7": nn.ReLU(),
    }  # fmt: skip
    for norm in (parts["bn6"], parts["bn7"]):
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.uniform_(0.5, 2)
    network.classifier = nn.Sequential(OrderedDict(parts)).eval()
    x = torch.randn(3, 256)
    (w6, b6), (w7, b7) = network.linear_layers().values()
    folded = functional.relu(functional.linear(functional.relu(functional.linear(x, w6, b6)), w7, b7))
    torch.testing.assert_close(folded, network.classifier(x))
    # what DeepCluster clusters: all but the last ReLU
    maps = x.view(3, 256, 1, 1)
    torch.testing.assert_close(functional.relu(network._embed(maps)), network.classifier(x))
    assert (network._embed(maps) < 0).any()


@torch.no_grad()
def test_embedding_of_a_resnet_is_what_its_top_layer_sees():
    torch.manual_seed(0)
    network = build("resnet50", classes=5, image_size=64, sobel=False).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.embed(x), network.features(x).mean((2, 3)))
    torch.testing.assert_close(network.top(network.embed(x)), network(x))


def outputs(module, names):
    """What these children compute, filled at each forward pass."""
    seen = {}
    for name in names:
        module.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
    return seen


@pytest.mark.parametrize(("arch", "deepest"), [("alexnet", 5), ("vgg16", 13)])
@torch.no_grad()
def test_taps_are_the_activations_after_the_relu_and_before_the_pooling(arch, deepest):
    torch.manual_seed(0)
    network = build(arch, classes=5, image_size=64, sobel=True).eval()
    names = [f"{kind}{number}" for number in range(1, deepest + 1) for kind in ("bn", "relu")]
    seen = outputs(network.features, names)
    taps = network.taps(torch.randn(1, 3, 64, 64), network.layers)
    assert list(taps) == [f"conv{number}" for number in range(1, deepest + 1)]
    for number in range(1, deepest + 1):
        assert (seen[f"bn{number}"] < 0).any()
        assert torch.equal(taps[f"conv{number}"], seen[f"bn{number}"].clamp(min=0))


POOLS = [  # docs/protocol.md, Networks: channels, side at 224, kernel, stride, padding, numbers after it
    ("alexnet", "conv1", 96, 55, 6, 6, 3, 9600),
    ("alexnet", "conv2", 256, 27, 4, 4, 0, 9216),
    ("alexnet", "conv3", 384, 13, 3, 3, 1, 9600),
    ("alexnet", "conv4", 384, 13, 3, 3, 1, 9600),
    ("alexnet", "conv5", 256, 13, 2, 2, 0, 9216),
    ("alexnet_torchvision", "conv1", 64, 55, 6, 6, 3, 6400),
    ("alexnet_torchvision", "conv5", 256, 13, 2, 2, 0, 9216),
    ("vgg16", "conv13", 512, 14, 3, 3, 0, 8192),
]


@pytest.mark.parametrize(("arch", "layer", "channels", "side", "kernel", "stride", "padding", "numbers"), POOLS)
def test_probes_see_the_maxima_of_the_protocols_windows(arch, layer, channels, side, kernel, stride, padding, numbers):
    maps = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    found = probe_pool(layer, maps, arch)
    assert found.shape == (2, numbers)
    assert torch.equal(found, functional.max_pool2d(maps, kernel, stride, padding).flatten(1))


def test_probes_of_other_sizes_see_maxima_too():
    maps = torch.randn(2, 384, 5, 5, generator=torch.Generator().manual_seed(0))  # conv3 at 96 pixels
    assert torch.equal(probe_pool("conv3", maps, "alexnet"), maps.flatten(1))
    maps = torch.randn(2, 96, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(probe_pool("conv1", maps, "alexnet"), functional.max_pool2d(maps, 2).flatten(1))


DROPOUTS = {
    "alexnet": ["drop6", "fc6", "relu6", "drop7", "fc7", "relu7"],
    "vgg16": ["fc6", "relu6", "drop6", "fc7", "relu7"],
}


@pytest.mark.parametrize("arch", DROPOUTS)
@torch.no_grad()
def test_dropout_takes_half_and_doubles_the_rest(arch):
    torch.manual_seed(0)
    network = build(arch, classes=5, image_size=64, sobel=True)
    assert list(dict(network.classifier.named_children())) == DROPOUTS[arch]
    for name, layer in network.classifier.named_children():
        if name.startswith("drop"):
            dropped = layer(torch.ones(100, 100))
            assert set(dropped.unique().tolist()) == {0.0, 2.0}
            assert dropped.mean().item() == pytest.approx(1, abs=0.05)


@torch.no_grad()
def test_logits_stay_float32_under_autocast():
    """With bf16 logits many of 3000 young classes would tie for the largest, and the pseudo-label be the first."""
    torch.manual_seed(0)
    network = build("alexnet", classes=3000, image_size=64, sobel=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(96, 3, 64, 64))
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


# RotNet's are PyTorch's: test_alexnet_rotnet.py.
@pytest.mark.parametrize("arch", [name for name in ARCHS if name != "alexnet_rotnet"])
def test_initial_weights(arch):
    """protocol.md, Networks: convolutions N(0, sqrt(2 / (k² out))), linear layers N(0, .01), biases 0, BN 1 and 0."""
    torch.manual_seed(0)
    network = build(arch, classes=100, image_size=64, sobel=False)
    kinds = set()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kinds.add(type(module))
            weight = module.weight.detach()
            out, _, kernel, _ = weight.shape if weight.ndim == 4 else (0, 0, 0, 0)
            deviation = (2 / (kernel * kernel * out)) ** 0.5 if out else 0.01
            spread = 5 * deviation / weight.numel() ** 0.5  # five deviations of a mean, seven of a deviation
            assert weight.mean().item() == pytest.approx(0, abs=spread), name
            assert weight.std().item() == pytest.approx(deviation, abs=spread), name
            assert (weight.abs() > 3 * deviation).float().mean() > 0.001, f"{name}: a normal law has tails"
        elif isinstance(module, nn.BatchNorm2d):
            kinds.add(type(module))
            assert (module.weight == 1).all(), name
            assert (module.running_mean == 0).all(), name
            assert (module.running_var == 1).all(), name
            assert (module.eps, module.momentum) == (1e-5, 0.1), name
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all(), name
    assert kinds == {nn.Conv2d, nn.Linear} | ({nn.BatchNorm2d} if arch != "alexnet_torchvision" else set())


def test_an_unknown_arch_is_answered_with_the_known_ones():
    with pytest.raises(
        InputError, match="no architecture 'resnet18'; did you mean 'resnet50'\\? \\(known: alexnet, vgg16, re"
    ):
        build("resnet18", classes=5, image_size=64, sobel=False)


def test_an_unknown_layer_is_answered_with_the_known_ones():
    network = build("alexnet", classes=5, image_size=64, sobel=True)
    with pytest.raises(InputError, match=r"alexnet has no layer 'conv6' \(known: conv1, conv2"):
        network.taps(torch.zeros(1, 3, 64, 64), ["conv6"])


def test_torchvisions_alexnet_has_its_channels():
    with torch.device("meta"):
        ours = build("alexnet_torchvision", classes=1000, image_size=224, sobel=False)
        theirs = torchvision.models.alexnet()
    assert [tuple(weight.shape) for weight in ours.parameters()] == [
        tuple(weight.shape) for weight in theirs.parameters()
    ]


def test_a_resnet_of_sobel_maps_differs_in_its_first_layers_inputs_alone():
    with torch.device("meta"):
        rgb, edges = (build("resnet50", classes=5, image_size=224, sobel=sobel) for sobel in (False, True))
    ours, theirs = edges.features.conv1, rgb.features.conv1
    assert (ours.in_channels, theirs.in_channels) == (2, 3)
    for name in ("out_channels", "kernel_size", "stride", "padding", "bias"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert [weight.shape for weight in edges.parameters()][1:] == [weight.shape for weight in rgb.parameters()][1:]


@pytest.mark.parametrize("case", POOLS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_probes_of_larger_maps_see_as_many_places_as_at_224(case):
    arch, layer, channels, side, *_, numbers = case
    assert probe_pool(layer, torch.zeros(1, channels, 2 * side, 2 * side), arch).shape == (1, numbers)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_description_is_the_networks(arch):
    """What is known without building it: operations, embedding, layers."""
    described = ARCHS[arch]
    with torch.device("meta"):
        network = build(arch, classes=1000, image_size=224, sobel=False)
        images = torch.empty(2, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        network.embed(images).sum().backward()  # autocast, around the top layer, knows no meta tensors
    top = 3 * 2 * network.embedding_size * network.classes
    flops = counter.get_total_flops() / len(images) + top
    assert flops / 1e9 == pytest.approx(described.training_gflop, rel=0.02)
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        network.embed(images)
    with FlopCounterMode(display=False) as features, torch.no_grad():
        network.maps(images)
    classifier = (whole.get_total_flops() - features.get_total_flops()) / len(images)
    assert classifier / 1e9 == pytest.approx(described.classifier_gflop, abs=0.02)
    assert network.arch == described.name
    assert network.embedding_size == described.embedding_size == network.top.in_features
    assert set(network.layers) == {layer.removesuffix(MAX_POOLED) for layer in described.fewshot_layers}
    assert described.probe_layers.keys() <= set(network.layers)
    assert bool(described.windows) == hasattr(network.classifier, "fc6")
    if described.windows:
        kinds = (torch.nn.Conv2d, torch.nn.MaxPool2d)
        layers = [layer for layer in network.features.modules() if isinstance(layer, kinds)]
        found = [(layer.kernel_size, layer.stride, layer.padding) for layer in layers]
        assert list(described.windows) == [tuple(x[0] if isinstance(x, tuple) else x for x in each) for each in found]
    assert "uic_core" in described.formats
