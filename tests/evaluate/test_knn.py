"""Nearest neighbours: against scikit-learn and a sort, in blocks, with ties; the vote; the stage, interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import nn

from uic_core import checkpoint, recipe
from uic_core.data import reader
from uic_core.data.augment import normalize
from uic_core.data.index import Index, build_folder
from uic_core.errors import INTERRUPTED, InputError
from uic_core.evaluate import knn
from uic_core.evaluations import Knn
from uic_core.methods import parse_run
from uic_core.models import ARCHS, build
from uic_core.models.network import Network
from uic_core.run import metrics
from uic_core.strict_yaml import read_yaml

DEMO = read_yaml(Path(__file__).parents[2] / "config" / "demo.yaml")


def protocol(**changes: Any) -> Knn:
    settings = {
        "data": "imagenet", "layers": {"alexnet": ["conv5", "fc7"]}, "images": {"alexnet": 0},
        "val_images": {"alexnet": 0}, "neighbours": [1, 5, 20], "temperatures": [0.07, 0.1], "seed": 0,
    }  # fmt: skip
    return recipe.parse(Knn, settings | changes, "test")


def unit(rows: NDArray[np.floating]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32)))


def found(queries: torch.Tensor, bank: torch.Tensor, count: int, block: int) -> tuple[Any, Any]:
    """Similarities and positions, the bank in blocks."""
    nearest = knn.Neighbours(queries, count)
    for first in range(0, len(bank), block):
        nearest.add(bank[first : first + block], first)
    return nearest.found()


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_the_neighbours_are_scikit_learns(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Similarities of both signs; the bank and the queries in blocks that do not fit."""
    monkeypatch.setattr(knn, "_QUERIES", 16)
    random = np.random.default_rng(0)
    bank, queries = unit(random.normal(size=(300, 24))), unit(random.normal(size=(41, 24)))
    similarities, positions = found(queries, bank, 250, block)
    distances, expected = (
        NearestNeighbors(n_neighbors=250, metric="cosine", algorithm="brute").fit(bank).kneighbors(queries)
    )
    assert similarities.min() < 0 < similarities.max()
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)
    np.testing.assert_array_equal(positions, expected)


def tied(random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Bank and queries of a few vectors of ±1/4 each: all products are exact, most are ties, some are 0 and −0."""
    kinds = np.where(random.random((6, 16)) < 0.5, -0.25, 0.25)
    kinds = np.concatenate([kinds, -kinds, np.zeros((1, 16))])
    bank, queries = kinds[random.integers(13, size=200)], kinds[random.integers(12, size=30)]
    return torch.from_numpy(bank.astype(np.float32)), torch.from_numpy(queries.astype(np.float32))


@pytest.mark.parametrize("block", [1, 8, 200])
def test_of_equally_similar_images_the_first_is_nearer_in_any_blocks(block: int) -> None:
    bank, queries = tied(np.random.default_rng(1))
    similarities, positions = found(queries, bank, 60, block)
    exact = queries.numpy() @ bank.numpy().T
    order = np.lexsort((np.broadcast_to(np.arange(200), exact.shape), -exact), axis=1)[:, :60]
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_array_equal(similarities, np.take_along_axis(exact, order, 1))
    distances, _ = NearestNeighbors(n_neighbors=60, metric="cosine", algorithm="brute").fit(bank).kneighbors(queries)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)  # whichever of the tied ones it takes


def test_what_is_kept_does_not_grow_with_the_bank() -> None:
    nearest = knn.Neighbours(unit(np.random.default_rng(2).normal(size=(5, 8))), 3)
    for first in range(0, 1000, 100):
        nearest.add(unit(np.random.default_rng(first).normal(size=(100, 8))), first)
        assert sum(each.numel() for each in vars(nearest).values()) == 5 * 8 + 5 * 3


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_the_vote_is_scikit_learns_with_these_weights(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    monkeypatch.setattr(knn, "_QUERIES", 16)
    random = np.random.default_rng(3)
    labels = random.integers(6, size=300)
    centres = random.normal(size=(6, 24))
    bank = unit(centres[labels] + 2 * random.normal(size=(300, 24)))
    queries = unit(centres[random.integers(6, size=90)] + 2 * random.normal(size=(90, 24)))
    similarities, positions = found(queries, bank, 30, 64)
    peer = KNeighborsClassifier(
        30, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    expected = peer.fit(bank, labels).predict(queries)
    won = knn.vote(similarities, labels[positions], 6, temperature)
    np.testing.assert_array_equal(won, expected)
    assert len(set(expected)) == 6
    assert (won != labels[positions][:, 0]).any()  # it is a vote, not the nearest one


def test_the_vote_by_hand() -> None:
    similarities = np.array([[0.9, 0.8, 0.8]], np.float32)
    assert knn.vote(similarities, np.array([[2, 1, 1]]), 3, 0.1) == [2]  # e⁹ > 2 e⁸: e > 2
    assert knn.vote(similarities, np.array([[2, 1, 1]]), 3, 0.2) == [1]  # √e < 2
    assert knn.vote(np.ones((1, 4), np.float32), np.array([[3, 1, 3, 1]]), 4, 0.07) == [1]  # a tie: the lowest class
    assert knn.vote(similarities, np.array([[2, 1, 1]]), 3, 1e-6) == [2]  # of one neighbour, and no overflow


def pixels() -> Network:
    """Features that are known: the pixels themselves, under the name of AlexNet's last convolution."""
    return Network(
        "alexnet", features=nn.Sequential(OrderedDict(pixels=nn.Identity())), classifier=nn.Sequential(),
        embedding_size=1, ends={"conv5": "pixels"}, classes=2, image_size=64, sobel=False,
    )  # fmt: skip


def test_images_of_one_colour_a_class_are_always_right_and_shuffled_ones_at_chance(tmp_path: Path) -> None:
    """From the files to the values, with a network that passes the pixels on."""
    random = np.random.default_rng(4)
    colours = {"red": [200, 40, 40], "green": [40, 200, 40], "blue": [40, 40, 200], "yellow": [200, 200, 40]}
    for split, count in (("train", 30), ("val", 25)):
        for name, colour in colours.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                noisy = (colour + random.normal(0, 30, (64, 64, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(tmp_path / split / name / f"{number}.png")
    bank, queries = (build_folder(tmp_path, split, "imagenet") for split in ("train", "val"))
    settings = protocol(layers={"alexnet": ["conv5"]})
    nearest = knn.neighbours(pixels(), bank, queries, ["conv5"], 20, 64)
    right = knn.values(nearest, bank, queries, settings)
    assert list(right) == settings.values_of("alexnet")
    assert list(right)[:3] == ["conv5/k1/t0.07", "conv5/k1/t0.1", "conv5/k5/t0.07"]
    assert {(each.value, each.ci95, each.n) for each in right.values()} == {(100, 0, 100)}
    chance = []
    for _ in range(20):
        shuffled = replace(bank, labels=random.permutation(bank.labels))
        for value in knn.values(nearest, shuffled, queries, settings).values():
            chance.append(value.value)
            assert value.ci95 == pytest.approx(1.96 * np.sqrt(value.value * (100 - value.value) / 100))
    assert abs(np.mean(chance) - 25) < 10


@pytest.mark.parametrize("arch", ARCHS)
def test_features_are_averages_of_maps_and_fc7_after_its_relu(arch: str, demo_data: SimpleNamespace) -> None:
    torch.manual_seed(0)
    network = build(arch, classes=4, image_size=64, sobel=False).eval()
    index = build_folder(demo_data.imagenet, "val", "imagenet").subset(2, 0)
    layers = ARCHS[arch].knn_layers
    ((first, batch),) = knn.features(network, index, layers, 73)
    assert first == 0
    assert list(batch) == list(layers)
    images = np.stack([reader.center_crop(reader.read_rgb(index.file(number)), 73, 64) for number in range(2)])
    x = normalize(torch.from_numpy(images))
    with torch.no_grad():
        for layer in layers:
            if layer == "fc7":
                expected = network.classifier(network.maps(x).flatten(1))
                assert expected.shape == (2, 4096)
                assert (expected >= 0).all()  # after the ReLU
            else:
                expected = network.taps(x, [layer])[layer]
                expected = expected.flatten(2).mean(2) if expected.ndim == 4 else expected
            torch.testing.assert_close(
                batch[layer], expected / expected.norm(dim=1, keepdim=True), rtol=1e-3, atol=1e-5
            )


def test_a_feature_that_is_not_finite_is_named(demo_data: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_folder(demo_data.imagenet, "val", "imagenet")
    monkeypatch.setattr(knn, "normalize", lambda crops: torch.full(crops.shape, torch.inf))
    with pytest.raises(InputError, match=r"knn: conv5: a feature is not finite; check the checkpoint's weights"):
        list(knn.features(pixels(), index, ["conv5"], 73))


def test_a_backbone_that_changes_is_an_error(demo_data: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("alexnet", classes=4, image_size=64, sobel=True)
    taps = network.taps

    def touched(images: torch.Tensor, layers: Any) -> dict[str, torch.Tensor]:
        network.state_dict()["features.bn1.running_mean"].add_(1e-3)
        return taps(images, layers)

    monkeypatch.setattr(network, "taps", touched)
    index = build_folder(demo_data.imagenet, "val", "imagenet")
    with pytest.raises(AssertionError, match="the backbone changed"):
        knn.neighbours(network, index, index, ["conv5"], 2, 73)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("saved") / "checkpoint.safetensors"
    made_by = parse_run(DEMO["runs"]["random_sobel"] | {"classes": 4}, "test")
    torch.manual_seed(0)
    checkpoint.save(path, build("alexnet", classes=4, image_size=64, sobel=True), made_by, {"data": "0"})
    return path


@pytest.fixture
def stage(saved: Path, demo_data: SimpleNamespace, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the stage in a folder, with small batches; the metrics that it wrote."""

    def run(folder: str, **changes: Any) -> dict[str, Any]:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        arguments: dict[str, Path] = {"checkpoint": saved, "out": place / "knn.json", "protocol": tmp_path / "p.yaml"}
        for split in ("train", "val"):
            arguments[f"{split}-index"] = tmp_path / f"{split}.npz"
            build_folder(demo_data.imagenet, split, "imagenet").save(tmp_path / f"{split}.npz")
        recipe.save(protocol(**changes), tmp_path / "p.yaml")
        knn.main(["--run", "random_sobel", *(f"--{name}={path}" for name, path in arguments.items())])
        assert sorted(path.name for path in place.iterdir()) == [".knn.finished", "knn.json"]  # no state is left
        metrics.read(place / "knn.json")
        content: dict[str, Any] = json.loads((place / "knn.json").read_text())
        return content

    return run


def test_stage(stage: Callable[..., dict[str, Any]]) -> None:
    one, two = stage("one"), stage("two")
    assert one["values"] == two["values"]
    assert list(one["values"]) == protocol().values_of("alexnet")
    assert all(value["n"] == 12 and value["ci95"] >= 0 for value in one["values"].values())
    assert one["dataset"]["name"] == "imagenet"
    assert one["dataset"]["sizes"] == {"train": 48, "val": 12}
    assert re.fullmatch(r"\w{16}\+\w{16}", one["dataset"]["fingerprint"])
    assert one["protocol"]["layers"] == ["conv5", "fc7"]
    assert (one["protocol"]["images"], one["protocol"]["val_images"]) == (48, 12)
    few = stage("few", images={"alexnet": 24}, val_images={"alexnet": 7})
    assert few["dataset"]["sizes"] == {"train": 24, "val": 7}


def test_a_stage_in_bf16_says_so_and_is_near_float32(
    stage: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, written, rounded = stage("plain"), stage("written", precision="fp32"), stage("rounded", precision="bf16")
    assert plain["protocol"] == written["protocol"]
    assert plain["values"] == written["values"]
    assert rounded["protocol"] == plain["protocol"] | {"precision": "bf16"}
    apart = [abs(rounded["values"][key]["value"] - plain["values"][key]["value"]) for key in plain["values"]]
    assert max(apart) <= 100 / 12 + 1e-9  # an image of 12
    with pytest.raises(SystemExit):
        stage("refused", precision="tf32")
    assert "evaluations.knn.precision: tf32 is of NVIDIA's GPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "call", "number", "where"),
    [
        ("add", 4, signal.SIGUSR1, "saved before image 17 of the bank"),  # two layers a block
        ("add", 1, signal.SIGINT, "saved before image 9 of the bank"),
        ("__init__", 1, signal.SIGTERM, "saved before image 9 of the bank"),
    ],
)
def test_fault_42_an_interrupted_stage_goes_on_from_its_block(
    stage: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], seen: Callable[[object], None], function: str, call: int,
    number: signal.Signals, where: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(knn, "_BATCH", 4)
    monkeypatch.setattr(knn, "_BLOCK", 8)
    undisturbed = stage("undisturbed")
    calls: list[int] = []
    original = getattr(knn.Neighbours, function)

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(knn.Neighbours, function, counted)
        patched.setattr(metrics, "_STARTED", metrics._STARTED - 3600)
        with pytest.raises(SystemExit) as stop:
            stage("interrupted")
    err = capsys.readouterr().err
    seen(err)
    assert stop.value.code == INTERRUPTED
    assert err.startswith(f"interrupted: {number.name}, {where} in ")
    assert (tmp_path / "interrupted" / "knn.interrupted").exists()
    found = stage("interrupted")
    assert found["values"] == undisturbed["values"]
    assert found["provenance"]["wall_seconds"] > 3600, "the interrupted process's time counts"
    assert f"going on from {where.removeprefix('saved before ')}" in capsys.readouterr().out


def test_fault_41_a_pass_that_is_longer_than_the_limit_is_not_queued_for_ever(
    stage: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], seen: Callable[[object], None],
) -> None:  # fmt: skip
    """Over the validation images, of which every attempt needs the features."""

    def tell(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return taps(*arguments)

    taps = knn.taps
    monkeypatch.setattr(knn, "taps", tell)
    monkeypatch.setenv("UIC_SAVED", str(tmp_path / "asks"))
    with pytest.raises(SystemExit) as stop:
        stage("limited")
    err = capsys.readouterr().err
    seen(err)
    assert stop.value.code == INTERRUPTED
    assert "SIGUSR1 in the pass over the validation images, which begins anew in every attempt; if the" in err
    assert not (tmp_path / "asks").exists()


def test_a_bank_smaller_than_k_is_refused(
    stage: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        stage("small", images={"alexnet": 19})
    assert "knn.neighbours: 20, but imagenet_train has 19 images; lower it" in capsys.readouterr().err


def test_indexes_of_two_data_sets_are_refused(
    saved: Path, demo_data: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = build_folder(demo_data.imagenet, "val", "imagenet")
    whole.save(tmp_path / "val.npz")
    Index(whole.name, whole.root, whole.paths, whole.labels, ("a", "b", "c", "d"), "0").save(tmp_path / "train.npz")
    recipe.save(protocol(), tmp_path / "p.yaml")
    arguments = {"checkpoint": saved, "out": tmp_path / "o.json", "protocol": tmp_path / "p.yaml"}
    arguments |= {f"{split}-index": tmp_path / f"{split}.npz" for split in ("train", "val")}
    with pytest.raises(SystemExit):
        knn.main(["--run", "random_sobel", *(f"--{name}={path}" for name, path in arguments.items())])
    assert "its classes are not those of imagenet_val" in capsys.readouterr().err
