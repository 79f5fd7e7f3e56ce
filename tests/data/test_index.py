"""The index: order, labels, fingerprint, its file, and data sets that are not as they should be."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from uic_core import recipe
from uic_core.data import index as module
from uic_core.data.check import check
from uic_core.data.dataset import Dataset, Datasets
from uic_core.data.fingerprints import contents
from uic_core.data.index import Index, build_folder, build_miniimagenet, check_images
from uic_core.errors import InputError


def draw(path: Path, seed: int = 0, side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """3 classes of 4 training and 1 val image; a name that sorts differently with and without its slash."""
    root = tmp_path / "imagenet"
    for number, name in enumerate(["cat", "cat-2", "ant"]):
        for image in range(4):
            draw(root / "train" / name / f"{name}_{image}.JPEG", seed=10 * number + image)
        draw(root / "val" / name / "v.JPEG", seed=number)
    return root


@pytest.fixture
def miniimagenet(tmp_path: Path) -> Path:
    root = tmp_path / "mini"
    lines = ["filename,label"]
    for number in range(5):
        for image in range(20):
            name = f"n{4 - number}{image:04}.jpg"
            draw(root / "images" / name, seed=number, side=16)
            lines.append(f"{name},n{4 - number}")
    (root / "test.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def protocol(tmp_path: Path, imagenet: Path, miniimagenet: Path) -> Path:
    """The folder of imagenet.yaml and miniimagenet.yaml, which match the two fixtures."""
    unused = {"root": "unused", "train_images": 1, "val_images": 1}
    datasets = Datasets.model_validate(
        {
            "generated": False,
            "seed": 0,
            "check_files": True,
            "folders": {
                "imagenet": {"root": str(imagenet), "classes": 3, "train_images": 12, "val_images": 3, "source": "x"}
            },
            "voc07": {"root": "unused", "trainval_images": 1, "test_images": 1},
            "voc_segmentation": unused | {"sbd": "", "train_list": "train", "val_list": "val"},
            "miniimagenet": {
                "root": str(miniimagenet),
                "train_classes": 1,
                "val_classes": 1,
                "test_classes": 5,
                "images_per_class": 20,
            },
            "cache": {"format": "none", "side": 64, "root": "unused"},
        }
    )
    for name in ("imagenet", "miniimagenet"):
        recipe.save(datasets.one(name), tmp_path / f"{name}.yaml")
    return tmp_path


def run(protocol: Path, dataset: str, out: Path) -> None:
    name, split = dataset.split("_")
    module.main(["--dataset", str(protocol / f"{name}.yaml"), "--split", split, "--out", str(out)])


# ---- what an index says ---------------------------------------------------------------------------------------------


def test_fault_56_a_split_saved_by_a_spreadsheet_is_read(miniimagenet: Path, seen):
    before = build_miniimagenet(miniimagenet, "test")
    table = miniimagenet / "test.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_text().replace("\n", "\r\n").encode())
    after = build_miniimagenet(miniimagenet, "test")
    seen(f"{len(after)} images are read")
    assert (after.paths.tolist(), after.labels.tolist()) == (before.paths.tolist(), before.labels.tolist())


def test_imagenet_is_listed_in_path_order_with_the_folders_labels(imagenet: Path):
    index = build_folder(imagenet, "train", "imagenet")
    assert index.name == "imagenet_train"
    assert len(index) == 12
    assert index.classes == ("ant", "cat", "cat-2")
    assert index.paths.tolist() == sorted(index.paths.tolist())
    assert index.labels.dtype == np.int32
    for position, path in enumerate(index.paths):
        assert index.classes[index.labels[position]] == Path(str(path)).parent.name
        assert index.file(position).is_file()


def test_miniimagenet_is_listed_from_its_csv(miniimagenet: Path):
    index = build_miniimagenet(miniimagenet, "test")
    assert (index.name, len(index), index.classes) == ("miniimagenet_test", 100, ("n0", "n1", "n2", "n3", "n4"))
    named = [Path(str(path)).name[:2] for path in index.paths]
    assert named == [index.classes[label] for label in index.labels]
    assert np.bincount(index.labels).tolist() == [20] * 5


def test_the_fingerprint_follows_path_label_and_size_and_nothing_else(imagenet: Path):
    def fingerprint() -> str:
        return build_folder(imagenet, "train", "imagenet").fingerprint

    first = fingerprint()
    assert len(first) == 16
    int(first, 16)
    image = imagenet / "train/cat/cat_0.JPEG"
    os.utime(image, (0, 0))
    assert fingerprint() == first
    image.rename(image.with_name("cat_9.JPEG"))
    renamed = fingerprint()
    image.with_name("cat_9.JPEG").rename(image)
    with open(image, "ab") as file:
        file.write(b"\0")
    larger = fingerprint()
    (imagenet / "train/cat/cat_1.JPEG").rename(imagenet / "train/ant/cat_1.JPEG")
    assert len({first, renamed, larger, fingerprint()}) == 4


def test_a_subset_is_a_seeded_sample_in_index_order(imagenet: Path):
    index = build_folder(imagenet, "train", "imagenet")
    part = index.subset(5, seed=1)
    assert len(part) == len(part.labels) == 5
    assert part.paths.tolist() == sorted(part.paths.tolist())
    known = dict(zip(index.paths.tolist(), index.labels.tolist(), strict=True))
    assert [known[path] for path in part.paths.tolist()] == part.labels.tolist()
    assert part.paths.tolist() == index.subset(5, seed=1).paths.tolist()
    assert part.fingerprint == index.subset(5, seed=1).fingerprint
    others = [index.subset(5, seed=2), index.subset(6, seed=1), index]
    assert part.fingerprint not in [other.fingerprint for other in others]
    assert set(part.paths) <= set(index.subset(8, seed=1).paths)  # first n of one shuffle
    assert index.subset(0, seed=1) is index
    with pytest.raises(InputError, match="13 images wanted, the index has 12"):
        index.subset(13, seed=1)


# ---- its file -------------------------------------------------------------------------------------------------------


def test_save_and_load_keep_everything_and_equal_input_gives_equal_bytes(imagenet: Path, tmp_path: Path):
    index = build_folder(imagenet, "train", "imagenet")
    index.save(tmp_path / "a.npz")
    build_folder(imagenet, "train", "imagenet").save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:  # numpy writes no clock time into the archive
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
    loaded = Index.load(tmp_path / "a.npz")
    for field in ("name", "root", "classes", "fingerprint"):
        assert getattr(loaded, field) == getattr(index, field)
    for field in ("paths", "labels"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(index, field))
        assert getattr(loaded, field).dtype == getattr(index, field).dtype


def stored(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def test_an_index_of_an_earlier_version_is_read(imagenet: Path, tmp_path: Path):
    """It held an array of unicode. Names are those of anybody's files."""
    index = build_folder(imagenet, "train", "imagenet")
    names = ["train/a/..b.JPEG", "train/a/b..", "train/a/…/猫.JPEG", "train/a b/c.JPEG"]
    index = replace(index, paths=np.array(names, np.dtypes.StringDType()), labels=np.zeros(4, np.int32))
    index.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as arrays:
        old = dict(arrays) | {"paths": np.array(names)}
    np.savez(tmp_path / "old.npz", **old)
    for file in ("new", "old"):
        found = Index.load(tmp_path / f"{file}.npz").paths
        assert found.tolist() == names
        assert found.dtype == index.paths.dtype


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"paths": np.array(["../../etc/passwd", "b"])}, "'../../etc/passwd' leaves the data set's folder"),
        ({"paths": np.array(["/etc/passwd", "b"])}, "'/etc/passwd' leaves the data set's folder"),
        *(
            ({"paths": stored(text)}, f"'{name}' leaves the data set's folder")
            for text, name in {
                "a\0../b": "../b",
                "a\0x/../b": "x/../b",
                "x/..\0b": "x/..",
                "..\0b": "..",
                "a\0/b": "/b",
                "a\0": "",
                "\0b": "",
            }.items()
        ),
        ({"paths": stored("a\0b\0c")}, "3 paths and 2 labels"),
        ({"paths": np.frombuffer(b"a\0\xff", np.uint8)}, "is not an index"),
        ({"paths": np.array(["a"])}, "is not an index"),
        ({"paths": np.array([], "U1"), "labels": np.array([], np.int32)}, "is not an index"),
        ({"labels": np.array([0, 2], np.int32)}, "labels outside 0…1"),
        ({"labels": np.array([0.0, 1.0])}, "is not an index"),
        ({"labels": None}, "is not an index"),
        ({"paths": np.array([Bomb(), "b"], object)}, "is not an index"),
    ],
)
def test_a_foreign_or_hostile_index_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, reason: str
):
    monkeypatch.chdir(tmp_path)
    arrays = {
        "name": np.array("x"),
        "root": np.array("."),
        "paths": np.frombuffer(b"a\0b", np.uint8),
        "labels": np.array([0, 1], np.int32),
        "classes": np.array(["a", "b"]),
        "fingerprint": np.array("0" * 16),
    }
    np.savez("bad.npz", **{key: value for key, value in (arrays | change).items() if value is not None})
    with pytest.raises(InputError) as caught:
        Index.load(Path("bad.npz"))
    assert str(caught.value).startswith("bad.npz: ")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("delete bad.npz, then make it alone: snakemake … bad.npz")
    assert not Path("exploded").exists()


def test_an_index_keeps_the_crc_of_every_file_and_refuses_senseless_ones(imagenet: Path, tmp_path: Path):
    index = build_folder(imagenet, "train", "imagenet")
    crcs = check_images(index)
    for length, dtype in ((12, np.uint32), (11, np.uint32), (12, np.float32)):
        index.save(tmp_path / f"{length}{np.dtype(dtype)}.npz", crcs[:length].astype(dtype))
    np.testing.assert_array_equal(contents(tmp_path / "12uint32.npz"), crcs)
    assert crcs.tolist() == [zlib.crc32(Path(file).read_bytes()) for file in index.files()]
    index.save(tmp_path / "earlier.npz")
    assert contents(tmp_path / "earlier.npz") is None
    for name in ("11uint32", "12float32", "missing"):
        with pytest.raises(InputError, match=rf"{name}\.npz: is not an index"):
            contents(tmp_path / f"{name}.npz")


def test_a_missing_or_damaged_index_is_named(imagenet: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"no\.npz: there is no such index; run snakemake to make it"):
        Index.load(tmp_path / "no.npz")
    build_folder(imagenet, "train", "imagenet").save(tmp_path / "whole.npz")
    data = (tmp_path / "whole.npz").read_bytes()
    for size in (0, 1, 20, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.npz").write_bytes(data[:size])
        with pytest.raises(InputError, match=r"cut\.npz: is not an index"):
            Index.load(tmp_path / "cut.npz")
    damaged = bytearray(data)
    damaged[100:110] = b"0123456789"
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged\.npz: is not an index"):
        Index.load(tmp_path / "damaged.npz")


# ---- the stage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "images"), [("imagenet_train", 12), ("imagenet_val", 3), ("miniimagenet_test", 100)]
)
def test_the_stage_writes_the_index(
    protocol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dataset: str, images: int
):
    out = tmp_path / "index" / f"{dataset}.npz"
    run(protocol, dataset, out)
    index = Index.load(out)
    assert (index.name, len(index)) == (dataset, images)
    assert capsys.readouterr().out.startswith(f"{dataset}: {images} images, {len(index.classes)} classes, fingerprint ")
    assert sorted(os.listdir(out.parent)) == [f"{dataset}.files.npy", f"{dataset}.first.json", out.name]


def test_all_unusable_images_are_listed_at_once_and_nothing_is_written(
    protocol: Path, imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cut = imagenet / "train/ant/ant_1.JPEG"
    cut.write_bytes(cut.read_bytes()[:-300])
    (imagenet / "train/cat/cat_2.JPEG").write_text("<html>not found</html>")
    (imagenet / "train/cat/cat_3.JPEG").write_bytes(b"")
    folder = imagenet / "train/cat-2/cat-2_0.JPEG"
    folder.unlink()
    folder.mkdir()
    with pytest.raises(SystemExit) as exit:
        run(protocol, "imagenet_train", tmp_path / "out.npz")
    assert exit.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0] == "error: datasets.folders.imagenet.root: imagenet_train: 4 of 12 images are unusable:"
    named = [line.split(": ", 1)[0] for line in lines[1:]]
    assert named == [str(path) for path in (cut, folder, *(imagenet / f"train/cat/cat_{i}.JPEG" for i in (2, 3)))]
    assert "truncated" in lines[1]
    assert all(line.endswith("fetch it again") for line in lines[1:])
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("last", ["train", "val"])
def test_validation_images_that_are_training_images_are_refused(
    protocol: Path, imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], last: str
):
    """Copies, under any names. Few may be: real data sets have some. The index that is made last sees them."""

    def copy(name: str, train: str) -> None:
        (imagenet / "val" / name / "v.JPEG").unlink()
        shutil.copy(imagenet / "train" / train, imagenet / "val" / name / "v.JPEG")

    first = {"train": "val", "val": "train"}[last]
    for number, name in enumerate(["cat", "cat-2", "ant"]):
        draw(imagenet / "val" / name / "v.JPEG", seed=100 + number)
    copy("cat", "ant/ant_0.JPEG")
    for split in (first, last):
        run(protocol, f"imagenet_{split}", tmp_path / f"imagenet_{split}.npz")
    copy("ant", "ant/ant_1.JPEG")
    for split in (first, last):
        (tmp_path / f"imagenet_{split}.npz").unlink()
    run(protocol, f"imagenet_{first}", tmp_path / f"imagenet_{first}.npz")
    with pytest.raises(SystemExit):
        run(protocol, f"imagenet_{last}", tmp_path / f"imagenet_{last}.npz")
    assert capsys.readouterr().err == (
        "error: datasets.folders.imagenet.root: 2 images are in val and in train, byte for byte, of 3; at most half "
        "may be: give val images of its own\n"
    )
    assert not (tmp_path / f"imagenet_{last}.npz").exists()


def test_an_index_of_images_that_were_replaced_since_is_not_compared(protocol: Path, imagenet: Path, tmp_path: Path):
    """The two folders change places: val is what train was, and train will be listed anew."""
    run(protocol, "imagenet_train", tmp_path / "imagenet_train.npz")
    shutil.rmtree(imagenet / "val")
    for name in ("cat", "cat-2", "ant"):
        (imagenet / "val" / name).mkdir(parents=True)
        (imagenet / "train" / name / f"{name}_0.JPEG").rename(imagenet / "val" / name / "v.JPEG")
        draw(imagenet / "train" / name / f"{name}_0.JPEG", seed=200)
    for split in ("val", "train"):
        run(protocol, f"imagenet_{split}", tmp_path / f"imagenet_{split}.npz")


def test_one_process_and_several_find_the_same(imagenet: Path):
    (imagenet / "train/cat/cat_2.JPEG").write_text("no image")
    index = build_folder(imagenet, "train", "imagenet")
    messages = []
    for processes in (1, 2):
        with pytest.raises(InputError) as caught:
            check_images(index, processes)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_an_unusable_image_of_miniimagenet_is_named_with_its_key(
    protocol: Path, miniimagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = miniimagenet / "images" / "n10003.jpg"
    bad.write_bytes(b"GIF89a")
    with pytest.raises(SystemExit) as exit:
        run(protocol, "miniimagenet_test", tmp_path / "out.npz")
    assert exit.value.code == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first == "error: datasets.miniimagenet.root: miniimagenet_test: 1 of 100 images are unusable:"
    assert second.startswith(f"{bad}: cannot be read (")
    assert second.endswith("; fetch it again")


@pytest.mark.parametrize(
    ("dataset", "what"), [("imagenet_train", "11 images, expected 12"), ("imagenet_val", "2 classes")]
)
def test_other_sizes_than_the_configs_are_refused(
    protocol: Path, imagenet: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: str, what: str
):
    (imagenet / "train/cat/cat_2.JPEG").unlink()
    (imagenet / "val/cat/v.JPEG").unlink()
    (imagenet / "val/cat").rmdir()
    with pytest.raises(SystemExit):
        run(protocol, dataset, tmp_path / "out.npz")
    message = capsys.readouterr().err
    assert f"error: datasets.folders.imagenet.root: {imagenet}: {dataset} has {what}" in message
    assert "correct datasets.folders.imagenet in the config" in message


def test_wrong_folders_are_named(imagenet: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere/train: cannot be read \(No such file or directory\)"):
        build_folder(tmp_path / "nowhere", "train", "imagenet")
    (imagenet / "test").mkdir()
    with pytest.raises(InputError, match=r"test: holds no class folders; expected .*<class>/<image>"):
        build_folder(imagenet, "test", "imagenet")
    (imagenet / "train/loose.JPEG").write_bytes(b"")
    (imagenet / "train/void").mkdir()
    (imagenet / "train/zero").mkdir()
    with pytest.raises(InputError) as caught:
        build_folder(imagenet, "train", "imagenet")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(imagenet / "train" / name) for name in ("loose.JPEG", "void", "zero")
    ]
    assert "outside the class folders" in lines[0]
    assert "without images" in lines[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "test.csv:1: the first line must be 'filename,label'"),
        ("filename,label\n", "test.csv: lists no image"),
        ("name,class\na.jpg,b\n", "test.csv:1: the first line must be 'filename,label'"),
        ("filename,label\n../../a.jpg,n0\n", ":2: expected the name of a file in images/"),
        ("filename,label\nn00000.jpg\n", ":2: has 1 fields, not 2"),
        ("filename,label\nn00000.jpg,\n", ":2: expected the name"),
        ("filename,label\nn00000.jpg,n0\nn00000.jpg,n1\n", ":3: n00000.jpg stands twice"),
        ("filename,label\nnone.jpg,n0\nn00000.jpg,n0\n", "1 of 2 images are unusable"),
    ],
)
def test_a_wrong_split_file_is_named_with_its_line(miniimagenet: Path, text: str, reason: str):
    (miniimagenet / "test.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        build_miniimagenet(miniimagenet, "test")
    assert reason in str(caught.value)
    with pytest.raises(InputError, match=r"train\.csv: cannot be read"):
        build_miniimagenet(miniimagenet, "train")


def test_reading_an_index_imports_no_torch():
    code = "import sys, uic_core.data.index, uic_core.data.reader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(module.__file__).parents[2]).returncode == 0


def test_images_without_class_folders_are_one_class(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in (3, 1, 2):
        Image.new("RGB", (70, 80), (number, 0, 0)).save(tmp_path / "train" / f"{number}.jpg")
    written = {"root": str(tmp_path), "classes": 0, "train_images": 3, "val_images": 0, "source": ""}
    dataset = Dataset.model_validate({"name": "photos", "generated": False, "seed": 0, "section": written})
    index = module.build(dataset, "train")
    assert (index.name, index.classes, index.labels.tolist()) == ("photos_train", ("unlabelled",), [0, 0, 0])
    assert index.paths.tolist() == ["train/1.jpg", "train/2.jpg", "train/3.jpg"]
    assert "train: 3 images" in check(dataset)
    (tmp_path / "train" / "cats").mkdir()
    with pytest.raises(InputError, match=r"train/cats: is a folder, but datasets\.folders\.photos\.classes is 0"):
        module.build(dataset, "train")
    with pytest.raises(InputError, match=r"datasets\.folders\.photos\.root: \S+/train/cats: is a folder"):
        check(dataset)


# ---- folders as people have them ------------------------------------------------------------------------------------


def test_fault_55_files_of_operating_systems_are_passed_over(imagenet: Path, protocol: Path, tmp_path: Path):
    before = build_folder(imagenet, "train", "imagenet")
    for folder in (imagenet, imagenet / "train", imagenet / "train" / "cat", imagenet / "val"):
        for name in (".DS_Store", "Thumbs.db", "._cat_0.JPEG", "desktop.ini"):
            (folder / name).write_bytes(b"\0")
        (folder / "__MACOSX").mkdir()
    assert build_folder(imagenet, "train", "imagenet").fingerprint == before.fingerprint
    assert "train: 12 images" in check(recipe.load(Dataset, protocol / "imagenet.yaml"))
    run(protocol, "imagenet_train", tmp_path / "out.npz")


@pytest.mark.parametrize("place", ["train/n01440764.tar", "train/cat/cat.tar"])
def test_fault_55_a_stray_archive_is_named_by_check_and_index(imagenet: Path, protocol: Path, place: str, seen):
    (imagenet / place).write_bytes(b"\0")
    with pytest.raises(InputError) as caught:
        check(recipe.load(Dataset, protocol / "imagenet.yaml"))
    seen(caught.value)
    assert place.removeprefix("train/") in str(caught.value)
    with pytest.raises(InputError, match=re.escape(str(imagenet / place))):
        check_images(build_folder(imagenet, "train", "imagenet"))


def test_fault_55_thousands_of_missing_images_are_counted_and_the_first_named(miniimagenet: Path, seen):
    lines = [f"none{number:05}.jpg,n0" for number in range(60_000)]
    with open(miniimagenet / "test.csv", "a") as table:
        table.write("\n".join(lines))
    with pytest.raises(InputError) as caught:
        build_miniimagenet(miniimagenet, "test")
    seen(caught.value)
    told = str(caught.value).splitlines()
    assert told[0] == "miniimagenet_test: 60000 of 60100 images are unusable:"
    assert told[1].startswith(f"{miniimagenet}/images/none00000.jpg: cannot be read (No such file or directory)")
    assert (len(told), told[-1]) == (12, "… and 59,990 more")


def test_fault_49_a_name_that_is_no_utf8_and_links_in_a_loop_are_named(
    imagenet: Path, protocol: Path, tmp_path: Path, seen, capsys: pytest.CaptureFixture[str]
):
    cat = imagenet / "train" / "cat"
    for make, told in (
        (lambda: os.close(os.open(bytes(cat) + b"/caf\xe9.JPEG", os.O_CREAT)), r"cat/caf\udce9.JPEG"),
        (lambda: os.mkdir(bytes(imagenet) + b"/train/caf\xe9"), r"train/caf\udce9"),
        (lambda: (cat / "loop").symlink_to(".."), "cat/loop"),
        (lambda: (cat / "itself").symlink_to("itself"), "cat/itself"),
        (lambda: (imagenet / "train" / "itself").symlink_to("itself"), "itself"),
    ):
        make()
        for work in (
            lambda: check(recipe.load(Dataset, protocol / "imagenet.yaml")),
            lambda: check_images(build_folder(imagenet, "train", "imagenet")),
        ):
            with pytest.raises(InputError) as caught:
                work()
            seen(caught.value)
            str(caught.value).encode()  # can be printed and kept
            assert told in str(caught.value)
        with pytest.raises(SystemExit):
            run(protocol, "imagenet_train", tmp_path / "out.npz")
        assert capsys.readouterr().err.startswith("error: datasets.folders.imagenet.root: ")
        shutil.rmtree(imagenet)
        for number, name in enumerate(["cat", "cat-2", "ant"]):
            for image in range(4):
                draw(imagenet / "train" / name / f"{name}_{image}.JPEG", seed=10 * number + image)
            draw(imagenet / "val" / name / "v.JPEG", seed=number)


def test_fault_62_the_index_refuses_a_stretched_image(imagenet: Path, protocol: Path, tmp_path: Path, capsys, seen):
    image = imagenet / "train/cat/cat_2.JPEG"
    Image.new("RGB", (1, 50_000)).save(image)
    with pytest.raises(SystemExit):
        run(protocol, "imagenet_train", tmp_path / "out.npz")
    message = capsys.readouterr().err
    seen(message)
    assert f"{image}: is 1×50000 pixels" in message
    assert not (tmp_path / "out.npz").exists()
