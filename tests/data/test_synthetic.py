from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from uic_core import recipe
from uic_core.data import reader, shapes, synthetic, voc
from uic_core.data.dataset import Datasets
from uic_core.errors import InputError

ROOT = Path(__file__).parents[2]


def at(root: Path, seed: int = 0, classes: int = 4, train_list: str = "train") -> Datasets:
    """A datasets section with everything under one root, tiny."""
    value = {
        "generated": True,
        "seed": seed,
        "check_files": True,
        "folders": {
            "imagenet": {
                "root": str(root / "imagenet"),
                "classes": classes,
                "train_images": 8,
                "val_images": 4,
                "source": "",
            }
        },
        "voc07": {"root": str(root / "voc"), "trainval_images": 3, "test_images": 2},
        "voc_segmentation": {
            "root": str(root / "voc"),
            "sbd": "",
            "train_list": train_list,
            "train_images": 2,
            "val_list": "val",
            "val_images": 1,
        },
        "miniimagenet": {
            "root": str(root / "mini"),
            "train_classes": 1,
            "val_classes": 1,
            "test_classes": 5,
            "images_per_class": 20,
        },
        "cache": {"format": "none", "side": 64, "root": str(root / "cache")},
    }
    return recipe.parse(Datasets, value, "test")


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["imagenet", "voc07", "voc_segmentation"])
def test_same_seed_same_bytes_whatever_the_processes(tmp_path: Path, name: str) -> None:
    assert synthetic.generate(at(tmp_path / "a").one(name))
    assert synthetic.generate(at(tmp_path / "b").one(name), processes=2)
    assert synthetic.generate(at(tmp_path / "c", seed=1).one(name))
    first, second, other = (digests(tmp_path / folder) for folder in "abc")
    assert first == second
    pictures = [path for path in first if path.endswith((".jpg", ".JPEG"))]
    assert pictures
    assert all(first[path] != other[path] for path in pictures)


def test_pictures_do_not_depend_on_how_many_there_are(demo_data: SimpleNamespace, tmp_path: Path) -> None:
    synthetic.generate(at(tmp_path).one("voc07"))
    ids = voc.read_list(tmp_path / "voc", "trainval")
    for image in ids:
        ours, theirs = (voc.image_path(root, image) for root in (tmp_path / "voc", demo_data.voc07))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_second_call_makes_nothing(tmp_path: Path) -> None:
    datasets = at(tmp_path)
    for name in ("voc07", "voc_segmentation"):  # two data sets under one root, as in the real devkit
        assert synthetic.generate(datasets.one(name))
    before = times(tmp_path)
    for name in ("voc07", "voc_segmentation"):
        assert not synthetic.generate(datasets.one(name))
    assert times(tmp_path) == before


def test_a_damaged_or_outdated_data_set_is_made_again(tmp_path: Path) -> None:
    synthetic.generate(at(tmp_path).one("imagenet"))
    before = digests(tmp_path)
    victim = next((tmp_path / "imagenet").rglob("*.JPEG"))
    victim.write_bytes(victim.read_bytes()[:-10])
    assert synthetic.generate(at(tmp_path).one("imagenet"))
    assert digests(tmp_path) == before
    victim.unlink()
    assert synthetic.generate(at(tmp_path).one("imagenet"))
    assert digests(tmp_path) == before
    assert synthetic.generate(at(tmp_path, classes=2).one("imagenet"))
    assert len(list((tmp_path / "imagenet" / "train").iterdir())) == 2


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    photo = tmp_path / "imagenet" / "train" / "cats" / "mine.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_text("precious")
    with pytest.raises(InputError, match=r"holds files that were not generated here .* data set imagenet another root"):
        synthetic.generate(at(tmp_path).one("imagenet"))
    assert digests(tmp_path) == {"imagenet/train/cats/mine.jpg": hashlib.sha256(b"precious").hexdigest()}


@pytest.mark.parametrize("classes", [4, 2], ids=["same settings", "other settings"])
def test_a_foreign_file_in_a_generated_set_is_refused_and_left_alone(tmp_path: Path, classes: int) -> None:
    synthetic.generate(at(tmp_path).one("imagenet"))
    photo = tmp_path / "imagenet" / "train" / "mine.jpg"
    photo.write_text("precious")
    before = digests(tmp_path)
    with pytest.raises(InputError, match=r"1 files in it were not generated here, the first is train/mine\.jpg"):
        synthetic.generate(at(tmp_path, classes=classes).one("imagenet"))
    assert digests(tmp_path) == before


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    synthetic.generate(at(tmp_path).one("voc07"))
    manifest = tmp_path / "voc" / "VOC2007" / synthetic.MANIFEST
    manifest.write_text("{")
    with pytest.raises(InputError, match=r"generated\.json: is damaged .* move .*VOC2007 away"):
        synthetic.generate(at(tmp_path).one("voc07"))


def test_a_killed_run_leaves_nothing_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = at(tmp_path)
    drawn = itertools.count()

    def killed(*_: object) -> dict[str, bytes]:
        if next(drawn) == 1:
            raise KeyboardInterrupt
        return {"JPEGImages/half.jpg": b"half"}

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_draw_voc07", killed)
        with pytest.raises(KeyboardInterrupt):
            synthetic.generate(datasets.one("voc07"))
    assert not (tmp_path / "voc" / "VOC2007").exists()
    stale = tmp_path / "voc" / ".VOC2007.partial"  # what SIGKILL would leave
    stale.mkdir(parents=True, exist_ok=True)
    (stale / "half.jpg").write_text("half")
    assert synthetic.generate(datasets.one("voc07"))
    assert os.listdir(tmp_path / "voc") == ["VOC2007"]
    assert not list((tmp_path / "voc").rglob("half.jpg"))


def test_imagenet_layout_and_its_odd_images(demo_data: SimpleNamespace) -> None:
    root = demo_data.imagenet
    for split, count in (("train", 12), ("val", 3)):
        found = {folder.name: len(list(folder.glob("*.JPEG"))) for folder in (root / split).iterdir()}
        assert found == {f"n{number:08d}": count for number in range(1, 5)}
    modes, orientations, sizes = set(), set(), set()
    for path in (root / "train").rglob("*.JPEG"):
        with Image.open(path) as image:
            modes.add(image.mode)
            orientations.add(image.getexif().get(0x0112, 1))
            sizes.add(image.size)
            assert 72 <= min(image.size) <= max(image.size) <= 128
    assert modes == {"RGB", "L", "CMYK"}
    assert orientations == {1, 6}
    assert len(sizes) > 20


def test_grey_images_come_from_every_class(tmp_path: Path) -> None:
    section = at(tmp_path).folders["imagenet"].model_copy(update={"classes": 20, "train_images": 2000})
    drawing = synthetic.plan(at(tmp_path).model_copy(update={"folders": {"imagenet": section}}).one("imagenet"))
    grey = [picture.numbers for picture in drawing.pictures if picture.variant == "grey"]
    assert len(set(grey)) == 20
    assert 40 < len(grey) < 80


def test_a_turned_image_is_upright_once_read(tmp_path: Path) -> None:
    """The turned picture is the plain one, but for JPEG's rounding."""
    plain = synthetic.Picture("x.JPEG", (3, 5), (0,))
    turned = synthetic.Picture("x.JPEG", (3, 5), (0,), "turned")
    pixels = []
    for picture in (plain, turned):
        path = tmp_path / f"{picture.variant}.JPEG"
        path.write_bytes(synthetic._draw(picture)["x.JPEG"])
        pixels.append(np.asarray(reader.read_rgb(path)).astype(int))
    assert pixels[0].shape == pixels[1].shape
    assert np.abs(pixels[0] - pixels[1]).mean() < 6


def test_miniimagenet_splits_share_no_class(demo_data: SimpleNamespace) -> None:
    classes, files = {}, set()
    for split in ("train", "val", "test"):
        with open(demo_data.miniimagenet / f"{split}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert set(rows[0]) == {"filename", "label"}
        classes[split] = {row["label"] for row in rows}
        files |= {row["filename"] for row in rows}
        assert len(rows) == 20 * len(classes[split])
    assert [len(names) for names in classes.values()] == [1, 1, 5]
    assert len(set.union(*classes.values())) == 7
    assert files == {path.name for path in (demo_data.miniimagenet / "images").iterdir()}
    for name in sorted(files)[:5]:
        with Image.open(demo_data.miniimagenet / "images" / name) as image:
            assert image.size == (84, 84)


def test_voc_shows_every_class_in_both_splits_and_some_difficult_objects(demo_data: SimpleNamespace) -> None:
    datasets = demo_data.datasets.model_copy(
        update={"voc07": demo_data.datasets.voc07.model_copy(update={"trainval_images": 60, "test_images": 20})}
    )
    drawing = synthetic.plan(datasets.one("voc07"))
    scenes = {picture.path: synthetic._scene(picture) for picture in drawing.pictures}
    for split in ("trainval", "test"):
        listed = drawing.texts[f"ImageSets/Main/{split}.txt"].split()
        shown = {thing.number for image in listed for thing, difficult in scenes[image] if not difficult}
        assert shown == set(range(20))
    flags = [difficult for scene in scenes.values() for _, difficult in scene]
    assert 0.03 < np.mean(flags) < 0.2
    assert {len(scene) for scene in scenes.values()} == {1, 2, 3}
    assert not any(scene[0][1] for scene in scenes.values())


def test_boxes_hold_exactly_what_is_seen(demo_data: SimpleNamespace) -> None:
    drawing = synthetic.plan(demo_data.datasets.one("voc07"))
    for picture in drawing.pictures:
        _, seen = synthetic._draw_scene(picture)
        annotation = voc.read_annotation(voc.annotation_path(demo_data.voc07, picture.path))
        assert len(annotation.labels) == len(seen)
        for (left, top, right, bottom), mask in zip(annotation.boxes.astype(int), seen, strict=True):
            inner = mask[top : bottom + 1, left : right + 1]
            assert inner.sum() == mask.sum() > 0
            assert inner[0].any()
            assert inner[-1].any()
            assert inner[:, 0].any()
            assert inner[:, -1].any()


def test_mask_borders_part_objects_from_all_else(demo_data: SimpleNamespace) -> None:
    """Pixels of two classes never touch: the void band lies between them. Each object keeps pixels of its own."""
    drawing = synthetic.plan(demo_data.datasets.one("voc_segmentation"))
    listed, _ = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    for picture in drawing.pictures:
        mask = voc.read_mask(listed.mask(picture.path)).astype(int)
        for axis in (0, 1):
            first, second = np.delete(mask, -1, axis), np.delete(mask, 0, axis)
            assert ((first == second) | (first == 255) | (second == 255)).all()
        expected = {1 + thing.number for thing, difficult in synthetic._scene(picture) if not difficult}
        assert expected <= set(np.unique(mask).tolist())


def test_masks_carry_voc_s_palette(demo_data: SimpleNamespace) -> None:
    train, _ = voc.segmentation_lists(demo_data.voc_segmentation, "", "train", "val")
    with Image.open(train.mask(train.ids()[0])) as image:
        assert image.mode == "P"
        palette = np.array(image.getpalette()).reshape(-1, 3).tolist()
    # as printed in VOC's documentation: background, aeroplane, person, tvmonitor, border
    assert [palette[value] for value in (0, 1, 15, 20, 255)] == [
        [0, 0, 0],
        [128, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_every_kind_is_another_pair() -> None:
    kinds = [shapes.kind(number) for number in range(shapes.KINDS)]
    assert len(set(kinds)) == shapes.KINDS == 80
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize("number", range(0, 80, 7))
def test_covers_are_one_piece_about_as_large_as_asked(number: int) -> None:
    _, covers = shapes.draw(np.random.default_rng(number), 100, 90, [shapes.Thing(number, 50, 45, 30)])
    assert ndimage.label(covers[0], np.ones((3, 3)))[1] == 1
    rows, columns = np.flatnonzero(covers[0].any(axis=1)), np.flatnonzero(covers[0].any(axis=0))
    for extent in (np.ptp(rows), np.ptp(columns)):
        assert 35 < extent < 75  # 60 pixels, give or take stretch, tilt and an outline narrower than it is high


def test_colour_alone_tells_nothing_and_texture_does() -> None:
    """Nearest class mean: at chance (1/4) on mean colour, far above on the balance of edges across and down."""
    random = np.random.default_rng(0)
    labels = np.arange(160) % 4
    colours, edges = [], []
    for label in labels.tolist():
        thing = shapes.Thing(label, *random.uniform(40, 56, 2), random.uniform(28, 40))
        image, _ = shapes.draw(random, 96, 96, [thing], hint=0.35)
        colours.append(image.mean(axis=(0, 1)))
        grey = image.mean(axis=2)
        edges.append(np.log([abs(np.diff(grey, axis=1)).mean() / abs(np.diff(grey, axis=0)).mean()]))
    accuracy = []
    for features in (np.array(colours), np.array(edges)):
        means = np.stack([features[:80][labels[:80] == label].mean(axis=0) for label in range(4)])
        nearest = ((features[80:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        accuracy.append((nearest == labels[80:]).mean())
    assert accuracy[0] < 0.4
    assert accuracy[1] > 0.55


def test_settings_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"imagenet: classes: 81, but .* at most 80 classes"):
        synthetic.plan(at(tmp_path, classes=81).one("imagenet"))
    with pytest.raises(InputError, match=r"datasets\.voc_segmentation\.train_list: '\.\./train' is no plain name"):
        synthetic.plan(at(tmp_path, train_list="../train").one("voc_segmentation"))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_no_room_is_named_and_nothing_stays(tmp_path: Path, processes: str) -> None:
    """A limit on the size of files is what a test can have of a full disk without being root."""
    recipe.save(at(tmp_path).one("voc_segmentation"), tmp_path / "voc_segmentation.yaml")
    program = f"""
import resource, signal
from uic_core.data import synthetic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
synthetic.main(["--dataset", "voc_segmentation.yaml", "--threads", "{processes}"])
"""
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=path)
    assert ended.returncode == 2
    assert re.search(r"error: \S+/VOC2012: cannot be written \(File too large\); make room and run again", ended.stderr)
    assert os.listdir(tmp_path / "voc") == []


def test_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.save(at(tmp_path).one("voc_segmentation"), tmp_path / "voc_segmentation.yaml")
    command = ["--dataset", str(tmp_path / "voc_segmentation.yaml")]
    synthetic.main(command)
    assert capsys.readouterr().out.endswith("VOC2012: made\n")
    synthetic.main(command)
    assert capsys.readouterr().out.endswith("VOC2012: already complete\n")
    manifest = json.loads((tmp_path / "voc" / "VOC2012" / synthetic.MANIFEST).read_text())
    assert manifest["settings"]["dataset"] == "voc_segmentation"
    (tmp_path / "voc" / "VOC2012" / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit) as caught:
        synthetic.main(command)
    assert caught.value.code == 2
    assert "mine.txt; move them away" in capsys.readouterr().err
