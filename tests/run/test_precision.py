"""Which type `auto` takes, that it reaches the matrix products, and what is float32 whatever it takes."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.recipes import recipe
from uic_core.data import reader
from uic_core.data.augment import normalize
from uic_core.data.index import build_folder
from uic_core.methods import deepcluster
from uic_core.models import build
from uic_core.pretrain.label_passes import LabelPasses
from uic_core.pretrain.loop import Trainer
from uic_core.run import precision
from uic_core.run.parallel import ALONE

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "amx_bf16"}, torch.bfloat16),
        ({"avx2", "avx512_bf16"}, torch.bfloat16),
        ({"avx2", "avx512f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_auto_follows_what_the_processor_says(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert precision.resolve("auto", CPU) is expected
    assert precision.resolve("fp32", CPU) is torch.float32
    assert precision.resolve("bf16", CPU) is torch.bfloat16


def test_autocast_changes_matrix_products_and_float32_changes_nothing() -> None:
    x = torch.randn(4, 4)
    for dtype in (torch.float32, torch.bfloat16):
        with precision.autocast(dtype, CPU):
            assert (x @ x).dtype is dtype
    assert (x @ x).dtype is torch.float32


class Made(Exception):
    """The pass is done, the training after it is not needed."""


@pytest.mark.parametrize(
    ("maker", "changes"),
    [
        ("embed", {"method": "deepcluster"}),
        ("embed_share", {"method": "deepcluster"}),
        ("predict", {"method": "finetune"}),
    ],
    ids=["deepcluster", "deepcluster_on_a_gpu", "finetune"],
)
def test_passes_over_all_images_are_float32_in_a_bf16_run(
    demo_data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    maker: str,
    changes: dict[str, str],
) -> None:
    """Their features and logits are those of a plain float32 network with the same weights."""
    index = build_folder(demo_data.imagenet, "train", "imagenet").subset(12, 0)
    settings = {"batch_size": 8, "schedule": "constant", "precision": "bf16"}
    made = recipe(**settings | changes)
    torch.manual_seed(3)
    network = build("alexnet", classes=5, image_size=64, sobel=True)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")):
            tensor.uniform_(0.5, 1.0)
    plain = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    crops = [reader.center_crop(reader.read_rgb(index.file(n)), 73, 64) for n in range(len(index))]
    parts = normalize(torch.from_numpy(np.stack(crops))).split(8)
    compute = plain if maker == "predict" else plain.embed
    with torch.no_grad():
        expected = torch.cat([compute(part) for part in parts])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.cat([compute(part).float() for part in parts])
    logits: list[torch.Tensor] = []
    found: list[Any] = []
    make = getattr(LabelPasses, maker)

    def watch(crops: LabelPasses) -> None:
        with crops._network.register_forward_hook(lambda *given: logits.append(given[2])):
            found.append(make(crops))
        raise Made

    monkeypatch.setattr(LabelPasses, maker, watch)
    if maker == "embed_share":
        monkeypatch.setattr(deepcluster, "by_faiss", deepcluster.by_torch)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: {"amx_bf16"})  # convolutions of tiles, too
    with pytest.raises(Made):
        Trainer(made, index, network, None, ALONE, workers=0, save_every=300).run(tmp_path)
    if maker == "embed":
        ours = torch.from_numpy(found[0])
    elif maker == "embed_share":
        ours, positions = found[0]
        assert positions.tolist() == list(range(12))
    else:
        ours = torch.cat(logits)
        assert found[0].tolist() == expected.argmax(1).tolist()
    assert (rounded - expected).norm() > 1e-3 * expected.norm(), "else the test would say nothing"
    assert (ours - expected).norm() < 1e-6 * expected.norm()


def test_passes_over_training_views_are_float32_in_a_bf16_run(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    index = build_folder(demo_data.imagenet, "train", "imagenet").subset(12, 0)
    made = recipe(method="selflabel", precision="bf16", batch_size=8, epochs=1, optimisations=1)
    network = build("alexnet", classes=5, image_size=64, sobel=True)
    seen: list[tuple[bool, torch.dtype]] = []
    network.classifier.fc7.register_forward_hook(lambda *given: seen.append((given[2].requires_grad, given[2].dtype)))
    Trainer(made, index, network, None, ALONE, workers=0, save_every=300).run(tmp_path)
    assert seen == [(False, torch.float32)] * 2 + [(True, torch.bfloat16)] * 2
