"""Few-shot: the Gram matrix against features, episodes against a loop over them, known answers, and bad input."""

from __future__ import annotations

import errno
import json
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from uic_core import checkpoint, recipe
from uic_core.data import reader
from uic_core.data.augment import normalize
from uic_core.data.index import Index, build_miniimagenet
from uic_core.errors import InputError
from uic_core.evaluate import fewshot
from uic_core.evaluations import Fewshot, Resolution
from uic_core.methods import parse_run
from uic_core.models import ARCHS, build
from uic_core.models.architecture import MAX_POOLED
from uic_core.models.network import Network
from uic_core.strict_yaml import read_yaml

CPU = torch.device("cpu")
DEMO = Path(__file__).parents[2] / "config" / "demo.yaml"
LAYERS = ["conv3", "conv4", "conv5", "conv5+MP"]


def protocol(**changes: Any) -> Fewshot:
    settings = {
        "resolutions": {"native": {"resize": 84, "crop": 84}},
        "layers": {"alexnet": LAYERS},
        "ways": 5,
        "shots": 5,
        "queries": 15,
        "episodes": 60,
        "seed": 0,
    }
    return recipe.parse(Fewshot, settings | changes, "test")


def index_of(labels: NDArray[np.integer]) -> Index:
    """An index of images that do not exist: episodes need the labels only."""
    classes = tuple(f"class_{number}" for number in range(int(labels.max()) + 1))
    paths = np.array([f"images/{number}.jpg" for number in range(len(labels))])
    return Index("miniimagenet_test", Path("/nowhere"), paths, labels.astype(np.int32), classes, "0" * 16)


def gram_of(features: NDArray[np.floating]) -> torch.Tensor:
    return fewshot.gram([torch.from_numpy(features.astype(np.float32))], len(features), CPU)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return build("alexnet", classes=4, image_size=64, sobel=True).eval()


def test_gram_equals_centred_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "_ROWS", 7)  # several blocks, the last one smaller
    features = np.random.default_rng(0).random((40, 301), np.float32)
    chunks = [torch.from_numpy(features[:, left : left + 64]) for left in range(0, 301, 64)]
    found = fewshot.gram(chunks, 40, CPU)
    centred = features.astype(np.float64) - features.astype(np.float64).mean(0)
    np.testing.assert_allclose(found, centred @ centred.T, atol=1e-4)
    assert torch.equal(found, found.T)


def test_distances_equal_those_of_features() -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(100, 33))
    support, query = random.integers(100, size=(6, 5, 4)), random.integers(100, size=(6, 11))
    exact = torch.from_numpy(features @ features.T)
    found = fewshot.squared_distances(exact, torch.from_numpy(support), torch.from_numpy(query)).numpy()
    means = features[support].mean(2)
    expected = ((features[query][:, :, None] - means[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_identical_to_a_loop_over_episodes() -> None:
    """ProtoNet's evaluation, written down naively in float64, gives the very same accuracy in each episode."""
    random = np.random.default_rng(2)
    labels = random.permutation(np.repeat(np.arange(8), 30))
    features = (random.normal(size=(8, 400))[labels] + 5 * random.normal(size=(240, 400)) + 3).astype(np.float32)
    episodes = fewshot.draw_episodes(index_of(labels), protocol(episodes=700))  # more than one block
    expected = []
    for support, query in zip(episodes.support, episodes.query, strict=True):
        prototypes = np.stack([features[images].astype(np.float64).mean(0) for images in support])
        hits = 0
        for way, images in enumerate(query):
            for image in images:
                distances = [np.sum((features[image].astype(np.float64) - prototype) ** 2) for prototype in prototypes]
                hits += int(np.argmin(distances)) == way
        expected.append(hits / query.size)
    found = fewshot.accuracies(gram_of(features), episodes)
    assert 0.3 < np.mean(expected) < 0.95  # neither trivial nor hopeless, so that order matters
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_classes_far_apart_are_always_right_and_shuffled_labels_at_chance() -> None:
    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(10), 60)
    features = 100 * np.eye(10)[labels] + random.normal(size=(600, 10))
    right = fewshot.summary(
        fewshot.accuracies(gram_of(features), fewshot.draw_episodes(index_of(labels), protocol(episodes=200)))
    )
    assert (right.value, right.ci95) == (100, 0)
    shuffled = fewshot.draw_episodes(index_of(random.permutation(labels)), protocol(episodes=1000))
    chance = fewshot.summary(fewshot.accuracies(gram_of(random.normal(size=(600, 50))), shuffled))
    assert chance.ci95 is not None
    assert abs(chance.value - 20) < 2


def pixels() -> Network:
    """Features that are known: the pixels themselves, under the name of an AlexNet's layer."""
    return Network(
        "alexnet",
        features=nn.Sequential(OrderedDict(pixels=nn.Identity())),
        classifier=nn.Sequential(),
        embedding_size=1,
        ends={"conv3": "pixels"},
        classes=2,
        image_size=64,
        sobel=False,
    )


def test_images_of_one_colour_a_class_are_always_right_and_shuffled_ones_at_chance(tmp_path: Path) -> None:
    """From the files to the interval, with a network that passes the pixels on."""
    random = np.random.default_rng(6)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40], [40, 200, 200]])
    (tmp_path / "images").mkdir()
    lines = ["filename,label"]
    for number in range(150):
        noisy = colours[number % 5] + random.normal(0, 30, (64, 64, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,class{number % 5}")
    (tmp_path / "test.csv").write_text("\n".join(lines) + "\n")
    index = build_miniimagenet(tmp_path, "test")
    settings = protocol(layers={"alexnet": ["conv3"]}, resolutions={"native": {"resize": 64, "crop": 64}}, episodes=200)
    right = fewshot.evaluate(pixels(), index, settings, tmp_path)[0]["native/conv3"]
    assert (right.value, right.ci95) == (100, 0)
    shuffled = replace(index, labels=random.permutation(index.labels))
    chance = fewshot.evaluate(pixels(), shuffled, settings, tmp_path)[0]["native/conv3"]
    assert abs(chance.value - 20) < 2


def test_a_constant_added_to_all_features_changes_nothing() -> None:
    random = np.random.default_rng(4)
    labels = np.repeat(np.arange(6), 25)
    features = random.normal(size=(6, 64))[labels] + 2 * random.normal(size=(150, 64))
    episodes = fewshot.draw_episodes(index_of(labels), protocol())
    shifted = fewshot.accuracies(gram_of(features + 50), episodes)
    np.testing.assert_array_equal(fewshot.accuracies(gram_of(features), episodes), shifted)


def test_episodes_hold_distinct_images_of_distinct_classes() -> None:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(7), [20, 21, 40, 20, 33, 20, 25]))
    episodes = fewshot.draw_episodes(index_of(labels), protocol(episodes=600))
    assert episodes.support.shape == (600, 5, 5)
    assert episodes.query.shape == (600, 5, 15)
    images = np.concatenate([episodes.support, episodes.query], axis=2)
    drawn = labels[images]
    assert (drawn == drawn[:, :, :1]).all()
    assert all(len(set(row)) == 5 for row in drawn[:, :, 0])
    assert all(len(set(row)) == 100 for row in images.reshape(600, -1))


def test_episodes_are_uniform_over_classes_and_images() -> None:
    labels = np.repeat(np.arange(10), 30)
    episodes = fewshot.draw_episodes(index_of(labels), protocol(episodes=3000, shots=1, queries=1))
    counts = np.bincount(episodes.support.ravel(), minlength=300)
    # 15,000 draws over 300 images: 50 each; chi-square with 299 degrees of freedom stays below its 99.99 % point
    assert ((counts - 50) ** 2 / 50).sum() < 299 + 4 * np.sqrt(2 * 299)


def test_episodes_depend_on_the_seed_and_not_on_their_number() -> None:
    labels = np.repeat(np.arange(6), 25)
    many, few = (fewshot.draw_episodes(index_of(labels), protocol(episodes=n)) for n in (900, 40))
    np.testing.assert_array_equal(many.support[:40], few.support)
    np.testing.assert_array_equal(many.query[:40], few.query)
    other = fewshot.draw_episodes(index_of(labels), protocol(episodes=40, seed=1))
    assert not np.array_equal(other.support, few.support)


def test_summary_by_hand() -> None:
    value = fewshot.summary(np.array([0.2, 0.4, 0.6, 0.8]))
    assert value.value == pytest.approx(50)
    assert value.ci95 == pytest.approx(1.96 * np.sqrt(2000 / 3) / 2)
    assert value.n == 4


def test_features_come_back_cut_along_their_dimension(tmp_path: Path) -> None:
    stored = fewshot.Features(tmp_path, images=10, dimension=23, chunk_bytes=4 * 10 * 7)
    rows = np.arange(230, dtype=np.float32).reshape(10, 23)
    for first in (4, 0, 8):  # any order
        stored.write(first, rows[first : first + 4])
    chunks = list(stored.chunks())
    assert [chunk.shape[1] for chunk in chunks] == [7, 7, 7, 2]
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), rows)
    assert not list(tmp_path.iterdir())  # a file without a name
    stored.close()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    class Full:
        def seek(self, _: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    stored = fewshot.Features(tmp_path, images=2, dimension=3)
    stored.close()
    stored._file = Full()  # type: ignore[assignment]
    with pytest.raises(InputError, match=rf"{tmp_path}: the disk is full.*free some space"):
        stored.write(0, np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(("crop", "expected"), [(224, [64896, 64896, 43264, 9216]), (84, [6144, 6144, 4096, 256])])
def test_dimensions_are_the_papers(network: Network, crop: int, expected: list[int]) -> None:
    """docs/protocol.md, Table 5; the network was built for 64 pixels, its convolutions take any size."""
    with torch.no_grad():
        taps = network.taps(torch.zeros(1, 3, crop, crop), ["conv3", "conv4", "conv5"])
    found = [tap.numel() for tap in taps.values()] + [network.pool_last(taps["conv5"]).numel()]
    assert found == expected


def test_extract_gives_each_images_own_features(
    network: Network, demo_data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewshot, "_BATCH", 3)
    everything = build_miniimagenet(demo_data.miniimagenet, "test")
    index = replace(everything, paths=everything.paths[:7], labels=everything.labels[:7])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stored = fewshot.extract(network, index, Resolution(resize=90, crop=80), LAYERS, tmp_path)
    assert list(stored) == LAYERS
    image = reader.center_crop(reader.read_rgb(index.file(6)), 90, 80)
    with torch.no_grad():
        conv5 = network.taps(normalize(torch.from_numpy(image)[None]), ["conv5"])["conv5"]
    expected = {"conv5": conv5, "conv5+MP": torch.nn.functional.max_pool2d(conv5, 3, 2)}
    for layer, value in expected.items():
        row = np.concatenate(list(stored[layer].chunks()), axis=1)[6]
        np.testing.assert_allclose(row, value.flatten().numpy(), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("change", ["top.bias", "features.bn1.running_mean"])
def test_a_backbone_that_changes_is_an_error(
    demo_data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    network = build("alexnet", classes=4, image_size=64, sobel=True)
    taps = network.taps

    def touched(images: torch.Tensor, layers: Any) -> dict[str, torch.Tensor]:
        network.state_dict()[change].add_(1e-3)
        return taps(images, layers)

    monkeypatch.setattr(network, "taps", touched)
    index = build_miniimagenet(demo_data.miniimagenet, "test").subset(20, 0)
    with pytest.raises(AssertionError, match="the backbone changed"):
        fewshot.extract(network, index, Resolution(resize=84, crop=84), ["conv3"], tmp_path)


def test_a_class_with_too_few_images_is_named() -> None:
    labels = np.repeat(np.arange(6), [25, 25, 19, 25, 25, 25])
    with pytest.raises(InputError, match=r"miniimagenet_test \(/nowhere\): class 'class_2' has 19 images.*5 support"):
        fewshot.draw_episodes(index_of(labels), protocol())


def test_too_few_classes_are_named() -> None:
    with pytest.raises(InputError, match=r"miniimagenet_test.*: 4 classes, an episode takes 5; lower fewshot.ways"):
        fewshot.draw_episodes(index_of(np.repeat(np.arange(4), 25)), protocol())


@pytest.mark.parametrize(
    ("arch", "layer", "known"),
    [
        ("alexnet", "conv6", r"conv1, .*, conv5\+MP"),
        ("alexnet", "conv3+MP", r"conv1, .*, conv5\+MP"),
        ("vgg16", "conv5+MP", r"conv1, .*, conv13\+MP"),
        ("resnet50", "mlp", "avgpool"),
    ],
)
def test_an_unknown_layer_is_answered_with_the_known_ones(arch: str, layer: str, known: str) -> None:
    with pytest.raises(InputError, match=rf"layers.{arch}: has no layer '{re.escape(layer)}' .*\(known: {known}\)"):
        protocol(layers={arch: [layer]})


@pytest.mark.parametrize("arch", ARCHS)
def test_every_known_layer_of_every_architecture_is_there(
    arch: recipe.Arch, demo_data: SimpleNamespace, tmp_path: Path
) -> None:
    index = build_miniimagenet(demo_data.miniimagenet, "test").subset(2, 0)
    network = build(arch, classes=2, image_size=64, sobel=False)
    stored = fewshot.extract(network, index, Resolution(resize=64, crop=64), ARCHS[arch].fewshot_layers, tmp_path)
    assert tuple(stored) == ARCHS[arch].fewshot_layers
    assert set(network.layers) == {layer.removesuffix(MAX_POOLED) for layer in stored}


def test_stage_of_a_resnet(demo_recipe: recipe.Recipe, demo_data: SimpleNamespace, tmp_path: Path) -> None:
    """Its features are vectors; the config's own protocol has them. What share of it a checkpoint filled is told."""
    made_by = demo_recipe.model_copy(update={"arch": "resnet50", "sobel": False})
    network = build("resnet50", classes=4, image_size=64, sobel=False)
    network.coverage = 0.97
    checkpoint.save(tmp_path / "checkpoint.safetensors", network, made_by, {})
    build_miniimagenet(demo_data.miniimagenet, "test").save(tmp_path / "index.npz")
    section = read_yaml(DEMO)["evaluations"]["fewshot"]
    section |= {"resolutions": {"native": {"resize": 64, "crop": 64}}, "episodes": 20}
    recipe.save(recipe.parse(Fewshot, section, "test"), tmp_path / "fewshot.yaml")
    arguments = ["--checkpoint", "checkpoint.safetensors", "--protocol", "fewshot.yaml", "--index", "index.npz"]
    arguments += ["--out", "fewshot.json"]
    paths = [text if text.startswith("--") else str(tmp_path / text) for text in arguments]
    fewshot.main([*paths, "--run", "mine"])
    found = json.loads((tmp_path / "fewshot.json").read_text())
    assert list(found["values"]) == ["native/avgpool"]
    assert found["protocol"]["layers"] == ["avgpool"]
    assert found["protocol"]["dimensions"] == {"native/avgpool": 2048}
    assert found["provenance"]["coverage"] == 0.97


def test_the_network_in_bf16_changes_an_accuracy_by_little(
    alexnet: Network, demo_data: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = build_miniimagenet(demo_data.miniimagenet, "test")
    section = read_yaml(DEMO)["evaluations"]["fewshot"] | {"episodes": 20}
    section |= {"resolutions": {"native": {"resize": 64, "crop": 64}}}
    plain, rounded = (
        fewshot.evaluate(alexnet, index, recipe.parse(Fewshot, section | changes, "test"), tmp_path)[0]
        for changes in ({}, {"precision": "bf16"})
    )
    assert plain != rounded
    for column, value in plain.items():
        assert rounded[column].value == pytest.approx(value.value, abs=2)


def save_checkpoint(path: Path, network: Network, demo_recipe: recipe.Recipe) -> None:
    checkpoint.save(path, network, demo_recipe, {})


@pytest.fixture(scope="module")
def demo_recipe() -> recipe.Recipe:
    values = read_yaml(DEMO)["runs"]["random_sobel"]
    return parse_run(values | {"classes": 4}, "test")


def test_stage(network: Network, demo_recipe: recipe.Recipe, demo_data: SimpleNamespace, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.safetensors", network, demo_recipe)
    build_miniimagenet(demo_data.miniimagenet, "test").save(tmp_path / "index.npz")
    resolutions = {"upsampled": {"resize": 110, "crop": 96}, "native": {"resize": 84, "crop": 84}}
    recipe.save(protocol(resolutions=resolutions), tmp_path / "fewshot.yaml")
    arguments = ["--checkpoint", "checkpoint.safetensors", "--protocol", "fewshot.yaml", "--index", "index.npz"]
    arguments = [text if text.startswith("--") else str(tmp_path / text) for text in arguments]
    results = []
    for name in ("one", "two"):
        out = tmp_path / name / "fewshot.json"
        fewshot.main([*arguments, "--out", str(out), "--run", "random_sobel", "--threads", "0"])
        assert [file.name for file in out.parent.iterdir()] == ["fewshot.json"]
        results.append(json.loads(out.read_text()))
    assert results[0]["values"] == results[1]["values"]
    metrics = results[0]
    assert (metrics["evaluation"], metrics["run"]) == ("fewshot", "random_sobel")
    assert list(metrics["values"]) == [f"{view}/{layer}" for view in ("upsampled", "native") for layer in LAYERS]
    assert all(value["n"] == 60 and value["ci95"] > 0 for value in metrics["values"].values())
    assert metrics["dataset"]["sizes"] == {"test": 100}
    assert metrics["protocol"]["dimensions"]["native/conv5+MP"] == 256
    assert metrics["provenance"]["recipe_hash"] == demo_recipe.hash()


def test_stage_stops_before_anything_is_written(
    network: Network, demo_recipe: recipe.Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "checkpoint.safetensors", network, demo_recipe)
    index_of(np.repeat(np.arange(6), 19)).save(tmp_path / "index.npz")
    recipe.save(protocol(), tmp_path / "fewshot.yaml")
    out = tmp_path / "fewshot.json"
    arguments = [
        *("--checkpoint", tmp_path / "checkpoint.safetensors", "--protocol", tmp_path / "fewshot.yaml"),
        *("--index", tmp_path / "index.npz", "--out", out, "--run", "random_sobel"),
    ]
    with pytest.raises(SystemExit) as stop:
        fewshot.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    assert "class 'class_0' has 19 images" in capsys.readouterr().err
    assert not out.exists()
