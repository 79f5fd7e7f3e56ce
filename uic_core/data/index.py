"""The index: the files of a data set in a fixed order, with annotated labels; and the stage that makes it.

Every later stage identifies images by their position in the index. Imports no torch: the report reads indexes too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from uic_core import recipe
from uic_core.arguments import stage_parser
from uic_core.data import reader, stamps
from uic_core.data.dataset import Dataset, ImageFolder, MiniImageNet, size
from uic_core.data.fingerprints import contents, digest_of, subset_fingerprint
from uic_core.data.listing import few, raise_all, scan, tried
from uic_core.data.pixels import Format, Pixels
from uic_core.errors import InputError, stage
from uic_core.files import DAMAGED, atomic, read_csv, remake

Paths = NDArray[Any]
"""Array of texts, of StringDType: it takes a third of the memory of numpy's unicode of fixed width."""

# Paths are stored as UTF-8 with a NUL after each but the last. Earlier versions stored a unicode array.
_ARRAYS = {"name": "U", "root": "U", "paths": "uU", "labels": "i", "classes": "U", "fingerprint": "U"}
_LEAVES = (b"\0\0", b"\0/", b"\0../", b"/../", b"/..\0", b"\0..\0")  # an empty path; one from the root; a part ..
_BLOCK = 1 << 16  # paths that are converted at a time
_SPLITS = ("train", "val", "test")
_SAME = 0.5  # share of equal files from which a split is no other one: real data sets repeat a few images by mistake
_PIXELS = {"folder": "U", "format": "U", "part": "i", "offset": "i", "length": "i", "width": "i", "height": "i"}


@dataclass(frozen=True)
class Index:
    """A list of images, sorted by path.

    Attributes:
        name: data set and split, e.g. imagenet_train.
        root: folder that `paths` are relative to.
        paths: texts [N], with forward slashes.
        labels: int32 array [N], annotated class 0…len(classes)-1, for evaluation only.
        classes: class names, sorted.
        fingerprint: 16 hex digits; changes with any path, label or file size, and where files of the same sizes are
            replaced and listed again.
        pixels: the cached images that training reads instead of the files, if there is a cache.
    """

    name: str
    root: Path
    paths: Paths
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    fingerprint: str
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, position: int) -> Path:
        """Return the path of the image at a position."""
        return self.root / str(self.paths[position])

    def files(self) -> list[str]:
        """Return every file that reading the images opens."""
        if self.pixels is not None:
            return [str(file) for file in self.pixels.files()]
        return [f"{self.root}/{path}" for path in self.paths.tolist()]

    def read_part(
        self, position: int, choose: Callable[[int, int], reader.Box], size: int
    ) -> tuple[NDArray[np.uint8], reader.Box]:
        """Read what a square crop of an image needs, from its file or the cache (see `reader.read_part`)."""
        if self.pixels is not None:
            return self.pixels.read_part(position, choose, size)
        return reader.read_part(self.file(position), choose, size)

    def subset(self, count: int, seed: int) -> Index:
        """Return the first `count` images of a seeded shuffle, in index order; 0 means all.

        Raises:
            InputError: the index has fewer images.
        """
        if count in (0, len(self)):
            return self
        if count > len(self):
            raise InputError(f"{self.name}: {count} images wanted, the index has {len(self)}; lower `images`")
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        paths, labels = self.paths[chosen], self.labels[chosen]
        fingerprint = subset_fingerprint(self.fingerprint, len(self), count, seed)
        pixels = self.pixels and self.pixels.subset(chosen)
        return replace(self, paths=paths, labels=labels, fingerprint=fingerprint, pixels=pixels)

    def save(self, path: Path, crcs: NDArray[np.uint32] | None = None) -> None:
        """Write as .npz, atomically; equal indexes give equal bytes.

        Args:
            crcs: CRC-32 of every file, uint32 [N], for `contents`.
        """
        more: dict[str, Any] = {} if crcs is None else {"crcs": crcs}
        if self.pixels is not None:
            more |= {key: np.array(value) for key, value in vars(self.pixels).items()}
            more["folder"] = np.array(str(self.pixels.folder))
        with atomic(path) as temporary:
            np.savez_compressed(
                temporary,
                **more,
                name=np.array(self.name),
                root=np.array(str(self.root)),
                paths=np.frombuffer("\0".join(self.paths.tolist()).encode(), np.uint8),
                labels=self.labels,
                classes=np.array(self.classes),
                fingerprint=np.array(self.fingerprint),
            )

    @classmethod
    def load(cls, path: Path, verify: bool = False) -> Index:
        """Read what `save` wrote; pickled content is refused.

        Args:
            verify: compare sizes and times of all files that will be read with those at the index's making.

        Raises:
            InputError: the file is missing, damaged or of another format, or a path leaves the root; a file changed.
        """
        remedy = remake(path)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                kinds = _ARRAYS | _PIXELS if "folder" in arrays else _ARRAYS
                value: dict[str, Any] = {key: arrays[key] for key in kinds}
        except FileNotFoundError as error:
            raise InputError(f"{path}: there is no such index; run snakemake to make it") from error
        except DAMAGED as error:
            raise InputError(f"{path}: is not an index ({error}); {remedy}") from error
        wrong = [key for key, kind in kinds.items() if value[key].dtype.kind not in kind]
        stored, labels, classes = value.pop("paths"), value["labels"], value["classes"]
        if wrong or stored.ndim != 1 or classes.ndim != 1 or labels.ndim != 1 or not len(labels):
            raise InputError(f"{path}: is not an index (forms of {wrong or 'paths, labels'}); {remedy}")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise InputError(f"{path}: labels outside 0…{len(classes) - 1}; {remedy}")
        text = stored.tobytes() if stored.dtype == np.uint8 else "\0".join(stored.tolist()).encode()
        del stored
        if (name := _leaving(text)) is not None:
            raise InputError(f"{path}: '{name}' leaves the data set's folder; {remedy}")
        try:
            paths = _split(text, len(labels))
        except ValueError as error:
            raise InputError(f"{path}: is not an index ({error}); {remedy}") from error
        index = cls(
            name=str(value["name"]),
            root=Path(str(value["root"])),
            paths=paths,
            labels=labels.astype(np.int32),
            classes=tuple(str(name) for name in classes),
            fingerprint=str(value["fingerprint"]),
            pixels=_pixels(value, path) if "folder" in value else None,
        )
        if verify:
            stamps.verify(path, index.files(), remedy if index.pixels else "")
        return index


def demand_apart(crcs: NDArray[np.uint32], path: Path, name: str, split: str) -> None:
    """Compare the files of a new index with those of its data set's other splits, whose indexes lie beside it.

    Whichever index is made last sees the others. One whose files changed since will be made again, and compare then.

    Args:
        crcs: CRC-32 of every file.
        path: the new index.
        name: the data set's.

    Raises:
        InputError: more than half of a split's files are in another one, too.
    """
    for other in _SPLITS:
        beside = path.with_name(f"{name}_{other}.npz")
        try:
            theirs = contents(beside) if other != split else None
            if theirs is None:
                continue
            fewer, more = sorted((crcs, theirs), key=len)
            same = int(np.isin(fewer, more).sum())
            if same <= _SAME * len(fewer):
                continue
            Index.load(beside, verify=True)
        except InputError:  # there is none, or it is not what its data set holds now
            continue
        first, second = sorted((split, other), key=_SPLITS.index)
        raise InputError(
            f"{same} images are in {second} and in {first}, byte for byte, of {len(fewer)}; at most half may be: give "
            f"{second} images of its own"
        )


def build_folder(root: Path, split: str, name: str) -> Index:
    """List `<root>/<split>/<class>/<image>`; everything in a class folder counts as an image.

    Args:
        name: the data set's name.

    Raises:
        InputError: no such folder; no class folders; or (reported together) empty classes, files outside classes.
    """
    folder = Path(root) / split
    classes, strays = scan(folder)
    if not classes:
        raise InputError(f"{folder}: holds no class folders; expected {folder}/<class>/<image>.JPEG")
    rows = [(f"{split}/{label}/{name}", label) for label in classes for name in chain(*scan(folder / label))]
    problems = [f"{folder / file}: lies outside the class folders; sort it into one, or remove it" for file in strays]
    for label in sorted(set(classes) - {label for _, label in rows}):
        problems.append(f"{folder / label}: class folder without images; add its images, or remove it")
    if problems:
        raise InputError("\n".join(few(problems)))
    return _build(f"{name}_{split}", Path(root), rows)


def build_unlabelled(root: Path, split: str, name: str) -> Index:
    """List `<root>/<split>/<image>` as one class, `unlabelled`. Raises InputError if it is empty or has folders."""
    folder = Path(root) / split
    folders, files = scan(folder)
    if folders:
        raise InputError(
            f"{folder / folders[0]}: is a folder, but datasets.folders.{name}.classes is 0; move its images up, or "
            "write the number of class folders"
        )
    if not files:
        raise InputError(f"{folder}: is empty; expected {folder}/<image>.JPEG")
    return _build(f"{name}_{split}", Path(root), [(f"{split}/{file}", "unlabelled") for file in files])


def build_miniimagenet(root: Path, split: str) -> Index:
    """List `<root>/images/<filename>` of `<root>/<split>.csv` (columns filename, label).

    Raises:
        InputError: the list is missing, malformed or empty, or has a file twice or one outside `images`.
    """
    table = Path(root) / f"{split}.csv"
    listed: dict[str, str] = {}
    for number, line in read_csv(table, ["filename", "label"]):
        name = line["filename"]
        if not line["label"] or not _is_inside(name) or "/" in name:
            raise InputError(
                f"{table}:{number}: expected the name of a file in images/ and its label, not {list(line.values())}"
            )
        if name in listed:
            raise InputError(f"{table}:{number}: {name} stands twice; remove one of the lines")
        listed[name] = line["label"]
    if not listed:
        raise InputError(f"{table}: lists no image; expected Ravi & Larochelle's split")
    return _build(f"miniimagenet_{split}", Path(root), [(f"images/{name}", label) for name, label in listed.items()])


def check_images(index: Index, processes: int = 1) -> NDArray[np.uint32]:
    """Decode every image; return the CRC-32 of every file, uint32 [N].

    Raises:
        InputError: one line for each file that is truncated or not an image, after all files were tried.
    """
    found = tried(index.files(), processes)
    raise_all(index.name, len(index), [problem for problem, _ in found if problem])
    return np.array([crc for _, crc in found], np.uint32)


def main(arguments: list[str] | None = None) -> None:
    """List a data set, decode every image once, write the index."""
    parser = stage_parser("uic_core.data.index", main.__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="YAML of a uic_core.data.dataset.Dataset")
    parser.add_argument("--split", required=True, help="train, val or, of miniImageNet, test")
    parser.add_argument("--out", type=Path, required=True, help="the index to write, .npz")
    parser.add_argument("--threads", type=int, default=1, help="processes that decode")
    options = parser.parse_args(arguments)
    with stage():
        dataset = recipe.load(Dataset, options.dataset)
        try:
            index = build(dataset, options.split)
            stamps.save(options.out, index.files())
            crcs = check_images(index, options.threads)
        except InputError as error:
            raise InputError(f"{dataset.key}.root: {error}") from error
        index = replace(index, fingerprint=stamps.fingerprint(options.out, index.fingerprint, digest_of(crcs)))
        index.save(options.out, crcs)
        try:
            demand_apart(crcs, options.out, dataset.name, options.split)
        except InputError as error:
            options.out.unlink()
            raise InputError(f"{dataset.key}.root: {error}") from error
        print(f"{index.name}: {len(index)} images, {len(index.classes)} classes, fingerprint {index.fingerprint}")


def build(dataset: Dataset, split: str) -> Index:
    """List a split of class folders or of miniImageNet and compare it with the sizes in the config.

    Raises:
        InputError: see the builders; no index is made of this data set or split; the number of classes or images
            is wrong (expected and found).
    """
    section = dataset.section
    if isinstance(section, ImageFolder) and split in ("train", "val"):
        build_split = build_folder if section.classes else build_unlabelled
        index = build_split(Path(section.root), split, dataset.name)
        classes = section.classes or 1
    elif isinstance(section, MiniImageNet) and split in ("train", "val", "test"):
        index = build_miniimagenet(Path(section.root), split)
        classes = getattr(section, f"{split}_classes")
    else:
        raise InputError(f"{dataset.name}: no index is made of its split '{split}'")
    found = {"classes": (classes, len(index.classes)), "images": (size(dataset, split), len(index))}
    for what, (expected, actual) in found.items():
        if expected != actual:
            raise InputError(
                f"{index.root}: {index.name} has {actual} {what}, expected {expected}; complete the data set, "
                f"or correct {dataset.key} in the config"
            )
    return index


def _build(name: str, root: Path, rows: list[tuple[str, str]]) -> Index:
    """Sort, number the classes, compute the fingerprint. Raises InputError with all missing files."""
    rows = sorted(rows)
    classes = tuple(sorted({label for _, label in rows}))
    number = {label: position for position, label in enumerate(classes)}
    digest, missing = hashlib.sha256(), []
    for path, label in rows:
        try:
            digest.update(f"{path}\0{number[label]}\0{os.stat(root / path).st_size}\n".encode())
        except OSError as error:
            missing.append(f"{root / path}: cannot be read ({error.strerror}); complete the data set")
    raise_all(name, len(rows), missing)
    return Index(
        name=name,
        root=root,
        paths=np.array([path for path, _ in rows], dtype=np.dtypes.StringDType()),
        labels=np.array([number[label] for _, label in rows], dtype=np.int32),
        classes=classes,
        fingerprint=digest.hexdigest()[:16],
    )


def _split(text: bytes, count: int) -> Paths:
    """Return `count` paths of UTF-8 with NULs between them. Raises ValueError for another number, or no UTF-8."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0)
    if len(ends) + 1 != count:
        raise ValueError(f"{len(ends) + 1} paths and {count} labels")
    paths = np.empty(count, np.dtypes.StringDType())
    start = 0
    for first in range(0, count, _BLOCK):  # in one go, Python's texts would take more memory than the array
        last = min(first + _BLOCK, count)
        end = len(text) if last == count else int(ends[last - 1])
        paths[first:last] = text[start:end].decode().split("\0")
        start = end + 1
    return paths


def _pixels(value: dict[str, Any], path: Path) -> Pixels:
    """Return the cached pixels among an index's arrays."""
    columns = {key: value[key].astype(np.int64) for key, kind in _PIXELS.items() if kind == "i"}
    shapes = {column.shape for column in columns.values()}
    found = Pixels(Path(str(value["folder"])), str(value["format"]), **columns)  # type: ignore[arg-type]
    plain = found.format != "jpeg" and not np.array_equal(found.length, 3 * found.width * found.height)
    if (
        shapes != {value["labels"].shape}
        or found.format not in get_args(Format)
        or plain
        or min(map(np.min, columns.values())) < 0
    ):
        raise InputError(f"{path}: is not an index (forms of its cached pixels); {remake(path)}")
    return found


def _is_inside(path: str) -> bool:
    return "\0" not in path and _leaving(path.encode()) is None


def _leaving(paths: bytes) -> str | None:
    """Return the first of the paths, UTF-8 with NULs between them, that is empty or leaves its folder; None if none."""
    ended = b"\0" + paths + b"\0"
    places = [place for part in _LEAVES if (place := ended.find(part)) >= 0]
    if not places:
        return None
    first = ended.rfind(b"\0", 0, min(places) + 1) + 1
    return ended[first : ended.find(b"\0", first)].decode(errors="replace")


if __name__ == "__main__":
    main()
