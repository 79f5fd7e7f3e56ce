"""Several processes as one: torchrun's group, each rank's share of a batch, and what they tell each other.

One process alone is a group of one; nothing here then costs anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from uic_core.errors import InputError, stage

_PR_SET_PDEATHSIG = 1
# The others wait while rank 0 clusters features, or writes to a slow disk. Of one that has died torchrun tells them.
_PATIENCE = datetime.timedelta(hours=3)


@contextlib.contextmanager
def group(device: torch.device) -> Iterator[Ranks]:
    """Join torchrun's process group, or be alone: nccl between GPUs, gloo between CPUs."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    # Where torchrun is killed its processes would go on, and write what the next ones write.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        # The message first: what comes below may take a while, or torchrun's end.
        with stage():
            yield Ranks(dist.get_rank(), world)
    except BaseException as error:
        if device.type == "cuda":  # nccl leaves a group together, and the others are still at work
            if not isinstance(error, SystemExit):
                traceback.print_exception(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int
    world: int

    def bounds(self, images: int, batch_size: int) -> list[tuple[int, int]]:
        """Where the batches of an epoch begin and end, [(first, last)], over all ranks.

        Every rank gets equally many images of a batch, at least two, which batch norm needs: of the last, smaller
        batch the few that do not divide are left out.

        Raises:
            InputError: a whole batch does not divide, or leaves a rank a single image.
        """
        if batch_size % self.world or batch_size < 2 * self.world:
            raise InputError(
                f"batch_size: {batch_size} images do not divide over {self.world} processes, two or more to each; "
                "change the recipe's batch_size, or the number of processes"
            )
        whole = images - images % batch_size
        tail = images % batch_size // self.world * self.world
        starts = list(range(0, whole, batch_size))
        batches = [(start, start + batch_size) for start in starts]
        if tail >= 2 * self.world:
            batches.append((whole, whole + tail))
        if not batches:
            raise InputError(f"images: {images} are too few for {self.world} processes, two or more to each")
        return batches

    def share(self, first: int, last: int, origin: int) -> slice:
        """This rank's part of the batch [first, last), counted from `origin`."""
        size = (last - first) // self.world
        start = first - origin + self.rank * size
        return slice(start, start + size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the ranks; batch norm's statistics are those of rank 0."""
        if self.world == 1:
            return network
        ids = [torch.cuda.current_device()] if next(network.parameters()).is_cuda else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)

    def align(self, network: nn.Module) -> None:
        """Rank 0's batch norm statistics for all."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def changed(self, before: int) -> str:
        """For the line that a stage goes on with: whether it is another number of processes than before."""
        return "" if before == self.world else f", with {self.world} processes where there were {before}"

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def add(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def sum(self, values: NDArray[np.int32], device: torch.device) -> None:
        """Sum of an array over the ranks, in place."""
        if self.world > 1:
            tensor = torch.from_numpy(values).to(device)
            dist.all_reduce(tensor)
            values[:] = tensor.cpu().numpy()

    def gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """The rows of all ranks, `counts` of each, one rank's below the other's."""
        if self.world == 1:
            return rows
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def agree(self, values: list[int], device: torch.device) -> bool:
        """Whether all ranks have the same integers."""
        if self.world == 1:
            return True
        ends = torch.tensor([values, [-value for value in values]], device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return bool((ends[0] == -ends[1]).all())

    def broadcast(self, values: NDArray[np.int32], device: torch.device) -> None:
        """Rank 0's array for all, in place."""
        if self.world > 1:
            tensor = torch.from_numpy(values).to(device)
            dist.broadcast(tensor, 0)
            values[:] = tensor.cpu().numpy()

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks(0, 1)
