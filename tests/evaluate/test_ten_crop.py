"""Ten crops: each image once, in order, the same as torchvision cuts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import TenCrop

from uic_core.data import reader
from uic_core.data.index import Index, build_folder
from uic_core.errors import InputError
from uic_core.evaluate.ten_crop import ten_crops

BATCHES = [np.arange(0, 3), np.arange(3, 6), np.arange(6, 7)]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    random = np.random.default_rng(0)
    for number in range(7):
        path = tmp_path / "train" / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40 + number, 60 - number, 3), np.uint8)).save(path)
    return build_folder(tmp_path, "train", "imagenet")


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_torchvisions(index: Index, workers: int) -> None:
    batches = list(ten_crops(index, size=24, resize=32, batches=BATCHES, workers=workers))
    assert [len(crops) for crops, _ in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([positions for _, positions in batches]), torch.arange(7))
    for position, crops in enumerate(torch.cat([crops for crops, _ in batches])):
        image = reader.shorter_side(reader.read_rgb(index.file(position)), 32)
        for crop, expected in zip(crops, TenCrop(24)(image), strict=True):
            np.testing.assert_array_equal(crop.numpy(), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(index: Index, workers: int) -> None:
    broken = index.file(4)
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError, match=str(broken)):
        list(ten_crops(index, size=24, resize=32, batches=BATCHES, workers=workers))
