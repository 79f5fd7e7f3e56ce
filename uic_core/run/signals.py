"""The signals that end a stage."""

from __future__ import annotations

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """Notes SIGTERM and SIGUSR1, which SLURM sends before it ends a job, instead of dying of them."""

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
        elif number == signal.SIGTERM:  # a process forked from this one, which has no state to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # USR1 reaches all of a job's processes; one that decodes for this one must still do so while it saves.
