"""What a user may hand to any evaluation by mistake: each stage names it, ends with 2 and leaves nothing behind.

Mistakes that only one evaluation can see are in that evaluation's tests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from uic_core import checkpoint, recipe
from uic_core.data import voc
from uic_core.data.index import Index, build_folder, build_miniimagenet
from uic_core.evaluate import clusters, fewshot, knn, linear_probe, voc_classification
from uic_core.evaluations import Clusters, Fewshot, Knn, LinearProbe, VocClassification
from uic_core.methods import parse_run
from uic_core.models import build
from uic_core.strict_yaml import read_yaml

DEMO = read_yaml(Path(__file__).parents[2] / "config" / "demo.yaml")
MAINS = {
    "linear_probe": linear_probe.main,
    "clusters": clusters.main,
    "voc_classification": voc_classification.main,
    "fewshot": fewshot.main,
    "knn": knn.main,
}


@pytest.fixture
def given(demo_data: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Good input for every stage: folder, voc (a copy), and arguments by stage; they write to out/."""
    made_by = parse_run(DEMO["runs"]["random_sobel"] | {"classes": 4}, "test")
    torch.manual_seed(0)
    network = build("alexnet", classes=4, image_size=64, sobel=True)
    checkpoint.save(tmp_path / "checkpoint.safetensors", network, made_by, {})
    for split in ("train", "val"):
        build_folder(demo_data.imagenet, split, "imagenet").save(tmp_path / f"{split}.npz")
    build_miniimagenet(demo_data.miniimagenet, "test").save(tmp_path / "test.npz")
    np.save(tmp_path / "labels.npy", np.arange(48, dtype=np.int32) % 4)
    (tmp_path / "history.jsonl").write_text("")
    shutil.copytree(demo_data.voc07, tmp_path / "voc")
    for name, model in {
        "linear_probe": LinearProbe, "clusters": Clusters, "voc_classification_fc6_8": VocClassification,
        "fewshot": Fewshot, "knn": Knn,
    }.items():  # fmt: skip
        all_images = {"images": {"alexnet": 0}, "neighbours": [10]} if name == "knn" else {}
        section = recipe.parse(model, DEMO["evaluations"][name] | all_images, "test")
        recipe.save(section, tmp_path / f"{name.removesuffix('_fc6_8')}.yaml")
    inputs = {
        "linear_probe": {"train-index": "train.npz", "val-index": "val.npz"},
        "clusters": {
            "labels": "labels.npy",
            "history": "history.jsonl",
            "train-index": "train.npz",
            "arrays": "out/clusters.npz",
        },
        "voc_classification": {"voc": "voc"},
        "fewshot": {"index": "test.npz"},
        "knn": {"train-index": "train.npz", "val-index": "val.npz"},
    }
    arguments = {
        name: ["--run", "random_sobel"]
        + [
            text
            for key, file in (
                own | {"checkpoint": "checkpoint.safetensors", "protocol": f"{name}.yaml", "out": f"out/{name}.json"}
            ).items()
            for text in (f"--{key}", str(tmp_path / file))
        ]
        for name, own in inputs.items()
    }
    return SimpleNamespace(folder=tmp_path, arguments=arguments)


def refused(given: SimpleNamespace, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        MAINS[name](given.arguments[name])
    assert stop.value.code == 2
    out = given.folder / "out"
    assert not out.exists() or not list(out.iterdir())
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize("name", ["voc_classification", "fewshot", "knn"])
def test_two_processes_where_each_would_do_all_the_work(
    given: SimpleNamespace, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = refused(given, name, capsys)
    assert f"{name} runs on one GPU, not in 2 processes; write set-resources: {{{name}: {{gpu: 1}}}}" in error


def rewrite(
    path: Path, weights: Callable[[dict[str, torch.Tensor]], None] | None = None, arch: str | None = None
) -> None:
    """A checkpoint as `checkpoint.save` would not write it."""
    with safe_open(path, framework="pt") as file:
        ((key, header),) = file.metadata().items()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    content = json.loads(header)
    if arch is not None:
        content["recipe"]["arch"] = arch
    if weights is not None:
        weights(tensors)
    safetensors.torch.save_file(tensors, path, metadata={key: json.dumps(content)})


@pytest.mark.parametrize("name", MAINS)
def test_weights_of_another_architecture(given: SimpleNamespace, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(given.folder / "checkpoint.safetensors", arch="vgg16")
    error = refused(given, name, capsys)
    assert "checkpoint.safetensors: " in error
    assert "features.conv13.weight" in error  # expected and not there


@pytest.mark.parametrize("name", MAINS)
def test_weights_that_are_not_finite(given: SimpleNamespace, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["features.conv4.weight"][3, 2, 1, 1] = torch.nan

    rewrite(given.folder / "checkpoint.safetensors", spoil)
    error = refused(given, name, capsys)
    assert "checkpoint.safetensors: " in error
    assert "features.conv4.weight is not finite" in error


@pytest.mark.parametrize(
    ("name", "message"),
    [(name, f"{name}.layers: nothing for vgg16") for name in ("linear_probe", "fewshot", "knn")],
)
def test_a_network_that_the_protocol_does_not_fit(
    given: SimpleNamespace, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made_by = parse_run(DEMO["runs"]["random_sobel"] | {"classes": 4, "arch": "vgg16", "sobel": False}, "test")
    network = build("vgg16", classes=4, image_size=64, sobel=False)
    checkpoint.save(given.folder / "checkpoint.safetensors", network, made_by, {})
    model = {"linear_probe": LinearProbe, "fewshot": Fewshot, "knn": Knn}[name]
    section = DEMO["evaluations"][name] | {"layers": {"alexnet": ["conv5"]}}
    recipe.save(recipe.parse(model, section, "test"), given.folder / f"{name}.yaml")
    assert message in refused(given, name, capsys)


@pytest.mark.parametrize(("name", "index"), [("linear_probe", "train"), ("fewshot", "test"), ("knn", "train")])
def test_an_image_that_is_gone(
    given: SimpleNamespace, name: str, index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = given.folder / f"{index}.npz"
    there = Index.load(path)
    replace(there, paths=np.array([*there.paths[:-1], "gone.jpg"])).save(path)
    assert f"{there.root / 'gone.jpg'}: cannot be read (No such file or directory)" in refused(given, name, capsys)


def test_a_voc_list_with_an_image_that_is_gone(given: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    image = voc.read_list(given.folder / "voc", "test")[2]
    voc.image_path(given.folder / "voc", image).unlink()
    error = refused(given, "voc_classification", capsys)
    assert f"{image}.jpg: No such file or directory, but test.txt lists {image}" in error
