"""The CPUs of a job: one for the stage itself, the others decode images."""

from __future__ import annotations

import argparse
import os
import shutil


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add `--threads`, the CPUs of this job, to a stage's arguments.

    One is the stage's own, each further one decodes images. No setting of the config: numbers do not depend on it, so
    another machine reruns nothing.
    """
    parser.add_argument(
        "--threads", type=int, default=1, help="CPUs of this job; all but one decode images in processes of their own"
    )


def workers(threads: int) -> int:
    """Decoding processes of this process: its part of the job's CPUs, but for the one that it runs on itself."""
    return max(0, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def sharing(workers: int, batch: int) -> int:
    """Decoding processes whose batches fit into /dev/shm, through which torch's DataLoader hands them over.

    Where it is full a process dies of SIGBUS. What does not fit is said; 0: decode in this process.

    Args:
        workers: wanted, of this process.
        batch: bytes of one batch; a worker is two ahead, and one is in use.
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
