"""CIFAR-10's pickles become class folders with the same pixels; a pickle that asks for more is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uic_core.data import cifar

NAMES = [b"airplane", b"cat", b"dog"]


def batch(number: int) -> dict[bytes, Any]:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 3072), np.uint8)
    return {b"batch_label": b"a batch", b"labels": [0, 1, 2, 1], b"data": pixels, b"filenames": [b"a.png"] * 4}


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate((*cifar.TRAIN, "test_batch")):
        (folder / name).write_bytes(pickle.dumps(batch(number), protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": NAMES, b"num_vis": 3072}, protocol=2))
    return folder


def refused(batches: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cifar.main(["--batches", str(batches), "--out", str(batches.parent / "out")])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_every_image_is_there_in_its_class(batches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = batches.parent / "out"
    cifar.main(["--batches", str(batches), "--out", str(out)])
    assert capsys.readouterr().out == f"{out}/train: 20 images\n{out}/val: 4 images\n"
    for split, files in (("train", range(5)), ("val", [5])):
        for place, number in enumerate(files):
            for row, (values, label) in enumerate(zip(batch(number)[b"data"], [0, 1, 2, 1], strict=True)):
                path = out / split / NAMES[label].decode() / f"{4 * place + row:05}.png"
                # red, then green, then blue, each row by row
                want = np.stack([values[:1024], values[1024:2048], values[2048:]], -1).reshape(32, 32, 3)
                np.testing.assert_array_equal(np.asarray(Image.open(path)), want)
    assert len(list(out.rglob("*.png"))) == 24
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]


def test_what_is_there_is_left_and_what_a_killed_process_left_is_made_again(
    batches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = batches.parent / "out"
    (out / "train").mkdir(parents=True)
    (out / ".val.partial" / "bird").mkdir(parents=True)
    cifar.main(["--batches", str(batches), "--out", str(out)])
    assert capsys.readouterr().out == f"{out}/train: already there\n{out}/val: 4 images\n"
    assert not list((out / "train").iterdir())
    assert {path.name for path in (out / "val").iterdir()} == {"airplane", "cat", "dog"}
    assert not (out / ".val.partial").exists()


def test_a_held_out_fifth_of_the_training_images_takes_the_place_of_the_test_images(batches: Path) -> None:
    out = batches.parent / "search"
    (batches / "test_batch").unlink()
    assert cifar.write(batches, out, held_out=True) == {"train": 16, "val": 4}
    held, whole = batch(4)[b"data"], [batch(number)[b"data"] for number in range(4)]
    for split, pixels in (("train", np.concatenate(whole)), ("val", held)):
        files = sorted((out / split).rglob("*.png"), key=lambda path: path.name)
        found = [np.asarray(Image.open(path)).transpose(2, 0, 1).reshape(-1) for path in files]
        np.testing.assert_array_equal(found, pixels)


def test_a_split_is_there_as_a_whole_or_not_at_all(batches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (batches / "data_batch_5").write_bytes(b"damaged")
    assert "data_batch_5: is not one of CIFAR-10's files" in refused(batches, capsys)
    assert not list((batches.parent / "out").rglob("*.png"))
    assert not (batches.parent / "out" / "train").exists()


def test_a_pickle_that_asks_for_more_runs_nothing(batches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(batches / "owned"),)

    file = batches / "data_batch_3"
    file.write_bytes(pickle.dumps({b"data": Hostile(), b"labels": []}, protocol=2))
    assert f"error: {file}: is not one of CIFAR-10's files (it asks for posix.mkdir)" in refused(batches, capsys)
    assert not (batches / "owned").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1", None, "data_batch_1: cannot be read (No such file or directory); fetch the python version"),
        ("test_batch", b"\x80\x02broken", "test_batch: is not one of CIFAR-10's files"),
        ("test_batch", pickle.dumps([1]), "test_batch: is not one of CIFAR-10's files (a list)"),
        ("test_batch", pickle.dumps({b"labels": [0]}), "test_batch: holds no images of 32×32 pixels with labels"),
        ("test_batch", pickle.dumps(batch(0) | {b"labels": [0, 1, 2, 9]}), "test_batch: holds no images"),
        ("batches.meta", pickle.dumps({b"label_names": [b"../../cat"]}), "batches.meta: names no classes"),
        ("batches.meta", pickle.dumps({}), "batches.meta: names no classes"),
    ],
)
def test_other_files_are_named(
    batches: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    if content is None:
        (batches / name).unlink()
    else:
        (batches / name).write_bytes(content)
    assert message in refused(batches, capsys)
