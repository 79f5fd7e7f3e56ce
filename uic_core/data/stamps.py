"""Sizes and times of a data set's files, kept beside its index or its check: a file that changes later is noticed.

They are no part of the index: a copy of the data set may have other times and the same content. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uic_core.errors import InputError
from uic_core.files import DAMAGED, atomic, stamp, write_json

SWITCH = "UIC_CHECK_FILES"
"""Environment variable; "0" skips the comparison. The workflow sets it from datasets.check_files."""

_THREADS = 16  # network file systems answer many requests at once
_CHUNK = 4096
_SHOWN = 3
_GONE = [-1, -1]


def beside(made: Path) -> Path:
    """The file of the sizes and times that belong to an index or to what the stage `check` wrote."""
    return made.with_suffix(".files.npy")


def changed(made: Path) -> str:
    """The remedy for changed files of a data set; `made` is the index or what the stage `check` wrote."""
    return (
        f"put the old files back; or, if only their times changed, delete {made} and make it alone: "
        f"snakemake … {made}; or, if the new files are meant, delete it and run snakemake: what read the old ones is "
        "made again; datasets.check_files: false skips this comparison"
    )


def save(made: Path, files: Sequence[str]) -> None:
    """Keep the sizes and times that files have now, beside `made`."""
    with atomic(beside(made)) as temporary:
        np.save(temporary, _stamps(files))


def fingerprint(made: Path, listed: str, content: str) -> str:
    """Return the fingerprint of a data set whose files hold what was first seen under their names and sizes: `listed`.

    Other images of the same names and sizes have another one, and the old images again have the old one.

    Args:
        made: the index, or what the stage `check` writes; what was first seen is kept beside it, also when it is
            deleted and made again.
        listed: fingerprint of paths, labels and sizes.
        content: fingerprint of all bytes.
    """
    file = made.with_suffix(".first.json")
    try:
        first = {str(key): str(value) for key, value in json.loads(file.read_text(encoding="utf-8")).items()}
    except DAMAGED:
        first = {}
    if listed not in first:
        write_json(file, first | {listed: content})
        return listed
    if first[listed] == content:
        return listed
    return hashlib.sha256(f"{listed} {content}".encode()).hexdigest()[:16]


def line(made: Path, name: str, listed: str, content: str) -> str:
    """Note the `fingerprint` of a list in the text that the stage `check` writes."""
    return f"fingerprint of {name}: {fingerprint(made, listed, content)}\nlisted as, {name}: {listed}\n"


def noted(made: Path | None, name: str, start: str = "fingerprint of ") -> str:
    """Return the fingerprint of a list as the stage `check` noted it; '' if it did not, or made no file."""
    try:
        lines = made.read_text(encoding="utf-8").splitlines() if made else []
    except (OSError, ValueError):
        return ""
    return next((each.rpartition(" ")[2] for each in lines if each.startswith(f"{start}{name}: ")), "")


def by_content(made: Path | None, name: str, listed: str) -> str:
    """Return the fingerprint that the stage `check` noted of a list, if its files are still listed as `listed`.

    Else return `listed`: the check has not seen these files, or none was made, or an earlier version made it.
    """
    return noted(made, name) if noted(made, name, "listed as, ") == listed else listed


def verify(made: Path | None, files: Sequence[str], remedy: str = "") -> None:
    """Compare files with what `save` kept of them, if it did: earlier versions of this suite kept nothing.

    Args:
        made: None compares nothing.
        files: the same files as for `save`, in the same order.
        remedy: what to do if a file has changed; default `changed`.

    Raises:
        InputError: a file has another size or time, or is gone; names the first few. Or the kept numbers are damaged.
    """
    if made is None or os.environ.get(SWITCH) == "0" or not beside(made).exists():
        return
    remedy = remedy or changed(made)
    try:
        kept = np.load(beside(made), allow_pickle=False)
        if kept.dtype != np.int64 or kept.shape != (len(files), 2):
            raise ValueError(f"{kept.dtype} {list(kept.shape)}, not int64 [{len(files)}, 2]")
    except DAMAGED as error:
        raise InputError(
            f"{beside(made)}: is damaged, or the image lists changed since it was made ({error}); {remedy}"
        ) from error
    now = _stamps(files)
    rows = np.flatnonzero((now != kept).any(axis=1))
    if len(rows):
        shown = ", ".join(f"{files[row]} ({_difference(kept[row], now[row])})" for row in rows[:_SHOWN])
        raise InputError(
            f"{len(rows)} of {len(files)} files changed since {made} was made of them: "
            f"{shown}{', …' * (len(rows) > _SHOWN)}; {remedy}"
        )


def _stamps(files: Sequence[str]) -> NDArray[np.int64]:
    """Return the size in bytes and the time of the last change in ns of every file, int64 [N, 2]; -1 if it is gone."""
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [each for chunk in pool.map(_stat, chunks) for each in chunk]
    return np.array(found, np.int64).reshape(-1, 2)


def _stat(files: Sequence[str]) -> list[list[int]]:
    return [stamp(file) or _GONE for file in files]


def _difference(kept: NDArray[np.int64], now: NDArray[np.int64]) -> str:
    if now.tolist() == _GONE:
        return "is gone"
    if kept[0] != now[0]:
        return f"{kept[0]} bytes then, {now[0]} now"
    when = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each / 1e9)) for each in (kept[1], now[1]))
    return "written {}, then {}".format(*when)
