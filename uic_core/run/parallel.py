"""Data parallelism: torchrun's process group, each rank's share of a batch, and collective operations.

A single process is a group of one, for which these operations cost nothing.
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
# The others wait while rank 0 clusters features or writes to a slow disk. torchrun, not this limit, handles dead ranks.
_PATIENCE = datetime.timedelta(hours=3)


@contextlib.contextmanager
def group(device: torch.device) -> Iterator[Ranks]:
    """Join torchrun's process group: nccl between GPUs, gloo between CPUs. A single process joins none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    # If torchrun is killed, its processes would otherwise run on and write the same files as the next ones.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        # Print the error first: the code below may take a while, and torchrun may kill this process in the meantime.
        with stage():
            yield Ranks(dist.get_rank(), world)
    except BaseException as error:
        if device.type == "cuda":  # all ranks must leave an nccl group together, but the others are still working
            if not isinstance(error, SystemExit):
                traceback.print_exception(error)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def demand_one(rule: str) -> None:
    """Demand a single process, in a stage that shares no work: each of several would do, and write, all of it.

    Raises:
        InputError: torchrun has started several; names the rule and the remedy.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise InputError(
            f"{rule} runs on one GPU, not in {world} processes; write set-resources: {{{rule}: {{gpu: 1}}}} "
            "into the profile, and no more than one where it has gres or nodes"
        )


@dataclass(frozen=True)
class Ranks:
    """This process's rank and the number of processes."""

    rank: int
    world: int

    def bounds(self, images: int, batch_size: int) -> list[tuple[int, int]]:
        """Bounds [(first, last)] of the batches of an epoch, over all ranks.

        Every rank gets equally many images of a batch and at least two, because batch norm needs two. The images of
        the smaller last batch that do not divide evenly are dropped.

        Raises:
            InputError: a full batch does not divide evenly or gives a rank a single image; or too few images.
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
        """This rank's part of the batch [first, last), as a slice relative to `origin`."""
        size = (last - first) // self.world
        start = first - origin + self.rank * size
        return slice(start, start + size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that gradients are averaged over the ranks; batch norm uses the statistics of rank 0."""
        if self.world == 1:
            return network
        ids = [torch.cuda.current_device()] if next(network.parameters()).is_cuda else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)

    def align(self, network: nn.Module) -> None:
        """Copy rank 0's batch norm statistics to all ranks."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def changed(self, before: int) -> str:
        """Text for the resume message if the number of processes has changed since `before`, else ''."""
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

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on a rank."""
        device = "cuda" if self.world > 1 and dist.get_backend() == "nccl" else "cpu"
        return bool(self.add(torch.tensor(float(flag), device=device)))

    def sum_array(self, values: NDArray[np.int32], device: torch.device) -> None:
        """Sum of an array over the ranks, in place."""
        if self.world > 1:
            tensor = torch.from_numpy(values).to(device)
            dist.all_reduce(tensor)
            values[:] = tensor.cpu().numpy()

    def gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Concatenate the rows of all ranks, in rank order. `counts` holds the number of rows per rank."""
        if self.world == 1:
            return rows
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def agree(self, values: list[int], device: torch.device) -> bool:
        """True if all ranks have the same integers."""
        if self.world == 1:
            return True
        ends = torch.tensor([values, [-value for value in values]], device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return bool((ends[0] == -ends[1]).all())

    def broadcast(self, values: NDArray[np.int32], device: torch.device) -> None:
        """Copy rank 0's array to all ranks, in place."""
        if self.world > 1:
            tensor = torch.from_numpy(values).to(device)
            dist.broadcast(tensor, 0)
            values[:] = tensor.cpu().numpy()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks(0, 1)
