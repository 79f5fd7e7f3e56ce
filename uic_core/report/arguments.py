"""Arguments that several stages of the report have. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Add --scale: what the numbers are: the paper's experiments, a demo's, or those of another study."""
    parser.add_argument("--scale", choices=("demo", "paper", "study"), required=True)


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Add --recipes, which becomes a dictionary: run → hash of its recipe in the config."""
    parser.add_argument(
        "--recipes", nargs="*", action=_Recipes, default={}, metavar="RUN=HASH",
        help="recipes of the config: what is of another recipe is not shown",
    )  # fmt: skip
