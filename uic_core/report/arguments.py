"""Arguments that several stages of the report have. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class _Recipes(argparse.Action):
    """Collects `run=hash` in a dictionary."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        words: Sequence[str] = values
        if odd := [word for word in words if word.count("=") != 1]:
            raise argparse.ArgumentError(self, f"'{odd[0]}' is not run=hash")
        setattr(namespace, self.dest, dict(word.split("=") for word in words))


class _Stale(argparse.Action):
    """Collects `reason file …` in a dictionary: path → reason."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        reason, *files = values
        setattr(namespace, self.dest, getattr(namespace, self.dest) | {Path(file): reason for file in files})


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Add --scale: what the numbers are: the paper's experiments, a demo's, or those of another study."""
    parser.add_argument("--scale", choices=("demo", "paper", "study"), required=True)


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Add --recipes, which becomes a dictionary: run → hash of its recipe in the config."""
    parser.add_argument(
        "--recipes", nargs="*", action=_Recipes, default={}, metavar="RUN=HASH",
        help="recipes of the config: what is of another recipe is not shown",
    )  # fmt: skip


def add_partial(parser: argparse.ArgumentParser) -> None:
    """Add --partial, and --stale, which becomes a dictionary: path → why what is in it is not shown."""
    parser.add_argument("--partial", action="store_true", help="leave out what is missing, and say why")
    parser.add_argument(
        "--stale", nargs="+", action=_Stale, default={}, metavar=("REASON", "FILE"),
        help="files that are to be made again: what is in them is not shown, and that is why",
    )  # fmt: skip
