"""torchrun without its tracebacks: the stage has said what is wrong, or what it saved.

    python -m uic_core.run.torchrun --standalone --nproc-per-node 4 -m -- uic_core.pretrain …

Ends with the status of the process that ended first; with 128 and the signal's number if it got a signal. After
a signal its processes have ten minutes to save.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SAVING = 600
"""Seconds that the processes have to save after a signal. SLURM may end the job sooner."""

_close = SubprocessContext._close


def main(arguments: list[str] | None = None) -> None:
    """Run torchrun; say in one line which process was killed."""
    for name in logging.root.manager.loggerDict:  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    SubprocessContext._close = _close_saved  # type: ignore[assignment, method-assign]
    try:
        run.run(run.parse_args(arguments))
    except SignalException as error:  # passed on, and the processes have ended
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: process {rank} was ended by {failure.signal_name()}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)


def _close_saved(context: SubprocessContext, death_sig: signal.Signals, timeout: int = 30) -> None:
    """End the processes. torch tells them to, and kills those that still run `timeout` seconds later.

    After a signal one process saves, perhaps for longer, and the others wait for it. Once any process has ended, the
    others have `timeout` seconds: they may be waiting for it in vain.
    """
    processes = [handler.proc for handler in context.subprocess_handlers.values()]
    if processes and isinstance(sys.exc_info()[1], SignalException):
        for number in (signal.SIGTERM, signal.SIGINT):  # another one would end this process, and with it the others
            signal.signal(number, signal.SIG_IGN)
        for process in processes:
            process.send_signal(death_sig)
        _wait(lambda: any(process.poll() is not None for process in processes), SAVING)
        _wait(lambda: all(process.poll() is not None for process in processes), timeout)
    _close(context, death_sig, timeout)


def _wait(over: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not over() and time.monotonic() < end:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
