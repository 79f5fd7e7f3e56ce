"""The cached images of an index: smaller copies in a few large files, made by the stage `cache`. Imports no torch."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uic_core.data import reader
from uic_core.errors import InputError
from uic_core.files import remake

Format = Literal["jpeg", "uint8", "device"]
"""Of the files; device is uint8, to be kept on the training device (uic_core.data.resident)."""


@dataclass(frozen=True)
class Pixels:
    """Where each image of an index is in the cache.

    Attributes:
        folder: contains the part files.
        format: jpeg, or uint8 and device for raw pixels (height, width, channel).
        part, offset, length: file number, first byte and number of bytes of each image, int64 [N].
        width, height: int64 [N], pixels.
    """

    folder: Path
    format: Format
    part: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]

    def files(self) -> list[Path]:
        """Return the part files, in order."""
        return [part_file(self.folder, number) for number in np.unique(self.part).tolist()]

    def subset(self, chosen: NDArray[np.int64]) -> Pixels:
        """Return the images at some positions."""
        arrays = (self.part, self.offset, self.length, self.width, self.height)
        return Pixels(self.folder, self.format, *(array[chosen] for array in arrays))

    def read_part(
        self, position: int, choose: Callable[[int, int], reader.Box], size: int
    ) -> tuple[NDArray[np.uint8], reader.Box]:
        """Like `reader.read_part`, for the image at a position.

        Raises:
            InputError: a file of the cache is missing or too short; names it.
        """
        file = part_file(self.folder, int(self.part[position]))
        first, length = int(self.offset[position]), int(self.length[position])
        data = _mapped(file)[first : first + length]
        if len(data) != length:
            raise InputError(f"{file}: is {first + length - len(data)} bytes short; {_remedy(file)}")
        width, height = int(self.width[position]), int(self.height[position])
        if self.format == "jpeg":
            pixels = reader.decode_jpeg(data, width, height)
            if pixels is None:
                raise InputError(f"{file}: is damaged at byte {first}; {_remedy(file)}")
        else:
            pixels = data.reshape(height, width, 3)
        return pixels, choose(width, height)


def folder_name(index: str, fingerprint: str, content: str, format: Format, side: int) -> str:
    """The name of a cache's folder, which says what is in it.

    Args:
        index: name of the index, <data set>_train.
        fingerprint: of the index's paths and labels.
        content: fingerprint of the bytes of its files: other images of the same names and sizes have another folder.
            '' if it is not known.
    """
    return f"{index}-{fingerprint}{content}-{format}{side}"


def part_file(folder: Path, number: int) -> Path:
    """The file of a part."""
    return folder / f"part-{number:05}.bin"


@functools.cache
def _mapped(file: Path) -> NDArray[np.uint8]:
    """Map a file's bytes, shared by all processes that read it."""
    try:
        return np.asarray(np.memmap(file, np.uint8, mode="c"))  # "c": torch asks for writable memory
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:  # a mapped file stays open
            raise InputError(f"{file}: too many open files in this process; raise the limit: ulimit -n 4096") from error
        raise InputError(f"{file}: cannot be read ({error}); {_remedy(file)}") from error


def _remedy(file: Path) -> str:
    """The stage `cache` keeps whole parts and makes the others again; the folder's name begins with the index's."""
    return remake(Path(f"<results>/index/{file.parent.name.rsplit('-', 2)[0]}_cached.npz"))
