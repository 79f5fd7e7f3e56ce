"""Stage `check`: checks that a data set is complete before any work is spent on it.

ImageNet's files are only listed and counted, so the check is quick (the stage `index` decodes every image). Every
error names the config key, the path, what was expected and found, and the remedy. All errors of a data set are
reported at once. Imports no torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from uic_core import recipe
from uic_core.arguments import stage_parser
from uic_core.data import ilsvrc, reader, stamps, voc
from uic_core.data.dataset import Dataset, ImageFolder, MiniImageNet, Voc07, VocSegmentation
from uic_core.data.index import build_miniimagenet, build_unlabelled
from uic_core.data.listing import few, scan, unreadable
from uic_core.errors import InputError, stage
from uic_core.files import sha256, write_text
from uic_core.recipe import Strict

_SOURCES = {
    "voc07": "get VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2007 and unpack both; root is the folder with VOC2007/ in it",
    "voc_segmentation": "get VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012; root is "
    "the folder with VOC2012/ in it. For the paper's protocol get SBD's benchmark.tgz too (sbd is its folder dataset/) "
    "and FCN's list seg11valid.txt, into <root>/VOC2012/ImageSets/Segmentation; config/README.md says from where",
    "miniimagenet": "put train.csv, val.csv and test.csv of Ravi & Larochelle's split in <root> (from "
    "https://github.com/twitter-research/meta-learning-lstm/tree/master/data/miniImagenet) and the images that they "
    "list, 84×84 pixels, in <root>/images (https://github.com/yaoyao-liu/mini-imagenet-tools has them, and makes them "
    "of ImageNet's training images)",
}
_CLASSES, _UNLABELLED = "<root>/train/<class>/*.JPEG and <root>/val/<class>/*.JPEG", "<root>/train/*.JPEG"
_SHOWN = 5
_MINI_SIZE = (84, 84)
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class _Findings:
    """Collects findings and problems, to report all of them at once; `key` is the data set's config key."""

    def __init__(self, key: str, processes: int) -> None:
        self.key, self.processes = key, processes
        self.lines: list[str] = []
        self.problems: list[str] = []

    def wrong(self, key: str, path: Path, what: str) -> None:
        """Record a problem with a config key of the data set."""
        self.problems.append(f"{self.key}.{key}: {path}: {what}")

    def count(self, key: str, path: Path, what: str, expected: int, found: int) -> None:
        """Record a count; it is a problem if it is not the expected one."""
        self.lines.append(f"{path}: {found} {what}")
        if expected != found:
            self.wrong(key, path, f"expected {expected} {what}, found {found}")

    def decode(self, key: str, files: Iterable[Path]) -> None:
        """Record every unreadable image. The stage `index` decodes the images of ImageNet and miniImageNet."""
        for problem in unreadable([str(file) for file in files], self.processes):
            self.problems.append(f"{self.key}.{key}: {problem}")

    def same_size(self, key: str, path: Path, said: tuple[int, int], image: Path) -> None:
        """Record an annotation or mask whose (width, height) differs from its image's."""
        found = _size(image)
        if found is not None and found != said:
            self.wrong(key, path, f"is for {said[0]}×{said[1]} pixels, but {image.name} is {found[0]}×{found[1]}")

    def missing(self, key: str, folder: Path, what: str, names: Iterable[str]) -> None:
        """Record listed files that are missing, if any."""
        if missing := sorted(names):
            self.wrong(key, folder, f"{len(missing)} listed {what} are not there: {_shown(missing)}")

    def apart(self, key: str, path: Path, listed: set[str], seen: set[str], first: str) -> None:
        """Record images of a list that `first`, the list before it, has too; `seen` holds those and takes these."""
        if both := sorted(seen & listed):
            self.wrong(key, path, f"{len(both)} images are in {first} too, as {both[0]}")
        seen |= listed


def check(dataset: Dataset, processes: int = 1) -> str:
    """Compare a data set on disk with the config.

    Returns:
        What was found, one finding per line.

    Raises:
        InputError: something is missing, left over or damaged; one line each with config key, path, expected and
            found; the last line is the remedy.
    """
    root = Path(dataset.section.root)
    findings = _Findings(dataset.key, processes)
    try:
        if not root.is_dir():
            findings.wrong("root", root, "there is no such folder")
        elif not os.listdir(root):
            findings.wrong("root", root, "the folder is empty")
        else:
            _CHECKS[type(dataset.section)](dataset.section, root, findings)
    except OSError as error:
        findings.wrong("root", Path(error.filename or root), f"cannot be read ({error.strerror})")
    except InputError as error:
        findings.problems.append(f"{findings.key}.root: {error}")
    if findings.problems:
        section = dataset.section
        remedy = _SOURCES.get(dataset.name, "")
        if isinstance(section, ImageFolder):
            layout = _CLASSES if section.classes else _UNLABELLED
            with contextlib.suppress(OSError):  # it cannot be read
                remedy = ilsvrc.commands(root) if section.classes and root.is_dir() else ""
            remedy = (
                remedy or f"get {section.source or 'the images'} and unpack them as {layout} (docs/data.md says how)"
            )
        if dataset.generated:
            remedy = (
                f"python -m uic_core.data.synthetic --dataset <results>/data/{dataset.name}.yaml makes a data set that "
                "it made before whole again"
            )
        by_key: dict[str, list[str]] = {}
        for problem in findings.problems:
            by_key.setdefault(problem.partition(": ")[0], []).append(problem)
        lines = [line for key, problems in by_key.items() for line in few(problems, f"{key}: ")]
        raise InputError("\n".join([*lines, f"remedy: {remedy}; or correct the key"]))
    return "\n".join(findings.lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Compare a data set on disk with the config; write what was found."""
    parser = stage_parser("uic_core.data.check", main.__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="YAML of a uic_core.data.dataset.Dataset")
    parser.add_argument("--out", type=Path, required=True, help="text file: what was found")
    parser.add_argument("--threads", type=int, default=1, help="processes that decode")
    options = parser.parse_args(arguments)
    with stage():
        dataset = recipe.load(Dataset, options.dataset)
        found = check(dataset, options.threads)
        if files := _unindexed(dataset):
            stamps.save(options.out, files)
            found += "".join(_fingerprints(dataset.section, options.out))
        write_text(options.out, found)
        print(found, end="")


def _unindexed(dataset: Dataset) -> list[str]:
    """Return the files of a data set that is read without an index."""
    section = dataset.section
    if isinstance(section, Voc07):
        return voc.files(Path(section.root))
    if isinstance(section, VocSegmentation):
        return voc.segmentation_files(
            voc.segmentation_lists(Path(section.root), section.sbd, section.train_list, section.val_list)
        )
    return []


def _fingerprints(section: Strict, made: Path) -> list[str]:
    """Note each list of a data set without index, and all: results record the same fingerprints. Reads all images."""
    hashed = functools.cache(sha256)

    def line(name: str, listed: str, images: Iterable[Path]) -> str:
        content = hashlib.sha256("".join(map(hashed, images)).encode()).hexdigest()
        return stamps.line(made, name, listed, content)

    if isinstance(section, Voc07):
        root, lists = Path(section.root), {"trainval": ["trainval"], "test": ["test"], "all": ["trainval", "test"]}
        return [line(name, voc.fingerprint(root, splits), voc.images(root, splits)) for name, splits in lists.items()]
    if isinstance(section, VocSegmentation):
        pair = voc.segmentation_lists(Path(section.root), section.sbd, section.train_list, section.val_list)
        return [line("all", voc.segmentation_fingerprint(pair), voc.segmentation_images(pair))]
    return []


def _folder(section: ImageFolder, root: Path, findings: _Findings) -> None:
    if not section.classes:
        try:
            index = build_unlabelled(root, "train", findings.key.rpartition(".")[2])
            findings.count("train_images", root / "train", "images", section.train_images, len(index))
        except InputError as error:
            findings.problems.append(f"{findings.key}.root: {error}")
        return
    classes: dict[str, set[str]] = {}
    places: dict[str, Path] = {}
    for split, expected in (("train", section.train_images), ("val", section.val_images)):
        folder, before = root / split, len(findings.problems)
        if not expected:
            continue
        if not folder.is_dir():
            findings.wrong("root", folder, "there is no such folder")
            continue
        labels, strays = scan(folder)
        classes[split] = set(labels)
        for label in labels:
            place = os.path.realpath(folder / label)
            if place in places:
                findings.wrong("root", folder / label, f"is the same folder as {places[place]}; each takes its own")
            places[place] = folder / label
        if strays:
            findings.wrong("root", folder, f"{len(strays)} files lie outside the class folders: {_shown(strays)}")
        findings.count("classes", folder, "class folders", section.classes, len(labels))
        files = [(label, sorted(chain(*scan(folder / label)))) for label in labels]
        for label in (label for label, names in files if not names):
            findings.wrong(f"{split}_images", folder / label, "the class folder is empty")
        findings.count(f"{split}_images", folder, "images", expected, sum(len(names) for _, names in files))
        others = [f"{label}/{name}" for label, names in files for name in names if not name.lower().endswith(_IMAGES)]
        if others and len(findings.problems) > before:
            findings.wrong(f"{split}_images", folder, f"{len(others)} are no images by their names: {_shown(others)}")
    if len(classes) == 2:
        for split, other in (("train", "val"), ("val", "train")):
            for name in sorted(classes[other] - classes[split])[:_SHOWN]:
                findings.wrong("root", root / split / name, f"there is no such class folder, but {other} has the class")


def _voc07(section: Voc07, root: Path, findings: _Findings) -> None:
    images, annotations = _stems(root / "VOC2007" / "JPEGImages"), _stems(root / "VOC2007" / "Annotations")
    seen: set[str] = set()
    for split, expected in (("trainval", section.trainval_images), ("test", section.test_images)):
        key = f"{split}_images"
        path = voc.list_path(root, split)
        listed = _listed(path, partial(voc.read_list, root, split), ("root", key), expected, findings)
        findings.apart(key, path, listed, seen, "trainval")
        findings.missing(key, root / "VOC2007" / "JPEGImages", "images", listed - images)
        findings.missing(key, root / "VOC2007" / "Annotations", "annotations", listed - annotations)
        findings.decode(key, [voc.image_path(root, image) for image in sorted(listed & images)])
        objects: Counter[str] = Counter()
        for image in sorted(listed & annotations):
            try:
                path = voc.annotation_path(root, image)
                annotation = voc.read_annotation(path)
                objects.update(voc.CLASSES[label] for label in annotation.labels)
                findings.same_size(key, path, (annotation.width, annotation.height), voc.image_path(root, image))
            except InputError as error:
                findings.problems.append(f"{findings.key}.{key}: {error}")
        findings.lines.append(f"{split}: {objects.total()} objects of {len(objects)} classes")


def _segmentation(section: VocSegmentation, root: Path, findings: _Findings) -> None:
    lists = voc.segmentation_lists(root, section.sbd, section.train_list, section.val_list)
    seen: set[str] = set()
    for name, one, expected in zip(("train", "val"), lists, (section.train_images, section.val_images), strict=True):
        key = f"{name}_list"
        listed = _listed(one.path, one.ids, (key, f"{name}_images"), expected, findings)
        findings.apart(key, one.path, listed, seen, "train_list")
        images = _stems(one.images)
        masks = {Path(file).stem for file in _names(one.masks) if file.endswith(one.suffix)}
        findings.missing(key, one.images, "images", listed - images)
        findings.missing(key, one.masks, "masks", listed - masks)
        findings.decode(key, [one.image(image) for image in sorted(listed & images)])
        for image in sorted(listed & masks):
            try:
                height, width = voc.read_mask(one.mask(image)).shape
                findings.same_size(key, one.mask(image), (width, height), one.image(image))
            except InputError as error:
                findings.problems.append(f"{findings.key}.{key}: {error}")


def _miniimagenet(section: MiniImageNet, root: Path, findings: _Findings) -> None:
    expected = {"train": section.train_classes, "val": section.val_classes, "test": section.test_classes}
    split_of: dict[str, str] = {}
    for split, classes in expected.items():
        key, table = f"{split}_classes", root / f"{split}.csv"
        try:
            index = build_miniimagenet(root, split)
        except InputError as error:
            findings.problems.append(f"{findings.key}.{key}: {error}")
            continue
        findings.count(key, table, "classes", classes, len(index.classes))
        sizes = np.bincount(index.labels, minlength=len(index.classes)).tolist()
        if split == "test":  # evaluated on; "84×84" and "224×224" both start from it
            others = [file for file in map(index.file, range(len(index))) if _size(file) != _MINI_SIZE]
            if others:
                what = f"{len(others)} images are not {_MINI_SIZE[0]}×{_MINI_SIZE[1]} pixels, as {others[0].name}"
                findings.wrong("root", root / "images", what)
        for label, size in zip(index.classes, sizes, strict=True):
            if size != section.images_per_class:
                what = f"class {label}: expected {section.images_per_class} images, found {size}"
                findings.wrong("images_per_class", table, what)
            if label in split_of:
                findings.wrong(key, table, f"class {label} is in {split_of[label]}.csv too; splits share no class")
            split_of[label] = split


def _listed(
    path: Path, read: Callable[[], tuple[str, ...]], keys: tuple[str, str], expected: int, findings: _Findings
) -> set[str]:
    """Read and count the ids of a list; `keys` are the config keys of its name and its size."""
    try:
        listed = read()
    except InputError as error:
        findings.problems.append(f"{findings.key}.{keys[0]}: {error}")
        return set()
    findings.count(keys[1], path, "images", expected, len(listed))
    return set(listed)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)


def _size(file: Path) -> tuple[int, int] | None:
    """Return upright (width, height) from the file's header; None if unreadable (other checks report such files)."""
    try:
        with Image.open(file, formats=reader.FORMATS) as image:
            lying = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return (image.height, image.width) if lying else image.size
    except Exception:  # a decoder can raise almost anything on untrusted bytes
        return None


def _stems(folder: Path) -> set[str]:
    """Return the file names of a folder without suffix; empty if there is no such folder (then all are missing)."""
    return {Path(name).stem for name in _names(folder)}


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()


_CHECKS: dict[type[Strict], Callable[..., None]] = {
    ImageFolder: _folder,
    Voc07: _voc07,
    VocSegmentation: _segmentation,
    MiniImageNet: _miniimagenet,
}


if __name__ == "__main__":
    main()
