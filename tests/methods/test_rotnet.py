"""RotNet: exact turns of one view in the stated order, its loss and accuracy by hand, a training that is resumed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.recipes import recipe
from uic_core import checkpoint
from uic_core.config import read
from uic_core.data.augment import UNIFORMS, normalize
from uic_core.data.index import build_folder
from uic_core.evaluations.counting import count
from uic_core.methods import METHODS
from uic_core.methods.method import Method
from uic_core.overview import costs
from uic_core.pretrain.__main__ import main
from uic_core.recipe import save

ROTNET: Method[Any] = METHODS["rotnet"]
CHANGES = {"method": "rotnet", "arch": "alexnet_rotnet", "sobel": False, "classes": 4, "lr_steps": [1], "lr": 0.002}
CONFIG = Path(__file__).parents[2] / "config"
OUTPUTS = ("checkpoint.safetensors", "labels.npy", "history.jsonl")


@pytest.fixture(scope="module")
def crops() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8))


@pytest.mark.parametrize("flipped", [False, True])
def test_views_are_one_crop_flipped_and_then_turned(crops: Tensor, flipped: bool) -> None:
    """All images upright, then all of them at 90, at 180, at 270 degrees, to the left; pixels only change places."""
    numbers = np.full((3, UNIFORMS), 0.0 if flipped else 0.9)
    found = ROTNET.views(recipe(**CHANGES), crops, numbers)
    once = crops.numpy()[..., ::-1] if flipped else crops.numpy()
    turned = np.concatenate([np.rot90(once, turns, axes=(2, 3)) for turns in range(4)])
    assert torch.equal(found, normalize(torch.from_numpy(turned.copy())))
    if flipped:
        late = np.concatenate([np.rot90(crops.numpy(), turns, axes=(2, 3))[..., ::-1] for turns in range(4)])
        assert not torch.equal(found[3:6], normalize(torch.from_numpy(late.copy()))[3:6]), "flipped after the turn"


def test_the_upper_right_corner_goes_once_around(crops: Tensor) -> None:
    marked = torch.zeros_like(crops)
    marked[:, :, 0, -1] = 255
    found = ROTNET.views(recipe(**CHANGES), marked, np.full((3, UNIFORMS), 0.9)).view(4, 3, 3, 64, 64)
    corners = [(0, -1), (0, 0), (-1, 0), (-1, -1)]  # upper right, upper left, lower left, lower right
    for views, (row, column) in zip(found, corners, strict=True):
        assert (views[:, :, row, column] > 0).all()
        assert ((views > 0).sum((1, 2, 3)) == 3).all()
    assert len(found.flatten(0, 1)) == ROTNET.views_per_image * len(crops)


def test_loss_and_accuracy_by_hand() -> None:
    """Of two images at four turns; the labels say nothing."""
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    answers = [0, 0, 1, 1, 2, 2, 3, 3]
    found = [ROTNET.loss(recipe(**CHANGES), logits, torch.tensor(labels)) for labels in ([0, 3], [2, 1])]
    expected = -np.mean(
        [row[turn] - np.log(np.exp(row).sum()) for row, turn in zip(logits.numpy(), answers, strict=True)]
    )
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-5)
    measured = ROTNET.measures(recipe(**CHANGES), logits, torch.tensor([0, 3]))
    right = float((logits.numpy().argmax(1) == answers).mean())
    assert 0 < right < 1
    assert measured.keys() == {"rotation_accuracy"}
    assert measured["rotation_accuracy"] == pytest.approx(right)


def test_the_papers_run_costs_four_views_an_image_and_has_no_pseudo_classes() -> None:
    config = read([CONFIG / "paper.yaml", CONFIG / "peers.yaml"])
    assert "is of method rotnet, which gives images no pseudo-labels" in config.refuses("rotnet", "clusters")
    shown = ("linear_probe", "voc_classification_fc6_8", "voc_classification_all", "detection", "segmentation")
    assert not any(config.refuses("rotnet", name) for name in shown)
    job, step = costs.training(config, "rotnet"), count("alexnet_rotnet", 4, 224, False).training
    assert job.images == 50 * 1_281_167
    assert job.flops == pytest.approx(4 * job.images * step)
    assert 4 * step / 1e9 == pytest.approx(16.5, rel=0.04)


@pytest.fixture
def train(tmp_path: Path) -> Callable[[str], Path]:
    """Train on 24 pictures that are brighter above than below, which the turns tell apart: train(name) -> folder."""
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "images" / "train" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (80, 80, 3)) + np.linspace(190, 0, 80)[:, None, None]
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    build_folder(tmp_path / "images", "train", "imagenet").save(tmp_path / "index.npz")

    def train(name: str) -> Path:
        folder = tmp_path / name
        save(recipe(**CHANGES, batch_size=8), folder / "recipe.yaml")
        main(
            [
                "--recipe",
                str(folder / "recipe.yaml"),
                "--train-index",
                str(tmp_path / "index.npz"),
                "--out",
                str(folder),
            ]
        )
        return folder

    return train


def test_it_learns_and_goes_on_within_an_epoch_with_the_same_bytes(
    train: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two epochs of three steps; told to end in the fourth."""
    whole = train("whole")
    history = [json.loads(line) for line in (whole / "history.jsonl").read_text().splitlines()]
    accuracies = [line["rotation_accuracy"] for line in history]
    assert accuracies[-1] > 0.5, "a guess has a quarter"
    assert [line["lr"] for line in history] == pytest.approx([0.002, 0.0002])
    assert [line["coverage"] for line in history] == [1, 1]
    assert json.loads((whole / "training.json").read_text())["last"]["rotation_accuracy"] == accuracies[-1]
    steps, loss = [], ROTNET.loss

    def tell(*given: Any) -> Tensor:
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss(*given)

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "rotnet", replace(ROTNET, loss=tell))
        with pytest.raises(SystemExit):
            train("told")
    told = train("told")
    assert "going on from epoch 2, step 3" in capsys.readouterr().out
    for name in OUTPUTS:
        assert (told / name).read_bytes() == (whole / name).read_bytes(), name
    network, made = checkpoint.load(told / "checkpoint.safetensors")
    assert (network.arch, network.classes, made.method) == ("alexnet_rotnet", 4, "rotnet")
