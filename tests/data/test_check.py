from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from uic_core import recipe
from uic_core.data import voc
from uic_core.data.check import check, main
from uic_core.data.dataset import Dataset, Datasets
from uic_core.errors import InputError

NAMES = ("imagenet", "voc07", "voc_segmentation", "miniimagenet")
Spoil = Callable[[Path], Any]


def changed(datasets: Datasets, dataset: str, generated: bool = True, **values: Any) -> Dataset:
    one = datasets.one(dataset)
    return one.model_copy(update={"section": one.section.model_copy(update=values), "generated": generated})


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cut(*files: Path) -> None:
    for file in files:
        file.write_bytes(file.read_bytes()[:-200])


def mask_with(value: int) -> Spoil:
    def spoil(root: Path) -> None:
        Image.fromarray(np.full((120, 160), value, np.uint8)).save(root / "VOC2012/SegmentationClass/2012_000002.png")

    return spoil


@pytest.mark.parametrize("dataset", NAMES)
def test_whole_data_sets_pass(demo_data: SimpleNamespace, dataset: str) -> None:
    found = check(demo_data.datasets.one(dataset))
    expected = {
        "imagenet": ["train: 4 class folders", "train: 48 images", "val: 12 images"],
        "voc07": ["trainval.txt: 10 images", "test.txt: 8 images", "trainval: "],
        "voc_segmentation": ["train.txt: 6 images", "val.txt: 4 images"],
        "miniimagenet": ["train.csv: 1 classes", "test.csv: 5 classes"],
    }
    for part in expected[dataset]:
        assert part in found


FAULTS: list[tuple[str, Spoil, list[str]]] = [
    (
        "miniimagenet",
        lambda root: Image.new("RGB", (500, 375)).save(sorted((root / "images").iterdir())[-1]),
        [r"miniimagenet\.root: \S+/images: 1 images are not 84×84 pixels, as n\d+\.jpg"],
    ),
    ("imagenet", lambda root: shutil.rmtree(root / "val"), [r"imagenet\.root: \S+/val: there is no such folder"]),
    (
        "imagenet",
        lambda root: shutil.rmtree(root / "val" / "n00000002"),
        [
            r"imagenet\.classes: \S+/val: expected 4 class folders, found 3",
            r"imagenet\.val_images: \S+/val: expected 12 images, found 9",
            r"imagenet\.root: \S+/val/n00000002: there is no such class folder, but train has the class",
        ],
    ),
    (
        "imagenet",
        lambda root: [path.unlink() for path in (root / "train" / "n00000003").iterdir()],
        [
            r"imagenet\.train_images: \S+/train/n00000003: the class folder is empty",
            r"imagenet\.train_images: \S+/train: expected 48 images, found 36",
        ],
    ),
    (
        "voc07",
        lambda root: (root / "VOC2007/ImageSets/Main/test.txt").unlink(),
        [r"voc07\.root: \S+/Main/test\.txt: cannot be read"],
    ),
    (
        "voc07",
        lambda root: replace(root / "VOC2007/ImageSets/Main/test.txt", "000011\n", "../../x\n"),
        [r"voc07\.root: \S+/Main/test\.txt:1: '\.\./\.\./x' is no plain name"],
    ),
    (
        "voc07",
        lambda root: replace(root / "VOC2007/ImageSets/Main/test.txt", "000011\n", ""),
        [r"voc07\.test_images: \S+/Main/test\.txt: expected 8 images, found 7"],
    ),
    (
        "voc07",
        lambda root: replace(root / "VOC2007/ImageSets/Main/test.txt", "000011\n", "000001\n"),
        [r"voc07\.test_images: \S+/Main/test\.txt: 1 images are in trainval too, as 000001"],
    ),
    (
        "voc07",
        lambda root: cut(root / "VOC2007/JPEGImages/000001.jpg", root / "VOC2007/JPEGImages/000012.jpg"),
        [
            r"voc07\.trainval_images: \S+/JPEGImages/000001\.jpg: ",
            r"voc07\.test_images: \S+/JPEGImages/000012\.jpg: ",
        ],
    ),
    (
        "voc_segmentation",
        lambda root: cut(root / "VOC2012/JPEGImages/2012_000002.jpg"),
        [r"voc_segmentation\.train_list: \S+/JPEGImages/2012_000002\.jpg: "],
    ),
    (
        "voc07",
        lambda root: (root / "VOC2007/Annotations/000001.xml").unlink(),
        [r"voc07\.trainval_images: \S+/Annotations: 1 listed annotations are not there: 000001"],
    ),
    (
        "voc07",
        lambda root: [path.unlink() for path in (root / "VOC2007/JPEGImages").glob("00000*.jpg")],
        [r"voc07\.trainval_images: \S+/JPEGImages: 9 listed images are not there: 000001, .*000005, …"],
    ),
    (
        "voc07",
        lambda root: shutil.rmtree(root / "VOC2007/JPEGImages"),
        [r"trainval_images: \S+/JPEGImages: 10 listed", r"test_images: \S+/JPEGImages: 8 listed"],
    ),
    (
        "voc07",
        lambda root: replace(root / "VOC2007/Annotations/000002.xml", "<xmin>", "<xmin>9"),
        [r"voc07\.trainval_images: \S+/000002\.xml: object 1 .* not inside the image"],
    ),
    (
        "voc_segmentation",
        lambda root: (root / "VOC2012/ImageSets/Segmentation/val.txt").unlink(),
        [r"voc_segmentation\.val_list: \S+/Segmentation/val\.txt: cannot be read"],
    ),
    (
        "voc_segmentation",
        lambda root: (root / "VOC2012/SegmentationClass/2012_000001.png").unlink(),
        [r"voc_segmentation\.train_list: \S+/SegmentationClass: 1 listed masks are not there: 2012_000001"],
    ),
    (
        "voc_segmentation",
        mask_with(21),
        [r"voc_segmentation\.train_list: \S+/2012_000002\.png: mask values \[21\] are no classes"],
    ),
    (
        "voc_segmentation",
        lambda root: Image.new("L", (10, 9)).save(root / "VOC2012/SegmentationClass/2012_000002.png"),
        [r"voc_segmentation\.train_list: \S+/2012_000002\.png: is for 10×9 pixels, but 2012_000002\.jpg is 160×120"],
    ),
    (
        "voc_segmentation",
        lambda root: replace(root / "VOC2012/ImageSets/Segmentation/val.txt", "2012_000008\n", "2012_000003\n"),
        [r"voc_segmentation\.val_list: \S+/Segmentation/val\.txt: 1 images are in train_list too, as 2012_000003"],
    ),
    (
        "voc07",
        lambda root: Image.new("RGB", (10, 9)).save(root / "VOC2007/JPEGImages/000012.jpg"),
        [r"voc07\.test_images: \S+/Annotations/000012\.xml: is for \d+×\d+ pixels, but 000012\.jpg is 10×9"],
    ),
    (
        "miniimagenet",
        lambda root: (root / "test.csv").unlink(),
        [r"miniimagenet\.test_classes: \S+/test\.csv: cannot be read"],
    ),
    (
        "miniimagenet",
        lambda root: replace(root / "test.csv", ",n00000023\n", ",n00000024\n"),
        [
            r"miniimagenet\.test_classes: \S+/test\.csv: expected 5 classes, found 4",
            r"miniimagenet\.images_per_class: \S+/test\.csv: class n00000024: expected 20 images, found 40",
        ],
    ),
    (
        "miniimagenet",
        lambda root: replace(root / "val.csv", ",n00000022", ",n00000021"),
        [r"miniimagenet\.val_classes: \S+/val\.csv: class n00000021 is in train\.csv too"],
    ),
    (
        "miniimagenet",
        lambda root: (root / "images/n0000002200000001.jpg").unlink(),
        [
            r"miniimagenet\.val_classes: miniimagenet_val: 1 of 20 images",
            r"^/\S+/n0000002200000001\.jpg: cannot be read",
        ],
    ),
]


@pytest.mark.parametrize(("dataset", "spoil", "messages"), FAULTS)
def test_what_is_wrong_is_named_with_its_config_key(
    demo_data: SimpleNamespace, tmp_path: Path, dataset: str, spoil: Spoil, messages: list[str]
) -> None:
    root = tmp_path / dataset
    shutil.copytree(getattr(demo_data, dataset), root)
    spoil(root)
    with pytest.raises(InputError) as caught:
        check(changed(demo_data.datasets, dataset, root=str(root)))
    lines = str(caught.value).splitlines()
    for message in messages:
        assert any(re.search(message, line) for line in lines), f"{message}\nnot in\n{caught.value}"
    # Nothing but what the case expects is complained about, and then comes the remedy.
    assert [line for line in lines[:-1] if not any(re.search(message, line) for message in messages)] == []
    assert lines[-1].startswith("remedy: python -m uic_core.data.synthetic --dataset")


@pytest.mark.parametrize("dataset", NAMES)
def test_absent_and_empty_roots_are_named_before_any_work(
    demo_data: SimpleNamespace, tmp_path: Path, dataset: str
) -> None:
    absent = changed(demo_data.datasets, dataset, generated=False, root=str(tmp_path / "absent"))
    with pytest.raises(InputError, match=rf"\b{dataset}\.root: \S+/absent: there is no such folder"):
        check(absent)
    (tmp_path / "empty").mkdir()
    empty = changed(demo_data.datasets, dataset, generated=False, root=str(tmp_path / "empty"))
    with pytest.raises(InputError, match=rf"\b{dataset}\.root: \S+/empty: the folder is empty") as caught:
        check(empty)
    source = {"imagenet": "image-net.org", "voc07": "voc2007", "voc_segmentation": "voc2012", "miniimagenet": "Ravi"}
    assert source[dataset] in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize("refused", ["listdir", "stat"])
@pytest.mark.parametrize("dataset", NAMES)
def test_fault_10_a_root_that_cannot_be_read_is_named_with_its_key(
    demo_data: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, dataset: str, refused: str, seen: Callable[..., None]
) -> None:
    """Itself, or the folder that it is in. Root may read all, so that the system's refusal is put in."""
    root = str(getattr(demo_data, dataset))
    really = getattr(os, refused)

    def refuse(path: Any, *more: Any, **named: Any) -> Any:
        if str(path).startswith(root):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, *more, **named)

    monkeypatch.setattr(os, refused, refuse)
    with pytest.raises(InputError) as caught:
        check(changed(demo_data.datasets, dataset, generated=False))
    monkeypatch.undo()
    seen(caught.value)
    first, last = str(caught.value).splitlines()
    assert re.fullmatch(rf"datasets\.(folders\.)?{dataset}\.root: {root}: cannot be read \(Permission denied\)", first)
    assert last.startswith("remedy: ")


@pytest.mark.parametrize("link", ["val", "val/n00000001"])
def test_a_class_folder_that_is_another_one_is_refused(demo_data: SimpleNamespace, tmp_path: Path, link: str) -> None:
    """A network would be evaluated on what it learned from, without a word."""
    root = tmp_path / "imagenet"
    shutil.copytree(demo_data.imagenet, root)
    shutil.rmtree(root / link)
    (root / link).symlink_to(root / link.replace("val", "train"))
    with pytest.raises(InputError) as caught:
        check(changed(demo_data.datasets, "imagenet", root=str(root), val_images=48 if link == "val" else 21))
    first = str(caught.value).splitlines()[0]
    same = f"{root}/val/n00000001: is the same folder as {root}/train/n00000001; each takes its own"
    assert first.endswith(f"imagenet.root: {same}")


def test_more_is_as_wrong_as_less(demo_data: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"imagenet\.train_images: \S+/train: expected 47 images, found 48"):
        check(changed(demo_data.datasets, "imagenet", train_images=47))


def test_images_that_lie_flat_are_told_from_class_folders(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    """ILSVRC's own val archive has no class folders: the commonest mistake."""
    root = tmp_path / "imagenet"
    shutil.copytree(demo_data.imagenet, root)
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    for folder in list((root / "val").glob("n*")):
        folder.rmdir()
    with pytest.raises(InputError, match=r"imagenet\.classes: \S+/val: expected 4 class folders, found 0") as caught:
        check(changed(demo_data.datasets, "imagenet", root=str(root)))
    assert re.search(r"imagenet\.root: \S+/val: 12 files lie outside the class folders", str(caught.value))


def test_sbd_is_checked_where_it_lies(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    """Training masks of SBD's own kind and folder; VOC's, borders and all, are left alone and tested on."""
    one = demo_data.datasets.one("voc_segmentation")
    train, _ = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    (tmp_path / "cls").mkdir()
    shutil.copytree(train.images, tmp_path / "img")
    shutil.copy(train.path, tmp_path / "train.txt")
    for image in train.ids():
        mask = voc.read_mask(train.mask(image))
        savemat(tmp_path / "cls" / f"{image}.mat", {"GTcls": {"Segmentation": np.where(mask == 255, 0, mask)}})
    found = check(changed(demo_data.datasets, "voc_segmentation", generated=False, sbd=str(tmp_path)))
    assert f"{tmp_path}/train.txt: 6 images" in found
    (tmp_path / "cls" / "2012_000001.mat").unlink()
    savemat(tmp_path / "cls" / "2012_000002.mat", {"GTcls": {"Segmentation": np.zeros((3, 4), np.uint8)}})
    with pytest.raises(InputError) as caught:
        check(changed(demo_data.datasets, "voc_segmentation", generated=False, sbd=str(tmp_path)))
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        f"datasets.voc_segmentation.train_list: {tmp_path}/cls: 1 listed masks are not there: 2012_000001",
        f"datasets.voc_segmentation.train_list: {tmp_path}/cls/2012_000002.mat: is for 4×3 pixels, "
        "but 2012_000002.jpg is 160×120",
    ]
    assert "seg11valid.txt" in lines[2]
    assert one.section.sbd == ""


def test_the_stage(demo_data: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, out = tmp_path / "imagenet.yaml", tmp_path / "results" / "imagenet.checked"
    recipe.save(demo_data.datasets.one("imagenet"), dataset)
    command = ["--dataset", str(dataset), "--out", str(out)]
    main(command)
    assert out.read_text() == capsys.readouterr().out == check(demo_data.datasets.one("imagenet"))
    out.unlink()
    recipe.save(changed(demo_data.datasets, "imagenet", root=str(tmp_path / "absent")), dataset)
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert "error: datasets.folders.imagenet.root: " in capsys.readouterr().err
    assert not out.exists()


def huge(path: Path) -> None:
    """A small PNG whose header says 20,000 × 10,001 pixels."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 10_001)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("dataset", "spoil", "message"),
    [
        (
            "voc_segmentation",
            lambda root: huge(root / "VOC2012/SegmentationClass/2012_000002.png"),
            r"train_list: \S+/2012_000002\.png: the mask cannot be read \(Image size \(200020000 pixels\) exceeds",
        ),
        (
            "voc_segmentation",
            lambda root: (root / "VOC2012/ImageSets/Segmentation/val.txt").write_bytes(b"caf\xe9\n"),
            r"val_list: \S+/val\.txt:\d+: is not UTF-8",
        ),
        (
            "voc07",
            lambda root: (root / "VOC2007/Annotations/000001.xml").write_bytes(b"<annotation>caf\xe9</annotation>"),
            r"trainval_images: \S+/000001\.xml: is not a VOC annotation",
        ),
        (
            "voc07",
            lambda root: [
                (root / "VOC2007/JPEGImages/000001.jpg").unlink(),
                (root / "VOC2007/JPEGImages/000001.jpg").symlink_to("000001.jpg"),
            ],
            r"trainval_images: \S+/000001\.jpg: cannot be read \(Too many levels of symbolic links\)",
        ),
        (
            "voc07",
            lambda root: [
                shutil.rmtree(root / "VOC2007/Annotations"),
                (root / "VOC2007/Annotations").symlink_to("Annotations"),
            ],
            r"trainval_images: \S+/Annotations: 10 listed annotations are not there: 000001, .*, …",
        ),
        (
            "miniimagenet",
            lambda root: (root / "test.csv").write_bytes(b"filename,label\ncaf\xe9.jpg,n0\n"),
            r"test_classes: \S+/test\.csv:2: is not UTF-8",
        ),
        (
            "miniimagenet",
            lambda root: huge(sorted((root / "images").iterdir())[-1]),
            r"root: \S+/images: 1 images are not 84×84 pixels, as n\d+\.jpg",
        ),
    ],
)
def test_fault_49_hostile_files_are_named_in_one_line(
    demo_data: SimpleNamespace, tmp_path: Path, dataset: str, spoil: Spoil, message: str, seen: Callable[[object], None]
) -> None:
    root = tmp_path / dataset
    shutil.copytree(getattr(demo_data, dataset), root)
    if dataset == "miniimagenet":
        last = sorted((root / "images").iterdir())[-1]
        Image.open(last).save(last, format="PNG")
    spoil(root)
    with pytest.raises(InputError) as caught:
        check(changed(demo_data.datasets, dataset, root=str(root)))
    seen(caught.value)
    assert any(re.search(message, line) for line in str(caught.value).splitlines()), str(caught.value)


def test_fault_55_of_many_faults_of_a_key_the_first_are_named_and_all_counted(
    demo_data: SimpleNamespace, tmp_path: Path, seen: Callable[[object], None]
) -> None:
    root = tmp_path / "voc07"
    shutil.copytree(demo_data.voc07, root)
    cut(*(root / "VOC2007" / "JPEGImages").iterdir())
    for path in (root / "VOC2007" / "Annotations").iterdir():
        path.write_text("<")
    with pytest.raises(InputError) as caught:
        check(changed(demo_data.datasets, "voc07", root=str(root)))
    seen(caught.value)
    lines = str(caught.value).splitlines()
    assert lines[10] == "datasets.voc07.trainval_images: … and 10 more"
    assert lines[21] == "datasets.voc07.test_images: … and 6 more"
    assert len(lines) == 23


def tar(path: Path, files: dict[str, Path]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, file in files.items():
            archive.add(file, name)


def official(root: Path, data: Path, names: list[str]) -> None:
    """ILSVRC's three archives, of a small data set; the devkit lists the classes in another order."""
    root.mkdir()
    work = root.with_name("work")
    work.mkdir()
    inner = {}
    for folder in sorted((data / "train").iterdir()):
        inner[f"{folder.name}.tar"] = work / f"{folder.name}.tar"
        tar(work / f"{folder.name}.tar", {file.name: file for file in folder.iterdir()})
    tar(root / "ILSVRC2012_img_train.tar", inner)
    images = sorted((data / "val").rglob("*.JPEG"), key=lambda file: file.stem[::-1])
    tar(
        root / "ILSVRC2012_img_val.tar",
        {f"ILSVRC2012_val_{number:08}.JPEG": file for number, file in enumerate(images, start=1)},
    )
    synsets = np.zeros(
        len(names) + 1, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    )
    for number, name in enumerate([*names, "n99999999"]):  # the last one has children
        synsets[number] = (float(number + 1), name, "words", "gloss", float(name == "n99999999"))
    savemat(work / "meta.mat", {"synsets": synsets[:, None]})
    truth = [names.index(file.parent.name) + 1 for file in images]
    (work / "truth.txt").write_text("".join(f"{number}\n" for number in truth))
    kit = "ILSVRC2012_devkit_t12/data"
    files = {
        f"{kit}/meta.mat": work / "meta.mat",
        f"{kit}/ILSVRC2012_validation_ground_truth.txt": work / "truth.txt",
    }
    tar(root / "ILSVRC2012_devkit_t12.tar.gz", files)


@pytest.mark.parametrize("state", ["as downloaded", "outer tars unpacked"])
def test_fault_57_imagenet_as_downloaded_is_unpacked_by_the_messages_commands(
    demo_data: SimpleNamespace, tmp_path: Path, state: str, seen: Callable[[object], None]
) -> None:
    root = tmp_path / "image net's"  # to be quoted
    names = [f"n0000000{number}" for number in (2, 4, 1, 3)]
    assert sorted(names) == sorted(path.name for path in (demo_data.imagenet / "train").iterdir())
    official(root, demo_data.imagenet, names)
    for name in ("train", "val") if state != "as downloaded" else ():
        (root / name).mkdir()
        with tarfile.open(root / f"ILSVRC2012_img_{name}.tar") as archive:
            archive.extractall(root / name, filter="data")
        (root / f"ILSVRC2012_img_{name}.tar").unlink()
    dataset = changed(demo_data.datasets, "imagenet", generated=False, root=str(root))
    with pytest.raises(InputError) as caught:
        check(dataset)
    seen(caught.value)
    remedy = str(caught.value).splitlines()[-1]
    assert remedy.startswith(f"remedy: with ILSVRC2012_devkit_t12.tar.gz of the same page in {root}, unpack what was")
    command = remedy.partition("downloaded: ")[2].removesuffix("; or correct the key")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert not done.returncode, done.stderr
    check(dataset)
    for split in ("train", "val"):
        there = {(file.parent.name, file.read_bytes()) for file in (demo_data.imagenet / split).rglob("*.JPEG")}
        assert {(file.parent.name, file.read_bytes()) for file in (root / split).rglob("*.JPEG")} == there


def test_fault_57_miniimagenets_message_says_where_images_and_lists_are(
    demo_data: SimpleNamespace, tmp_path: Path, seen: Callable[[object], None]
) -> None:
    with pytest.raises(InputError) as caught:
        check(changed(demo_data.datasets, "miniimagenet", generated=False, root=str(tmp_path / "none")))
    seen(caught.value)
    for told in ("/meta-learning-lstm/", "train.csv, val.csv and test.csv", "mini-imagenet-tools", "<root>/images"):
        assert told in str(caught.value)
