"""The signals that end a stage."""

from __future__ import annotations

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C in a helper process: it reaches every process, and the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Signals:
    """Records SIGTERM, SIGUSR1 and SIGINT instead of dying of them.

    SLURM sends the first two before it ends a job, and Ctrl-C the last.
    """

    def __init__(self) -> None:
        self.caught: str | None = None

    def __enter__(self) -> Signals:
        self._process = os.getpid()
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.caught = signal.Signals(number).name
        elif number == signal.SIGTERM:  # in a forked process, which has no state to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # USR1 and Ctrl-C reach all processes of a job. Those that decode ignore both until the state is saved.
