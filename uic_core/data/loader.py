"""The loader: positions in, uint8 batches out, decoded by worker processes that live as long as the loader.

What a batch holds depends on (seed, epoch, image) and the view only, never on the number of workers.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from uic_core.data import reader
from uic_core.data.augment import CROP_UNIFORMS, crop_box
from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.runtime import uniforms

View = Literal["resized_crop", "random_crop", "center_crop"]

# Crops draw from a stream of their own: with the plain seed they would repeat the numbers of the augmentation.
_CROP_STREAM = 1 << 32


class Loader:
    """Square crops of an index's images.

    Args:
        size: side S of the crops, pixels.
        resize: shorter side before random and centre crops, pixels, ≥ size.
        workers: decoding processes; 0 decodes in this one. They start with the first batch and end with `close`.
    """

    def __init__(self, index: Index, size: int, resize: int, workers: int) -> None:
        assert size <= resize, f"a crop of {size} does not fit into a shorter side of {resize}"
        self._requests = _Requests()
        self._passes = 0
        self._loader: DataLoader[_Batch] | None = DataLoader(
            _Decoder(index, size, resize),
            batch_size=None,  # a request is a whole batch
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_foreign_sigterm,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each pass would advance the global generator that dropout uses
        )

    def batches(
        self, order: NDArray[np.int64], batch_size: int, view: View, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of `order`, in this order; the last batch may be smaller.

        resized_crop: torchvision's RandomResizedCrop. random_crop: shorter side to `resize`, then a crop anywhere.
        center_crop: the same, the crop in the middle; seed and epoch do not matter.
        One pass at a time; a pass may be left early.

        Args:
            order: positions in the index, any of them any number of times, shape [n]; of N images, position + N·r
                asks for another view of the same image, r = 1, 2, …

        Yields:
            (uint8 [B, 3, S, S], their part of the order, int64 [B]), on the CPU, in pinned memory where there is a
            GPU.

        Raises:
            InputError: an image cannot be read; names the file.
        """
        order = np.asarray(order, np.int64)
        batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        return self.stream(batches, view, seed, epoch)

    def stream(
        self, batches: Iterable[NDArray[np.int64]], view: View, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `batches`, with each batch's part of the order made when a worker is free to decode it.

        Args:
            batches: parts of an order, int64 [B] each; asked for a few batches ahead.
        """
        assert self._loader is not None, "the loader is closed"
        self._passes += 1
        this = self._passes
        self._requests.items = (_Request(draws, view, seed, epoch) for draws in batches)
        for batch in self._loader:
            if isinstance(batch, str):
                raise InputError(batch)
            yield batch
            assert this == self._passes, "a loader serves one pass at a time"

    def close(self) -> None:
        """End the worker processes; the loader cannot be used again."""
        self._loader = None


@dataclass(frozen=True)
class _Request:
    draws: NDArray[np.int64]
    view: View
    seed: int
    epoch: int


# An unreadable file travels as its message: an exception would arrive wrapped in the worker's traceback.
_Batch = tuple[Tensor, Tensor] | str


class _Requests(Sampler[_Request]):
    """What the workers are to do next: requests carry all that changes, since workers keep the first pass's state."""

    def __init__(self) -> None:
        self.items: Iterator[_Request] = iter(())

    def __iter__(self) -> Iterator[_Request]:
        return self.items


class _Decoder(Dataset[_Batch]):
    """Turns a request into a batch; runs in the workers."""

    def __init__(self, index: Index, size: int, resize: int) -> None:
        self._index, self._size, self._resize = index, size, resize

    def __getitem__(self, request: _Request) -> _Batch:
        draws = request.draws
        assert not len(draws) or draws.min() >= 0, "order holds unknown positions"
        numbers = uniforms(request.seed + _CROP_STREAM, request.epoch, draws, CROP_UNIFORMS)
        images = np.empty((len(draws), 3, self._size, self._size), np.uint8)
        try:
            for slot, position in enumerate(draws % len(self._index)):
                choose = functools.partial(self._box, request.view, numbers[slot])
                images[slot] = reader.read_crop(self._index.file(position), choose, self._size)
        except InputError as error:
            return str(error)
        return torch.from_numpy(images), torch.from_numpy(draws)

    def _box(self, view: View, u: NDArray[np.float64], width: int, height: int) -> reader.Box:
        if view == "resized_crop":
            return crop_box(width, height, u)
        if view == "center_crop":
            return reader.center_window(width, height, self._resize, self._size)
        scaled_width, scaled_height = reader.scaled_size(width, height, self._resize)
        left, top = int(u[0] * (scaled_width - self._size + 1)), int(u[1] * (scaled_height - self._size + 1))
        return reader.window(width, height, self._resize, self._size, left, top)


def _ignore_foreign_sigterm(_: int) -> None:
    """Leave it to the parent when a worker ends.

    SLURM and torchrun send SIGTERM to every process of a job. The parent answers by saving its state, for which it
    may need its workers; a worker that died of the signal would instead raise in the middle of the step. The parent's
    own SIGTERM still counts, and workers notice by themselves when the parent is gone.
    """
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
