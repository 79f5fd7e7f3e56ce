"""The cache: a data set's images at a smaller size, in a few large files, made once for all epochs.

With a small network, training may wait for decoding. JPEGs of shorter side 256 cost two fifths as much as ImageNet's
files, raw pixels a seventh (about 45 GB as JPEG, 330 GB as pixels). Small images of one size are kept on the training
device as a whole (format device). The cache is optional: it resamples images larger than its side twice.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zlib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uic_core.arguments import stage_parser
from uic_core.data import reader, stamps
from uic_core.data.fingerprints import content_of
from uic_core.data.index import Index
from uic_core.data.pixels import Format, Pixels, folder_name, part_file
from uic_core.errors import InputError, stage
from uic_core.files import DAMAGED, atomic
from uic_core.run import cpus

PART = 4096
"""Images per file: an interrupted build loses only seconds, and the files are large enough for shared file systems."""

_QUALITY = 90
_COLUMNS = ("length", "width", "height", "crc")


def encode(path: Path, format: Format, side: int) -> tuple[bytes, int, int]:
    """Resize an image to shorter side `side` (pixels, never enlarged); return its bytes, width and height.

    Raises:
        InputError: the image is unreadable.
    """
    size = (0, 0)

    def whole(width: int, height: int) -> reader.Box:
        nonlocal size
        size = reader.scaled_size(width, height, side) if min(width, height) > side else (width, height)
        return 0, 0, width, height

    pixels, box = reader.read_part(path, whole, side)
    image = Image.fromarray(pixels)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR, box=box)
    if format != "jpeg":
        return image.tobytes(), *size
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue(), *size


def write_part(file: Path, images: list[Path], format: Format, side: int) -> NDArray[np.int64]:
    """Write a part of the cache unless an earlier call completed it; verify it by reading every byte back.

    Returns:
        int64 [n, 4]: length, width, height and CRC-32 of each image.

    Raises:
        InputError: an image is unreadable, the disk is full, or the file differs from what was written to it.
    """
    table = file.with_suffix(".npz")
    known = _read_table(table)
    if known is not None and _is_whole(file, known):
        return known
    rows = []
    with atomic(file) as temporary:
        with open(temporary, "wb") as out:
            for path in images:
                data, width, height = encode(path, format, side)
                out.write(data)
                rows.append((len(data), width, height, zlib.crc32(data)))
        found = np.array(rows, np.int64)
        if not _is_whole(temporary, found):
            raise InputError(f"{file}: does not hold what was written to it; check the disk")
    with atomic(table) as temporary:
        np.savez(temporary, table=found)
    return found


def build(index: Index, root: Path, format: Format, side: int, processes: int = 1, content: str = "") -> Index:
    """Write the cache of an index's images under `root`; parts that an earlier call left are kept.

    Args:
        content: fingerprint of the bytes of the index's files; '' if it is not known.

    Returns:
        The index, reading from the cache. Its fingerprint changes with any byte of the cached images.

    Raises:
        InputError: see `write_part`.
    """
    folder = Path(root) / folder_name(index.name, index.fingerprint, content, format, side)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(index), PART)
    files = [part_file(folder, number) for number in range(len(starts))]
    images = [[index.file(position) for position in range(len(index))[start : start + PART]] for start in starts]
    work = functools.partial(write_part, format=format, side=side)
    tables = []
    with cpus.pool(processes) as pool:
        for table in pool.map(work, files, images):
            tables.append(table)
            if format == "device":
                _demand_one_size(index, tables)
            if len(tables) % 50 == 0:
                print(f"{len(tables)} of {len(files)} parts", flush=True)
    length, width, height, crc = np.concatenate(tables).T
    offsets = [np.cumsum(table[:, 0]) - table[:, 0] for table in tables]
    digest = hashlib.sha256(f"{index.fingerprint} {format} {side} {_QUALITY}\n".encode() + crc.tobytes())
    pixels = Pixels(
        folder=folder.resolve(),
        format=format,
        part=np.arange(len(index)) // PART,
        offset=np.concatenate(offsets),
        length=length,
        width=width,
        height=height,
    )
    return replace(index, pixels=pixels, fingerprint=digest.hexdigest()[:16])


def _demand_one_size(index: Index, tables: list[NDArray[np.int64]]) -> None:
    """Compare the sizes of the newest part with the first: before all images are written, not in each training."""
    sizes, first = tables[-1][:, 1:3], tables[0][0, 1:3]
    others = np.flatnonzero((sizes != first).any(axis=1))
    if len(others):
        image = index.file((len(tables) - 1) * PART + int(others[0]))
        (width, height), (w, h) = sizes[others[0]], first
        raise InputError(
            f"{image}: is {width}×{height} pixels here, {index.file(0)} is {w}×{h}: datasets.cache.format: device "
            "takes images of one size; take uint8"
        )


def main(arguments: list[str] | None = None) -> None:
    """Write the cache of an index's images, and an index that reads from it."""
    parser = stage_parser("uic_core.data.cache", main.__doc__)
    parser.add_argument("--index", type=Path, required=True, help="index of the images")
    parser.add_argument("--format", choices=get_args(Format), required=True)
    parser.add_argument("--side", type=int, required=True, help="shorter side, pixels")
    parser.add_argument("--root", type=Path, required=True, help="folder for the pixels")
    parser.add_argument("--out", type=Path, required=True, help="the index to write, .npz")
    parser.add_argument("--threads", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    with stage():
        whole = Index.load(options.index, verify=True)
        content = content_of(options.index)
        index = build(whole, options.root, options.format, options.side, options.threads, content)
        stamps.save(options.out, index.files())
        index.save(options.out)
        assert index.pixels is not None
        size = index.pixels.length.sum() / 1e9
        print(f"{index.name}: {len(index)} images, {size:.3g} GB in {index.pixels.folder}")


def _read_table(path: Path) -> NDArray[np.int64] | None:
    """Return a part's table; None if it is missing or unreadable."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            table: NDArray[np.int64] = arrays["table"]
    except DAMAGED:
        return None
    return table if table.dtype == np.int64 and table.ndim == 2 and table.shape[1] == len(_COLUMNS) else None


def _is_whole(file: Path, table: NDArray[np.int64]) -> bool:
    """Return whether a file contains exactly the images of its table."""
    try:
        with open(file, "rb") as data:
            same = all(zlib.crc32(data.read(length)) == crc for length, _, _, crc in table.tolist())
            return same and not data.read(1)
    except OSError:
        return False


if __name__ == "__main__":
    main()
