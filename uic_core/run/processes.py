"""The processes that work in a folder for another one, and what to do with those that outlive it. Imports no torch.

Every process inherits a mark in its environment: the process it works for, and the folder. So a stage is found by whom
it belongs to, whatever its number, and nobody else's process is touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from uic_core.errors import InputError

_MARK = "UIC_WORKS_FOR"
_PROC = Path("/proc")
_WAIT = 600.0
"""Seconds for stages to save where they are."""


class Process(NamedTuple):
    """A process of this machine: its number, its parent's, its arguments."""

    number: int
    parent: int
    arguments: list[str]


def mark(folder: Path) -> None:
    """Mark all processes that this one starts from now on: they work for it, in `folder`."""
    own = os.getpid()
    os.environ[_MARK] = f"{socket.gethostname()}:{own}:{started(own)}:{folder.resolve()}"


def started(number: int | str) -> str:
    """Return when a process began, in ticks of the machine's clock: with its number it means no other one.

    '' if there is none.
    """
    fields = _fields(number)
    return fields[19] if fields else ""


def orphans(folder: Path) -> Iterator[Process]:
    """Yield the processes here that work in `folder` for one that is gone."""
    for each in _PROC.glob("[0-9]*"):
        try:
            environment = os.fsdecode((each / "environ").read_bytes()).split("\0")
            arguments = os.fsdecode((each / "cmdline").read_bytes()).split("\0")[:-1]
        except OSError:
            continue  # ended meanwhile, or somebody else's
        marks = [entry.partition("=")[2] for entry in environment if entry.startswith(f"{_MARK}=")]
        fields = _fields(each.name)
        for host, number, start, where in (entry.split(":", 3) for entry in marks if entry.count(":") >= 3):
            here = host == socket.gethostname() and where == str(folder.resolve())
            if fields and here and started(number) != start:
                yield Process(int(each.name), int(fields[1]), arguments)


def end_orphans(folder: Path, say: Callable[[str], None]) -> None:
    """End the orphans of a folder by SIGTERM, on which a stage saves its state, and wait until they are gone.

    Raises:
        InputError: one of them goes on for ten minutes.
    """
    told: set[int] = set()
    deadline = time.monotonic() + _WAIT
    while left := list(orphans(folder)):
        stages = {each.number for each in left if any(part.startswith("uic_core.") for part in each.arguments)}
        for each in left:
            # torchrun hands the signal on; decoding processes must work until their stage has saved
            if each.number in stages - told and each.parent not in stages:
                say(
                    f"ending process {each.number}, which a killed one left; it saves first: {' '.join(each.arguments)}"
                )
                told.add(each.number)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.number, signal.SIGTERM)
        if time.monotonic() > deadline:
            numbers = " ".join(str(each.number) for each in left)
            raise InputError(f"{folder}: processes that a killed one left do not end; end them: kill -9 {numbers}")
        time.sleep(0.2)


def _fields(number: int | str) -> list[str]:
    """Return /proc/<number>/stat from the state on (man 5 proc); empty if there is no such process."""
    try:
        return (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
