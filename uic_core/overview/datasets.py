"""`make check-data`: check every data set of a config without starting the workflow. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from uic_core.arguments import stage_parser
from uic_core.config import CONFIG_HELP, Config, read
from uic_core.data.check import check
from uic_core.errors import InputError, stage


def verdicts(config: Config, processes: int) -> dict[str, tuple[bool, str]]:
    """Return for each data set whether it is complete, and what was found, or what is wrong and where to get it."""
    found: dict[str, tuple[bool, str]] = {}
    for name in config.datasets.names:
        dataset = config.datasets.one(name)
        if dataset.generated and not Path(dataset.section.root).exists():
            found[name] = (True, f"{dataset.section.root}: not there yet; the workflow generates it\n")
            continue
        try:
            found[name] = (True, check(dataset, processes))
        except InputError as error:
            found[name] = (False, f"{error}\n")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print what is there and what is missing; exit with status 2 if anything is missing."""
    parser = stage_parser("uic_core.overview.datasets", __doc__)
    parser.add_argument("--config", type=Path, nargs="+", required=True, help=CONFIG_HELP)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="processes that decode VOC's images")
    options = parser.parse_args(arguments)
    with stage():
        config = read(options.config)
        found = verdicts(config, options.threads)
        for name, (whole, text) in found.items():
            print(f"{name}: {'ok' if whole else 'MISSING'}")
            print("".join(f"  {line}\n" for line in text.splitlines()), end="")
        sys.exit(0 if all(whole for whole, _ in found.values()) else 2)


if __name__ == "__main__":
    main()
