"""The PASCAL VOC layout: image lists, object annotations, segmentation masks. The files are not trusted.

`root` is always the devkit folder, which contains VOC2007/ and VOC2012/. Detection and classification read VOC2007
(lists in ImageSets/Main). Segmentation reads VOC2012 (lists in ImageSets/Segmentation) and may train on SBD
(Hariharan et al. 2011), a folder with img/, cls/ and train.txt and MATLAB masks. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml.common import DefusedXmlException
from numpy.typing import NDArray
from PIL import Image

from uic_core.data import matlab
from uic_core.errors import InputError
from uic_core.files import read_text
from uic_core.voc_classes import CLASSES as CLASSES
from uic_core.voc_classes import CLASSES_SEGMENTATION as CLASSES_SEGMENTATION

IGNORED = 255
"""Mask value of object borders, and multi-label target of a class with only difficult objects."""

_Row = tuple[str, str, Path, Path]
"""Split, id, image, annotation or mask."""

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Annotation:
    """The objects of one image.

    Attributes:
        width, height: the image's size in pixels.
        boxes: float32 [n, 4], left, top, right, bottom; pixels count from 0 (in VOC's files from 1), and the last
            pixel is included.
        labels: int64 [n], positions in CLASSES.
        difficult: bool [n].
    """

    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]


@dataclass(frozen=True)
class MaskList:
    """A list of images with class masks: VOC2012's own, or SBD's.

    Attributes:
        path: the list, one image id per line.
        images, masks: folders of <id>.jpg and of <id><suffix>.
        suffix: .png, or .mat for SBD in its original form.
    """

    path: Path
    images: Path
    masks: Path
    suffix: str = ".png"

    def ids(self) -> tuple[str, ...]:
        """Return image ids in the list's order. Raises InputError as `read_list` does."""
        source = "VOC2012" if self.suffix == ".png" else "SBD's dataset folder"
        return _read_ids(self.path, f"expected one image id a line; {source} has such lists")

    def image(self, image: str) -> Path:
        """The JPEG of an image id."""
        return self.images / f"{image}.jpg"

    def mask(self, image: str) -> Path:
        """The class mask of an image id."""
        return self.masks / f"{image}{self.suffix}"


def segmentation_lists(root: Path, sbd: str, train: str, val: str) -> tuple[MaskList, MaskList]:
    """Return the training and test lists, by their names without `.txt`.

    Args:
        sbd: folder with SBD's img/, cls/ and lists, for training; "" trains on VOC2012's own masks.
    """

    def own(split: str) -> MaskList:
        home = root / "VOC2012"
        path = home / "ImageSets" / "Segmentation" / f"{check_id(split, 'Segmentation split')}.txt"
        return MaskList(path, home / "JPEGImages", home / "SegmentationClass")

    if not sbd:
        return own(train), own(val)
    folder = Path(sbd)
    # SBD's masks are .mat files; many users have converted them.
    suffix = ".mat" if next((folder / "cls").glob("*.mat"), None) else ".png"
    path = folder / f"{check_id(train, 'SBD list')}.txt"
    return MaskList(path, folder / "img", folder / "cls", suffix), own(val)


def check_id(image: str, source: str) -> str:
    """Return an image id or list name unchanged if it is a plain name.

    Raises:
        InputError: it is empty, or could leave the data set's folder; `source` says where it is from.
    """
    if not _ID.fullmatch(image):
        raise InputError(f"{source}: {image!r} is no plain name of letters, digits, '_', '-' and '.'; correct it")
    return image


def list_path(root: Path, split: str) -> Path:
    """The file that lists the images of a split of VOC2007."""
    return root / "VOC2007" / "ImageSets" / "Main" / f"{check_id(split, 'Main split')}.txt"


def image_path(root: Path, image: str) -> Path:
    """The JPEG of an image id of VOC2007."""
    return root / "VOC2007" / "JPEGImages" / f"{image}.jpg"


def annotation_path(root: Path, image: str) -> Path:
    """The object annotations of an image id of VOC2007."""
    return root / "VOC2007" / "Annotations" / f"{image}.xml"


def read_list(root: Path, split: str) -> tuple[str, ...]:
    """Image ids of a split of VOC2007, in the order of its list.

    Raises:
        InputError: the list is missing, not text or empty, or has an id twice or one that is not a plain name.
    """
    remedy = "expected one image id a line; VOC2007 of the development kit has such lists"
    return _read_ids(list_path(root, split), remedy)


def _read_ids(path: Path, remedy: str) -> tuple[str, ...]:
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_text(path, remedy).splitlines(), start=1):
        if not line.strip():
            continue
        image = check_id(line.strip(), f"{path}:{number}")
        if image in first_line:
            raise InputError(f"{path}:{number}: {image} stands in line {first_line[image]} too; remove one of them")
        first_line[image] = number
    if not first_line:
        raise InputError(f"{path}: lists no images; {remedy}")
    return tuple(first_line)


def read_annotation(path: Path) -> Annotation:
    """Read the objects of one image from VOC's XML.

    Raises:
        InputError: the file is missing or not XML, or has no size, no objects, an unknown class, a box that is empty
            or reaches outside the image, or a <difficult> that is neither 0 nor 1.
    """
    tree = _read_xml(path)
    width, height = (_number(path, tree, f"size/{side}") for side in ("width", "height"))
    if width < 1 or height < 1:
        raise InputError(f"{path}: size is {width:g}×{height:g}; both must be at least 1")
    objects = tree.findall("object")
    if not objects:
        raise InputError(f"{path}: has no <object>; annotate one, or take the image off the list")
    boxes = np.empty((len(objects), 4), np.float32)
    labels = np.empty(len(objects), np.int64)
    difficult = np.empty(len(objects), np.bool_)
    for row, node in enumerate(objects):
        name = (node.findtext("name") or "").strip()
        if name not in CLASSES:
            raise InputError(f"{path}: object {row + 1}: unknown class {name!r} (known: {', '.join(CLASSES)})")
        box = [_number(path, node, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = box
        if not (1 <= left <= right <= width and 1 <= top <= bottom <= height):
            shown = ", ".join(f"{edge:g}" for edge in box)
            raise InputError(
                f"{path}: object {row + 1} ({name}): box ({shown}) is not inside the image, "
                f"1…{width:g} × 1…{height:g}; correct the annotation"
            )
        boxes[row] = np.array(box) - 1
        labels[row] = CLASSES.index(name)
        said = (node.findtext("difficult") or "0").strip()
        if said not in ("0", "1"):
            raise InputError(f"{path}: object {row + 1} ({name}): <difficult> is {said!r}; expected 0 or 1")
        difficult[row] = said == "1"
    return Annotation(int(width), int(height), boxes, labels, difficult)


def multilabels(root: Path, split: str) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Return which classes each VOC2007 image of a split shows (docs/protocol.md, Table 4).

    Returns:
        (ids, targets): targets is uint8 [n, 20]: 1 if the class has an object that is not difficult, 255 if it has
        only difficult objects (ignored in training and evaluation), 0 if it has none.

    Raises:
        InputError: as `read_list` and `read_annotation` do.
    """
    ids = read_list(root, split)
    targets = np.zeros((len(ids), len(CLASSES)), np.uint8)
    for row, image in enumerate(ids):
        annotation = read_annotation(annotation_path(root, image))
        targets[row, annotation.labels[annotation.difficult]] = IGNORED
        targets[row, annotation.labels[~annotation.difficult]] = 1
    return ids, targets


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a class mask: VOC's PNG, or SBD's .mat (field Segmentation of the struct GTcls).

    Returns:
        uint8 [height, width]: positions in CLASSES_SEGMENTATION, or 255 for ignored pixels.

    Raises:
        InputError: missing, truncated, not a palette or grey PNG, not SBD's, or with a value that is not a class.
    """
    mask = _sbd_mask(path) if path.suffix == ".mat" else _png_mask(path)
    unknown = sorted(set(np.unique(mask).tolist()) - {*range(len(CLASSES_SEGMENTATION)), IGNORED})
    if unknown:
        raise InputError(f"{path}: mask values {unknown} are no classes; expected 0…{len(CLASSES)} and {IGNORED}")
    return mask.astype(np.uint8, copy=False)


def _png_mask(path: Path) -> NDArray[Any]:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise InputError(f"{path}: mode {image.mode}; expected a PNG of class numbers with a palette")
            return np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # a decoder can raise almost anything on untrusted bytes
        raise InputError(f"{path}: the mask cannot be read ({error}); copy it again") from error


def _sbd_mask(path: Path) -> NDArray[Any]:
    truth = matlab.variables(path, "GTcls")["GTcls"]
    if truth.size == 1 and truth.dtype.names and "Segmentation" in truth.dtype.names:
        mask = truth["Segmentation"].item()
        if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype.kind in "uif":
            return mask
    raise InputError(f"{path}: GTcls has no matrix Segmentation; expected a file of SBD's cls/")


def fingerprint(root: Path, lists: Sequence[str]) -> str:
    """Return a fingerprint of some lists of VOC2007, e.g. ("trainval", "test"): 16 hex digits of a SHA-256.

    It changes with an id, its position or split, the bytes of an annotation, and the size in bytes of an image.

    Raises:
        InputError: a list, image or annotation is missing.
    """
    return _digest(_rows(root, lists))


def segmentation_fingerprint(lists: Sequence[MaskList]) -> str:
    """Like `fingerprint`, of lists of images with masks."""
    return _digest(_segmentation_rows(lists))


def images(root: Path, lists: Sequence[str]) -> list[Path]:
    """Return the images of some lists of VOC2007, in their order."""
    return [image for _, _, image, _ in _rows(root, lists)]


def segmentation_images(lists: Sequence[MaskList]) -> list[Path]:
    """Like `images`, of lists of images with masks."""
    return [image for _, _, image, _ in _segmentation_rows(lists)]


def files(root: Path) -> list[str]:
    """Return the files of VOC2007 that are read: the lists trainval and test, their images and annotations."""
    lists = ("trainval", "test")
    return _files([list_path(root, split) for split in lists], _rows(root, lists))


def segmentation_files(lists: Sequence[MaskList]) -> list[str]:
    """Return the lists, their images and masks."""
    return _files([one.path for one in lists], _segmentation_rows(lists))


def _rows(root: Path, lists: Sequence[str]) -> Iterator[_Row]:
    for split in lists:
        for image in read_list(root, split):
            yield split, image, image_path(root, image), annotation_path(root, image)


def _segmentation_rows(lists: Sequence[MaskList]) -> Iterator[_Row]:
    for one in lists:
        for image in one.ids():
            yield one.path.stem, image, one.image(image), one.mask(image)


def _files(lists: Sequence[Path], rows: Iterable[_Row]) -> list[str]:
    return [str(path) for path in (*lists, *(path for _, _, *pair in rows for path in pair))]


def _digest(files: Iterable[_Row]) -> str:
    digest, last = hashlib.sha256(), ""
    for split, image, file, truth in files:
        if split != last:
            digest.update(f"{split}\n".encode())
            last = split
        try:
            digest.update(f"{image} {file.stat().st_size} ".encode())
            digest.update(hashlib.sha256(truth.read_bytes()).digest())
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}, but {split}.txt lists {image}") from error
    return digest.hexdigest()[:16]


def _read_xml(path: Path) -> Element:
    try:
        tree = defusedxml.ElementTree.parse(path, forbid_dtd=True).getroot()
    except OSError as error:
        raise InputError(f"{path}: the annotation cannot be read ({error.strerror}); copy it again") from error
    except (ParseError, DefusedXmlException, UnicodeError, ValueError, LookupError) as error:
        raise InputError(f"{path}: is not a VOC annotation ({error!r}); copy it again") from error
    assert isinstance(tree, Element)
    return tree


def _number(path: Path, node: Element, field: str) -> float:
    text = node.findtext(field)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{path}: <{node.tag}> has no number in <{field}> but {text!r}; correct the annotation")
    return value
