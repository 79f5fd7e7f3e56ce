"""Finished results under further names, so that no stage is run twice for the same files.

Snakemake removes the files of a job that failed, even if it was killed in the seconds after its stage had ended. The
next job of the same settings, code and packages puts them back. The further names are hard links, which
take no space.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uic_core.files import atomic, sha256, write_json
from uic_core.run.metrics import versions

if TYPE_CHECKING:  # the workflow imports this module, and no torch
    from uic_core.run.parallel import Ranks

_WHAT = "what.json"  # beside the links: what the results were made from


def folder(file: Path) -> Path:
    """The folder of links beside a result, by which it is found again."""
    return file.with_name(f".{file.stem}.finished")


def keep(results: Sequence[Path], identity: dict[str, Any]) -> None:
    """Keep a finished stage's results. Called on rank 0, before the stage's state is removed.

    Args:
        results: files of different names; the links lie beside the first.
        identity: what they were made from, as JSON: recipe or protocol, data, start.
    """
    kept = folder(results[0])
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for file in results:
        _link(file, kept / file.name)
    hashes = {file.name: sha256(file) for file in results}
    write_json(kept / _WHAT, _made_from(identity) | {"sha256": hashes})


def put_back(results: Sequence[Path], identity: dict[str, Any], ranks: Ranks, say: Callable[[str], None]) -> bool:
    """Put results back that an earlier process of this identity, code and packages finished. Called on all ranks.

    Returns:
        False, and nothing is changed, if there are none, or if no file of them is missing.
    """
    return ranks.any(not ranks.rank and _put_back(results, identity, say))


def forget(file: Path) -> None:
    """Let a result be made again, although an earlier process finished it."""
    shutil.rmtree(folder(file), ignore_errors=True)


def _put_back(results: Sequence[Path], identity: dict[str, Any], say: Callable[[str], None]) -> bool:
    if all(file.exists() for file in results):
        return False
    kept = folder(results[0])
    try:
        what = json.loads((kept / _WHAT).read_text())
        hashes = what.pop("sha256")
        if what != _made_from(identity) or any(sha256(kept / file.name) != hashes[file.name] for file in results):
            return False
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    for file in results:
        _link(kept / file.name, file)
    say(
        f"{results[0]}: an earlier process finished this, and it was removed since: it is put back. To make it again, "
        f"remove {kept}"
    )
    return True


def _link(file: Path, place: Path) -> None:
    """Make a file known under another name, too, or copy it where the file system cannot; replaces what is there."""
    with atomic(place) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copy2(file, temporary)


def _made_from(identity: dict[str, Any]) -> dict[str, Any]:
    return {"identity": json.loads(json.dumps(identity)), "code": _code(), "versions": versions()}


@functools.cache
def _code() -> str:
    """SHA-256 of this package's code."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(f"{file.relative_to(Path(__file__).parents[1])}\0".encode() + file.read_bytes())
    return found.hexdigest()
