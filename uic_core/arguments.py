"""The arguments of a stage: its parser, and those that several stages have. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def stage_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a module that is run as `python -m module`: its usage can be typed."""
    return argparse.ArgumentParser(prog=f"python -m {module}", description=description)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add `--threads`, the number of CPUs of this job (see `cpus.workers`), to a stage's arguments.

    One CPU runs the stage, each further one decodes images. It is not a config setting because results do not depend
    on it: nothing is rerun on another machine.
    """
    parser.add_argument(
        "--threads", type=int, default=1, help="CPUs of this job; all but one decode images in processes of their own"
    )


def add_save_every(parser: argparse.ArgumentParser) -> None:
    """Add `--save-every`, for a `Saver`."""
    parser.add_argument("--save-every", type=float, default=300, help="seconds between saved states")


def add_checked(parser: argparse.ArgumentParser) -> None:
    """Add `--checked`, for `stamps.verify`."""
    parser.add_argument("--checked", type=Path, help="what the stage check wrote: no file may have changed")
