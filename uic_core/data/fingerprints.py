"""Fingerprints of an index's files, and the CRC-32 of each, which an index holds. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uic_core.errors import InputError
from uic_core.files import DAMAGED, remake


def contents(path: Path) -> NDArray[np.uint32] | None:
    """Return the CRC-32 of every file of an index, uint32 [N]; None if an earlier version made it.

    Raises:
        InputError: the index is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "crcs" not in arrays:
                return None
            crcs: NDArray[np.uint32] = arrays["crcs"]
            if crcs.dtype != np.uint32 or crcs.shape != arrays["labels"].shape:
                raise ValueError(f"crcs are {crcs.dtype} {list(crcs.shape)}")
            return crcs
    except DAMAGED as error:
        raise InputError(f"{path}: is not an index ({error}); {remake(path)}") from error


def digest_of(crcs: NDArray[np.uint32]) -> str:
    """Return a fingerprint of all files' bytes, 16 hex digits."""
    return hashlib.sha256(crcs.astype("<u4").tobytes()).hexdigest()[:16]


def content_of(path: Path) -> str:
    """Return the fingerprint of all files' bytes; '' if an earlier version made the index. Raises as `contents`."""
    crcs = contents(path)
    return "" if crcs is None else digest_of(crcs)


def subset_fingerprint(fingerprint: str, total: int, count: int, seed: int) -> str:
    """Return the fingerprint of `Index.subset(count, seed)` of an index of `total` images with this fingerprint."""
    if count in (0, total):
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {count} {seed}".encode()).hexdigest()[:16]
