"""The one exception for mistakes in what the user gave us, and how a stage tells the user. Imports no torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """A config, file or data set is wrong.

    The message names the file (or config key), what is wrong with it, and the remedy. A traceback is left for our own
    mistakes.
    """


class Interrupted(Exception):
    """The process was asked to end (SIGTERM, SIGUSR1) and has saved its state: run the same command again."""


INTERRUPTED = 75
"""Exit status of an interrupted stage: EX_TEMPFAIL of sysexits.h, try again later."""


@contextlib.contextmanager
def stage() -> Iterator[None]:
    """Wrap a stage's `main`: a user's mistake becomes `error: …` on stderr and exit status 2, no traceback.

    An interrupted stage says what it saved and exits with INTERRUPTED.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as reason:
        print(f"interrupted: {reason}", file=sys.stderr)
        sys.exit(INTERRUPTED)
