"""Selective search: the same bytes however the work is split; a file that does not fit the images is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from uic_core import recipe
from uic_core.data import voc
from uic_core.data.boxes import overlaps
from uic_core.errors import InputError
from uic_core.evaluations import Proposals as Settings
from uic_core.files import sha256, stamp
from uic_core.openmmlab import proposals

SETTINGS = Settings(source="", mode="fast", shorter_side=60, max_boxes=50, min_side=8, seed=0)


@pytest.fixture(scope="module")
def made(demo_data: SimpleNamespace) -> proposals.ProposedBoxes:
    return proposals.make(demo_data.voc07, "test", SETTINGS, processes=1)


@pytest.fixture(scope="module")
def sizes(demo_data: SimpleNamespace) -> dict[str, tuple[int, int]]:
    ids = voc.read_list(demo_data.voc07, "test")
    found = {image: voc.read_annotation(voc.annotation_path(demo_data.voc07, image)) for image in ids}
    return {image: (annotation.width, annotation.height) for image, annotation in found.items()}


@pytest.fixture
def fingerprint(demo_data: SimpleNamespace) -> str:
    return voc.fingerprint(demo_data.voc07, ["test"])


def test_the_stage_gives_the_same_bytes_for_any_number_of_processes(
    demo_data: SimpleNamespace, tmp_path: Path, made: proposals.ProposedBoxes, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.save(SETTINGS, tmp_path / "proposals.yaml")
    common = ["--protocol", str(tmp_path / "proposals.yaml"), "--voc", str(demo_data.voc07), "--split", "test"]
    for processes in ("1", "2"):
        proposals.main([*common, "--threads", processes, "--out", str(tmp_path / f"{processes}.npz")])
    made.save(tmp_path / "made.npz")
    first = (tmp_path / "1.npz").read_bytes()
    assert first == (tmp_path / "2.npz").read_bytes() == (tmp_path / "made.npz").read_bytes()
    assert "recall at IoU .5" in capsys.readouterr().out


def test_boxes_do_not_depend_on_what_was_searched_before(
    demo_data: SimpleNamespace, made: proposals.ProposedBoxes
) -> None:
    last = proposals.search(voc.image_path(demo_data.voc07, made.ids[-1]), SETTINGS)
    np.testing.assert_array_equal(last, made.of(len(made.ids) - 1))


def test_boxes_are_inside_distinct_large_enough_and_not_too_many(
    made: proposals.ProposedBoxes, sizes: dict[str, tuple[int, int]]
) -> None:
    for position, (width, height) in enumerate(sizes.values()):
        boxes = made.of(position)
        assert 0 < len(boxes) <= SETTINGS.max_boxes
        assert len(np.unique(boxes, axis=0)) == len(boxes)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] < width).all()
        assert (boxes[:, 3] < height).all()
        assert (boxes[:, 2:] - boxes[:, :2] + 1 >= SETTINGS.min_side).all()


def test_a_file_reads_back_whole(
    tmp_path: Path, made: proposals.ProposedBoxes, sizes: dict[str, tuple[int, int]], fingerprint: str
) -> None:
    made.save(tmp_path / "p.npz")
    read = proposals.load(tmp_path / "p.npz", fingerprint, sizes)
    assert (read.ids, read.settings, read.fingerprint) == (made.ids, made.settings, made.fingerprint)
    np.testing.assert_array_equal(read.boxes, made.boxes)
    np.testing.assert_array_equal(read.offsets, made.offsets)


def test_proposals_of_other_images_are_refused(
    tmp_path: Path, made: proposals.ProposedBoxes, sizes: dict[str, tuple[int, int]], fingerprint: str
) -> None:
    path = tmp_path / "p.npz"
    made.save(path)
    renamed = {f"other_{image}": size for image, size in sizes.items()}
    with pytest.raises(InputError, match=rf"{path}: proposals were made for another image list .*{made.ids[0]}"):
        proposals.load(path, fingerprint, renamed)
    shorter = dict(list(sizes.items())[:-1])
    with pytest.raises(InputError, match=f"{len(sizes)} images, the list has {len(shorter)}"):
        proposals.load(path, fingerprint, shorter)
    with pytest.raises(InputError, match="made from other data"):
        proposals.load(path, "0" * 16, sizes)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 5, 10_000), (9, 9, 3, 12), (0, 0, float("nan"), 3)])
def test_a_box_outside_its_image_is_named(
    tmp_path: Path,
    made: proposals.ProposedBoxes,
    sizes: dict[str, tuple[int, int]],
    fingerprint: str,
    box: tuple[float, ...],
) -> None:
    boxes = made.boxes.copy()
    boxes[made.offsets[2]] = box
    dataclasses.replace(made, boxes=boxes).save(tmp_path / "p.npz")
    with pytest.raises(InputError, match=rf"p\.npz: {made.ids[2]}: box \(.*\) is not inside the image"):
        proposals.load(tmp_path / "p.npz", fingerprint, sizes)


def test_offsets_that_do_not_fit_are_refused(
    tmp_path: Path, made: proposals.ProposedBoxes, sizes: dict[str, tuple[int, int]], fingerprint: str
) -> None:
    dataclasses.replace(made, offsets=made.offsets + 1).save(tmp_path / "p.npz")
    with pytest.raises(InputError, match="do not fit together"):
        proposals.load(tmp_path / "p.npz", fingerprint, sizes)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["pickle", "object array", "cut short", "missing"])
def test_a_damaged_or_hostile_file_is_named_and_not_run(
    tmp_path: Path, made: proposals.ProposedBoxes, sizes: dict[str, tuple[int, int]], damage: str
) -> None:
    path, ran = tmp_path / "p.npz", tmp_path / "ran"
    made.save(path)
    if damage == "pickle":
        path.write_bytes(pickle.dumps(_Trap(ran)))
    elif damage == "object array":
        np.savez(path, ids=np.array([_Trap(ran)], dtype=object), settings=np.array([_Trap(ran)], dtype=object))
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"p\.npz: .*run snakemake again"):
        proposals.load(path, made.fingerprint, sizes)
    assert not ran.exists()


def test_overlap_and_recall_by_hand() -> None:
    # 10×10 pixels; shifted by 5: 50 common pixels of 150. The last pixel belongs to the box.
    truth = np.array([[0, 0, 9, 9], [20, 20, 29, 29]], np.float32)
    boxes = np.array([[5, 0, 14, 9], [20, 20, 29, 24]], np.float32)
    np.testing.assert_allclose(overlaps(truth, boxes), [[1 / 3, 0], [0, 1 / 2]])
    assert proposals.recall([boxes], [truth], 0.5) == 0.5
    assert proposals.recall([boxes], [truth], 0.3) == 1.0
    assert proposals.recall([boxes[:0]], [truth], 0.3) == 0.0
    assert proposals.recall([boxes], [truth[:0]], 0.5) == 1.0


def matlab_file(path: Path, images: list[str], boxes: list[np.ndarray]) -> Path:
    """As Fast R-CNN's authors published them: cell arrays, one column, ids and matrices [n, 4]."""
    cells = {"images": np.empty((len(images), 1), object), "boxes": np.empty((len(boxes), 1), object)}
    cells["images"][:, 0], cells["boxes"][:, 0] = images, boxes
    savemat(path, cells, do_compression=True)
    return path


def as_published(made: proposals.ProposedBoxes) -> list[np.ndarray]:
    """Top, left, bottom, right, counted from 1."""
    return [made.of(n)[:, [1, 0, 3, 2]].astype(np.uint16) + 1 for n in range(len(made.ids))]


def test_published_boxes_are_read_as_ours(
    demo_data: SimpleNamespace, tmp_path: Path, made: proposals.ProposedBoxes, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = as_published(made)
    boxes[1] = np.concatenate([boxes[1], boxes[1][:2]])  # some boxes stand there twice
    narrow = np.array([[5, 5, 5, 20], [5, 5, 20, 5]], np.uint16)  # of one pixel in height, in width
    boxes[2] = np.concatenate([narrow, boxes[2]])
    matlab_file(tmp_path / "voc_2007_test.mat", list(made.ids), boxes)
    settings = SETTINGS.model_copy(update={"source": str(tmp_path)})
    recipe.save(settings, tmp_path / "proposals.yaml")
    common = ["--protocol", str(tmp_path / "proposals.yaml"), "--voc", str(demo_data.voc07), "--split", "test"]
    proposals.main([*common, "--out", str(tmp_path / "p.npz")])
    assert f"{tmp_path}/voc_2007_test.mat: 8 images" in capsys.readouterr().out
    read = proposals.open_for(demo_data.voc07, "test", tmp_path / "p.npz")
    file = tmp_path / "voc_2007_test.mat"
    assert (read.ids, read.settings) == (made.ids, {"source": f"sha256:{sha256(file)}"})
    kept = json.loads((tmp_path / "p.source.json").read_text())
    assert kept == {"path": str(file), "stamp": stamp(file)}
    np.testing.assert_array_equal(read.boxes, made.boxes)
    np.testing.assert_array_equal(read.offsets, made.offsets)
    all_of_them = proposals.make(demo_data.voc07, "test", settings.model_copy(update={"max_boxes": 3}), processes=1)
    np.testing.assert_array_equal(all_of_them.boxes, made.boxes)


def test_fault_35_published_boxes_in_another_folder_give_the_same_bytes(
    demo_data: SimpleNamespace, tmp_path: Path, made: proposals.ProposedBoxes
) -> None:
    (tmp_path / "here").mkdir()
    matlab_file(tmp_path / "here/voc_2007_test.mat", list(made.ids), as_published(made))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for number, name in enumerate(("here", "there")):
        settings = SETTINGS.model_copy(update={"source": str(tmp_path / name), "seed": number})
        proposals.make(demo_data.voc07, "test", settings, processes=1).save(tmp_path / f"{name}.npz")
    assert (tmp_path / "here.npz").read_bytes() == (tmp_path / "there.npz").read_bytes()


def test_fault_28_a_published_file_replaced_while_it_is_read(
    demo_data: SimpleNamespace, tmp_path: Path, made: proposals.ProposedBoxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = matlab_file(tmp_path / "voc_2007_test.mat", list(made.ids), as_published(made))
    read = proposals.published

    def replaced(path: Path, sizes: Any) -> Any:
        found = read(path, sizes)
        file.write_bytes(b"other")
        return found

    monkeypatch.setattr(proposals, "published", replaced)
    with pytest.raises(InputError, match=r"voc_2007_test\.mat: was replaced while it was read"):
        proposals.make(demo_data.voc07, "test", SETTINGS.model_copy(update={"source": str(tmp_path)}), processes=1)


def test_published_boxes_of_two_pixels_are_kept(
    demo_data: SimpleNamespace, tmp_path: Path, made: proposals.ProposedBoxes
) -> None:
    boxes = as_published(made)
    boxes[0] = np.array([[5, 7, 6, 8]], np.uint16)
    matlab_file(tmp_path / "voc_2007_test.mat", list(made.ids), boxes)
    read = proposals.make(demo_data.voc07, "test", SETTINGS.model_copy(update={"source": str(tmp_path)}), processes=1)
    assert read.of(0).tolist() == [[6, 4, 7, 5]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ids, boxes: (ids[:-1], boxes[:-1]), r"holds boxes of other images than the list \(7 against 8, "),
        (
            lambda ids, boxes: ([*ids[:-1], "zebra"], boxes),
            r"holds boxes of other images than the list \(8 against 8, ",
        ),
        (
            lambda ids, boxes: ([*ids, ids[0]], [*boxes, boxes[0]]),
            r"holds boxes .* \(9 against 8, 'one of them twice'\)",
        ),
        (lambda ids, boxes: (ids, [boxes[0] * 50, *boxes[1:]]), r"{first}: box \(.*\) is not inside the image"),
        (lambda ids, boxes: (ids, [boxes[0] - boxes[0], *boxes[1:]]), r"{first}: box \(-1, -1, -1, -1\) is not inside"),
        (lambda ids, boxes: (ids, [np.full((1, 4), np.nan), *boxes[1:]]), r"{first}: box \(nan.*\) is not inside"),
        (lambda ids, boxes: (ids, [boxes[0][:, :3], *boxes[1:]]), r"{first}: is no matrix of boxes \[n, 4\]"),
        (lambda ids, boxes: (ids, ["text", *boxes[1:]]), r"{first}: is no matrix of boxes \[n, 4\]"),
    ],
)
def test_published_boxes_that_do_not_fit_are_named(
    demo_data: SimpleNamespace, tmp_path: Path, made: proposals.ProposedBoxes, spoil: Callable[..., Any], message: str
) -> None:
    matlab_file(tmp_path / "voc_2007_test.mat", *spoil(list(made.ids), as_published(made)))
    settings = SETTINGS.model_copy(update={"source": str(tmp_path)})
    with pytest.raises(InputError, match=r"voc_2007_test\.mat: " + message.replace("{first}", made.ids[0])):
        proposals.make(demo_data.voc07, "test", settings, processes=1)


def test_a_file_that_is_not_matlab_s_is_named(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"source": str(tmp_path)})
    path = tmp_path / "voc_2007_test.mat"
    for write, message in (
        (lambda: None, "cannot be read"),
        (lambda: path.write_bytes(pickle.dumps(_Trap(tmp_path / "ran"))), "is no MATLAB file"),
        (lambda: savemat(path, {"all_boxes": np.zeros((2, 4))}), "has no variable images and no boxes"),
    ):
        write()
        with pytest.raises(InputError, match=rf"voc_2007_test\.mat: {message}"):
            proposals.make(demo_data.voc07, "test", settings, processes=1)
    assert not (tmp_path / "ran").exists()
