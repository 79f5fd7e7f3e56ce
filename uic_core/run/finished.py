"""Finished results under further names, so that no stage is run twice for the same files.

Snakemake removes the files of a job before it starts, and again if it failed, even if it was killed in the seconds
after its stage had ended. The next job of the same settings and data puts them back. Code and packages may have changed
since: these rerun nothing (docs/changing.md), and results name those that made them.

The further names are hard links, which take no space while the file is there. Results of other settings stay: a try of
an hour in the same folder costs no training of weeks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uic_core.files import DAMAGED, atomic, sha256, write_json
from uic_core.run import metrics

if TYPE_CHECKING:  # the workflow imports this module, and no torch
    from uic_core.run.parallel import Ranks

_WHAT = "what.json"  # beside the links: what the results were made from


def folder(file: Path) -> Path:
    """The folder beside a result by which it is found again: a folder of links for all that it was once made from."""
    return file.with_name(f".{file.stem}.finished")


def _place(file: Path, identity: dict[str, Any]) -> Path:
    return folder(file) / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def keep(results: Sequence[Path], identity: dict[str, Any]) -> None:
    """Keep a finished stage's results. Called on rank 0, before the stage's state is removed.

    Args:
        results: files of different names; the links lie beside the first.
        identity: what they were made from, as JSON: recipe or protocol, data, start.
    """
    kept = _place(results[0], identity)
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True, exist_ok=True)  # NFS may keep the folder of a file that a process still reads
    for file in results:
        _link(file, kept / file.name)
    hashes = {file.name: sha256(file) for file in results}
    write_json(kept / _WHAT, {"identity": identity, "sha256": hashes})


def put_back(
    results: Sequence[Path], identity: dict[str, Any], ranks: Ranks, say: Callable[[str], None],
    read: Callable[[Path], object] = metrics.read,
) -> bool:  # fmt: skip
    """Put results back that an earlier process of this identity finished. Called on all ranks.

    Args:
        read: reads the first of the results. What it refuses, as from an earlier version, is made again.

    Returns:
        False, and nothing is changed, if there are none, or if no file of them is missing.
    """
    return ranks.any(not ranks.rank and _put_back(results, identity, say, read))


def forget(file: Path) -> None:
    """Let a result that is there be made again, although an earlier process finished it; those of others stay."""
    for kept in folder(file).glob(f"*/{file.name}"):
        if kept.samefile(file) or sha256(kept) == sha256(file):
            shutil.rmtree(kept.parent, ignore_errors=True)


def _put_back(
    results: Sequence[Path], identity: dict[str, Any], say: Callable[[str], None], read: Callable[[Path], object]
) -> bool:
    if all(file.exists() for file in results):
        return False
    kept = _place(results[0], identity)
    try:
        what = json.loads((kept / _WHAT).read_text())
        if what["identity"] != json.loads(json.dumps(identity)):
            return False
        if any(sha256(kept / file.name) != what["sha256"][file.name] for file in results):
            return False
        read(kept / results[0].name)
    except DAMAGED:
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
