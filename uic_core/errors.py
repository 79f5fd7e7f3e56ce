"""Exceptions for user mistakes and interruptions, and how a stage reports them. Imports no torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """A config, file or data set is wrong.

    The message names the file (or config key), what is wrong with it, and the remedy. Only bugs of this suite show a
    traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())  # file names may be no UTF-8


class Interrupted(Exception):
    """The process got SIGTERM or SIGUSR1 and has saved its state. The same command resumes it."""


INTERRUPTED = 75
"""Exit status of an interrupted stage: EX_TEMPFAIL of sysexits.h (try again later)."""


@contextlib.contextmanager
def stage() -> Iterator[None]:
    """Wrap a stage's `main`: an InputError prints `error: …` to stderr and exits with status 2, without traceback.

    An interrupted stage prints what it saved and exits with INTERRUPTED.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as reason:
        print(f"interrupted: {reason}", file=sys.stderr)
        sys.exit(INTERRUPTED)
