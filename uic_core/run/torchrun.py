"""torchrun without its tracebacks: the stage has said what is wrong, or what it saved.

    python -m uic_core.run.torchrun --standalone --nproc-per-node 4 -m -- uic_core.pretrain …

Ends with the status of the process that ended first; with 128 and the signal's number if it got a signal.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(arguments: list[str] | None = None) -> None:
    """Run torchrun; say in one line which process was killed."""
    for name in logging.root.manager.loggerDict:  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(arguments))
    except SignalException as error:  # passed on, and the processes have ended
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: process {rank} was ended by {failure.signal_name()}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)


if __name__ == "__main__":
    main()
