"""The loader turns positions into uint8 batches on the training device. Its worker processes live as long as it does.

A batch depends only on (seed, epoch, image) and the view, never on the number of workers.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import queues
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from uic_core.data import reader
from uic_core.data.augment import CROP_UNIFORMS, SCALE, crop_box
from uic_core.data.crop import crop
from uic_core.data.index import Index
from uic_core.errors import InputError
from uic_core.run import cpus
from uic_core.run.randomness import Stream, uniforms
from uic_core.run.signals import ignore_interrupts

View = Literal["resized_crop", "random_crop", "center_crop"]

_NOT_REGISTERED = 713  # cudaErrorHostMemoryNotRegistered
_AHEAD = 2  # batches requested from each worker in advance
_HELD = 2  # batches that the consumer has, including the last one


class Loader:
    """Square crops of an index's images.

    Args:
        size: side S of the crops, pixels.
        resize: shorter side before random and centre crops, pixels, ≥ size.
        batch_size: largest number of images in a batch.
        workers: decoding processes; 0 decodes in this one. They start with the first batch and end with `close`.
        device: where the batches are put.
        scale: shares of an image that a resized_crop takes.
    """

    def __init__(
        self,
        index: Index,
        size: int,
        resize: int,
        batch_size: int,
        workers: int,
        device: torch.device | None = None,
        scale: tuple[float, float] = SCALE,
    ) -> None:
        assert size <= resize, f"a crop of {size} does not fit into a shorter side of {resize}"
        self._batch_size, self._device = batch_size, device or torch.device("cpu")
        self._slots = _Slots(_AHEAD * workers + _HELD, batch_size, size, self._device)
        self._requests = _Requests(self._slots)
        self._passes = 0
        self._loader: DataLoader[_Answer] | None = DataLoader(
            _Decoder(index, size, resize, scale, self._slots.images),
            batch_size=None,  # a request is a whole batch
            sampler=self._requests,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_foreign_sigterm,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else each pass would advance the global generator that dropout uses
        )

    def batches(
        self, order: NDArray[np.int64], view: View, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Yield the images of `order`, in this order; the last batch may be smaller.

        resized_crop: torchvision's RandomResizedCrop. random_crop: shorter side to `resize`, then a random crop.
        center_crop: the same with the centre crop; seed and epoch do not matter.
        Only one pass at a time; a pass may be abandoned early.

        Args:
            order: positions in the index, each any number of times, shape [n]. With N images, position + N·r
                (r = 1, 2, …) requests another view of the same image.

        Yields:
            (uint8 [B, 3, S, S] on the device, channels last; their part of the order, int64 [B]). On the CPU the
            next batch may overwrite the images: clone them to keep them.

        Raises:
            InputError: an image cannot be read; names the file.
        """
        order, size = np.asarray(order, np.int64), self._batch_size
        return self.stream((order[start : start + size] for start in range(0, len(order), size)), view, seed, epoch)

    def stream(
        self, batches: Iterable[NDArray[np.int64]], view: View, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Like `batches`, but each batch's part of the order is made when a worker is free to decode it.

        Args:
            batches: parts of an order, int64 [B] each, B <= batch_size; requested a few batches ahead.
        """
        assert self._loader is not None, "the loader is closed"
        self._passes += 1
        this = self._passes
        self._requests.items = ((draws, view, seed, epoch) for draws in batches)
        for answer in self._loader:
            if isinstance(answer, str):
                raise InputError(answer)
            slot, draws = answer
            yield self._slots.take(slot, len(draws)), draws
            assert this == self._passes, "a loader serves one pass at a time"

    def close(self) -> None:
        """End the worker processes; the loader cannot be used again."""
        self._loader = None
        self._slots.close()


def answers(decoder: Dataset[Any], requests: Sequence[Any], workers: int, largest: int) -> Iterator[Any]:
    """Yield a decoder's answers to requests, in order; for evaluations, whose batches have their own formats.

    Args:
        decoder: maps a request to a whole batch, on the CPU, or to the text of an error.
        workers: decoding processes; 0 decodes in this one.
        largest: bytes of the largest batch; the workers pass batches through /dev/shm.

    Raises:
        InputError: an answer is an error's text.
    """
    loader: DataLoader[Any] = DataLoader(
        decoder,
        batch_size=None,  # a request is a whole batch
        sampler=requests,  # type: ignore[arg-type]  # any sized iterable works
        num_workers=cpus.sharing(workers, largest),
        worker_init_fn=ignore_foreign_sigterm,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # leaves the caller's global generator unchanged
    )
    for answer in loader:
        if isinstance(answer, str):
            raise InputError(answer)
        yield answer


class _Slots:
    """Slots of memory, used in turn: workers decode into them and the device copies from them.

    The memory is shared with the workers, so no batch is copied between processes. It is registered with the GPU's
    driver, so the GPU copies batches while the CPU goes on. It is anonymous: /dev/shm is small in many containers.

    Attributes:
        images: uint8 [slots, batch_size, S, S, 3].
    """

    def __init__(self, count: int, batch_size: int, size: int, device: torch.device) -> None:
        shape = (count, batch_size, size, size, 3)
        memory = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8)
        self.images = torch.from_numpy(memory).view(shape)
        self._device = device
        self._copied: dict[int, torch.cuda.Event] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.images.data_ptr(), self.images.numel(), 0))

    def take(self, slot: int, count: int) -> Tensor:
        """Return the first `count` images of a slot, on the device."""
        images = self.images[slot, :count].permute(0, 3, 1, 2)
        if self._device.type == "cpu":
            return images
        if self._stream is None:
            return images.to(self._device)
        # On its own stream the copy runs in parallel with the previous step.
        with torch.cuda.stream(self._stream):
            images = images.to(self._device, non_blocking=True)
            self._copied[slot] = torch.cuda.Event()
            self._copied[slot].record()
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(self._copied[slot])
        images.record_stream(consumer)
        return images

    def free(self, slot: int) -> None:
        """Wait until a slot may be written to again."""
        if slot in self._copied:
            self._copied.pop(slot).synchronize()

    def close(self) -> None:
        """Wait for the last copies and unregister the memory."""
        for slot in list(self._copied):
            self.free(slot)
        if self._stream is not None:
            self._stream = None
            code = int(torch.cuda.cudart().cudaHostUnregister(self.images.data_ptr()))
            if code != _NOT_REGISTERED:
                torch.cuda.check_error(code)
                return
            # An H200's driver once said that the memory was not registered; why is not known. It does no harm: all
            # copies from it have ended (above), and what is not registered need not be let go. But CUDA reports the
            # error once more, at the next kernel: here. Any other error comes again, at the synchronisation.
            with contextlib.suppress(RuntimeError):
                torch.zeros((), device=self._device)
            torch.cuda.synchronize(self._device)


@dataclass(frozen=True)
class _Request:
    slot: int
    draws: NDArray[np.int64]
    view: View
    seed: int
    epoch: int


# A slot and its part of the order. An unreadable file is returned as a message: an exception would arrive wrapped in
# the worker's traceback.
_Answer = tuple[int, NDArray[np.int64]] | str


class _Requests(Sampler[_Request]):
    """The workers' next requests. They carry everything that changes, as workers keep the state of the first pass."""

    def __init__(self, slots: _Slots) -> None:
        self.items: Iterator[tuple[NDArray[np.int64], View, int, int]] = iter(())
        self._slots = slots

    def __iter__(self) -> Iterator[_Request]:
        for number, item in enumerate(self.items):
            slot = number % len(self._slots.images)
            self._slots.free(slot)
            yield _Request(slot, *item)


class _Decoder(Dataset[_Answer]):
    """Fills the slot of a request; runs in the workers."""

    def __init__(self, index: Index, size: int, resize: int, scale: tuple[float, float], slots: Tensor) -> None:
        self._index, self._size, self._resize, self._scale, self._slots = index, size, resize, scale, slots

    def __getitem__(self, request: _Request) -> _Answer:
        draws = request.draws
        assert not len(draws) or draws.min() >= 0, "order holds unknown positions"
        assert len(draws) <= self._slots.shape[1], "a batch is larger than the loader's batch_size"
        numbers = uniforms(request.seed + Stream.CROPS, request.epoch, draws, CROP_UNIFORMS)
        images = self._slots[request.slot]
        try:
            for row, position in enumerate(draws % len(self._index)):
                choose = functools.partial(self._box, request.view, numbers[row])
                pixels, box = self._index.read_part(position, choose, self._size)
                crop(pixels, box, images[row])
        except InputError as error:
            return str(error)
        return request.slot, draws

    def _box(self, view: View, u: NDArray[np.float64], width: int, height: int) -> reader.Box:
        if view == "resized_crop":
            return crop_box(width, height, u, self._scale)
        if view == "center_crop":
            return reader.center_window(width, height, self._resize, self._size)
        scaled_width, scaled_height = reader.scaled_size(width, height, self._resize)
        left, top = int(u[0] * (scaled_width - self._size + 1)), int(u[1] * (scaled_height - self._size + 1))
        return reader.window(width, height, self._resize, self._size, left, top)


def _as_it_is(answer: Any) -> Any:
    """Keep arrays: DataLoader would make tensors of them, each in its own shared memory."""
    return answer


def ignore_foreign_sigterm(_: int) -> None:
    """Make a worker ignore Ctrl-C, and SIGTERM unless its parent sends it; end it if it cannot pass a batch on.

    SLURM and torchrun send SIGTERM to every process of a job. The parent then saves its state and may need its
    workers for that; a worker killed by the signal would raise an error in the middle of the step. Workers notice by
    themselves when the parent is gone. The parent notices a worker's end, but would wait for a lost batch for ever.
    """
    parent = os.getppid()
    ignore_interrupts()
    queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _end(error: Exception, _: object) -> None:
    """End a worker whose batch does not fit into /dev/shm."""
    print(f"a decoding process cannot pass its batch on: {error}", file=sys.stderr, flush=True)
    os._exit(1)
