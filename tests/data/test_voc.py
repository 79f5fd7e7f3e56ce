from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import VOCDetection, VOCSegmentation

from uic_core.data import voc
from uic_core.errors import InputError

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


def annotation(*objects: tuple[str, tuple[float, float, float, float], int], size: tuple[int, int] = (50, 40)) -> str:
    nodes = "".join(OBJECT.format(name=name, box=box, difficult=difficult) for name, box, difficult in objects)
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{nodes}</annotation>"


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    (tmp_path / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "VOC2007" / "Annotations").mkdir()
    return tmp_path


def main_list(root: Path, text: str, split: str = "trainval") -> None:
    (root / "VOC2007" / "ImageSets" / "Main" / f"{split}.txt").write_text(text)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_classes_are_voc_s_in_alphabetical_order() -> None:
    assert len(voc.CLASSES) == 20
    assert list(voc.CLASSES) == sorted(voc.CLASSES)
    assert voc.CLASSES_SEGMENTATION[0] == "background"
    assert voc.CLASSES_SEGMENTATION[15] == "person"  # the mask value everybody knows


def test_boxes_become_zero_based_and_keep_their_last_pixel(tmp_path: Path) -> None:
    objects = [("cat", (1, 1, 50, 40), 0), ("dog", (3, 7, 3, 7), 1), ("cat", (2.5, 3, 4, 5), 0)]
    read = voc.read_annotation(write(tmp_path / "a.xml", annotation(*objects)))
    assert (read.width, read.height) == (50, 40)
    np.testing.assert_array_equal(read.boxes, np.float32([[0, 0, 49, 39], [2, 6, 2, 6], [1.5, 2, 3, 4]]))
    assert read.boxes.dtype == np.float32
    np.testing.assert_array_equal(read.labels, [7, 11, 7])
    np.testing.assert_array_equal(read.difficult, [False, True, False])


def test_annotations_read_as_torchvision_reads_them(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit").symlink_to(demo_data.voc07)
    reference = VOCDetection(str(tmp_path), year="2007", image_set="test")
    ids = voc.read_list(demo_data.voc07, "test")
    for image, (picture, target) in zip(ids, reference, strict=True):
        ours, theirs = voc.read_annotation(voc.annotation_path(demo_data.voc07, image)), target["annotation"]
        assert theirs["filename"] == f"{image}.jpg"
        assert (ours.width, ours.height) == picture.size
        assert [voc.CLASSES[label] for label in ours.labels] == [o["name"] for o in theirs["object"]]
        assert ours.difficult.tolist() == [o["difficult"] == "1" for o in theirs["object"]]
        edges = [[int(o["bndbox"][e]) - 1 for e in ("xmin", "ymin", "xmax", "ymax")] for o in theirs["object"]]
        np.testing.assert_array_equal(ours.boxes, edges)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (annotation(), "has no <object>"),
        (annotation(("unicorn", (1, 1, 2, 2), 0)), "object 1: unknown class 'unicorn' (known: aeroplane,"),
        (annotation(("cat", (1, 1, 51, 40), 0)), "object 1 (cat): box (1, 1, 51, 40) is not inside the image"),
        (annotation(("cat", (0, 1, 5, 5), 0)), "not inside the image, 1…50 × 1…40"),
        (annotation(("cat", (9, 1, 5, 5), 0)), "not inside the image"),
        (annotation(("cat", ("?", 1, 5, 5), 0)), "has no number in <bndbox/xmin> but '?'"),
        (annotation(("cat", ("nan", 1, 5, 5), 0)), "has no number in <bndbox/xmin>"),
        ("<annotation></annotation>", "has no number in <size/width>"),
        (annotation(("cat", (1, 1, 2, 2), 0), size=(0, 9)), "size is 0×9"),
        (annotation(("cat", (1, 1, 2, 2), 2)), "object 1 (cat): <difficult> is '2'; expected 0 or 1"),
        ("<annotation>", "is not a VOC annotation"),
        ("", "is not a VOC annotation"),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
            "is not a VOC annotation (DTDForbidden",
        ),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path / "000007.xml", content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        voc.read_annotation(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_annotation_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"000009\.xml: the annotation cannot be read \(No such file"):
        voc.read_annotation(tmp_path / "000009.xml")


def test_lists_keep_their_order_and_skip_blank_lines(devkit: Path) -> None:
    main_list(devkit, "000012\n\n000005  \r\n2008_000002\n")
    assert voc.read_list(devkit, "trainval") == ("000012", "000005", "2008_000002")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000001\n../../etc/passwd\n", "trainval.txt:2: '../../etc/passwd' is no plain name"),
        ("/etc/passwd\n", "trainval.txt:1: '/etc/passwd' is no plain name"),
        ("a\\b\n", "is no plain name"),
        ("..\n", "is no plain name"),
        ("000001 -1\n", "'000001 -1' is no plain name"),
        ("1\n2\n1\n", "trainval.txt:3: 1 stands in line 1 too"),
        ("\n \n", "trainval.txt: lists no images; expected one image id a line"),
    ],
)
def test_a_wrong_list_is_named_by_line(devkit: Path, text: str, message: str) -> None:
    main_list(devkit, text)
    with pytest.raises(InputError, match=re.escape(message)):
        voc.read_list(devkit, "trainval")


def test_fault_56_a_list_saved_on_windows_is_read(devkit: Path, seen: Callable[[object], None]) -> None:
    main_list(devkit, "\ufeff000012\r\n000005\r\n")
    seen(voc.read_list(devkit, "trainval"))
    assert voc.read_list(devkit, "trainval") == ("000012", "000005")


def test_missing_and_binary_lists_are_named(devkit: Path) -> None:
    with pytest.raises(InputError, match=r"Main/test\.txt: cannot be read .*VOC2007"):
        voc.read_list(devkit, "test")
    (devkit / "VOC2007/ImageSets/Main/test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"test\.txt:1: is not UTF-8"):
        voc.read_list(devkit, "test")
    with pytest.raises(InputError, match=r"Segmentation split: '\.\./train' is no plain name"):
        voc.segmentation_lists(devkit, "", "../train", "val")


def test_multilabels_tell_shown_from_difficult_only(devkit: Path) -> None:
    main_list(devkit, "b\na\n")
    box = (1, 1, 2, 2)
    folder = devkit / "VOC2007" / "Annotations"
    write(folder / "a.xml", annotation(("cat", box, 1), ("cat", box, 0), ("dog", box, 1)))
    write(folder / "b.xml", annotation(("person", box, 0), ("person", box, 1)))
    ids, targets = voc.multilabels(devkit, "trainval")
    assert ids == ("b", "a")
    assert targets.dtype == np.uint8
    assert {(row, voc.CLASSES[column]): int(targets[row, column]) for row, column in np.argwhere(targets)} == {
        (0, "person"): 1,
        (1, "cat"): 1,
        (1, "dog"): 255,
    }


def test_multilabels_agree_with_the_lists_by_class(demo_data: SimpleNamespace) -> None:
    for split in ("trainval", "test"):
        ids, targets = voc.multilabels(demo_data.voc07, split)
        for label, name in enumerate(voc.CLASSES):
            path = demo_data.voc07 / "VOC2007" / "ImageSets" / "Main" / f"{name}_{split}.txt"
            listed = dict(line.split() for line in path.read_text().splitlines())
            ours = [{0: "-1", 1: "1", 255: "0"}[int(value)] for value in targets[:, label]]
            assert listed == dict(zip(ids, ours, strict=True))


def test_masks_keep_class_numbers(demo_data: SimpleNamespace) -> None:
    train, _ = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    for image in train.ids():
        mask = voc.read_mask(train.mask(image))
        with Image.open(train.image(image)) as picture:
            assert mask.shape == picture.size[::-1]
        assert {0, 255} < set(np.unique(mask).tolist()) <= {*range(21), 255}


def test_wrong_masks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    with pytest.raises(InputError, match=r"m\.png: the mask cannot be read"):
        voc.read_mask(path)
    Image.fromarray(np.array([[0, 21], [44, 255]], np.uint8)).save(path)
    with pytest.raises(InputError, match=r"m\.png: mask values \[21, 44\] are no classes; expected 0…20 and 255"):
        voc.read_mask(path)
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(InputError, match=r"m\.png: mode RGB; expected a PNG of class numbers"):
        voc.read_mask(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 20, (64, 64), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(InputError, match=r"m\.png: the mask cannot be read"):
        voc.read_mask(path)


def test_fingerprint_changes_with_what_it_covers(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    shutil.copytree(demo_data.voc07, root)
    before = voc.fingerprint(root, ("trainval", "test"))
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert before == voc.fingerprint(demo_data.voc07, ("trainval", "test"))
    assert before != voc.fingerprint(root, ("test", "trainval"))
    image = voc.read_list(root, "test")[0]
    path = voc.annotation_path(root, image)
    path.write_text(path.read_text().replace("<xmin>", "<xmin>0"))  # the same number in other bytes
    assert before != voc.fingerprint(root, ("trainval", "test"))
    path.unlink()
    with pytest.raises(InputError, match=rf"{image}\.xml: No such file or directory, but test\.txt lists {image}"):
        voc.fingerprint(root, ("test",))


def test_segmentation_fingerprint_covers_the_masks(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    shutil.copytree(demo_data.voc_segmentation, root)
    lists = voc.segmentation_lists(root, "", "train", "val")
    before = voc.segmentation_fingerprint(lists)
    Image.fromarray(np.zeros((120, 160), np.uint8)).save(lists[1].mask(lists[1].ids()[0]))
    assert before != voc.segmentation_fingerprint(lists)


def test_torchvision_reads_the_segmentation_layout(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit").symlink_to(demo_data.voc_segmentation)
    reference = VOCSegmentation(str(tmp_path), year="2012", image_set="val")
    _, val = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    assert [Path(path).stem for path in reference.masks] == list(val.ids())
    for (_, mask), image in zip(reference, val.ids(), strict=True):
        np.testing.assert_array_equal(np.asarray(mask), voc.read_mask(val.mask(image)))


def sbd_mask(path: Path, mask: Any) -> Path:
    """A mask as SBD gives it: struct GTcls with the fields Boundaries, Segmentation and CategoriesPresent."""
    truth = {"Boundaries": np.zeros((20, 1), object), "Segmentation": mask, "CategoriesPresent": np.unique(mask)}
    savemat(path, {"GTcls": truth}, do_compression=True)
    return path


def test_sbd_s_masks_are_read_from_matlab_files(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 21, (30, 40), np.uint8)
    read = voc.read_mask(sbd_mask(tmp_path / "m.mat", mask))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)
    np.testing.assert_array_equal(voc.read_mask(sbd_mask(tmp_path / "m.mat", mask.astype(float))), mask)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: sbd_mask(path, np.array([[0, 21]], np.uint8)), r"mask values \[21\] are no classes"),
        (lambda path: sbd_mask(path, np.array([[0, np.nan]])), r"mask values \[nan\] are no classes"),
        (lambda path: sbd_mask(path, np.array([[0, 1.5]])), r"mask values \[1\.5\] are no classes"),
        (lambda path: sbd_mask(path, np.zeros((2, 2, 2))), "GTcls has no matrix Segmentation"),
        (lambda path: sbd_mask(path, "text"), "GTcls has no matrix Segmentation"),
        (lambda path: savemat(path, {"GTcls": np.zeros((2, 2))}), "GTcls has no matrix Segmentation"),
        (lambda path: savemat(path, {"GTinst": np.zeros((2, 2))}), "has no variable GTcls"),
        (lambda path: path.write_bytes(sbd_mask(path, np.eye(40)).read_bytes()[:-60]), "is no MATLAB file of version"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600)), "is no MATLAB file of version 7 or before"),
        (lambda path: path.write_bytes(pickle.dumps([1])), "is no MATLAB file of version 7 or before"),
        (lambda path: None, r"cannot be read \(No such file"),
    ],
)
def test_wrong_matlab_masks_are_named(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(tmp_path / "m.mat")
    with pytest.raises(InputError, match=rf"m\.mat: {message}"):
        voc.read_mask(tmp_path / "m.mat")


def test_segmentation_lists_lie_in_voc_or_train_in_sbd(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    root = demo_data.voc_segmentation
    train, val = voc.segmentation_lists(root, "", "train", "val")
    assert train.path == root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    assert list(train.ids()) == train.path.read_text().split()
    assert val.mask("2007_000001") == root / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    (tmp_path / "cls").mkdir()
    (tmp_path / "img").mkdir()
    (tmp_path / "train.txt").write_text("2008_000002\n")
    (tmp_path / "img" / "2008_000002.jpg").write_bytes(b"jpeg")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "cls" / "2008_000002.png")  # converted
    sbd, same = voc.segmentation_lists(root, str(tmp_path), "train", "val")
    assert same == val
    assert (sbd.ids(), sbd.mask("2008_000002").suffix) == (("2008_000002",), ".png")
    before = voc.segmentation_fingerprint((sbd, val))
    sbd_mask(tmp_path / "cls" / "2008_000002.mat", np.zeros((2, 2), np.uint8))
    sbd, _ = voc.segmentation_lists(root, str(tmp_path), "train", "val")
    assert voc.read_mask(sbd.mask("2008_000002")).shape == (2, 2)
    assert sbd.mask("2008_000002").suffix == ".mat"
    assert voc.segmentation_fingerprint((sbd, val)) != before
    (tmp_path / "train.txt").unlink()
    with pytest.raises(InputError, match=r"train\.txt: cannot be read .*SBD's dataset folder"):
        sbd.ids()
