"""Linear probes: shared against separate and against a plain loop, known answers, and bad input."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests import waiting
from uic_core import checkpoint, recipe
from uic_core.data import reader
from uic_core.data.augment import UNIFORMS, normalize
from uic_core.data.index import Index, build_folder
from uic_core.data.loader import Loader
from uic_core.errors import InputError
from uic_core.evaluate import heads, linear_probe, probes, ten_crop
from uic_core.evaluate.frozen import fingerprint
from uic_core.evaluations import LinearProbe
from uic_core.methods import parse_run
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.models.probe_pool import probe_pool
from uic_core.run.parallel import ALONE
from uic_core.run.randomness import uniforms
from uic_core.run.saved_state import Saver, State
from uic_core.run.signals import Signals
from uic_core.strict_yaml import read_yaml

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5"]
COLORS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (190, 50, 40), "yellow": (200, 190, 50)}


def protocol(**changes: Any) -> LinearProbe:
    archs = {"alexnet": LAYERS, "vgg16": ["conv13"], "resnet50": ["avgpool"], "resnet50_mlp": ["mlp"]}
    settings = {
        "layers": archs,
        "crop": dict.fromkeys(archs, "random_crop"),
        "images": dict.fromkeys(archs, 0),
        "val_images": dict.fromkeys(archs, 0),
        "epochs": 2,
        "batch_size": 16,
        "lr": 0.1,
        "lr_steps": [1],
        "momentum": 0.9,
        "weight_decay": 0.0,
        "batch_norm": False,
        "data": "imagenet",
        "seed": 0,
    }
    return recipe.parse(LinearProbe, settings | changes, "test")


class MeanColor(Network):
    """Features that are known: the mean colour of the image, [B, 3], in the place of a ResNet's average pooling."""

    def __init__(self) -> None:
        super().__init__(
            "resnet50",
            features=nn.Sequential(OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())),
            classifier=nn.Sequential(),
            embedding_size=3,
            ends={"avgpool": "flat"},
            classes=2,
            image_size=64,
            sobel=False,
        )


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Index]:
    """Images of four colours with much noise in the pixels and little in their mean: 200 to learn from, 200 to test."""
    folder = tmp_path_factory.mktemp("colored")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, color in COLORS.items():
            for number in range(50):
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.asarray(color) + random.normal(0, 40, (66, 70, 3)) + random.normal(0, 5, 3)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)
    return build_folder(folder, "train", "imagenet"), build_folder(folder, "val", "imagenet")


def test_separable_images_are_always_right(colored: tuple[Index, Index]) -> None:
    settings = protocol(epochs=4, lr=0.5, lr_steps=[3])
    found = linear_probe.values(probes.Probes(MeanColor(), *colored, settings, 66).run(), 200)
    assert found["avgpool"].value == 100
    assert found["avgpool/last"].value == 100
    assert found["avgpool/top5"].value == 100
    assert found["avgpool"].remark == ""
    assert found["avgpool"].loss is not None
    assert 0 < found["avgpool"].loss < 0.5


def test_fault_67_a_probe_that_diverges_says_so(
    colored: tuple[Index, Index], capsys: pytest.CaptureFixture[str], seen: Callable[[object], None]
) -> None:
    settings = protocol(lr=1.0, weight_decay=4.0, lr_steps=[])  # SGD of momentum .9 is stable up to lr · decay = 3.8
    found = linear_probe.values(probes.Probes(MeanColor(), *colored, settings, 66).run(), 200)
    seen(found["avgpool"].remark)
    assert re.fullmatch(
        r"diverged: the training loss went from [\d,.]+ to [\d,.]+, a guess has 1\.4; lr 1", found["avgpool"].remark
    )
    assert found["avgpool/last"].remark == found["avgpool"].remark
    last = float(re.search(r"to ([\d,.]+), a guess", found["avgpool"].remark)[1].replace(",", ""))
    assert found["avgpool"].loss == pytest.approx(last / math.log(4), rel=0.05)
    assert "lr 1  loss: avgpool" in capsys.readouterr().out


def test_shuffled_labels_are_at_chance(colored: tuple[Index, Index]) -> None:
    random = np.random.default_rng(1)
    shuffled = [replace(index, labels=random.permutation(index.labels)) for index in colored]
    curve = probes.Probes(MeanColor(), *shuffled, protocol(epochs=3), 66).run()["avgpool"]
    assert abs(curve.top1 - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / 200)


def test_heads_of_one_pass_are_those_of_separate_runs(alexnet: Network, indexes: tuple[Index, Index]) -> None:
    together = snapshots_of(alexnet, indexes[0], protocol())
    assert list(together[0]) == LAYERS
    for layer in LAYERS:
        alone = snapshots_of(alexnet, indexes[0], protocol(layers={"alexnet": [layer]}))
        for shared, separate in zip(together, alone, strict=True):
            for one, other in zip(shared[layer], separate[layer], strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    first, last = (epoch["conv3"][0] for epoch in together)
    assert not torch.equal(first, last)


def snapshots_of(network: Network, index: Index, settings: LinearProbe) -> Any:
    """The heads after each epoch."""
    trained = probes.Probes(network.requires_grad_(False), index, index, settings, 73)
    for _ in range(settings.epochs):
        trained.train_epoch()
    return trained.waiting


@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_equals_a_plain_loop(alexnet: Network, indexes: tuple[Index, Index], batch_norm: bool) -> None:
    """SGD with momentum and weight decay, the schedule, flips and the loss, written down naively for one layer."""
    index = indexes[0]
    settings = protocol(
        layers={"alexnet": ["conv5"]}, epochs=3, lr_steps=[1, 2], weight_decay=0.01, batch_norm=batch_norm
    )
    *_, (weight, bias) = (epoch["conv5"] for epoch in snapshots_of(alexnet, index, settings))

    head = heads.build_heads(alexnet, ["conv5"], 4, settings)["conv5"]
    norm = nn.BatchNorm2d(256, affine=False)
    expected = [head.linear.weight.detach().clone(), head.linear.bias.detach().clone()]
    moments = [torch.zeros_like(value) for value in expected]
    loader = Loader(index, 64, 73, 16, 0)
    for epoch, lr in enumerate([0.1, 0.01, 0.001]):
        order = np.random.default_rng([0, epoch]).permutation(48)
        for crops, positions in loader.batches(order, "random_crop", 0, epoch):
            flipped = [
                crop.flip(2) if u < 0.5 else crop
                for crop, u in zip(crops, uniforms(0, epoch, positions, UNIFORMS)[:, 0], strict=True)
            ]
            with torch.no_grad():
                maps = alexnet.taps(normalize(torch.stack(flipped)), ["conv5"])["conv5"]
                maps = F.adaptive_max_pool2d(maps, min(6, maps.shape[-1]))
                features = (norm(maps) if batch_norm else maps).flatten(1)
            for value in expected:
                value.requires_grad_(True)
            logits = features @ expected[0].T + expected[1]
            truth = torch.from_numpy(index.labels[positions]).long()
            loss = -logits.log_softmax(1)[torch.arange(len(truth)), truth].mean()
            gradients = torch.autograd.grad(loss, expected)
            moments = [
                0.9 * moment + gradient + 0.01 * value.detach()
                for moment, gradient, value in zip(moments, gradients, expected, strict=True)
            ]
            expected = [value.detach() - lr * moment for value, moment in zip(expected, moments, strict=True)]
    loader.close()
    with torch.no_grad():  # equal heads: equal logits
        maps = torch.randn(20, 256, 3, 3)
        logits = (norm.eval()(maps) if batch_norm else maps).flatten(1) @ expected[0].T + expected[1]
        torch.testing.assert_close(maps.flatten(1) @ weight.T + bias, logits, rtol=1e-4, atol=1e-4)


def test_heads_see_the_papers_poolings_at_224(alexnet: Network) -> None:
    """docs/protocol.md, Networks: kernel, stride and padding of each layer; convolutions take any size."""
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    windows = dict(zip(LAYERS, [(6, 6, 3), (4, 4, 0), (3, 3, 1), (3, 3, 1), (2, 2, 0)], strict=True))
    seen: dict[str, Tensor] = {}
    hooks = [
        alexnet.features.get_submodule(f"relu{layer[-1]}").register_forward_hook(
            lambda _, __, out, layer=layer: seen.update({layer: out})
        )
        for layer in LAYERS
    ]
    found = heads.activations(alexnet, images, LAYERS)
    for hook in hooks:
        hook.remove()
    for layer, (kernel, stride, padding) in windows.items():
        expected = F.max_pool2d(seen[layer], kernel, stride, padding).flatten(1)
        assert torch.equal(found[layer], expected), layer
        assert found[layer].std() > 0.01


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_folded_head_computes_the_same(batch_norm: bool) -> None:
    torch.manual_seed(0)
    head = heads.Head(channels=5, dimension=45, classes=7, batch_norm=batch_norm)
    features = 3 * torch.randn(40, 45) + torch.arange(45)
    trained = head.train()(features)
    if head.norm is not None:
        expected = nn.BatchNorm2d(5, affine=False)(features.view(40, 5, 3, 3)).flatten(1)
        torch.testing.assert_close(trained, head.linear(expected))
    weight, bias = head.affine()
    torch.testing.assert_close(features @ weight.T + bias, head.eval()(features), rtol=1e-4, atol=1e-4)
    kept = weight.clone()
    with torch.no_grad():
        head.linear.weight += 1
    assert torch.equal(weight, kept)


def test_a_test_says_how_far_it_is_and_goes_on_from_there(
    alexnet: Network, indexes: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state saved within a test holds the number of images tested; no image counts twice, or not at all."""
    monkeypatch.setattr(ten_crop, "_IMAGES", 5)
    snapshots = [{"conv5": (torch.randn(4, 2304) / 9, torch.randn(4))}]
    batches = list(ten_crop.hits(alexnet, snapshots, indexes[1], resize=73))
    assert [tested for tested, _ in batches] == [5, 10, 12]
    rest = list(ten_crop.hits(alexnet, snapshots, indexes[1], resize=73, first=5))
    assert [tested for tested, _ in rest] == [10, 12]
    for (_, found), (_, expected) in zip(rest, batches[1:], strict=True):
        assert torch.equal(found, expected)


def test_accuracy_is_that_of_each_image_by_itself(alexnet: Network, indexes: tuple[Index, Index]) -> None:
    """Ten crops from torchvision's definition, softmax and mean, one image, one layer, one epoch at a time."""
    index = indexes[1]
    torch.manual_seed(0)
    sizes = {"conv2": 9216, "conv5": 2304}
    snapshots = [{layer: (torch.randn(7, size) / 9, torch.randn(7)) for layer, size in sizes.items()} for _ in range(3)]
    classes = tuple("abcdefg")
    index = replace(index, classes=classes, labels=np.arange(12, dtype=np.int32) % 7)
    batches = list(ten_crop.hits(alexnet, snapshots, index, resize=73))
    found = dict(zip(sizes, sum(part for _, part in batches).numpy(), strict=True))
    for layer in sizes:
        hits = np.zeros((2, 3))
        for position, truth in enumerate(index.labels):
            pixels = torch.from_numpy(
                np.array(reader.shorter_side(reader.read_rgb(index.file(position)), 73)).transpose(2, 0, 1)
            )
            bottom, right = pixels.shape[1] - 64, pixels.shape[2] - 64
            corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
            crops = [view[:, y : y + 64, x : x + 64] for view in (pixels, pixels.flip(2)) for y, x in corners]
            with torch.no_grad():
                maps = alexnet.taps(normalize(torch.stack(crops)), [layer])[layer]
            features = probe_pool(layer, maps, "alexnet")
            for epoch, snapshot in enumerate(snapshots):
                weight, bias = snapshot[layer]
                score = sum((weight @ row + bias).softmax(0) for row in features) / 10
                assert isinstance(score, Tensor)
                rank = int((score > score[truth]).sum())
                hits[:, epoch] += rank == 0, rank < 5
        np.testing.assert_array_equal(found[layer], hits)
    assert 0 < found["conv2"][1].mean() < 12


def test_memory_for_heads_does_not_change_what_is_found(
    alexnet: Network, indexes: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    tested = ten_crop.hits

    def count(network: Network, snapshots: Any, *rest: Any) -> Any:
        passes.append(len(snapshots))
        return tested(network, snapshots, *rest)

    monkeypatch.setattr(ten_crop, "hits", count)
    settings = protocol(layers={"alexnet": ["conv1", "conv5"]}, epochs=3)
    epoch_bytes = 4 * 4 * (9600 + 2304 + 2)
    curves = []
    for limit, expected in {3 * epoch_bytes: [3], 2 * epoch_bytes: [2, 1], 1: [1, 1, 1]}.items():
        monkeypatch.setattr(probes, "SNAPSHOT_BYTES", limit)
        curves.append(probes.Probes(alexnet, *indexes, settings, 73).run())
        assert passes == expected
        passes.clear()
    for layer in ("conv1", "conv5"):
        assert len(curves[0][layer].top1) == 3
        for other in curves[1:]:
            np.testing.assert_array_equal(curves[0][layer].top1, other[layer].top1)
            np.testing.assert_array_equal(curves[0][layer].top5, other[layer].top5)


def test_only_the_heads_learn(alexnet: Network, indexes: tuple[Index, Index]) -> None:
    before = fingerprint(alexnet)
    probes.Probes(alexnet.train(), *indexes, protocol(epochs=1, lr_steps=[], layers={"alexnet": ["conv2"]}), 73).run()
    assert fingerprint(alexnet) == before
    assert not any(module.training for module in alexnet.modules())


@pytest.mark.parametrize("change", ["weights", "statistics"])
def test_a_backbone_that_changes_is_an_error(
    alexnet: Network, indexes: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    torch.manual_seed(0)
    network = build("alexnet", classes=4, image_size=64, sobel=True)
    taps = network.taps

    def touched(images: Tensor, layers: Any) -> dict[str, Tensor]:
        tensor = network.top.bias if change == "weights" else network.features.get_buffer("bn1.running_mean")
        tensor.data += 1e-3
        return taps(images, layers)

    monkeypatch.setattr(network, "taps", touched)
    with pytest.raises(AssertionError, match="the backbone changed"):
        probes.Probes(network, *indexes, protocol(epochs=1, lr_steps=[], layers={"alexnet": ["conv1"]}), 73).run()


def test_learning_rate_is_the_papers() -> None:
    paper = protocol(lr=0.1, lr_steps=[10, 20, 30], epochs=32)
    rates = [probes.learning_rate(paper, epoch) for epoch in range(32)]
    np.testing.assert_allclose(rates, [0.1] * 10 + [0.01] * 10 + [0.001] * 10 + [0.0001] * 2)


def test_heads_start_small_and_by_seed_and_layer_alone(alexnet: Network) -> None:
    def weight(seed: int, layers: list[str], layer: str) -> Tensor:
        return heads.build_heads(alexnet, layers, 50, protocol(seed=seed))[layer].linear.weight.detach()

    one = weight(0, LAYERS, "conv4")
    assert one.std().item() == pytest.approx(0.01, rel=0.01)
    assert abs(one.mean().item()) < 1e-4
    torch.manual_seed(7)
    assert torch.equal(one, weight(0, ["conv4"], "conv4"))
    assert not torch.equal(one, weight(1, ["conv4"], "conv4"))
    assert not torch.equal(one, weight(0, LAYERS, "conv3"))  # of the same size
    assert not heads.build_heads(alexnet, ["conv1"], 50, protocol())["conv1"].linear.bias.any()


@pytest.mark.parametrize(
    ("arch", "layer", "size", "dimension"),
    [
        ("alexnet", "conv1", 224, 9600),
        ("alexnet", "conv5", 224, 9216),
        ("vgg16", "conv13", 64, 8192),
        ("resnet50_mlp", "mlp", 64, 2048),
    ],
)
def test_dimensions_of_the_heads(arch: str, layer: str, size: int, dimension: int) -> None:
    network = build(arch, classes=2, image_size=size, sobel=False).eval()
    head = heads.build_heads(network, [layer], 3, protocol())[layer]
    assert head.linear.weight.shape == (3, dimension)


def test_values_by_hand() -> None:
    curve = probes.Curve(top1=np.array([0.1, 0.5, 0.5, 0.4]), top5=np.array([0.7, 0.8, 0.9, 1.0]))
    found = linear_probe.values({"conv1": curve}, images=400)
    assert {name: value.value for name, value in found.items()} == {
        "conv1": 50,
        "conv1/top5": 80,
        "conv1/best_epoch": 2,
        "conv1/last": 40,
        "conv1/last/top5": 100,
    }
    assert found["conv1"].ci95 == pytest.approx(4.9)  # 1.96 · √(.25 / 400)
    assert found["conv1"].n == 400
    assert found["conv1/best_epoch"].unit == "epoch"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": {"vgg16": ["conv13"]}}, r"linear_probe.layers: nothing for alexnet \(known: vgg16\)"),
        ({"crop": {"vgg16": "random_crop"}}, "linear_probe.crop: nothing for alexnet"),
    ],
)
def test_an_architecture_without_settings_is_named(alexnet: Network, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        probes.settings(alexnet, protocol(**changes))


def test_a_head_that_diverges_is_named(colored: tuple[Index, Index]) -> None:
    with pytest.raises(InputError, match=r"avgpool: loss .* not finite in epoch \d.*lower linear_probe.lr"):
        probes.Probes(MeanColor(), *colored, protocol(lr=1e38, lr_steps=[]), 66).run()


def test_indexes_of_different_data_are_refused(colored: tuple[Index, Index], indexes: tuple[Index, Index]) -> None:
    with pytest.raises(InputError, match=r"imagenet_val .*: its classes are not those of imagenet_train"):
        probes.Probes(MeanColor(), colored[0], indexes[1], protocol(), 66).run()


def test_one_image_left_over_under_batch_norm(colored: tuple[Index, Index]) -> None:
    few = replace(colored[0], paths=colored[0].paths[::6][:33], labels=colored[0].labels[::6][:33])
    curve = probes.Probes(MeanColor(), few, colored[1], protocol(batch_norm=True), 66).run()["avgpool"]
    assert curve.top1[-1] > 0.9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_waits_for_no_device(
    alexnet: Network, indexes: tuple[Index, Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Losses are read once an epoch, hits once a test."""
    with Signals() as signals:
        saver = Saver(State(tmp_path, {}, "test"), ALONE, signals, 1000)
        settings = protocol(precision=precision)
        made = probes.Probes(copy.deepcopy(alexnet).requires_grad_(False), *indexes, settings, 73, saver=saver)
        with monkeypatch.context() as patched, waiting.never():
            patched.setattr(made, "_end_epoch", lambda *_: None)
            made.train_epoch()
        assert made.step == 3
        trained = {layer: head.affine() for layer, head in made.heads.items()}
        with waiting.never():
            (tested,) = ten_crop.hits(made.network, [trained], indexes[1], 73, precision=settings.precision)
        assert tested[0] == 12


@pytest.fixture(scope="module")
def saved(alexnet: Network, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    demo = read_yaml(Path(__file__).parents[2] / "config" / "demo.yaml")["runs"]["random_sobel"]
    made_by = parse_run(demo | {"classes": 4}, "test")
    path = tmp_path_factory.mktemp("saved") / "checkpoint.safetensors"
    network = copy.deepcopy(alexnet)
    network.coverage = 0.97
    checkpoint.save(path, network, made_by, {})
    return SimpleNamespace(path=path, recipe=made_by)


def run(saved: SimpleNamespace, indexes: tuple[Index, Index], settings: LinearProbe, folder: Path) -> Path:
    recipe.save(settings, folder / "linear_probe.yaml")
    for index, split in zip(indexes, ("train", "val"), strict=True):
        index.save(folder / f"{split}.npz")
    arguments = [
        *("--checkpoint", saved.path, "--protocol", folder / "linear_probe.yaml", "--run", "random_sobel"),
        *("--train-index", folder / "train.npz", "--val-index", folder / "val.npz"),
        *("--out", folder / "metrics" / "linear_probe.json"),
    ]
    linear_probe.main([str(argument) for argument in arguments])
    return folder / "metrics" / "linear_probe.json"


def test_a_stage_in_bf16_is_near_float32_in_training_and_test(
    saved: SimpleNamespace, indexes: tuple[Index, Index], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not a single image changes sides, the loss must: the heads have learned from other numbers."""
    seen: set[str] = set()
    compute = heads.taps

    def watch(*given: Any) -> dict[str, Tensor]:
        seen.add(given[3])
        return compute(*given)

    monkeypatch.setattr(heads, "taps", watch)
    found = {}
    for precision in ("fp32", "bf16"):
        (folder := tmp_path / precision).mkdir()
        settings = protocol(layers={"alexnet": ["conv2", "conv5"]}, lr=0.005, precision=precision)
        found[precision] = json.loads(run(saved, indexes, settings, folder).read_text())
    assert seen == {"fp32", "bf16"}
    assert found["bf16"]["protocol"] == found["fp32"]["protocol"] | {"precision": "bf16"}
    for layer in ("conv2", "conv5"):
        plain, rounded = (found[precision]["values"][f"{layer}/last"] for precision in ("fp32", "bf16"))
        assert plain["loss"] != rounded["loss"]
        assert rounded["loss"] == pytest.approx(plain["loss"], rel=0.02)
        assert rounded["value"] == pytest.approx(plain["value"], abs=100 / 12 + 1e-9)


def test_stage(
    saved: SimpleNamespace, indexes: tuple[Index, Index], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = protocol(images={"alexnet": 20}, layers={"alexnet": ["conv2", "conv5"]})
    found = json.loads(run(saved, indexes, settings, tmp_path).read_text())
    assert (found["evaluation"], found["run"]) == ("linear_probe", "random_sobel")
    of_each = ("", "/top5", "/best_epoch", "/last", "/last/top5")
    assert list(found["values"]) == [f"{layer}{of}" for layer in ("conv2", "conv5") for of in of_each]
    assert found["values"]["conv2"]["n"] == 12
    assert found["dataset"]["sizes"] == {"train": 20, "val": 12}
    assert found["dataset"]["fingerprint"] == f"{indexes[0].subset(20, 0).fingerprint}+{indexes[1].fingerprint}"
    assert found["protocol"]["layers"] == ["conv2", "conv5"]
    assert found["protocol"]["batch_norm"] is False
    assert found["provenance"]["recipe_hash"] == saved.recipe.hash()
    assert found["provenance"]["coverage"] == 0.97
    printed = capsys.readouterr().out
    assert "epoch 1/2  lr 0.1  loss: conv2 " in printed
    assert "epoch 2/2  lr 0.01  loss: conv2 " in printed
    again = json.loads(run(saved, indexes, settings, tmp_path).read_text())
    assert again["values"] == found["values"]


def other_arch(indexes: tuple[Index, Index], folder: Path) -> tuple[tuple[Index, Index], dict[str, Any], str]:
    return indexes, {"layers": {"vgg16": ["conv13"]}}, "linear_probe.layers: nothing for alexnet (known: vgg16)"


def too_few_images(indexes: tuple[Index, Index], folder: Path) -> tuple[tuple[Index, Index], dict[str, Any], str]:
    return indexes, {"images": {"alexnet": 49}}, "imagenet_train: 49 images wanted, the index has 48"


def lost_image(indexes: tuple[Index, Index], folder: Path) -> tuple[tuple[Index, Index], dict[str, Any], str]:
    lost = replace(indexes[1], paths=np.array([*indexes[1].paths[:-1], "val/lost.JPEG"]))
    return (
        (indexes[0], lost),
        {"epochs": 1, "lr_steps": [], "layers": {"alexnet": ["conv1"]}},
        "val/lost.JPEG: cannot be read",
    )


@pytest.mark.parametrize("fault", [other_arch, too_few_images, lost_image])
def test_stage_stops_and_writes_nothing(
    saved: SimpleNamespace,
    indexes: tuple[Index, Index],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[..., Any],
) -> None:
    given, changes, message = fault(indexes, tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(saved, given, protocol(**changes), tmp_path)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "metrics").glob("*"))
