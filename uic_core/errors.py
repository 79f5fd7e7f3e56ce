"""Exceptions for user mistakes and interruptions, and how a stage reports them. Imports no torch."""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import NoReturn


class InputError(ValueError):
    """A config, file or data set is wrong.

    The message names the file (or config key), what is wrong with it, and the remedy. Only bugs of this suite show a
    traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())  # file names may be no UTF-8


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean '…'? " with the known name that resembles a wrong one most; '' if none is known."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"did you mean '{near[0]}'? " if near else ""


class Interrupted(Exception):
    """The process got SIGTERM, SIGUSR1 or SIGINT; the message says what is saved. The same command goes on."""


def is_full(error: Exception) -> bool:
    """True if the disk was full. numpy and safetensors report that in the message only, without an errno."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    texts = rf"os error ({'|'.join(map(str, _FULL))})\b|\d+ requested and \d+ written"
    return bool(re.search(texts, str(error)))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ACCESS = "get the right to use it, or name another place in the config"
_BROKEN = "its disk or network failed: run the same command again once it works"
_IN_PLACE = "move away what is in its place, or name another place in the config"
_OF_THE_SYSTEM = {
    errno.EACCES: _ACCESS, errno.EPERM: _ACCESS, errno.EROFS: _ACCESS, errno.EIO: _BROKEN, errno.ESTALE: _BROKEN,
    errno.ENOTDIR: _IN_PLACE, errno.EISDIR: _IN_PLACE, errno.ELOOP: _IN_PLACE, errno.EEXIST: _IN_PLACE,
    errno.EMFILE: "too many files are open in this process; raise the limit: ulimit -n 4096",
}  # fmt: skip
"""The remedies for what the system refuses, whatever a stage does with a file. EEXIST is a dead link, for a folder."""

_MEMORY = "give the job more memory (mem_mb), or let it use fewer processes (--threads)"
_GPU_MEMORY = (
    "lower batch_size in the recipe or protocol; a training, linear_probe, detection or segmentation may get more GPUs "
    "instead (gpu, under set-resources in the profile)"
)
_NO_MEMORY = re.compile("can't allocate memory|not enough memory|Cannot allocate memory")  # torch's, of a CPU
_NO_GPU_MEMORY = re.compile("CUDA.{,20}out of memory|STATUS_ALLOC_FAILED", re.IGNORECASE)  # NCCL's and cuDNN's, too

INTERRUPTED = 75
"""Exit status of an interrupted stage: EX_TEMPFAIL of sysexits.h (try again later)."""


@contextlib.contextmanager
def stage() -> Iterator[None]:
    """Wrap a stage's `main`: an InputError prints `error: …` to stderr and exits with status 2, without traceback.

    An interrupted stage prints what it saved and exits with INTERRUPTED. A process that ran out of memory, a full disk,
    a file that the system refuses and Ctrl-C before anything could be saved are one line, too: none of them is a bug.
    What it prints is escaped where the output takes ASCII alone: no sign may end a stage after its work.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except InputError as error:
        _end(2, f"error: {error}")
    except Interrupted as reason:
        # once for all processes of torchrun
        _end(INTERRUPTED, f"interrupted: {reason}" if os.environ.get("RANK", "0") == "0" else "")
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT, "interrupted: SIGINT; what was saved before is kept, run the same command again")
    except BrokenProcessPool:
        _end(1, f"error: a process of this stage was killed; {_MEMORY}")
    except MemoryError as error:  # numpy's too
        _end_full("memory", error, _MEMORY)
    except RuntimeError as error:
        if _NO_GPU_MEMORY.search(str(error)):
            _end_full("the GPU's memory", error, _GPU_MEMORY)
        if _NO_MEMORY.search(str(error)):
            _end_full("memory", error, _MEMORY)
        # a process that ended, or one that could not allocate /torch_… in /dev/shm
        lost = re.search(r"\ADataLoader worker \(pid.*|unable to .*</torch_.*", str(error))
        if not lost:
            raise
        free = shutil.disk_usage("/dev/shm").free >> 20
        _end(
            1,
            f"error: a decoding process ended ({lost[0].rstrip(' .')}): {free} MB are free in /dev/shm; give the "
            f"container more (docker run --shm-size), or {_MEMORY}",
        )
    except OSError as error:
        remedy = _OF_THE_SYSTEM.get(error.errno or 0)
        if remedy and error.filename:
            _end(2, f"error: {error.filename}: {error.strerror}; {remedy}")
        if error.errno == errno.ENOMEM:
            _end_full("memory", error, _MEMORY)
        if not is_full(error):
            raise
        full = error.filename or "a disk, or /dev/shm"  # a semaphore and an open file have no name
        _end(1, f"error: {full}: is full; free some space and run the same command again")


def _end_full(what: str, error: Exception, remedy: str) -> NoReturn:
    """End with what is full and, by the message's first sentences, what was asked for."""
    asked = ". ".join(str(error).partition("\n")[0].split(". ")[:3]).rstrip(".")
    _end(1, f"error: {what} is full{f' ({asked})' if asked else ''}; {remedy}")


def _end(status: int, line: str) -> NoReturn:
    """End with a line on stderr."""
    if line:
        print(line, file=sys.stderr)
    sys.exit(status)
