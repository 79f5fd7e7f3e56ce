"""What a data set's folders hold: the names in a folder, and the files that are no whole image. Imports no torch."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from uic_core.data import reader
from uic_core.errors import InputError
from uic_core.run import cpus

_OF_SYSTEMS = {".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "__MACOSX", "@eaDir"}
_SHOWN = 10


def scan(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of all else in a folder, sorted, without what operating systems put there.

    Raises:
        InputError: the folder cannot be read, or a name is no UTF-8.
    """
    folders: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name not in _OF_SYSTEMS and not entry.name.startswith("._"):
                    (folders if _is_folder(entry) else others).append(entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check the data set's root") from error
    for name in (*folders, *others):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{folder / name}: its name is no UTF-8; rename it") from None
    return sorted(folders), sorted(others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def few(problems: Sequence[str], key: str = "") -> list[str]:
    """Return the first problems, and how many more there are, with the key that they begin with."""
    more = len(problems) - _SHOWN
    return [*problems[:_SHOWN], f"{key}… and {more:,} more"] if more > 1 else list(problems)


def unreadable(files: Sequence[str], processes: int = 1) -> list[str]:
    """Decode every file; return a message for each that is truncated or not an image."""
    return [problem for problem, _ in tried(files, processes) if problem]


def tried(files: Sequence[str], processes: int) -> list[tuple[str, int]]:
    """Decode every file: what is wrong with it, '' if nothing is, and the CRC-32 of its bytes."""
    if processes == 1:
        return [_try(file) for file in files]
    with cpus.pool(processes) as pool:
        return list(pool.map(_try, files, chunksize=64))


def _try(file: str) -> tuple[str, int]:
    try:
        reader.check(Path(file))
        return "", zlib.crc32(Path(file).read_bytes())
    except (InputError, OSError) as error:
        return str(error), 0


def raise_all(name: str, total: int, problems: list[str]) -> None:
    """Raise InputError with the first problems of a list of `total` images, if there are any."""
    if problems:
        raise InputError("\n".join([f"{name}: {len(problems)} of {total} images are unusable:", *few(problems)]))
