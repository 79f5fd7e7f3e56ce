"""Crops made on the device are those of the loader with its worker processes, within two grey levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uic_core.data import cache
from uic_core.data.augment import CROP_UNIFORMS, SCALE, crop_box, crop_boxes
from uic_core.data.index import Index, build_folder
from uic_core.data.loader import Loader
from uic_core.data.resident import Resident, open_loader

CPU = torch.device("cpu")


def write(folder: Path, sizes: list[tuple[int, int]]) -> Index:
    """Images of noise, smooth over four pixels, in two classes."""
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        path = folder / "images" / "train" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(path)
    return cache.build(build_folder(folder / "images", "train", "cifar"), folder / "cache", "device", 64)


@pytest.fixture(scope="module", params=[(32, 32), (40, 24)], ids=["square", "wide"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write(tmp_path_factory.mktemp("small"), 20 * [request.param])


# Enlarged; about as large; reduced.
@pytest.mark.parametrize(("size", "resize"), [(64, 73), (28, 32), (10, 12)])
@pytest.mark.parametrize(
    ("view", "scale"), [(view, SCALE) for view in ("resized_crop", "random_crop", "center_crop")]
    + [("resized_crop", (0.5, 1.0))],
)  # fmt: skip
def test_crops_are_the_loaders(index: Index, view, scale, size: int, resize: int):
    order = np.random.default_rng(1).integers(0, 3 * len(index), 70)  # further views, too
    resident = Resident(index, size, resize, 32, CPU, scale)
    loader = Loader(index, size, resize, 32, 0, CPU, scale)
    counts = []
    pairs = zip(resident.batches(order, view, 3, 5), loader.batches(order, view, 3, 5), strict=True)
    for (got, drawn), (want, wanted) in pairs:
        np.testing.assert_array_equal(drawn, wanted)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert (got.int() - want.int()).abs().max() <= 2
        counts.append(len(drawn))
    assert counts == [32, 32, 6]


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "resize"), [(64, 73), (28, 32), (10, 12)])
@pytest.mark.parametrize("view", ["resized_crop", "random_crop", "center_crop"])
def test_a_gpus_crops_are_the_cpus(index: Index, view, size: int, resize: int):
    order = np.random.default_rng(1).integers(0, 3 * len(index), 70)
    ways = [Resident(index, size, resize, 32, device) for device in (CPU, torch.device("cuda"))]
    for (want, wanted), (got, drawn) in zip(*(way.batches(order, view, 3, 5) for way in ways), strict=True):
        assert got.is_cuda
        np.testing.assert_array_equal(drawn, wanted)
        assert (got.cpu().int() - want.int()).abs().max() <= 2


@pytest.mark.parametrize(("width", "height"), [(32, 32), (40, 24), (3, 1), (1, 200)])
def test_boxes_of_many_images_are_those_of_each(width: int, height: int):
    numbers = np.random.default_rng(0).random((3000, CROP_UNIFORMS))
    for scale in (SCALE, (0.5, 1.0)):
        want = [crop_box(width, height, u, scale) for u in numbers]
        np.testing.assert_array_equal(crop_boxes(width, height, numbers, scale), want)


def test_a_part_of_the_images_keeps_its_own(index: Index):
    few = index.subset(7, 0)
    (images, _), *rest = Resident(few, 32, 32, 7, CPU).batches(np.arange(7), "center_crop", 0, 0)
    assert not rest
    (want, _), *_ = Loader(few, 32, 32, 7, 0).batches(np.arange(7), "center_crop", 0, 0)
    assert (images.int() - want.int()).abs().max() <= 2


def test_the_cache_says_which_loader_it_takes(index: Index, tmp_path: Path):
    index.save(tmp_path / "index.npz")
    read = Index.load(tmp_path / "index.npz")
    assert isinstance(open_loader(read, 32, 32, 4, 0, CPU), Resident)
    assert isinstance(open_loader(write(tmp_path, [(32, 32)]).subset(1, 0), 32, 32, 4, 0, CPU), Resident)


def test_a_pass_must_end_before_the_next(index: Index):
    loader = Resident(index, 32, 32, 2, CPU)
    first = loader.batches(np.arange(6), "center_crop", 0, 0)
    next(first)
    next(loader.batches(np.arange(6), "center_crop", 0, 0))
    with pytest.raises(AssertionError, match="one pass at a time"):
        next(first)
