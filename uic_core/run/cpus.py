"""The CPUs of a job: one runs the stage, the others decode images."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from uic_core.run.signals import ignore_interrupts


def workers(threads: int) -> int:
    """Number of decoding processes for this process: its share of the job's CPUs minus the one it runs on."""
    return max(0, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def sharing(workers: int, batch: int) -> int:
    """Number of decoding processes whose batches fit into /dev/shm, where torch's DataLoader passes them.

    If /dev/shm is full, a process dies of SIGBUS. Prints a line if not all fit. 0: decode in this process.

    Args:
        workers: number wanted for this process.
        batch: bytes of one batch. A worker holds three: two decoded ahead and one in use.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except OSError:
        return workers
    fitting = min(workers, int(0.8 * free) // (3 * batch))
    if fitting < workers:
        print(
            f"/dev/shm has room for {fitting} of {workers} decoding processes: give the container more "
            f"(docker run --shm-size {3 * batch * workers * 5 // 4 // 2**20 + 1}m), or wait longer",
            flush=True,
        )
    return fitting


@contextlib.contextmanager
def pool(processes: int, method: str = "fork") -> Iterator[ProcessPoolExecutor]:
    """Yield processes for independent work. On an error or Ctrl-C they end what they are at, and begin nothing more.

    Args:
        processes: at least one is started.
        method: how they start, as in multiprocessing.
    """
    executor = ProcessPoolExecutor(
        max(1, processes), multiprocessing.get_context(method), initializer=ignore_interrupts
    )
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
