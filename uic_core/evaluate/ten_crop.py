"""Ten crops an image, for testing: the corners and the centre, and the same mirrored (PROTOCOL section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from uic_core.data import reader
from uic_core.data.index import Index
from uic_core.errors import InputError

CROPS = 10


def ten_crops(index: Index, size: int, resize: int, batch_size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in the index's order.

    Args:
        size: side S of the crops, pixels.
        resize: shorter side of the image they are cut from, pixels, ≥ size.
        batch_size: images b a batch; the last one may be smaller.
        workers: decoding processes; 0 decodes in this one.

    Yields:
        (uint8 [b, 10, 3, S, S], int64 positions [b]), on the CPU, in pinned memory where there is a GPU.

    Raises:
        InputError: an image cannot be read; names the file.
    """
    positions = np.arange(len(index))
    loader: DataLoader[Any] = DataLoader(
        _Decoder(index, size, resize),
        batch_size=None,  # a request is a whole batch
        sampler=[positions[first : first + batch_size] for first in range(0, len(index), batch_size)],
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the global one belongs to whoever asks for the crops
    )
    for batch in loader:
        if isinstance(batch, str):
            raise InputError(batch)
        yield batch


class _Decoder(Dataset[tuple[Tensor, Tensor] | str]):
    """Answers positions with their crops; an unreadable file with its message, to cross processes."""

    def __init__(self, index: Index, size: int, resize: int) -> None:
        self._index, self._size, self._resize = index, size, resize

    def __getitem__(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor] | str:
        crops = np.empty((len(positions), CROPS, 3, self._size, self._size), np.uint8)
        try:
            for slot, position in enumerate(positions):
                image = reader.read_rgb(self._index.file(position))
                crops[slot] = reader.ten_crop(image, self._resize, self._size)
        except InputError as error:
            return str(error)
        return torch.from_numpy(crops), torch.from_numpy(positions)
