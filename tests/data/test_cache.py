"""The cache: the pixels it holds, what an interrupted build leaves, and files that are not what they were."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from uic_core.data import cache, pixels, reader
from uic_core.data.augment import CROP_UNIFORMS, crop_box
from uic_core.data.crop import crop
from uic_core.data.index import Index, build_folder
from uic_core.data.loader import Loader
from uic_core.errors import InputError
from uic_core.run.randomness import uniforms

SIDE = 40
SIZES = [(70, 50), (50, 91), (300, 200), (30, 60), (64, 40)]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """25 images: larger, much larger, smaller than the cache's side, and of it; one grey, one with transparency."""
    rng = np.random.default_rng(0)
    for number in range(25):
        width, height = SIZES[number % 5]
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height), 2)
        path = tmp_path / "imagenet" / "train" / f"c{number % 3}" / f"{number:02}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == 7:
            coarse.convert("RGBA").save(path, format="PNG")
        else:
            coarse.convert("L" if number == 3 else "RGB").save(path, format="JPEG", quality=95)
    return build_folder(tmp_path / "imagenet", "train", "imagenet")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART", 8)


def whole(index: Index, position: int) -> np.ndarray:
    return index.read_part(position, lambda w, h: (0, 0, w, h), SIDE)[0]


def test_images_of_several_sizes_are_refused_for_the_device(index: Index, tmp_path: Path):
    """The device's format takes one size; each training would find that only after the whole cache is made."""
    with pytest.raises(InputError, match=r"pixels here, .* datasets\.cache\.format: device takes images of one size"):
        cache.build(index, tmp_path / "cache", "device", SIDE)


@pytest.mark.parametrize("format", ["jpeg", "uint8"])
def test_every_image_is_there_with_its_shorter_side_reduced(index: Index, tmp_path: Path, format: str):
    cached = cache.build(index, tmp_path / "cache", format, SIDE)
    assert cached.fingerprint != index.fingerprint
    for position in range(len(index)):
        image = reader.read_rgb(index.file(position))
        if min(image.size) > SIDE:
            image = reader.shorter_side(image, SIDE)
        got = whole(cached, position)
        assert got.shape == (image.height, image.width, 3)
        # JPEG once more, and images that are much larger are decoded at reduced size
        assert abs(got.astype(int) - np.asarray(image)).mean() <= (4 if format == "jpeg" else 2)


@pytest.mark.parametrize("format", ["jpeg", "uint8"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_from_it(index: Index, tmp_path: Path, format: str, workers: int):
    cached = cache.build(index, tmp_path / "cache", format, SIDE)
    cached.save(tmp_path / "index.npz")
    small = Index.load(tmp_path / "index.npz").subset(20, 0)
    loader = Loader(small, 32, SIDE, 8, workers)
    order = np.random.default_rng(0).permutation(20)
    got = {
        view: np.concatenate([images.numpy().copy() for images, _ in loader.batches(order, view, 0, 0)]).astype(int)
        for view in ("resized_crop", "random_crop", "center_crop")
    }
    plain = Loader(index.subset(20, 0), 32, SIDE, 8, 0)
    for view in ("random_crop", "center_crop"):
        want = np.concatenate([images.numpy().copy() for images, _ in plain.batches(order, view, 0, 0)])
        assert abs(got[view] - want).mean() < 4
    # These are drawn in the smaller image.
    numbers = uniforms(1 << 32, 0, order, CROP_UNIFORMS)
    for row, position in enumerate(order):
        pixels = whole(small, position)
        box = crop_box(pixels.shape[1], pixels.shape[0], numbers[row])
        crop(pixels, box, want := torch.empty(32, 32, 3, dtype=torch.uint8))
        np.testing.assert_array_equal(got["resized_crop"][row], want.permute(2, 0, 1))
    loader.close()


def test_same_images_same_bytes_whatever_the_processes(index: Index, tmp_path: Path):
    one = cache.build(index, tmp_path / "one", "jpeg", SIDE)
    two = cache.build(index, tmp_path / "two", "jpeg", SIDE, processes=2)
    assert one.fingerprint == two.fingerprint
    for file in one.pixels.folder.glob("*.bin"):
        assert file.read_bytes() == (two.pixels.folder / file.name).read_bytes()


def test_a_second_build_keeps_whole_parts_and_makes_others_again(index: Index, tmp_path: Path):
    first = cache.build(index, tmp_path, "jpeg", SIDE)
    files = sorted(first.pixels.folder.glob("*.bin"))
    assert len(files) == 4
    files[0].write_bytes(files[0].read_bytes()[:-1])
    damaged = bytearray(files[1].read_bytes())
    damaged[100] ^= 1
    files[1].write_bytes(damaged)
    files[2].with_suffix(".npz").write_bytes(b"")
    for file in files:
        os.utime(file, (1, 1))
    again = cache.build(index, tmp_path, "jpeg", SIDE)
    assert [file.stat().st_mtime == 1 for file in files] == [False, False, False, True]
    assert again.fingerprint == first.fingerprint


def test_a_killed_build_goes_on(index: Index, tmp_path: Path):
    """SIGKILL as soon as there is a part: it is kept, and the end is what an undisturbed build gives."""
    index.save(tmp_path / "index.npz")
    command = [sys.executable, "-c", "from uic_core.data import cache; cache.PART = 1; cache.main()"]
    command += ["--index", str(tmp_path / "index.npz"), "--format", "uint8", "--side", str(SIDE)]
    command += ["--root", str(tmp_path / "cache"), "--out", str(tmp_path / "cached.npz")]
    process = subprocess.Popen(command)
    while not list((tmp_path / "cache").glob("*/part-00003.npz")):
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.001)
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait()
    assert not (tmp_path / "cached.npz").exists()
    first = next((tmp_path / "cache").glob("*/part-00000.bin"))
    written = first.stat().st_mtime_ns
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert first.stat().st_mtime_ns == written
    assert {file.suffix for file in first.parent.iterdir()} == {".bin", ".npz"}, "leftovers"
    for position in range(len(index)):
        want = cache.encode(index.file(position), "uint8", SIDE)[0]
        assert whole(Index.load(tmp_path / "cached.npz"), position).tobytes() == want


def test_an_unreadable_image_is_named_and_no_index_is_written(index: Index, tmp_path: Path, capsys):
    index.save(tmp_path / "index.npz")
    index.file(20).write_bytes(b"no image")
    arguments = ["--index", str(tmp_path / "index.npz"), "--format", "jpeg", "--side", str(SIDE)]
    with pytest.raises(SystemExit) as ended:
        cache.main([*arguments, "--root", str(tmp_path / "cache"), "--out", str(tmp_path / "cached.npz")])
    assert ended.value.code == 2
    assert f"{index.file(20)}: cannot be read (not an image of a known format)" in capsys.readouterr().err
    assert not (tmp_path / "cached.npz").exists()


def test_a_missing_or_shortened_part_is_named(index: Index, tmp_path: Path):
    cached = cache.build(index, tmp_path, "uint8", SIDE)
    files = sorted(cached.pixels.folder.glob("*.bin"))
    files[1].unlink()
    with pytest.raises(
        InputError,
        match=r"part-00001\.bin: cannot be read .*; delete <results>/index/imagenet_train_cached\.npz, then make",
    ):
        whole(cached, 9)
    files[2].write_bytes(files[2].read_bytes()[:100])
    with pytest.raises(
        InputError,
        match=r"part-00002\.bin: is \d+ bytes short; delete <results>/index/imagenet_train_cached\.npz, then",
    ):
        whole(cached, 20)


def test_an_index_with_impossible_pixels_is_refused(index: Index, tmp_path: Path):
    cached = cache.build(index, tmp_path, "uint8", SIDE)
    cached.save(tmp_path / "index.npz")
    with np.load(tmp_path / "index.npz") as arrays:
        value = dict(arrays)
    for key, wrong in (("format", np.array("png")), ("offset", -value["offset"]), ("width", value["width"] + 1)):
        np.savez(tmp_path / "wrong.npz", **(value | {key: wrong}))
        with pytest.raises(
            InputError, match=r"wrong\.npz: is not an index .*; delete .*wrong\.npz, then make it alone"
        ):
            Index.load(tmp_path / "wrong.npz")


def test_too_many_open_files_are_no_reason_to_make_the_cache_again(index: Index, tmp_path: Path, monkeypatch):
    """A map keeps its file open, and a login shell's limit is often 1024."""
    small = cache.build(index, tmp_path, "uint8", SIDE)
    pixels._mapped.cache_clear()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pixels.np, "memmap", refuse)
    with pytest.raises(InputError, match="too many open files in this process; raise the limit: ulimit -n"):
        whole(small, 0)
