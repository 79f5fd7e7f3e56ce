"""VOC07 classification: what is trained and what is not, the loop against a plain one, known answers, bad input."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tests.checked import OTHER, noted
from uic_core import checkpoint, recipe
from uic_core.data import reader, voc
from uic_core.data.augment import CROP_UNIFORMS, UNIFORMS, augment, crop_box
from uic_core.errors import InputError
from uic_core.evaluate import voc_classification
from uic_core.evaluations import VocClassification
from uic_core.methods import parse_run
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.run import metrics, randomness
from uic_core.strict_yaml import read_yaml


def protocol(**changes: Any) -> VocClassification:
    settings = {
        "image_size": 64,
        "train": "fc6_8",
        "batch_norm": "affine_trained",
        "iterations": 4,
        "batch_size": 4,
        "lr": 0.01,
        "lr_halved_every": 3,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "clip_gradient": 10.0,
        "crops": 3,
        "seed": 0,
    }
    return recipe.parse(VocClassification, settings | changes, "test")


def tiny(seed: int = 0) -> Network:
    """A network with AlexNet's parts in miniature: learns in a second what is easy to learn."""
    torch.manual_seed(seed)
    features = nn.Sequential(
        OrderedDict(conv1=nn.Conv2d(3, 16, 8, 8), bn1=nn.BatchNorm2d(16), relu1=nn.ReLU(), pool1=nn.MaxPool2d(8))
    )
    return Network(
        "tiny",
        features=features,
        classifier=nn.Sequential(OrderedDict(drop6=nn.Dropout(0.1), fc6=nn.Linear(16, 32), relu6=nn.ReLU())),
        embedding_size=32,
        ends={"conv1": "relu1"},
        classes=20,
        image_size=64,
        sobel=False,
    )


def freeze(network: Network) -> Network:
    network.features.requires_grad_(False)
    network.features.bn1.requires_grad_(True)
    return network


def colour_files(folder: Path, colours: NDArray[np.integer]) -> list[Path]:
    """Noisy images of one colour each, as PNG of 72×80 pixels."""
    random = np.random.default_rng(0)
    palette = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    files = []
    for number, colour in enumerate(colours):
        pixels = palette[colour] + random.integers(-50, 50, size=(72, 80, 3))
        files.append(folder / f"{number}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
    return files


@pytest.fixture(scope="module")
def alexnet() -> Network:
    torch.manual_seed(0)
    network = build("alexnet", classes=4, image_size=64, sobel=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if trained: statistics that would be noticed if they moved
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize(
    ("train", "batch_norm", "trained"),
    [
        ("fc6_8", "affine_trained", {"bn", "fc", "top"}),
        ("fc6_8", "frozen", {"fc", "top"}),
        ("all", "affine_trained", {"conv", "bn", "fc", "top"}),
        ("all", "frozen", {"conv", "fc", "top"}),
    ],
)
def test_what_is_trained(alexnet: Network, train: str, batch_norm: str, trained: set[str]) -> None:
    network = voc_classification.prepare(alexnet, protocol(train=train, batch_norm=batch_norm))
    for name, parameter in network.named_parameters():
        kind = next(kind for kind in ("conv", "bn", "fc", "top") if kind in name)
        assert parameter.requires_grad == (kind in trained), name


@pytest.mark.parametrize("image_size", [64, 96])
def test_convolutions_are_kept_and_all_behind_them_is_new(alexnet: Network, image_size: int) -> None:
    network = voc_classification.prepare(alexnet, protocol(image_size=image_size))
    for name, value in alexnet.features.state_dict().items():
        assert torch.equal(value, network.features.state_dict()[name]), name
    assert network.uses_sobel
    assert network.top.out_features == 20
    for layer in (network.classifier.fc6, network.classifier.fc7, network.top):
        assert layer.weight.mean().abs().item() < 1e-4
        assert (layer.bias == 0.1).all()
    for layer in (network.classifier.fc6, network.classifier.fc7):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
    # fc8 is left as PyTorch draws it: uniform within 1/64
    assert network.top.weight.std().item() == pytest.approx(1 / 64 / 3**0.5, rel=0.02)
    assert network.top.weight.abs().max().item() == pytest.approx(1 / 64, rel=0.001)
    assert network(torch.zeros(1, 3, image_size, image_size)).shape == (1, 20)


def test_the_mlp_head_of_a_resnet_is_new_too() -> None:
    source = build("resnet50_mlp", classes=3, image_size=64, sobel=False)
    source.classifier.bn1.running_mean.fill_(7)
    network = voc_classification.prepare(source, protocol())
    assert network.classifier.conv1.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (network.classifier.bn1.running_mean == 0).all()
    assert all(parameter.requires_grad for parameter in network.classifier.parameters())
    assert not network.features.conv1.weight.requires_grad


def test_loss_equals_its_definition() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 20)) * 3
    targets = random.choice(np.array([0, 1, 255], np.uint8), size=(6, 20))
    expected = 0.0
    for x, target in zip(logits.ravel(), targets.ravel(), strict=True):
        if target != 255:
            share = 1 / (1 + math.exp(-x))
            expected -= math.log(share if target == 1 else 1 - share) / 6
    found = voc_classification.loss(torch.from_numpy(logits), torch.from_numpy(targets))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_difficult_objects_have_no_gradient() -> None:
    logits = torch.zeros(2, 20, requires_grad=True)
    targets = torch.zeros(2, 20, dtype=torch.uint8)
    targets[1, 3] = 255
    value = voc_classification.loss(logits, targets)
    value.backward()
    assert value.item() == pytest.approx(39 / 2 * math.log(2))
    assert logits.grad is not None
    assert logits.grad[1, 3] == 0
    assert (logits.grad != 0).sum() == 39


@pytest.mark.parametrize("batch_norm", ["affine_trained", "frozen"])
def test_training_leaves_the_rest_bitwise_alone(alexnet: Network, demo_data: SimpleNamespace, batch_norm: str) -> None:
    ids, targets = voc.multilabels(demo_data.voc07, "trainval")
    files = [voc.image_path(demo_data.voc07, image) for image in ids]
    settings = protocol(batch_norm=batch_norm, iterations=2)
    network = voc_classification.prepare(alexnet, settings)
    before = copy.deepcopy(network.state_dict())
    voc_classification.train(network, files, targets, settings)
    for name, value in network.state_dict().items():
        moves = ("fc" in name or "top" in name) or (
            "bn" in name and batch_norm == "affine_trained" and name.endswith(("weight", "bias"))
        )
        assert torch.equal(value, before[name]) != moves, name


def test_batch_norm_behind_new_layers_learns_its_statistics_anew(demo_data: SimpleNamespace) -> None:
    """RotNet's fc6 and fc7, which have no biases."""
    ids, targets = voc.multilabels(demo_data.voc07, "trainval")
    files = [voc.image_path(demo_data.voc07, image) for image in ids]
    source = build("alexnet_rotnet", classes=4, image_size=64, sobel=False)
    source.classifier.bn6.running_mean.fill_(7)
    network = voc_classification.prepare(source, protocol(iterations=2))
    assert network.classifier.fc6.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert network.classifier.fc6.bias is None
    assert (network.classifier.bn6.running_mean == 0).all()
    before = copy.deepcopy(network.state_dict())
    voc_classification.train(network, files, targets, protocol(iterations=2))
    for name, value in network.state_dict().items():
        scale = name.startswith("features.bn") and name.endswith(("weight", "bias"))
        moves = scale or name.startswith(("classifier", "top"))
        assert torch.equal(value, before[name]) != moves, name


@pytest.mark.parametrize("stage", ["train", "predict"])
def test_a_network_that_changes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Batch norm's statistics move behind the stage's back."""
    files = colour_files(tmp_path, np.arange(4) % 3)
    network = freeze(tiny())
    forward = network.forward

    def touched(images: torch.Tensor) -> torch.Tensor:
        network.features.get_buffer("bn1.running_var").add_(1e-3)
        return forward(images)

    monkeypatch.setattr(network, "forward", touched)
    work = {
        "train": lambda: voc_classification.train(network, files, np.ones((4, 20), np.uint8), protocol(iterations=1)),
        "predict": lambda: voc_classification.predict(network, files, protocol()),
    }[stage]
    with pytest.raises(AssertionError, match="changed"):
        work()


def test_training_equals_a_plain_loop(tmp_path: Path) -> None:
    """Crops, flips, masked loss, clipping, momentum and halvings, written down once more without any of our code."""
    colours = np.arange(10) % 3
    files = colour_files(tmp_path, colours)
    targets = np.random.default_rng(1).choice(np.array([0, 1, 255], np.uint8), size=(10, 20))
    settings = protocol(iterations=7, lr=0.05, clip_gradient=0.5, weight_decay=0.01)
    trained, plain = freeze(tiny()), freeze(tiny())
    torch.manual_seed(1)
    voc_classification.train(trained, files, targets, settings)

    torch.manual_seed(1)
    plain.train()
    plain.features.eval()
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(10) for _ in range(3)])[:28].reshape(7, 4)
    parameters = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for step in range(7):
        crops = []
        for position, numbers in zip(
            order[step], randomness.uniforms(1 << 32, step, order[step], CROP_UNIFORMS), strict=True
        ):
            image = reader.read_rgb(files[position])
            box = crop_box(*image.size, numbers, (0.1, 0.5), (1, 1))
            crops.append(torch.from_numpy(reader.resized_crop(image, box, 64)))
        images = augment(torch.stack(crops), randomness.uniforms(0, step, order[step], UNIFORMS), "standard")
        wanted = torch.from_numpy(targets[order[step]])
        terms = nn.functional.binary_cross_entropy_with_logits(plain(images), (wanted == 1).float(), reduction="none")
        gradients = torch.autograd.grad(terms[wanted != 255].sum() / 4, parameters)
        length = torch.sqrt(sum(((gradient**2).sum() for gradient in gradients), torch.tensor(0.0)))
        lr = 0.05 * 0.5 ** (step // 3)
        with torch.no_grad():
            for parameter, gradient, speed in zip(parameters, gradients, velocity, strict=True):
                speed.mul_(0.9).add_(gradient * min(1, 0.5 / length.item()) + 0.01 * parameter)
                parameter.sub_(lr * speed)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_prediction_sums_the_logits_of_its_crops(tmp_path: Path) -> None:
    files = colour_files(tmp_path, np.arange(5) % 3)
    network, settings = tiny(), protocol(crops=4)
    found = voc_classification.predict(network, files, settings)
    for position, file in enumerate(files):
        image, expected = reader.read_rgb(file), np.zeros(20)
        for draw in range(4):
            box_numbers = randomness.uniforms(1 << 32, draw, np.array([position]), CROP_UNIFORMS)[0]
            crop = reader.resized_crop(image, crop_box(*image.size, box_numbers, (0.1, 0.5), (1, 1)), 64)
            flips = randomness.uniforms(0, draw, np.array([position]), UNIFORMS)
            with torch.no_grad():
                expected += network(augment(torch.from_numpy(crop)[None], flips, "standard"))[0].numpy()
        np.testing.assert_allclose(found[position], expected, rtol=1e-4, atol=1e-5)


def test_learns_colours_but_not_shuffled_labels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    colours = random.integers(3, size=60)
    files = colour_files(tmp_path, colours)
    settings = protocol(iterations=150, batch_size=16, lr=0.1, lr_halved_every=100, crops=2)
    for truth, low, high in ((colours, 0.99, 1.0), (random.permutation(colours), 0.2, 0.6)):
        targets = np.zeros((60, 20), np.uint8)
        targets[np.arange(60), truth] = 1
        network = freeze(tiny())
        torch.manual_seed(0)
        voc_classification.train(network, files[:30], targets[:30], settings)
        found = voc_classification.values(voc_classification.predict(network, files[30:], settings), targets[30:])
        assert low * 100 <= found["map"].value <= high * 100
        assert list(found) == ["map", "ap/aeroplane", "ap/bicycle", "ap/bird"]  # the others have no positives


def test_fault_67_training_returns_the_loss_that_it_ended_with(tmp_path: Path, seen: Callable[[object], None]) -> None:
    files = colour_files(tmp_path, np.arange(8) % 3)
    targets = np.eye(20, dtype=np.uint8)[np.arange(8) % 3]
    guess = 20 * math.log(2)
    for decay, diverges in ((0.0, False), (40.0, True)):  # SGD of momentum .9 is stable up to lr · decay = 3.8
        settings = protocol(iterations=20, lr=0.1, weight_decay=decay, lr_halved_every=100)
        torch.manual_seed(0)
        ended = voc_classification.train(freeze(tiny()), files, targets, settings)
        remark = metrics.diverged(guess, ended, guess, settings.lr)
        assert bool(remark) == diverges
    seen(remark)
    found = voc_classification.values(np.random.default_rng(0).random((8, 20), np.float32), targets, remark)
    assert {value.remark for value in found.values()} == {remark}


def test_neither_cache_nor_workers_change_a_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = colour_files(tmp_path, np.arange(4) % 3)
    requests = [voc_classification._Request(np.array([0, 3, 1, 0, 2]), (step,)) for step in range(2)]
    cached = list(voc_classification._crops(files, requests, protocol(), 0))
    parallel = list(voc_classification._crops(files, requests, protocol(), 2))
    monkeypatch.setattr(voc_classification, "CACHE_BYTES", 3 * 72 * 80 * 4)  # one image too few
    decoded = list(voc_classification._crops(files, requests, protocol(), 0))
    assert cached[0].shape == (5, 1, 3, 64, 64)
    assert not torch.equal(cached[0], cached[1])
    for other in (parallel, decoded):
        assert all(torch.equal(*pair) for pair in zip(cached, other, strict=True))


def test_every_image_is_drawn_equally_often() -> None:
    order = voc_classification._order(10, protocol(iterations=25, batch_size=4))
    assert order.shape == (25, 4)
    for epoch in order.reshape(10, 10):
        assert sorted(epoch) == list(range(10))
    again = voc_classification._order(10, protocol(iterations=25, batch_size=4))
    np.testing.assert_array_equal(order, again)


def test_values_leave_out_what_cannot_be_measured() -> None:
    targets = np.zeros((4, 20), np.uint8)
    targets[0, 0], targets[1, 0], targets[2, 1], targets[3, 2] = 1, 255, 1, 255
    scores = np.zeros((4, 20), np.float32)
    scores[:, 0], scores[:, 1] = [1, 9, 0, 0], [3, 2, 2.5, 0]
    found = voc_classification.values(scores, targets)
    assert {name: value.value for name, value in found.items()} == {"map": 75, "ap/aeroplane": 100, "ap/bicycle": 50}
    assert (found["map"].n, found["ap/aeroplane"].n, found["ap/bicycle"].n) == (4, 3, 4)
    with pytest.raises(InputError, match="no test image shows an object"):
        voc_classification.values(scores, np.where(targets == 1, 255, targets).astype(np.uint8))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_named(tmp_path: Path, workers: int) -> None:
    files = [*colour_files(tmp_path, np.arange(3)), tmp_path / "gone.jpg"]
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read"):
        voc_classification.predict(tiny(), files, protocol(), workers)
    with pytest.raises(InputError, match=r"gone\.jpg: cannot be read"):
        voc_classification.train(freeze(tiny()), files, np.zeros((4, 20), np.uint8), protocol(), workers)


def test_divergence_names_the_iteration(tmp_path: Path) -> None:
    files = colour_files(tmp_path, np.arange(4) % 3)
    targets = np.ones((4, 20), np.uint8)
    with pytest.raises(InputError, match=r"gradient norm .* at iteration [1-9]\d*; .*lower lr"):
        voc_classification.train(freeze(tiny()), files, targets, protocol(lr=1e30, iterations=20))


@pytest.fixture(scope="module")
def saved(alexnet: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoint.safetensors"
    values = read_yaml(Path(__file__).parents[2] / "config" / "demo.yaml")["runs"]["random_sobel"]
    network = copy.deepcopy(alexnet)
    network.coverage = 0.97
    checkpoint.save(path, network, parse_run(values | {"classes": 4}, "test"), {})
    return path


def run_stage(saved: Path, root: Path, folder: Path, settings: VocClassification) -> Path:
    recipe.save(settings, folder / "protocol.yaml")
    out = folder / "metrics.json"
    arguments = [
        *("--checkpoint", saved, "--protocol", folder / "protocol.yaml", "--voc", root),
        *("--out", out, "--run", "random_sobel", "--threads", "0"),
        *("--checked", noted(folder, voc.fingerprint(root, ["trainval", "test"]))),
    ]
    voc_classification.main([str(argument) for argument in arguments])
    return out


def test_stage(saved: Path, demo_data: SimpleNamespace, tmp_path: Path) -> None:
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        out = run_stage(
            saved, demo_data.voc07, tmp_path / name, protocol(train="all", iterations=3, batch_norm="frozen")
        )
        results.append(json.loads(out.read_text()))
    assert results[0]["values"] == results[1]["values"]
    metrics = results[0]
    assert (metrics["evaluation"], metrics["run"]) == ("voc_classification_all", "random_sobel")
    assert metrics["dataset"]["sizes"] == {"trainval": 10, "test": 8}
    assert metrics["dataset"]["fingerprint"] == OTHER  # as the check noted it
    assert metrics["values"]["map"]["n"] == 8
    singles = [value["value"] for name, value in metrics["values"].items() if name != "map"]
    assert metrics["values"]["map"]["value"] == pytest.approx(np.mean(singles))
    assert metrics["protocol"]["classes_counted"] == len(singles)
    assert metrics["protocol"]["batch_norm"] == "frozen"
    assert metrics["provenance"]["coverage"] == 0.97


def test_an_annotation_without_objects_stops_the_stage(
    saved: Path, demo_data: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "voc"
    shutil.copytree(demo_data.voc07, root)
    first = voc.annotation_path(root, voc.read_list(root, "test")[0])
    first.write_text("<annotation><size><width>9</width><height>9</height></size></annotation>")
    with pytest.raises(SystemExit) as stop:
        run_stage(saved, root, tmp_path, protocol())
    assert stop.value.code == 2
    assert f"{first}: has no <object>" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
