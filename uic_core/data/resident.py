"""A loader for small images: all pixels stay on the training device, and crops are made there.

It has the interface and the views of uic_core.data.loader.Loader, and no worker processes: nothing is decoded in an
epoch, and nothing is copied to the device but the boxes. It is for training images alone: validation images are not in
the cache, and have a Loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uic_core.data import reader
from uic_core.data.augment import CROP_UNIFORMS, SCALE, crop_boxes
from uic_core.data.index import Index
from uic_core.data.loader import Loader, View
from uic_core.errors import InputError
from uic_core.run import devices
from uic_core.run.randomness import Stream, uniforms


class Resident:
    """Square crops of the images of a cached index, which all have the same size.

    Args:
        size: side S of the crops, pixels.
        resize: shorter side before random and centre crops, pixels, ≥ size.
        batch_size: largest number of images in a batch of `batches`.
        device: where the images are kept.
        scale: shares of an image that a resized_crop takes.

    Raises:
        InputError: the images do not fit into the device's memory, or cannot be read.
    """

    def __init__(
        self, index: Index, size: int, resize: int, batch_size: int, device: torch.device,
        scale: tuple[float, float] = SCALE,
    ) -> None:  # fmt: skip
        assert size <= resize, f"a crop of {size} does not fit into a shorter side of {resize}"
        self._size, self._resize, self._batch_size, self._device = size, resize, batch_size, device
        self._scale = scale
        self._passes = 0
        pixels = _pixels(index)
        try:
            self._images = torch.from_numpy(pixels).to(device)
        except torch.OutOfMemoryError:
            raise InputError(
                f"{index.name}: {pixels.nbytes / 1e9:.1f} GB of pixels do not fit on {device}; write "
                "datasets.cache.format: uint8"
            ) from None

    def batches(
        self, order: NDArray[np.int64], view: View, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield the images of `order`, as `Loader.batches`, but each batch has memory of its own."""
        order, size = np.asarray(order, np.int64), self._batch_size
        return self.stream((order[start : start + size] for start in range(0, len(order), size)), view, seed, epoch)

    def stream(
        self, batches: Iterable[NDArray[np.int64]], view: View, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Like `batches`, for parts of an order that are made when they are needed."""
        self._passes += 1
        this = self._passes
        for draws in batches:
            assert not len(draws) or draws.min() >= 0, "order holds unknown positions"
            yield self._crops(draws, view, seed, epoch), draws
            assert this == self._passes, "a loader serves one pass at a time"

    def close(self) -> None:
        """Free the images; the loader cannot be used again."""
        del self._images

    def _crops(self, draws: NDArray[np.int64], view: View, seed: int, epoch: int) -> Tensor:
        images = self._images[devices.onto(self._device, draws % len(self._images))].float()
        numbers = uniforms(seed + Stream.CROPS, epoch, draws, CROP_UNIFORMS)
        boxes = devices.onto(self._device, self._boxes(view, numbers)).float()
        height, width = images.shape[2:]
        cut = (boxes == boxes.floor()).all(1)
        down = _weights(boxes[:, 1], boxes[:, 3], cut, height, self._size)
        across = _weights(boxes[:, 0], boxes[:, 2], cut, width, self._size)
        crops = down[:, None] @ images @ across[:, None].transpose(2, 3)
        return crops.round_().clamp_(0, 255).to(torch.uint8)

    def _boxes(self, view: View, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes of a view, as the Loader's: [B, 4], left, top, right, bottom."""
        height, width = self._images.shape[2:]
        if view == "resized_crop":
            return crop_boxes(width, height, u, self._scale).astype(np.float64)
        if view == "center_crop":
            return np.tile(reader.center_window(width, height, self._resize, self._size), (len(u), 1))
        scaled_width, scaled_height = reader.scaled_size(width, height, self._resize)
        left = (u[:, 0] * (scaled_width - self._size + 1)).astype(int)
        top = (u[:, 1] * (scaled_height - self._size + 1)).astype(int)
        places = zip(left.tolist(), top.tolist(), strict=True)
        return np.array([reader.window(width, height, self._resize, self._size, *place) for place in places])


AnyLoader = Loader | Resident


def open_loader(
    index: Index, size: int, resize: int, batch_size: int, workers: int, device: torch.device,
    scale: tuple[float, float] = SCALE,
) -> AnyLoader:  # fmt: skip
    """Return the loader of an index: Resident if its cache asks for it, else a Loader with `workers` processes.

    Raises:
        InputError: as Resident.
    """
    if index.pixels is not None and index.pixels.format == "device":
        return Resident(index, size, resize, batch_size, device, scale)
    return Loader(index, size, resize, batch_size, workers, device, scale)


def _weights(first: Tensor, last: Tensor, cut: Tensor, side: int, size: int) -> Tensor:
    """Antialiased bilinear interpolation of parts of a line, as matrices, float [B, size, side].

    The filter is torch's and Pillow's. At its ends a part sees the pixels beside it, or its outermost pixels repeated
    if it is cut out before it is resized, as boxes of whole pixels are (uic_core.data.crop).

    Args:
        first, last: ends of each part, float [B], 0 … side.
        cut: bool [B].
    """
    scale = ((last - first) / size)[:, None]
    low, high = torch.where(cut, first, 0), torch.where(cut, last, side)
    places = torch.arange(side, device=first.device) + 0.5
    centres = first[:, None] + scale * (torch.arange(size, device=first.device) + 0.5)
    weights = 1 - (places - centres[..., None]).abs() / scale.clamp(min=1)[..., None]
    inside = (places > low[:, None]) & (places < high[:, None])
    weights = weights.clamp_(min=0) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def _pixels(index: Index) -> NDArray[np.uint8]:
    """Read all images of a cached index: uint8 [N, 3, height, width]."""
    pixels = index.pixels
    assert pixels is not None, "the index has no cache"
    sizes = np.unique(np.stack([pixels.width, pixels.height]), axis=1)
    assert sizes.shape == (2, 1), "the cache demands one size"
    (width,), (height,) = sizes.tolist()
    found = np.empty((len(index), 3, height, width), np.uint8)
    for position in range(len(index)):
        found[position] = index.read_part(position, lambda *_: (0, 0, width, height), width)[0].transpose(2, 0, 1)
    return found
