"""`make clean RESULTS=1`: remove the results of generated data sets; those of real ones are kept. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from uic_core.arguments import stage_parser
from uic_core.data.dataset import demand_kind
from uic_core.errors import InputError, stage
from uic_core.files import hold, holder

_MADE = {
    ".lock", "README.md", "benchmarks", "data", "export", "figures", "index", "index.html", "logs", "made_from.json",
    "metrics", "proposals", "protocols", "report.html", "runs", "tables", "times.html",
}  # fmt: skip
"""What the workflow and `make demo` put into a results folder."""


def clean(top: Path) -> Iterator[str]:
    """Remove what was made of generated data sets in a results folder, and in results folders inside it.

    Yields:
        A line for what was removed from a folder, and for each thing that is kept.

    Raises:
        InputError: a Snakemake works in one of them; nothing was removed then.
    """
    made = {top} if any((top / name).exists() for name in _MADE) else set()
    made |= {path.parent.parent for path in top.rglob("data/*.yaml")} | {path.parent for path in top.rglob(".lock")}
    folders = sorted(made, reverse=True)  # those inside come first
    for folder in folders:
        if told := holder(folder):
            raise InputError(f"{folder}: {told} works in it; wait for its end, or stop it")
    kept = {folder: reason for folder in folders if (reason := _refusal(folder))}
    cleaned = [folder for folder in folders if folder not in kept]
    for folder in cleaned:
        hold(folder)
    for folder in cleaned:
        removed = []
        # Without descriptions of its data sets a folder would be kept: they go last, if the removal is interrupted.
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == "data", path.name)):
            if path in folders or path.name == ".gitignore":
                continue
            if path.name not in _MADE:
                yield f"kept: {path}: the workflow did not make it"
            elif any(each.is_relative_to(path) for each in kept):
                yield f"kept: {path}: a folder that is kept lies in it"
            else:
                _remove(path)
                removed.append(path.name)
        yield f"removed from {folder}: {', '.join(sorted(removed))}"
        if folder != top and not any(folder.iterdir()):
            folder.rmdir()
    for reason in kept.values():
        yield f"kept: {reason}"
    if not folders:
        yield f"{top}: nothing to remove"


def _refusal(folder: Path) -> str:
    """Why a results folder is kept; '' if it is of generated data sets."""
    remedy = "remove it by hand if you want to"
    if not any(folder.glob("data/*.yaml")):
        return f"{folder} does not say of which data sets it is (data/*.yaml); {remedy}"
    try:
        demand_kind(folder, True, remedy)
    except InputError as error:
        return str(error)
    return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def main(arguments: list[str] | None = None) -> None:
    """Remove the results of generated data sets; print what was removed, and what is kept and why."""
    parser = stage_parser("uic_core.overview.clean", main.__doc__)
    parser.add_argument("--results", type=Path, required=True, help="a results folder, or one that holds some")
    options = parser.parse_args(arguments)
    with stage():
        for line in clean(options.results):
            print(line)


if __name__ == "__main__":
    main()
